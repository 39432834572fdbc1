//! The JSON of an architecture table, checked.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use serde::Deserialize;
use serde_json::Value;

use super::ffn_rows::{Flag, MlpRow, MoeRow};
use crate::entries::Entries;
use crate::model::{DeltaProjection, Pairing, QkNorm};
use crate::names::{EXPERT, LAYER};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::Unit;

/// What a table says.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) model_type: String,
    /// Other values of `model_type` that mean the same.
    pub(super) aliases: Vec<String>,
    /// Key of the object that describes the text model, where `config.json` describes more.
    pub(super) config: Option<String>,
    /// Beginnings of tensor names and what the table has instead of them.
    pub(super) prefixes: BTreeMap<String, String>,
    pub(super) parameters: BTreeMap<String, Parameter>,
    /// Keys of `config.json` and the only values they may have if present.
    pub(super) supported: BTreeMap<String, Vec<Value>>,
    pub(super) norm_plus_one: bool,
    pub(super) output_norms: bool,
    pub(super) no_input_norms: bool,
    pub(super) scaling: ScalingRow,
    pub(super) layer_kinds: Option<KindsRow>,
    pub(super) attention: Option<AttentionRow>,
    pub(super) latent: Option<LatentRow>,
    pub(super) delta_net: Option<DeltaRow>,
    pub(super) short_conv: Option<ShortConvRow>,
    pub(super) mlp: Option<MlpRow>,
    pub(super) moe: Option<MoeRow>,
    pub(super) fused: Vec<FusedRow>,
    pub(super) extras: Vec<ExtraRow>,
    /// Rows that a draft is not certain of, by their place, and why.
    pub(super) uncertain: BTreeMap<String, String>,
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
    /// What stands outside the text model's object alone decides.
    #[serde(default)]
    pub(super) outer: bool,
    /// A list of equal values, one for each layer, stands for the value.
    #[serde(default)]
    pub(super) alike: bool,
}

/// Tells null from nothing.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Factors on the way of the residual stream, by the names of parameters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScalingRow {
    pub(super) embedding: Option<String>,
    /// Embeddings are multiplied with the root of the hidden size.
    #[serde(default)]
    pub(super) embedding_by_root: bool,
    pub(super) residual: Option<String>,
    pub(super) logits: Option<String>,
    pub(super) logits_cap: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttentionRow {
    pub(super) qk_norm: QkNormRow,
    pub(super) qkv_bias: Flag,
    pub(super) o_bias: Flag,
    pub(super) clip_qkv: Option<String>,
    #[serde(default)]
    pub(super) rotary: RotaryRow,
    #[serde(default)]
    pub(super) sinks: bool,
    #[serde(default)]
    pub(super) output_gate: bool,
    /// Whether layers of full attention know no positions.
    #[serde(default)]
    pub(super) full_without_rope: FullWithoutRope,
    /// Other layers that know no positions.
    pub(super) without_rope: Option<WithoutRopeRow>,
    /// Parameter with the scale of scores, if it is not `1 / sqrt(head_dim)`.
    pub(super) softmax_scale: Option<String>,
    /// Parameter that takes the place of `head_dim` there.
    pub(super) softmax_dim: Option<String>,
    /// Parameter with the bound that scores approach.
    pub(super) score_cap: Option<String>,
    /// What the heads give is normed before the output projection.
    #[serde(default)]
    pub(super) inner_norm: bool,
    /// Parameter with the base of the frequencies in sliding layers, which are never scaled.
    pub(super) sliding_rope_theta: Option<String>,
    /// Queries of layers without positions grow with theirs.
    pub(super) temperature: Option<TemperatureRow>,
}

/// Whether layers of full attention know no positions: true, false, or only in models that have
/// layers of another kind besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum FullWithoutRope {
    Fixed(bool),
    Beside(BesideOthers),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BesideOthers {
    BesideOthers,
}

impl Default for FullWithoutRope {
    fn default() -> Self {
        Self::Fixed(false)
    }
}

/// Layers that know no positions, whatever their kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WithoutRopeRow {
    /// Parameter that lists 0 for them and 1 for all others; when null, `every` decides.
    pub(super) flags: String,
    /// Parameter `n`: they are every n-th.
    pub(super) every: String,
}

/// The norm of queries and keys, or none where a parameter says so.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum QkNormRow {
    Fixed(QkNorm),
    If(QkNormIf),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QkNormIf {
    pub(super) kind: QkNorm,
    #[serde(rename = "if")]
    pub(super) flag: Flag,
}

/// Which values of a head are rotated, where it is not simply all in halves.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RotaryRow {
    /// Parameter with their number.
    pub(super) dim: Option<String>,
    /// Parameter with their share of the head, if the former is null.
    pub(super) factor: Option<String>,
    #[serde(default)]
    pub(super) pairing: Pairing,
    /// Members that divide pairs among axes of an image: all alike for text.
    #[serde(default)]
    pub(super) axes: bool,
    /// Member with the weight of a logarithm by which queries grow with their position in every
    /// layer, in steps of the original context.
    pub(super) query_growth: Option<String>,
    /// The type `dynamic` is one base for all lengths, raised by its member `alpha`.
    #[serde(default)]
    pub(super) fixed_alpha: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemperatureRow {
    pub(super) switch: Flag,
    pub(super) floor_scale: String,
    pub(super) attn_scale: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LatentRow {
    pub(super) bias: Flag,
    pub(super) rotary: RotaryRow,
    /// Parameter with the number of positions that an indexer picks.
    pub(super) index_topk: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeltaRow {
    pub(super) projection: DeltaProjection,
}

/// Parameters of a gated short convolution.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShortConvRow {
    /// Positions that it sees.
    pub(super) kernel: String,
}

/// What a layer's mixer is, by its name in `layer_types` or its number in `no_rope_layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    #[serde(rename = "full_attention")]
    Full,
    #[serde(rename = "sliding_attention")]
    Sliding,
    #[serde(rename = "chunked_attention")]
    Chunked,
    #[serde(rename = "linear_attention")]
    Linear,
    #[serde(rename = "conv")]
    Conv,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Full, Self::Sliding, Self::Chunked, Self::Linear, Self::Conv];

    /// The kind of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full_attention",
            Self::Sliding => "sliding_attention",
            Self::Chunked => "chunked_attention",
            Self::Linear => "linear_attention",
            Self::Conv => "conv",
        }
    }
}

/// Which layers are not full attention.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindsRow {
    /// What they are instead.
    pub(super) other: Kind,
    pub(super) layers: KindLayers,
    /// Parameter that must be true for any layer to be so.
    pub(super) switch: Option<String>,
    /// Parameter that lists the kind of each layer; when null, `layers` decides.
    pub(super) list: Option<String>,
    /// Parameter that lists 1 for other layers, 0 for those of full attention; when empty, `layers`
    /// decides.
    pub(super) flags: Option<String>,
}

/// A rule for layers that no list describes.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindLayers {
    All,
    FromMaxWindowLayers,
    EvenBelowMaxWindowLayers,
    /// All but every n-th.
    ButEvery(Period),
    /// All but those in a list, by the name of a parameter; none where it is null.
    ButThoseIn(String),
    /// Those that know no positions.
    WithoutRope,
}

/// How far layers of full attention lie apart.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Period {
    /// As the class has it, whatever a config says.
    Fixed(NonZeroU32),
    /// By the name of a parameter.
    Of(String),
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
    /// The roles' rows take turns.
    #[serde(default)]
    pub(super) interleaved: bool,
}

/// Order of the last two dimensions of a fused tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Layout {
    OutIn,
    InOut,
}

/// Tensors of a part of the checkpoint that is not the text model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtraRow {
    /// What they are for.
    pub(super) role: Role,
    /// Beginnings of their names.
    #[serde(default)]
    pub(super) beginnings: Vec<String>,
    /// What their names contain, for those inside the text model's layers.
    #[serde(default)]
    pub(super) containing: Vec<String>,
    /// Parameter with the number of layers beyond `num_hidden_layers` that are theirs.
    pub(super) layers: Option<String>,
    /// Why a bundle works without them.
    pub(super) reason: String,
    /// Where among them is the layer that predicts the token after next.
    pub(super) head: Option<HeadRow>,
}

/// Names of the tensors of a layer that predicts the token after next; `{layer}` is the number of the text
/// model's layers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadRow {
    /// What stands for `model.layers.{layer}.` before the names of its own tensors.
    pub(super) layer: String,
    pub(super) projection: String,
    pub(super) embedding_norm: String,
    pub(super) hidden_norm: String,
    pub(super) norm: String,
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
    #[serde(default)]
    aliases: Vec<String>,
    config: Option<String>,
    #[serde(default)]
    prefixes: BTreeMap<String, String>,
    parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    supported: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    norm_plus_one: bool,
    #[serde(default)]
    output_norms: bool,
    #[serde(default)]
    no_input_norms: bool,
    #[serde(default)]
    scaling: ScalingRow,
    layer_kinds: Option<KindsRow>,
    attention: Option<AttentionRow>,
    latent: Option<LatentRow>,
    delta_net: Option<DeltaRow>,
    short_conv: Option<ShortConvRow>,
    mlp: Option<MlpRow>,
    moe: Option<MoeRow>,
    tensors: Entries<Names>,
    #[serde(default)]
    fused: Vec<FusedRow>,
    #[serde(default)]
    extras: Vec<ExtraRow>,
    #[serde(default)]
    ignored: BTreeMap<String, String>,
    #[serde(default, rename = "_uncertain")]
    uncertain: BTreeMap<String, String>,
}

impl Table {
    pub(super) fn parse(json: &str) -> Result<Self, Refusal> {
        let raw: RawTable = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let mut table = Self {
            model_type: raw.model_type,
            aliases: raw.aliases,
            config: raw.config,
            prefixes: raw.prefixes,
            parameters: raw.parameters,
            supported: raw.supported,
            norm_plus_one: raw.norm_plus_one,
            output_norms: raw.output_norms,
            no_input_norms: raw.no_input_norms,
            scaling: raw.scaling,
            layer_kinds: raw.layer_kinds,
            attention: raw.attention,
            latent: raw.latent,
            delta_net: raw.delta_net,
            short_conv: raw.short_conv,
            mlp: raw.mlp,
            moe: raw.moe,
            fused: raw.fused,
            extras: raw.extras,
            uncertain: raw.uncertain,
            names: BTreeMap::new(),
            targets: HashMap::new(),
        };
        for (role, names) in raw.tensors.0 {
            table.add_role(&role, &names)?;
        }
        table.add_fused()?;
        table.check_extras()?;
        for (name, reason) in raw.ignored {
            table.add_target(&name, Target::Ignored(reason))?;
        }
        if table.mlp.is_none() && table.moe.is_none() {
            return Err(mismatch("`mlp`, `moe` or both", "neither"));
        }
        if table.attention.is_some() == table.latent.is_some() {
            return Err("expected either `attention` or `latent`".into());
        }
        Ok(table)
    }

    /// Each part has one row, which gives it a role of its own.
    fn check_extras(&self) -> Result<(), Refusal> {
        for (at, ExtraRow { role, .. }) in self.extras.iter().enumerate() {
            if !role.is_extra() {
                return Err(mismatch("role vision, mtp or indexer", role).at("extras"));
            }
            if self.extras[..at].iter().any(|row| row.role == *role) {
                return Err(mismatch(format_args!("one row for {role}"), "two").at("extras"));
            }
        }
        Ok(())
    }

    /// The part besides the text model that a tensor is of, if it is. `past` counts layers from
    /// the first that the text model does not have, `beyond` those that each row says there are.
    pub(super) fn extra(&self, name: &str, past: Option<u32>, beyond: &[u32]) -> Option<&ExtraRow> {
        let mut rows = self.extras.iter().zip(beyond);
        let named = |row: &ExtraRow| {
            row.beginnings.iter().any(|b| name.starts_with(b))
                || row.containing.iter().any(|c| name.contains(c))
        };
        let found = rows.find(|(row, count)| named(row) || past.is_some_and(|past| past < **count));
        found.map(|(row, _)| row)
    }

    fn add_role(&mut self, role: &str, names: &Names) -> Result<(), Refusal> {
        let role = Role::parse(role).ok_or_else(|| {
            let known: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
            mismatch(format_args!("one of {}", known.join(", ")), format_args!("role `{role}`"))
                .at("tensors")
        })?;
        for name in names.as_slice() {
            check_placeholders(name, role, role.is_expert())?;
            self.add_target(name, Target::Role(role))?;
        }
        self.names.insert(role, names.as_slice().to_vec());
        Ok(())
    }

    fn add_fused(&mut self) -> Result<(), Refusal> {
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
                    )
                    .into());
                }
                self.add_target(name, Target::Fused(i))?;
            }
        }
        self.fused = rows;
        Ok(())
    }

    fn add_target(&mut self, name: &str, target: Target) -> Result<(), Refusal> {
        match self.targets.insert(name.to_owned(), target) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` stands for two things").into()),
        }
    }
}

/// Refuses a name without the numbers that its role needs, or with others.
pub(super) fn check_placeholders(name: &str, role: Role, expert: bool) -> Result<(), Refusal> {
    let layer = unit_of(role, 0, 0).layer().is_some();
    for (placeholder, expected) in [(LAYER, layer), (EXPERT, expert)] {
        let count = name.split('.').filter(|part| *part == placeholder).count();
        if count != usize::from(expected) {
            let expected = usize::from(expected);
            return Err(mismatch(format_args!("{expected} `{placeholder}` between dots"), count)
                .at(format_args!("`{name}` for {role}")));
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
