//! Engines whose containers hold only some encodings exactly, and recipes that keep to these.

use serde_json::Value;
use shardwright_format::arch::Arch;
use shardwright_format::checkpoint::flash_moe::GROUP_SIZE as PACKED_GROUP;
use shardwright_format::{Role, gguf};
use shardwright_quant::{Blocks, Float, Zeros};

use crate::error::{ConvertError, Result};
use crate::export::{Family, PACKED_ZEROS, check_packed_type};
use crate::recipe::{EncodingSpec, Fallback, Match, Recipe, Roles, Rule, TakesOver};

/// Groups of the affine codes that stand in for others.
const GROUP: u16 = 64;

/// An engine for which a bundle is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// mlx-lm, and what else reads its directories.
    Mlx,
    /// vLLM and transformers, by compressed-tensors' packed integers.
    CompressedTensors,
    /// llama.cpp, and what else reads GGUF files.
    Gguf,
    /// flash-moe, and the apps that are made of it.
    FlashMoe,
}

/// What an engine's container holds of one model exactly.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Matrices that are floats there and nothing else.
    floats: Vec<Role>,
    /// Roles that share a tensor there, and so an encoding.
    alike: Vec<Vec<Role>>,
    engine: Engine,
}

/// Matrices that vLLM fuses, and so wants in one encoding.
const FUSED: &[&[Role]] = &[
    &[Role::QProj, Role::KProj, Role::VProj],
    &[Role::GateProj, Role::UpProj],
    &[Role::SharedGateProj, Role::SharedUpProj],
    &EXPERTS,
];
const EXPERTS: [Role; 3] = [Role::ExpertGateProj, Role::ExpertUpProj, Role::ExpertDownProj];
/// Modules of transformers that are no linear layers.
const NOT_LINEAR: [Role; 4] = [Role::EmbedTokens, Role::Router, Role::DeltaConv, Role::ShortConv];

impl Limits {
    /// Those of the model that `config.json` describes.
    ///
    /// # Errors
    /// A model that the engine does not have.
    pub fn new(engine: Engine, config: &Value) -> Result<Self> {
        let model_type = config["model_type"].as_str().unwrap_or_default();
        match engine {
            Engine::CompressedTensors => {
                let arch = Arch::builtin(model_type);
                // Experts that only a stack holds are a parameter there, not modules.
                let stacked = |role: &Role| arch.as_ref().is_some_and(|a| !a.has_own_name(*role));
                let mut floats = NOT_LINEAR.to_vec();
                floats.extend(EXPERTS.into_iter().filter(stacked));
                let alike = FUSED.iter().map(|roles| roles.to_vec()).collect();
                Ok(Self { floats, alike, engine })
            }
            Engine::Mlx => {
                let family = Family::named(model_type)?;
                let arch = Arch::builtin(model_type);
                let alike = arch.map(|arch| arch.fused_roles()).unwrap_or_default();
                let alike = alike.into_iter().filter(|roles| family.shares(roles));
                Ok(Self { floats: family.float_roles(), alike: alike.collect(), engine })
            }
            Engine::FlashMoe => {
                check_packed_type(model_type)?;
                Ok(Self { floats: Vec::new(), alike: vec![EXPERTS.to_vec()], engine })
            }
            Engine::Gguf => {
                let alike = gguf::shared_roles(model_type).map_err(ConvertError::Plan)?;
                Ok(Self { floats: Vec::new(), alike, engine })
            }
        }
    }

    /// Whose they are.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether a matrix may be stored so.
    pub fn holds(&self, role: Role, wanted: EncodingSpec) -> bool {
        match wanted {
            EncodingSpec::Trellis(_) => false,
            EncodingSpec::Affine { bits, group_size, .. } if self.engine == Engine::FlashMoe => {
                (bits, group_size) == (4, PACKED_GROUP)
            }
            EncodingSpec::Ggml(_) => self.engine == Engine::Gguf,
            EncodingSpec::Affine { .. } => !self.floats.contains(&role),
            EncodingSpec::Keep | EncodingSpec::LeaveOut | EncodingSpec::Float(_) => true,
        }
    }

    /// The roles that share an encoding with this one, itself among them; none for most.
    pub fn alike(&self, role: Role) -> &[Role] {
        let mut sets = self.alike.iter();
        sets.find(|roles| roles.contains(&role))
            .map_or(&[], Vec::as_slice)
    }

    /// What stands for codes that the engine lacks: others of as many bits.
    fn held(&self, encoding: EncodingSpec) -> EncodingSpec {
        let affine = |bits| EncodingSpec::Affine { bits, group_size: GROUP, scale_dtype: None };
        match (self.engine, encoding) {
            (Engine::Gguf, EncodingSpec::Trellis(trellis)) => {
                EncodingSpec::Ggml(match trellis.bits() {
                    2 => Blocks::Q2K,
                    3 => Blocks::Q3K,
                    _ => Blocks::Q4K,
                })
            }
            (_, EncodingSpec::Trellis(trellis)) => affine(trellis.bits()),
            (
                Engine::Mlx | Engine::CompressedTensors | Engine::FlashMoe,
                EncodingSpec::Ggml(blocks),
            ) => affine(blocks.form().affine_bits()),
            (_, other) => other,
        }
    }

    /// What of a source's codes it holds that no rule makes.
    pub const fn takes_over(&self) -> TakesOver {
        match self.engine {
            Engine::Gguf => TakesOver::Mxfp4,
            Engine::Mlx => TakesOver::Mx,
            Engine::CompressedTensors | Engine::FlashMoe => TakesOver::None,
        }
    }

    /// The recipe with nothing that the engine does not hold, and a line for each thing that was changed.
    pub fn restrict(&self, mut recipe: Recipe) -> (Recipe, Vec<String>) {
        let mut changed = Vec::new();
        recipe.takes_over = self.takes_over();
        for rule in &mut recipe.rules {
            let before = rule.encoding;
            for encoding in encodings(rule) {
                *encoding = self.held(*encoding);
            }
            if rule.encoding != before {
                let smaller = [Fallback::Group(32), Fallback::Encoding(EncodingSpec::Keep)];
                rule.fallback.extend(smaller);
                changed.push(format!("{} in place of {before}, which it has not", rule.encoding));
            }
        }
        match self.engine {
            Engine::Mlx => {}
            Engine::CompressedTensors => {
                changed.extend(recipe.rules.iter_mut().filter_map(with_whole_zeros));
            }
            Engine::Gguf => changed.extend(recipe.rules.iter_mut().flat_map(as_blocks)),
            Engine::FlashMoe => return as_packed(recipe),
        }
        let coded = |role: &&Role| would_code(&recipe, **role);
        let kept: Vec<_> = self.floats.iter().filter(coded).copied().collect();
        for role in kept {
            let roles = Roles::from_role(role);
            for rule in &mut recipe.rules {
                rule.optional |= rule
                    .matches
                    .role
                    .as_ref()
                    .is_some_and(|known| known.contains(role));
            }
            changed.push(format!("{role} as floats, since it has no codes there"));
            recipe.rules.insert(0, kept_rule(roles));
        }
        changed.sort();
        changed.dedup();
        (recipe, changed)
    }
}

/// Gives a rule zeros that are codes, the middle ones where the engine has no others, and says so.
fn with_whole_zeros(rule: &mut Rule) -> Option<String> {
    let bits = affine_bits(rule);
    let any = bits.iter().all(|bits| PACKED_ZEROS.contains(bits));
    let zeros =
        if any && rule.zeros != Zeros::Symmetric { Zeros::Integer } else { Zeros::Symmetric };
    if bits.is_empty() || zeros == rule.zeros {
        return None;
    }
    rule.zeros = zeros;
    if let (Zeros::Integer, EncodingSpec::Affine { scale_dtype, .. }) = (zeros, &mut rule.encoding)
    {
        // Their products with scales of bf16 would leave those few digits.
        scale_dtype.get_or_insert(Float::F16);
    }
    let kind = if any { "whole" } else { "symmetric" };
    Some(format!("{} with {kind} zeros, as it has no others", rule.encoding))
}

/// The encodings that a rule may come to: those of its fallback, and its own.
fn encodings(rule: &mut Rule) -> impl Iterator<Item = &mut EncodingSpec> {
    let Rule { encoding, fallback, .. } = rule;
    let others = fallback.iter_mut().filter_map(|fallback| match fallback {
        Fallback::Encoding(encoding) => Some(encoding),
        Fallback::Group(_) => None,
    });
    others.chain([encoding])
}

/// The widths of the affine codes among [`encodings`].
fn affine_bits(rule: &mut Rule) -> Vec<u8> {
    let affine = |encoding: &mut EncodingSpec| match encoding {
        EncodingSpec::Affine { bits, .. } => Some(*bits),
        _ => None,
    };
    encodings(rule).filter_map(affine).collect()
}

/// Gives a rule scales of half precision and, above 4 bits, a zero in the middle; says so, and of what
/// takes more room in a file than it needs.
fn as_blocks(rule: &mut Rule) -> Vec<String> {
    let mut changed = Vec::new();
    let bits = affine_bits(rule);
    for encoding in encodings(rule) {
        let EncodingSpec::Affine { scale_dtype, .. } = encoding else { continue };
        if scale_dtype.replace(Float::F16) != Some(Float::F16) {
            changed.push("scales in f16, as it has no others".to_owned());
        }
    }
    if bits.iter().any(|bits| *bits > 4) && rule.zeros != Zeros::Symmetric {
        rule.zeros = Zeros::Symmetric;
        changed.push("more than 4 bits with symmetric zeros, as it has no others".to_owned());
    }
    let wide = |bits: u8| if bits > 4 { 8 } else { 4 };
    if let Some(bits) = bits.into_iter().find(|bits| *bits != wide(*bits)) {
        changed.push(format!("{bits} bits in blocks of {}, as it has no smaller ones", wide(bits)));
    }
    changed
}

/// The recipe with every matrix as the kernels of flash-moe have it, and what that is. Routed experts keep 2
/// bits where the recipe gives them so many; methods, and rules for other parts than the text model, stay.
fn as_packed(mut recipe: Recipe) -> (Recipe, Vec<String>) {
    let deciding = |role: Role| {
        let mut rules = recipe.rules.iter();
        rules
            .find(|rule| rule.matches.holds(role, None, 1))
            .cloned()
    };
    let expert = deciding(Role::ExpertGateProj);
    let other = deciding(Role::EmbedTokens);
    let two = |rule: &Rule| match rule.encoding {
        EncodingSpec::Affine { bits, .. } => bits == 2,
        EncodingSpec::Trellis(trellis) => trellis.bits() == 2,
        EncodingSpec::Ggml(blocks) => blocks.form().bits == 2,
        _ => false,
    };
    let bits = if expert.as_ref().is_some_and(two) { 2 } else { 4 };
    let rule = |role: Option<&str>, bits: u8, like: Option<Rule>| {
        let globs = role.map(|role| Roles::new(vec![role.to_owned()]));
        let role = globs.and_then(std::result::Result::ok);
        let scale_dtype = Some(Float::Bf16);
        let encoding = EncodingSpec::Affine { bits, group_size: PACKED_GROUP, scale_dtype };
        let method = like.and_then(|rule| rule.method);
        let fallback = vec![Fallback::Encoding(EncodingSpec::Keep)];
        let matches = Match { role, ..Match::default() };
        let (zeros, optional, note) = (Zeros::Float, true, String::new());
        Rule { matches, encoding, method, zeros, fallback, optional, note }
    };
    let extras = |rule: &Rule| rule.matches.role.as_ref().is_some_and(Roles::only_extras);
    recipe.rules.retain(extras);
    let rules = [rule(Some("expert.*"), bits, expert), rule(None, 4, other)];
    let said = rules.iter().zip(["routed experts", "all other matrices"]);
    let said = said
        .map(|(rule, what)| format!("{what} in {}", rule.encoding))
        .collect();
    recipe.rules.extend(rules);
    (recipe, said)
}

/// Whether a recipe stores some tensor of a role in codes.
fn would_code(recipe: &Recipe, role: Role) -> bool {
    for rule in &recipe.rules {
        let Match { role: roles, layer, expert, name } = &rule.matches;
        let meant = roles.as_ref().is_none_or(|roles| roles.contains(role));
        if meant && rule.encoding.is_codes() {
            return true;
        }
        if meant && layer.is_none() && expert.is_none() && name.is_none() {
            return false;
        }
    }
    false
}

fn kept_rule(roles: Roles) -> Rule {
    Rule {
        matches: Match { role: Some(roles), ..Match::default() },
        encoding: EncodingSpec::Keep,
        zeros: Zeros::Float,
        method: None,
        fallback: Vec::new(),
        optional: true,
        note: String::new(),
    }
}
