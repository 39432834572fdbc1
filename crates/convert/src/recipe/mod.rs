//! Recipes: which tensor is stored how. Ordered rules; the first that matches a tensor decides.

mod encoding;
mod pattern;

use serde::{Deserialize, Serialize};
use shardwright_format::{Refusal, Role, mismatch};
use shardwright_quant::{Encoding, Float, Method, Minifloat, Zeros};

pub use encoding::{EncodingSpec, Fallback};
pub use pattern::{NumberRange, Numbers, Roles, matches_glob};

/// Which tensor is stored how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What people call it.
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Type of scales and biases where a rule names none. When absent too: bf16 for bf16 sources,
    /// f16 for all others, so that a scale is as precise as its weights were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<Float>,
    /// Which codes of a source are taken over though no rule could have made them.
    #[serde(default, skip_serializing_if = "TakesOver::is_any")]
    pub takes_over: TakesOver,
    /// The first that matches a tensor decides.
    pub rules: Vec<Rule>,
}

/// Codes that no rule makes: small floats, and affine ones with scales of 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TakesOver {
    /// All.
    #[default]
    Any,
    /// Those of MXFP4, which llama.cpp has.
    Mxfp4,
    /// Those of MXFP4 and MXFP8, which MLX has.
    Mx,
    /// None, for engines that have none.
    None,
}

impl TakesOver {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
    fn is_any(&self) -> bool {
        *self == Self::Any
    }

    /// Whether `own`, which no rule makes, is one of them.
    pub fn has(self, own: Encoding) -> bool {
        match self {
            Self::Any => true,
            Self::Mxfp4 => own == Encoding::Minifloat(Minifloat::MXFP4),
            Self::Mx => Self::Mxfp4.has(own) || own == Encoding::Minifloat(Minifloat::MXFP8),
            Self::None => false,
        }
    }
}

/// How the tensors that match are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which tensors; all of them when empty.
    #[serde(rename = "match", default, skip_serializing_if = "Match::is_any")]
    pub matches: Match,
    /// How they are stored. Vectors (one dimension in the checkpoint) keep their type unless a
    /// float type is named here: they are never quantized.
    pub encoding: EncodingSpec,
    /// How codes are chosen. When absent: `gptq` with calibration, `search` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// What biases of affine codes may be: `float` (any number of the scales' type) when absent;
    /// `integer` for a zero among the codes, `symmetric` for the middle one. Codes that a source has
    /// are only taken over where it is known of them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub zeros: Zeros,
    /// What to try, in order, for a tensor whose columns the codes cannot hold. Without any that is
    /// an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<Fallback>,
    /// The rule may match nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
    /// Why it is so, for readers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which tensors a rule is about; every part that is present must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// What the tensor is for: names with `*`, one or a list. A rule without is about the text
    /// model: what is not part of it (`vision`, `mtp`, `indexer`) is only meant where its role is
    /// named, and left out where no rule names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Roles>,
    /// Layers: `3`, `0..4` (the end not included), `first 2`, `last 2`, one or a list. Embedding
    /// and head are in no layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Numbers>,
    /// Experts of a layer, written as layers are. What is no expert's is not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<Numbers>,
    /// The tensor's name in the checkpoint, with `*` and `?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Match {
    fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Whether role and layer hold, of `layers` in all.
    pub fn holds(&self, role: Role, layer: Option<u32>, layers: u32) -> bool {
        let meant = self
            .role
            .as_ref()
            .map_or(!role.is_extra(), |roles| roles.contains(role));
        meant
            && self
                .layer
                .as_ref()
                .is_none_or(|l| layer.is_some_and(|layer| l.contains(layer, layers)))
    }

    /// Whether it tells experts of a layer apart.
    pub const fn is_of_some_experts(&self) -> bool {
        self.name.is_some() || self.expert.is_some()
    }

    /// Whether `expert`, of `experts` in its layer, holds; none for what is no expert's.
    pub fn holds_expert(&self, expert: Option<u32>, experts: u32) -> bool {
        let holds = |numbers: &Numbers| expert.is_some_and(|e| numbers.contains(e, experts));
        self.expert.as_ref().is_none_or(holds)
    }

    /// Whether the name holds.
    pub fn holds_name(&self, name: &str) -> bool {
        self.name
            .as_ref()
            .is_none_or(|glob| matches_glob(glob, name))
    }
}

/// Why a recipe cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// It is not a recipe.
    #[error("recipe `{name}`: {detail}")]
    Malformed {
        /// Its name or path.
        name: String,
        /// The parser's word, or expected and found.
        detail: Refusal,
    },
    /// No recipe of that name is shipped.
    #[error("unknown recipe `{name}`: expected one of {}, or a path", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// `--set` was not understood.
    #[error("`{text}`: {detail}")]
    Override {
        /// What was given.
        text: String,
        /// What is wrong with it.
        detail: Refusal,
    },
}

/// Group sizes that [`Recipe::uniform`] tries where its own does not divide the columns.
const SMALLER_GROUPS: [u16; 2] = [64, 32];

/// Rules for layers that predict further tokens, where a bundle keeps them for drafts.
const PREDICTION: &str = include_str!("../../../../configs/mtp.json");

/// The recipes that are part of the program: name and text.
const BUILTIN: &[(&str, &str)] = &[
    ("q4", include_str!("../../../../configs/recipes/q4.json")),
    ("q3", include_str!("../../../../configs/recipes/q3.json")),
    ("q2", include_str!("../../../../configs/recipes/q2.json")),
    ("moe-q4", include_str!("../../../../configs/recipes/moe-q4.json")),
    ("moe-q3", include_str!("../../../../configs/recipes/moe-q3.json")),
    ("moe-q2", include_str!("../../../../configs/recipes/moe-q2.json")),
    ("moe-mixed", include_str!("../../../../configs/recipes/moe-mixed.json")),
    ("dense-q4", include_str!("../../../../configs/recipes/dense-q4.json")),
    ("dense-mixed", include_str!("../../../../configs/recipes/dense-mixed.json")),
    ("t4", include_str!("../../../../configs/recipes/t4.json")),
    ("t3", include_str!("../../../../configs/recipes/t3.json")),
    ("t2", include_str!("../../../../configs/recipes/t2.json")),
];

impl Recipe {
    /// Names of the recipes that are part of the program.
    pub fn builtin_names() -> Vec<&'static str> {
        BUILTIN.iter().map(|(name, _)| *name).collect()
    }

    /// A recipe that is part of the program.
    ///
    /// # Errors
    /// A name that is none of [`Self::builtin_names`].
    pub fn builtin(name: &str) -> Result<Self, RecipeError> {
        let found = BUILTIN.iter().find(|(known, _)| *known == name);
        let unknown =
            || RecipeError::Unknown { name: name.to_owned(), known: Self::builtin_names() };
        Self::parse(name, found.ok_or_else(unknown)?.1)
    }

    /// Reads the JSON of a recipe; `name` stands for it in errors.
    ///
    /// # Errors
    /// Anything but a recipe, an unknown role, encoding or layer range among it.
    pub fn parse(name: &str, json: &str) -> Result<Self, RecipeError> {
        let malformed = |detail: Refusal| RecipeError::Malformed { name: name.to_owned(), detail };
        let recipe: Self =
            serde_json::from_str(json).map_err(|e| malformed(e.to_string().into()))?;
        if recipe.scale_dtype == Some(Float::F32) {
            return Err(malformed(mismatch("f16 or bf16", "f32").at("scale_dtype")));
        }
        if recipe.rules.is_empty() {
            return Err(malformed(mismatch("at least one", "none").at("rules")));
        }
        Ok(recipe)
    }

    /// Every matrix in one encoding, written as in `--set`: `q4g64`. What its groups do not divide
    /// goes into smaller ones, and what none divides is kept, as a convolution of four taps. With
    /// `routers`, so are those of experts: a rounding there sends a token elsewhere, and they are a
    /// thousandth of a model's bytes.
    pub fn uniform(encoding: EncodingSpec, routers: bool) -> Self {
        let rule = |matches, encoding, fallback| Rule {
            matches,
            encoding,
            method: None,
            zeros: Zeros::Float,
            fallback,
            optional: false,
            note: String::new(),
        };
        let smaller = SMALLER_GROUPS.map(Fallback::Group);
        let fallback = smaller
            .into_iter()
            .chain([Fallback::Encoding(EncodingSpec::Keep)]);
        let mut rules = vec![rule(Match::default(), encoding, fallback.collect())];
        if routers {
            let role = Some(Roles::from_role(Role::Router));
            rules.insert(
                0,
                rule(Match { role, ..Match::default() }, EncodingSpec::Keep, Vec::new()),
            );
        }
        Self {
            name: format!("uniform {encoding}"),
            description: "Every matrix in one encoding.".to_owned(),
            scale_dtype: None,
            takes_over: TakesOver::Any,
            rules,
        }
    }

    /// Keeps layers that predict further tokens as drafts need them, behind all rules that name them. That a model
    /// has none is an error unless `optional`.
    ///
    /// # Errors
    /// None with the rules that are shipped.
    pub fn with_prediction(mut self, optional: bool) -> Result<Self, RecipeError> {
        for mut rule in Self::parse("mtp", PREDICTION)?.rules {
            rule.optional |= optional;
            self.rules.push(rule);
        }
        Ok(self)
    }

    /// Chooses codes by `method` in every rule.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.rules
            .iter_mut()
            .for_each(|rule| rule.method = Some(method));
        self
    }

    /// Restricts the biases of affine codes in every rule.
    #[must_use]
    pub fn with_zeros(mut self, zeros: Zeros) -> Self {
        self.rules.iter_mut().for_each(|rule| rule.zeros = zeros);
        self
    }

    /// Puts rules in front for `ROLE=ENCODING`, as in `expert.down_proj=q4g32`. The last of them
    /// comes first, so that it wins; a fallback, a method and zeros are those of the recipe's rules of
    /// the same role. Rules that may have lost every tensor to them become optional; an override that
    /// matches nothing stays an error.
    ///
    /// # Errors
    /// Text of another form, an unknown role or encoding.
    pub fn with_overrides(mut self, overrides: &[String]) -> Result<Self, RecipeError> {
        for text in overrides {
            let rule = self.override_rule(text)?;
            let roles = rule.matches.role.as_ref();
            for earlier in &mut self.rules {
                let shared = earlier
                    .matches
                    .role
                    .as_ref()
                    .zip(roles)
                    .is_none_or(|(a, b)| a.shares_any(b));
                earlier.optional |= shared;
            }
            self.rules.insert(0, rule);
        }
        Ok(self)
    }

    fn override_rule(&self, text: &str) -> Result<Rule, RecipeError> {
        let wrong = |detail: Refusal| RecipeError::Override { text: text.to_owned(), detail };
        let (role, encoding) = text
            .split_once('=')
            .ok_or_else(|| wrong("expected ROLE=ENCODING, as in expert.down_proj=q4g32".into()))?;
        let roles = Roles::new(vec![role.to_owned()]).map_err(wrong)?;
        let encoding = encoding.parse().map_err(wrong)?;
        let like = self.rules.iter().find(|rule| {
            rule.matches
                .role
                .as_ref()
                .is_none_or(|known| known.shares_any(&roles))
        });
        Ok(Rule {
            matches: Match { role: Some(roles), ..Match::default() },
            encoding,
            method: like.and_then(|rule| rule.method),
            zeros: like.map(|rule| rule.zeros).unwrap_or_default(),
            fallback: like.map(|rule| rule.fallback.clone()).unwrap_or_default(),
            optional: false,
            note: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_recipes_parse_and_write_back_to_the_same_value() {
        for name in Recipe::builtin_names() {
            let recipe = Recipe::builtin(name).unwrap();
            assert_eq!(recipe.name, name);
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(Recipe::parse(name, &json).unwrap(), recipe);
        }
    }

    #[test]
    fn an_unknown_recipe_names_those_there_are() {
        let error = Recipe::builtin("q5").unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown recipe `q5`: expected one of q4, q3, q2, moe-q4, moe-q3, moe-q2, moe-mixed, \
             dense-q4, dense-mixed, t4, t3, t2, or a path"
        );
    }

    #[test]
    fn wrong_recipes_are_refused_with_the_reason() {
        for (json, expected) in [
            (r#"{"name":"x","rules":[]}"#, "rules: expected at least one, found none"),
            (
                r#"{"name":"x","rules":[{"encoding":"q5g64"}]}"#,
                "bits: expected 2, 3, 4, 6 or 8, found 5",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":"int4"}]}"#,
                "encoding: expected keep, f16, bf16, f32 or like q4g64, t3s12 or q4_k (leave_out \
                 for what is not the text model), found `int4`",
            ),
            (r#"{"name":"x","rules":[{"encoding":{"bits":4}}]}"#, "missing field `group_size`"),
            (
                r#"{"name":"x","rules":[{"encoding":"t6"}]}"#,
                "bits: expected 2, 3 or 4 in a trellis, found 6",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":"t3s"}]}"#,
                "encoding: expected keep, f16, bf16, f32 or like q4g64, t3s12 or q4_k (leave_out \
                 for what is not the text model), found `t3s`",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":{"bits":3,"state_bits":11}}]}"#,
                "state_bits: expected 10, 12, 14 or 16, found 11",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":{"bits":3,"state_bits":12,"group_size":64}}]}"#,
                "a trellis has bits and state_bits and no other field",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":"t3","fallback":["leave_out"]}]}"#,
                "fallback: what a rule wants stored is not left out",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":"t3","fallback":["q5"]}]}"#,
                "fallback: bits: expected 2, 3, 4, 6 or 8, found 5",
            ),
            (
                r#"{"name":"x","rules":[{"encoding":{"bits":4,"group_size":48}}]}"#,
                "group_size: expected 32, 64 or 128, found 48",
            ),
            (
                r#"{"name":"x","rules":[{"match":{"role":"experts.*"},"encoding":"keep"}]}"#,
                "unknown role `experts.*`: expected ",
            ),
            (
                r#"{"name":"x","rules":[{"match":{"layer":"4..2"},"encoding":"keep"}]}"#,
                "expected like `3`, `0..4`, `first 2` or `last 2`, found `4..2`",
            ),
            (r#"{"name":"x","rules":[{"encoding":"keep","bits":3}]}"#, "unknown field `bits`"),
            (
                r#"{"name":"x","scale_dtype":"f32","rules":[{"encoding":"keep"}]}"#,
                "scale_dtype: expected f16 or bf16, found f32",
            ),
        ] {
            let error = Recipe::parse("x.json", json).unwrap_err().to_string();
            assert!(error.starts_with("recipe `x.json`: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn trellis_codes_are_written_in_text_or_by_their_fields() {
        let wanted = |json: &str| {
            let recipe = format!(r#"{{"name":"x","rules":[{{"encoding":{json}}}]}}"#);
            Recipe::parse("x", &recipe).unwrap().rules[0].encoding
        };
        for (json, expected) in [
            (r#""t2""#, "t2s12"),
            (r#""t3s16""#, "t3s16"),
            (r#"{"bits": 4, "state_bits": 10}"#, "t4s10"),
        ] {
            let wanted = wanted(json);
            assert_eq!(wanted.to_string(), expected);
            assert_eq!(expected.parse(), Ok(wanted));
            let fields = serde_json::to_string(&wanted).unwrap();
            assert_eq!(serde_json::from_str::<EncodingSpec>(&fields).unwrap(), wanted, "{fields}");
        }
        assert_eq!(
            serde_json::to_string(&wanted(r#""t3""#)).unwrap(),
            r#"{"bits":3,"state_bits":12}"#
        );
        let json = r#"{"name":"x","rules":[{"encoding":"t3","method":"search",
            "fallback":["q4g32:bf16",64,"t4s14","keep"]}]}"#;
        let recipe = Recipe::parse("x", json).unwrap();
        let again = Recipe::parse("x", &serde_json::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(again, recipe);
    }

    #[test]
    fn overrides_come_first_and_take_the_fallback_of_their_role() {
        let recipe = Recipe::builtin("q4").unwrap();
        let texts = ["expert.*=q2g32:bf16".to_owned(), "lm_head=keep".to_owned()];
        let recipe = recipe.with_overrides(&texts).unwrap();
        assert_eq!(recipe.rules[1].encoding.to_string(), "q2g32:bf16");
        assert_eq!(recipe.rules[1].fallback, recipe.rules[2].fallback);
        assert_eq!(recipe.rules[0].encoding, EncodingSpec::Keep);
        assert_eq!(
            recipe.rules.iter().map(|r| r.optional).collect::<Vec<_>>(),
            [false, false, true]
        );
        for (text, expected) in [
            ("lm_head", "`lm_head`: expected ROLE=ENCODING"),
            ("head=q4", "`head=q4`: unknown role `head`"),
            ("lm_head=q7", "`lm_head=q7`: bits: expected"),
        ] {
            let error = recipe
                .clone()
                .with_overrides(&[text.to_owned()])
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
