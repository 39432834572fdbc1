//! How a GGUF architecture becomes a Hugging Face checkpoint: `configs/gguf/*.json`.
//!
//! Sources: llama.cpp, `convert_hf_to_gguf.py` (what is written), `gguf-py/gguf/constants.py` and
//! `tensor_mapping.py` (names), `src/llama-model.cpp` (what is read, and its defaults).
//!
//! | member of a table | says |
//! |---|---|
//! | `architecture`, `experts` | of which files: `general.architecture`, and whether they have experts |
//! | `given` | a metadatum that files of it have; files without it are another table's |
//! | `also` | other values of `model_type` that llama.cpp writes as this architecture |
//! | `config` | key of `config.json`: see [`Origin`] |
//! | `rope` | metadata of scaled positions, the tensor of factors that stands for llama3 scaling, tensors and metadata of `longrope`, members of YaRN with the metadata that have them (`members`) and those that no metadatum has (`yarn`) |
//! | `supported` | metadata that may be absent or have one of these values, nothing else |
//! | `unused` | metadata that change nothing, and why |
//! | `further` | what names of layers that predict further tokens begin with in a checkpoint, in place of `model.layers.{layer}.`; there they count from 0 |
//! | `grouped` | whether a checkpoint has queries, keys, values and gates of a gated delta net together by key head, and its value heads in the file's order |
//! | `tensors` | name in the file, with `{layer}` and `{expert}`: name in a checkpoint, and the parameter with the number of heads where rows are interleaved, which of it has the value heads of a gated delta net, or that one was added to every value |

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::entries::Entries;
use crate::refusal::{Refusal, mismatch};

macro_rules! builtin {
    ($($name:literal,)*) => {
        const BUILTIN: &[(&str, &str)] = &[$((
            concat!("configs/gguf/", $name, ".json"),
            include_str!(concat!("../../../../../configs/gguf/", $name, ".json")),
        ),)*];
    };
}

builtin! {
    "arcee", "deepseek2", "deepseek2_dense", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "gemma2", "gemma3", "glm4", "glm4_moe", "gpt_oss", "granite", "granitemoe",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2", "lfm2_moe", "llama", "llama4", "minimax_m2", "ministral3", "mistral3", "mixtral", "olmo2", "olmo3", "olmoe", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3",
}

/// What the name of a half of `kv_b_proj` ends in, which has the checkpoint's rows as columns.
const HALF: &str = ".embed_q.weight";

/// A table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// Where it lies.
    #[serde(skip)]
    pub(crate) path: &'static str,
    pub(crate) architecture: String,
    pub(crate) experts: bool,
    #[serde(default)]
    given: Option<String>,
    #[serde(default)]
    pub(crate) also: Vec<String>,
    pub(crate) config: Entries<Origin>,
    pub(crate) rope: RopeRow,
    pub(crate) supported: BTreeMap<String, Vec<Value>>,
    pub(crate) unused: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) further: Option<String>,
    #[serde(default)]
    pub(crate) grouped: bool,
    pub(crate) tensors: BTreeMap<String, Target>,
}

/// Where the value of a key of `config.json` comes from.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Origin {
    /// Metadata, of which those that are there must agree; one must be, unless there is a default.
    Keys {
        keys: Vec<String>,
        #[serde(default, deserialize_with = "present")]
        default: Option<Value>,
    },
    /// A metadatum less another, which counts as 0 where it is absent.
    Less { key: String, less: String },
    /// A metadatum divided by another, of which a third says how many are in it; null where the first
    /// is absent.
    Share {
        share: String,
        of: String,
        #[serde(default)]
        parts: Option<String>,
    },
    /// A metadatum above 0; null for any other.
    Positive { positive: String },
    /// A name for every layer by what a list has for it, `other` for what `kinds` has none; `absent` for
    /// all of them where there is no such metadatum. Nothing where it is one value, which other origins
    /// read then.
    Layers {
        layers: String,
        kinds: BTreeMap<String, String>,
        #[serde(default)]
        other: Option<String>,
        #[serde(default)]
        absent: Option<String>,
    },
    /// What a list has for every layer for which it has not 0.
    Nonzero { nonzero: String },
    /// The same for all files.
    Value { value: Value },
    /// Whether a tensor is there.
    With { with: String },
    /// Whether it is not.
    Without { without: String },
    /// The rows of a tensor.
    RowsOf { rows_of: String },
    /// What the value of a metadatum chooses.
    Choice {
        by: String,
        cases: BTreeMap<String, Origin>,
        /// Where there is no such metadatum; `other` without it.
        #[serde(default)]
        absent: Option<Box<Origin>>,
        other: Box<Origin>,
    },
}

/// Tells null from nothing.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RopeRow {
    pub(crate) scaling_type: String,
    pub(crate) factor: String,
    pub(crate) factors: Option<String>,
    /// Scaling with factors of its own for positions before and beyond the original context.
    pub(crate) long: Option<LongRow>,
    /// The metadatum with a tenth of YaRN's `mscale_all_dim`, which is its `mscale` too.
    pub(crate) tenth_of_mscale: Option<String>,
    /// The positions that the model was trained with before they were scaled.
    pub(crate) original: String,
    /// Members of YaRN that no metadatum has.
    #[serde(default)]
    pub(crate) yarn: Map<String, Value>,
    /// Members of YaRN, and the metadata that have them.
    #[serde(default)]
    pub(crate) members: BTreeMap<String, String>,
}

/// Where `longrope` has what it scales by.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LongRow {
    /// The tensor of factors beyond the original context.
    pub(crate) long: String,
    /// The tensor of factors before it.
    pub(crate) short: String,
    /// The metadatum with what rotated values are multiplied by.
    pub(crate) attention: String,
}

/// Members of YaRN, and what their metadata end in.
pub(crate) const YARN_BOUNDS: [(&str, &str); 2] =
    [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")];

impl RopeRow {
    /// The metadatum of one of [`YARN_BOUNDS`].
    pub(crate) fn yarn_bound(&self, at: usize) -> String {
        self.beside_factor(YARN_BOUNDS[at].1)
    }

    /// The metadatum with what YaRN multiplies rotated values by, where it is not its paper's.
    pub(crate) fn yarn_attention(&self) -> String {
        self.beside_factor("yarn_attn_factor")
    }

    /// The metadatum with the factor in files of before August 2023.
    pub(crate) fn old_factor(&self) -> String {
        self.factor.replace("scaling.factor", "scale_linear")
    }

    fn beside_factor(&self, name: &str) -> String {
        self.factor
            .replace("scaling.factor", &format!("scaling.{name}"))
    }

    /// The tensors of factors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &str> {
        let long = self
            .long
            .iter()
            .flat_map(|row| [row.long.as_str(), row.short.as_str()]);
        self.factors.as_deref().into_iter().chain(long)
    }

    fn knows(&self, key: &str) -> bool {
        let own = [&self.scaling_type, &self.factor, &self.original];
        let long = self.long.as_ref().map(|row| &row.attention);
        let mut own = own.into_iter().chain(long).chain(&self.tenth_of_mscale);
        let yarn = [self.yarn_bound(0), self.yarn_bound(1), self.yarn_attention()];
        let mut other = yarn.into_iter().chain([self.old_factor()]);
        own.any(|known| known == key)
            || other.any(|known| known == key)
            || self.members.values().any(|known| known == key)
    }
}

/// What a tensor is called in a checkpoint.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Target {
    Name(String),
    /// Rows `h * d + 2 * j + t` of the file are rows `h * d + t * d / 2 + j` of the checkpoint, for
    /// each head `h` of `d` rows (`LlamaModel.permute`).
    Interleaved {
        name: String,
        heads: String,
    },
    /// Which of it has the value heads of a gated delta net ([`Decoder::Tiled`](crate::decoder::Decoder)).
    Tiled {
        name: String,
        value_heads: Heads,
        /// Whether values are logarithms with their sign changed, of which llama.cpp stores what they are of.
        #[serde(default)]
        log: bool,
    },
    /// Whether one is taken off every value, which llama.cpp added (`norm_shift`).
    Changed {
        name: String,
        less_one: bool,
    },
}

/// What of a tensor belongs to the value heads of a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Heads {
    /// All rows.
    Rows,
    /// The rows after those of queries and keys.
    LastRows,
    /// The channels of a convolution after those of queries and keys.
    LastChannels,
    /// All columns.
    Columns,
}

impl Target {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Name(name)
            | Self::Interleaved { name, .. }
            | Self::Tiled { name, .. }
            | Self::Changed { name, .. } => name,
        }
    }
}

impl Table {
    /// The table for files of an architecture, which may `have` some metadata.
    ///
    /// # Errors
    /// When there is none: the known ones.
    pub(crate) fn find(
        architecture: &str,
        experts: bool,
        have: impl Fn(&str) -> bool,
    ) -> Result<Self, Refusal> {
        let (mut known, mut found) = (Vec::new(), None);
        for (path, json) in BUILTIN {
            let table: Self = serde_json::from_str(json).expect("built-in tables are tested");
            let given = table.given.as_deref().is_none_or(&have);
            if (table.architecture.as_str(), table.experts) != (architecture, experts) {
                known.push(table.described());
            } else if table.given.is_some() && given {
                return Ok(Self { path, ..table });
            } else if given {
                found = Some(Self { path, ..table });
            }
        }
        if let Some(table) = found {
            return Ok(table);
        }
        known.sort();
        known.dedup();
        let found = described(architecture, experts);
        Err(mismatch(format_args!("one of {}", known.join(", ")), found).at("general.architecture"))
    }

    /// The table by which a model of some `model_type` is written.
    pub(crate) fn of_model(model_type: &str) -> Option<Self> {
        let means = |table: &Self| {
            table.model_type() == Some(model_type) || table.also.iter().any(|t| t == model_type)
        };
        let all = BUILTIN.iter().map(|(path, json)| {
            let table: Self = serde_json::from_str(json).expect("built-in tables are tested");
            Self { path, ..table }
        });
        all.into_iter().find(means)
    }

    /// Every `model_type` that can be written.
    pub(crate) fn model_types() -> Vec<String> {
        let tables = BUILTIN.iter().map(|(_, json)| {
            serde_json::from_str::<Self>(json).expect("built-in tables are tested")
        });
        let own = tables.flat_map(|table| {
            let own = table.model_type().map(str::to_owned);
            own.into_iter().chain(table.also)
        });
        let mut all: Vec<_> = own.collect();
        all.sort();
        all.dedup();
        all
    }

    /// The `model_type` that files are read as, if files of it are written too: those whose tensors are
    /// rows of the checkpoint's.
    fn model_type(&self) -> Option<&str> {
        let other = |target: &Target| {
            matches!(target, Target::Tiled { .. }) || target.name().ends_with(HALF)
        };
        if self.tensors.values().any(other) {
            return None;
        }
        let mut config = self.config.0.iter();
        let (_, origin) = config.find(|(key, _)| key == "model_type")?;
        match origin {
            Origin::Value { value } => value.as_str(),
            _ => None,
        }
    }

    fn described(&self) -> String {
        described(&self.architecture, self.experts)
    }

    /// Whether a metadatum has a use.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.config.0.iter().any(|(_, origin)| origin.reads(key))
            || self.rope.knows(key)
            || self.supported.contains_key(key)
            || self.unused.contains_key(key)
    }

    /// Whether a list says of every layer what it is.
    pub(crate) fn tells_layers(&self, key: &str) -> bool {
        self.config
            .0
            .iter()
            .any(|(_, origin)| origin.tells_layers(key))
    }
}

impl Origin {
    /// Whether a metadatum is looked at.
    fn reads(&self, key: &str) -> bool {
        match self {
            Self::Keys { keys, .. } => keys.iter().any(|known| known == key),
            Self::Less { key: a, less: b } => a == key || b == key,
            Self::Share { share, of, parts } => {
                share == key || of == key || parts.as_deref() == Some(key)
            }
            Self::Positive { positive: read }
            | Self::Layers { layers: read, .. }
            | Self::Nonzero { nonzero: read } => read == key,
            Self::Choice { by, .. } => by == key || self.chosen().any(|origin| origin.reads(key)),
            _ => false,
        }
    }

    /// Whether it may be read layer by layer.
    pub(crate) fn is_by_layer(&self) -> bool {
        matches!(self, Self::Layers { .. }) || self.chosen().any(Self::is_by_layer)
    }

    /// Whether a list is read layer by layer.
    fn tells_layers(&self, key: &str) -> bool {
        match self {
            Self::Layers { layers, .. } => layers == key,
            _ => self.chosen().any(|origin| origin.tells_layers(key)),
        }
    }

    /// What may be chosen.
    fn chosen(&self) -> impl Iterator<Item = &Self> {
        let (cases, absent, other) = match self {
            Self::Choice { cases, absent, other, .. } => {
                (Some(cases), absent.as_deref(), Some(&**other))
            }
            _ => (None, None, None),
        };
        let cases = cases.into_iter().flat_map(BTreeMap::values);
        cases.chain(absent).chain(other)
    }
}

fn described(architecture: &str, experts: bool) -> String {
    format!("`{architecture}`{}", if experts { " with experts" } else { "" })
}
