//! Which rule decides for which tensor, and what became of its wish.

use serde::{Deserialize, Serialize};
use shardwright_format::arch::Inventory;
use shardwright_format::manifest::Excerpt;
use shardwright_format::model::LayerSpec;
use shardwright_format::{Decoder, Role, SourceView, TensorEntry, Unit};
use shardwright_quant::{Encoding, EncodingError, Float, Method, Objective, Zeros};

use crate::error::{ConvertError, Result};
use crate::recipe::{EncodingSpec, Fallback, Recipe, Roles, Rule};

/// A rule and what it matched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleMatch {
    /// Its position in the recipe, from 1, with what it is about: `3 (lm_head)`.
    pub rule: String,
    /// What it asks for.
    pub encoding: String,
    /// How codes are chosen.
    pub method: Method,
    /// Tensors that it decided for.
    pub tensors: u64,
    /// Weights in them.
    pub weights: u64,
    /// Bytes they take in the bundle.
    pub bytes: u64,
}

/// A tensor that could not be stored as wished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackUsed {
    /// Name in the checkpoint; `{expert}` stands for each expert's number.
    pub tensor: String,
    /// What it is for.
    pub role: Role,
    /// Tensors of that name.
    pub tensors: u64,
    /// What the rule asks for.
    pub wanted: String,
    /// How it is stored.
    pub used: String,
    /// Why.
    pub reason: String,
}

/// A matrix that stays in 16 or 32 bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnquantizedMatrix {
    /// Name in the checkpoint; `{expert}` stands for each expert's number.
    pub tensor: String,
    /// What it is for.
    pub role: Role,
    /// How it is stored.
    pub encoding: String,
    /// Bytes it takes in the bundle, all experts together.
    pub bytes: u64,
    /// Why.
    pub reason: String,
}

/// A tensor whose codes the bundle takes over from the checkpoint as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repacked {
    /// Name in the checkpoint; `{expert}` stands for each expert's number.
    pub tensor: String,
    /// What it is for.
    pub role: Role,
    /// Tensors of that name.
    pub tensors: u64,
    /// How the checkpoint holds it.
    pub source: String,
    /// How the bundle does.
    pub encoding: String,
}

/// What all choices together came to.
pub struct Resolution {
    pub repacked: Vec<Repacked>,
    pub rules: Vec<RuleMatch>,
    pub fallbacks: Vec<FallbackUsed>,
    pub leftovers: Vec<UnquantizedMatrix>,
}

/// How one tensor is stored.
pub struct Chosen {
    encoding: Encoding,
    pub rounding: Rounding,
}

/// How a tensor's codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    pub method: Method,
    pub zeros: Zeros,
}

impl Chosen {
    /// The tensor as it will be stored, not placed yet.
    pub fn tensor(&self, tensor: &TensorEntry) -> TensorEntry {
        TensorEntry { encoding: self.encoding, offset: 0, ..tensor.clone() }
    }
}

/// Applies a recipe tensor by tensor and keeps the books.
pub struct Resolver<'a> {
    recipe: &'a Recipe,
    /// Layers of the checkpoint, by which rules count.
    layers: u32,
    /// Experts of each layer.
    experts: Vec<u32>,
    /// The layers in hand, where not all.
    excerpt: Option<Excerpt>,
    /// Whether something is known of the inputs of matrices.
    calibrated: bool,
    resolution: Resolution,
}

impl<'a> Resolver<'a> {
    pub fn new(recipe: &'a Recipe, inventory: &Inventory, calibrated: bool) -> Self {
        let rules = recipe.rules.iter().enumerate().map(|(i, rule)| RuleMatch {
            rule: describe(i, rule),
            encoding: rule.encoding.to_string(),
            method: method_of(rule, calibrated),
            tensors: 0,
            weights: 0,
            bytes: 0,
        });
        let resolution = Resolution {
            rules: rules.collect(),
            fallbacks: Vec::new(),
            leftovers: Vec::new(),
            repacked: Vec::new(),
        };
        let excerpt = inventory.excerpt;
        let layers = excerpt.map_or(inventory.spec.layers.len() as u32, |excerpt| excerpt.of);
        let experts = inventory
            .spec
            .layers
            .iter()
            .map(LayerSpec::num_experts)
            .collect();
        Self { recipe, layers, experts, excerpt, calibrated, resolution }
    }

    /// Decides for a tensor of the text model, or for those that `count` experts have alike, `unit` the first.
    pub fn choose(&mut self, unit: Unit, tensor: &TensorEntry, count: u32) -> Result<Chosen> {
        let name = || tensor.in_unit(unit).source.tensor;
        let Some(at) = self.rule_for(unit, tensor) else {
            return Err(self.refuse(format!(
                "no rule matches tensor `{}` ({})",
                name(),
                tensor.role
            )));
        };
        self.apply(at, tensor, count)?.ok_or_else(|| {
            let label = describe(at, &self.recipe.rules[at]);
            self.refuse(format!(
                "rule {label} leaves out tensor `{}` ({}), which the text model needs; only vision, \
                 mtp and indexer can be left out",
                name(),
                tensor.role
            ))
        })
    }

    /// Decides for a tensor that is not the text model's: none where it is left out, as it is
    /// unless a rule names its role.
    pub fn choose_extra(&mut self, unit: Unit, tensor: &TensorEntry) -> Result<Option<Chosen>> {
        match self.rule_for(unit, tensor) {
            Some(at) => self.apply(at, tensor, 1),
            None => Ok(None),
        }
    }

    /// What rule `at` makes of `count` tensors alike; none where it leaves them out.
    fn apply(&mut self, at: usize, tensor: &TensorEntry, count: u32) -> Result<Option<Chosen>> {
        let view = &tensor.source;
        let rule = &self.recipe.rules[at];
        // All experts' vectors may lie in one tensor.
        let vector = view.shape.len() < 2 || (tensor.rows == 1 && tensor.role.is_expert());
        let count = u64::from(count);
        let encoding = match rule.encoding {
            wanted if vector && wanted.is_codes() => Some(view.dtype.into()),
            wanted => match self.own_codes(wanted, rule.zeros, tensor) {
                Some(encoding) => Some(self.record_repacked(tensor, encoding, count)),
                None => wanted.resolve(view.storage_dtype(), self.recipe.scale_dtype),
            },
        };
        let Some(encoding) = encoding else {
            let found = &mut self.resolution.rules[at];
            found.tensors += count;
            found.weights += count * tensor.rows * tensor.cols;
            return Ok(None);
        };
        let encoding = match encoding.parts(tensor.rows, tensor.cols) {
            Err(EncodingError::Columns { group_size, cols }) => {
                let what =
                    if matches!(encoding, Encoding::Ggml(_)) { "block" } else { "group size" };
                let reason = format!("{what} {group_size} does not divide {cols} columns");
                self.fall_back(at, reason, tensor, count)?
            }
            Err(EncodingError::Rotation(cols)) => {
                let reason = format!("a trellis cannot rotate {cols} columns, no multiple of 16");
                self.fall_back(at, reason, tensor, count)?
            }
            _ => encoding,
        };
        self.count(at, tensor, encoding, count)?;
        let method = match method_of(rule, self.calibrated) {
            // No text goes through what is not the text model.
            method if tensor.role.is_extra() => method.given(Objective::Weights),
            method => method,
        };
        if method.given(Objective::Weights) != method
            && !self.calibrated
            && encoding.float().is_none()
        {
            return Err(ConvertError::NeedsCalibration {
                recipe: self.recipe.name.clone(),
                rule: describe(at, rule),
                method: method.name(),
            });
        }
        let rounding = Rounding { method, zeros: rule.zeros };
        Ok(Some(Chosen { encoding, rounding }))
    }

    /// The encoding that the source's codes are in, where a rule wishes for codes of as many bits:
    /// they are taken over in groups of their own size, and nothing is lost. Those of three values are
    /// whatever codes it wishes for: more bits would hold no more, fewer there are none. Such as no rule makes must
    /// not take more than what this one wishes for.
    fn own_codes(
        &self,
        wanted: EncodingSpec,
        zeros: Zeros,
        tensor: &TensorEntry,
    ) -> Option<Encoding> {
        let own = tensor.source.codes(tensor.cols)?;
        let foreign = is_of_sources_alone(own);
        if !takes_over(zeros, &tensor.source) || foreign && !self.recipe.takes_over.has(own) {
            return None;
        }
        let ternary = matches!(tensor.source.decoder, Some(Decoder::Ternary { .. }));
        let same = match (wanted, own) {
            (EncodingSpec::Affine { .. } | EncodingSpec::Trellis(_), _) if ternary => true,
            (EncodingSpec::Affine { bits, group_size, .. }, _) if foreign => {
                let most = f64::from(bits) + 32.0 / f64::from(group_size);
                own.code_bits() == Some(bits) && own.bits_per_weight() <= most
            }
            (EncodingSpec::Affine { bits, .. }, Encoding::Affine(affine)) => bits == affine.bits(),
            (EncodingSpec::Ggml(wanted), Encoding::Ggml(blocks)) => wanted == blocks,
            (EncodingSpec::Trellis(wanted), Encoding::Trellis(trellis)) => {
                wanted.bits() == trellis.bits()
            }
            _ => false,
        };
        same.then_some(own)
    }

    fn record_repacked(
        &mut self,
        tensor: &TensorEntry,
        encoding: Encoding,
        count: u64,
    ) -> Encoding {
        let view = &tensor.source;
        self.resolution.repacked.push(Repacked {
            tensor: view.tensor.clone(),
            role: tensor.role,
            tensors: count,
            source: view
                .decoder
                .as_ref()
                .map(Decoder::label)
                .unwrap_or_default(),
            encoding: encoding.label(),
        });
        encoding
    }

    /// Those of `experts` for which the same rules decide, in groups; each has `tensors`.
    pub fn groups(&self, layer: u32, tensors: &[TensorEntry], experts: &[u32]) -> Vec<Vec<u32>> {
        let unit = |expert| Unit::Expert { layer, expert };
        let rules: Vec<_> = tensors
            .iter()
            .map(|t| self.rules_for(unit(0), t.role))
            .collect();
        let apart = |at: &usize| self.recipe.rules[*at].matches.is_of_some_experts();
        if !rules.iter().flatten().any(apart) {
            return vec![experts.to_vec()];
        }
        let mut groups: Vec<(Vec<Option<usize>>, Vec<u32>)> = Vec::new();
        for &expert in experts {
            let each = tensors.iter().zip(&rules);
            let first = each.map(|(tensor, rules)| self.first_of(rules, unit(expert), tensor));
            let first: Vec<_> = first.collect();
            match groups.iter_mut().find(|(known, _)| *known == first) {
                Some((_, experts)) => experts.push(expert),
                None => groups.push((first, vec![expert])),
            }
        }
        groups.into_iter().map(|(_, experts)| experts).collect()
    }

    /// The first rule that matches a unit's tensor, if any does.
    fn rule_for(&self, unit: Unit, tensor: &TensorEntry) -> Option<usize> {
        self.first_of(&self.rules_for(unit, tensor.role), unit, tensor)
    }

    /// Rules that are about a role of a unit's layer, about some experts or names or all of them.
    fn rules_for(&self, unit: Unit, role: Role) -> Vec<usize> {
        let first = self.excerpt.map_or(0, |excerpt| excerpt.first);
        let layer = unit.layer().map(|layer| layer + first);
        let rules = self.recipe.rules.iter().enumerate();
        let held = rules.filter(|(_, rule)| rule.matches.holds(role, layer, self.layers));
        held.map(|(at, _)| at).collect()
    }

    /// The first of `rules` that holds for a unit's expert and name.
    fn first_of(&self, rules: &[usize], unit: Unit, tensor: &TensorEntry) -> Option<usize> {
        let expert = match unit {
            Unit::Expert { expert, .. } => Some(expert),
            _ => None,
        };
        let experts = unit.layer().map_or(0, |layer| self.experts[layer as usize]);
        let holds = |at: &&usize| {
            let matches = &self.recipe.rules[**at].matches;
            matches.holds_expert(expert, experts)
                && (matches.name.is_none()
                    || matches.holds_name(&tensor.in_unit(unit).source.tensor))
        };
        rules.iter().find(holds).copied()
    }

    fn refuse(&self, detail: impl std::fmt::Display) -> ConvertError {
        ConvertError::plan(format!("recipe `{}`: {detail}", self.recipe.name))
    }

    /// The first fallback of a rule that can hold the tensor. What is not the text model has all
    /// kinds of shapes, and is kept as it is where none can.
    fn fall_back(
        &mut self,
        at: usize,
        reason: String,
        tensor: &TensorEntry,
        count: u64,
    ) -> Result<Encoding> {
        let view = &tensor.source;
        let rule = &self.recipe.rules[at];
        let smaller = match rule.encoding {
            EncodingSpec::Ggml(blocks) => blocks.smaller().map(Encoding::Ggml),
            _ => None,
        };
        let encodings = rule.fallback.iter().map(|fallback| {
            let wanted = match *fallback {
                Fallback::Group(group) => rule.encoding.with_group(group),
                Fallback::Encoding(wanted) => wanted,
            };
            wanted.resolve(view.storage_dtype(), self.recipe.scale_dtype)
        });
        let fits = |e: &Encoding| e.parts(tensor.rows, tensor.cols).is_ok();
        let kept = tensor.role.is_extra().then(|| view.dtype.into());
        let Some(encoding) = smaller
            .into_iter()
            .chain(encodings.flatten())
            .find(fits)
            .or(kept)
        else {
            let why =
                if rule.fallback.is_empty() { "names no fallback" } else { "names none that does" };
            return Err(self.refuse(format!(
                "tensor `{}` ({}): {reason}, and rule {} {why}",
                view.tensor,
                tensor.role,
                describe(at, rule)
            )));
        };
        self.resolution.fallbacks.push(FallbackUsed {
            tensor: view.tensor.clone(),
            role: tensor.role,
            tensors: count,
            wanted: rule.encoding.to_string(),
            used: encoding.label(),
            reason,
        });
        Ok(encoding)
    }

    fn count(
        &mut self,
        at: usize,
        tensor: &TensorEntry,
        encoding: Encoding,
        count: u64,
    ) -> Result<()> {
        let view = &tensor.source;
        let parts = encoding.parts(tensor.rows, tensor.cols);
        let bytes = parts
            .map_err(|e| self.refuse(format!("tensor `{}`: {e}", view.tensor)))?
            .total();
        let found = &mut self.resolution.rules[at];
        found.tensors += count;
        found.weights += count * tensor.rows * tensor.cols;
        found.bytes += count * bytes;
        if let (Some(float), true) = (encoding.float(), view.shape.len() > 1) {
            self.resolution.leftovers.push(UnquantizedMatrix {
                tensor: view.tensor.clone(),
                role: tensor.role,
                encoding: encoding.label(),
                bytes: count * bytes,
                reason: self.why_left(at, float),
            });
        }
        Ok(())
    }

    fn why_left(&self, at: usize, float: Float) -> String {
        let rule = &self.recipe.rules[at];
        let label = describe(at, rule);
        match rule.encoding {
            EncodingSpec::Keep => format!("rule {label} keeps it"),
            EncodingSpec::Float(_) => format!("rule {label} asks for {}", float.name()),
            EncodingSpec::LeaveOut
            | EncodingSpec::Affine { .. }
            | EncodingSpec::Trellis(_)
            | EncodingSpec::Ggml(_) => format!("fallback of rule {label}"),
        }
    }

    /// The books, once every tensor is decided.
    ///
    /// # Errors
    /// A rule that matched nothing, unless it is optional; an excerpt may lack what it is for.
    pub fn finish(self) -> Result<Resolution> {
        let rules = self.recipe.rules.iter().zip(&self.resolution.rules);
        let unused = rules
            .clone()
            .find(|(rule, found)| found.tensors == 0 && !rule.optional);
        match unused.filter(|_| self.excerpt.is_none()) {
            Some((_, found)) => {
                Err(self.refuse(format!("rule {} matches nothing in this checkpoint", found.rule)))
            }
            None => Ok(self.resolution),
        }
    }
}

/// Whether codes of a source are such as no rule makes, small floats or affine ones with scales of 32 bits.
fn is_of_sources_alone(encoding: Encoding) -> bool {
    match encoding {
        Encoding::Affine(affine) => affine.scale_dtype() == Float::F32,
        Encoding::Minifloat(_) => true,
        _ => false,
    }
}

/// Whether the codes of a source are known to have such biases. Those of three values have their zero
/// at 1.
pub fn takes_over(zeros: Zeros, source: &SourceView) -> bool {
    match source.decoder {
        Some(Decoder::Packed { zero_points: None, .. }) => true,
        Some(Decoder::Ternary { .. }) => zeros != Zeros::Symmetric,
        _ => zeros == Zeros::Float,
    }
}

/// How a rule's codes are chosen: as it says, else as well as can be.
fn method_of(rule: &Rule, calibrated: bool) -> Method {
    let best = if calibrated { Method::Gptq } else { Method::Search };
    let method = rule.method.unwrap_or(best);
    let only_extras = rule.matches.role.as_ref().is_some_and(Roles::only_extras);
    if only_extras { method.given(Objective::Weights) } else { method }
}

/// A rule's position, from 1, and what it is about.
fn describe(at: usize, rule: &Rule) -> String {
    let matches = &rule.matches;
    let parts = [
        matches.role.as_ref().map(ToString::to_string),
        matches
            .layer
            .as_ref()
            .map(|layers| format!("layers {layers}")),
        matches
            .expert
            .as_ref()
            .map(|experts| format!("experts {experts}")),
        matches.name.as_ref().map(|name| format!("name {name}")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    let about = if parts.is_empty() { "everything".to_owned() } else { parts.join("; ") };
    format!("{} ({about})", at + 1)
}
