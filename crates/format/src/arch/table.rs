//! The JSON of an architecture table, checked.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::Entries;
use crate::model::QkNorm;
use crate::role::Role;
use crate::unit::Unit;

/// Stands for the number of a layer in a tensor's name.
pub(super) const LAYER: &str = "{layer}";
/// Stands for the number of an expert in a tensor's name.
pub(super) const EXPERT: &str = "{expert}";

/// What a table says.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) model_type: String,
    pub(super) parameters: BTreeMap<String, Parameter>,
    /// Keys of `config.json` and the only values they may have if present.
    pub(super) supported: BTreeMap<String, Vec<Value>>,
    pub(super) attention: AttentionRow,
    pub(super) mlp: Option<MlpRow>,
    pub(super) moe: Option<MoeRow>,
    pub(super) fused: Vec<FusedRow>,
    /// Alternative names of each role's tensor.
    pub(super) names: BTreeMap<Role, Vec<String>>,
    /// What a name, its numbers replaced by placeholders, stands for.
    pub(super) targets: HashMap<String, Target>,
}

/// What a tensor's name stands for.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The tensor of one role.
    Role(Role),
    /// Those of several, or of all experts: position in [`Table::fused`].
    Fused(usize),
    /// Nothing that a runtime needs, and why.
    Ignored(String),
}

/// Where a parameter comes from. A text as a value is another parameter or a quotient of two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameter {
    /// Keys in `config.json`; the parameter's own name if there are none here.
    #[serde(default)]
    pub(super) keys: Vec<String>,
    /// Its value without a key.
    #[serde(default, deserialize_with = "present")]
    pub(super) default: Option<Value>,
    /// Its value when the key holds null.
    #[serde(default, deserialize_with = "present")]
    pub(super) null: Option<Value>,
}

/// Tells null from nothing.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// True, false, or what a parameter says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Flag {
    Fixed(bool),
    Parameter(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttentionRow {
    pub(super) qk_norm: QkNorm,
    pub(super) qkv_bias: Flag,
    pub(super) o_bias: Flag,
    pub(super) clip_qkv: Option<String>,
    pub(super) sliding_window: Option<SlidingRow>,
}

/// Which layers see only the last `sliding_window` positions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlidingRow {
    /// Parameter that must be true for any layer to slide.
    pub(super) switch: Option<String>,
    /// Parameter that lists the kind of each layer; when null, `layers` decides.
    pub(super) layer_types: Option<String>,
    pub(super) layers: SlidingLayers,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SlidingLayers {
    All,
    FromMaxWindowLayers,
    EvenBelowMaxWindowLayers,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MlpRow {
    pub(super) bias: Flag,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoeRow {
    pub(super) layers: SparseLayers,
    pub(super) num_experts: String,
    pub(super) intermediate_size: String,
    pub(super) norm_topk_prob: Flag,
    pub(super) shared_expert: Option<SharedRow>,
}

/// Which layers have experts.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SparseLayers {
    All,
    /// Every `decoder_sparse_step`-th but those in `mlp_only_layers`.
    SparseStep,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedRow {
    pub(super) intermediate_size: String,
    pub(super) gated: bool,
}

/// A tensor that holds several roles' rows one after the other, for all experts if they are
/// expert roles.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FusedRow {
    pub(super) tensor: Names,
    pub(super) roles: Vec<Role>,
    /// Order of the last two dimensions, where shapes alone cannot tell.
    pub(super) layout: Option<Layout>,
}

/// Order of the last two dimensions of a fused tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layout {
    OutIn,
    InOut,
}

/// One name or several alternatives.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    model_type: String,
    parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    supported: BTreeMap<String, Vec<Value>>,
    attention: AttentionRow,
    mlp: Option<MlpRow>,
    moe: Option<MoeRow>,
    tensors: Entries<Names>,
    #[serde(default)]
    fused: Vec<FusedRow>,
    #[serde(default)]
    ignored: BTreeMap<String, String>,
}

impl Table {
    pub(super) fn parse(json: &str) -> Result<Self, String> {
        let raw: RawTable = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let mut table = Self {
            model_type: raw.model_type,
            parameters: raw.parameters,
            supported: raw.supported,
            attention: raw.attention,
            mlp: raw.mlp,
            moe: raw.moe,
            fused: raw.fused,
            names: BTreeMap::new(),
            targets: HashMap::new(),
        };
        for (role, names) in raw.tensors.0 {
            table.add_role(&role, &names)?;
        }
        table.add_fused()?;
        for (name, reason) in raw.ignored {
            table.add_target(&name, Target::Ignored(reason))?;
        }
        if table.mlp.is_none() && table.moe.is_none() {
            return Err("expected `mlp`, `moe` or both, found neither".to_owned());
        }
        Ok(table)
    }

    fn add_role(&mut self, role: &str, names: &Names) -> Result<(), String> {
        let role = Role::parse(role).ok_or_else(|| {
            let known: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
            format!("tensors: expected one of {}, found role `{role}`", known.join(", "))
        })?;
        for name in names.as_slice() {
            check_placeholders(name, role, role.is_expert())?;
            self.add_target(name, Target::Role(role))?;
        }
        self.names.insert(role, names.as_slice().to_vec());
        Ok(())
    }

    fn add_fused(&mut self) -> Result<(), String> {
        let rows = std::mem::take(&mut self.fused);
        for (i, row) in rows.iter().enumerate() {
            for name in row.tensor.as_slice() {
                for &role in &row.roles {
                    check_placeholders(name, role, false)?;
                }
                if row
                    .roles
                    .iter()
                    .any(|role| role.is_expert() != row.roles[0].is_expert())
                {
                    return Err(format!(
                        "`{name}`: expected roles of experts only, or none of them"
                    ));
                }
                self.add_target(name, Target::Fused(i))?;
            }
        }
        self.fused = rows;
        Ok(())
    }

    fn add_target(&mut self, name: &str, target: Target) -> Result<(), String> {
        match self.targets.insert(name.to_owned(), target) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` stands for two things")),
        }
    }
}

/// Refuses a name without the numbers that its role needs, or with others.
fn check_placeholders(name: &str, role: Role, expert: bool) -> Result<(), String> {
    let layer = unit_of(role, 0, 0).layer().is_some();
    for (placeholder, expected) in [(LAYER, layer), (EXPERT, expert)] {
        let count = name.split('.').filter(|part| *part == placeholder).count();
        if count != usize::from(expected) {
            let expected = usize::from(expected);
            return Err(format!(
                "`{name}` for {role}: expected {expected} `{placeholder}` between dots, found {count}"
            ));
        }
    }
    Ok(())
}

/// The unit that a role's tensor is part of.
pub(super) const fn unit_of(role: Role, layer: u32, expert: u32) -> Unit {
    match role {
        Role::EmbedTokens => Unit::Embedding,
        Role::FinalNorm | Role::LmHead => Unit::Head,
        _ if role.is_expert() => Unit::Expert { layer, expert },
        _ => Unit::Layer(layer),
    }
}
