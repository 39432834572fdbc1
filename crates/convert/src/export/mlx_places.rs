//! Where mlx-lm keeps the tensors of a model: `configs/mlx.json` beside the architecture's table.

use std::collections::BTreeMap;

use serde::Deserialize;
use shardwright_format::arch::Arch;
use shardwright_format::model::{Mixer, RopeScaling};
use shardwright_format::unit::TensorEntry;
use shardwright_format::{ModelSpec, Role, SourceView, Unit, mismatch};
use shardwright_quant::Float;

use crate::error::{ConvertError, Result};

const FAMILIES: &str = include_str!("../../../../configs/mlx.json");
/// The module that the experts of most models are stacked in.
const STACK: &str = "switch_mlp";
/// What the names of `kv_b_proj` end in, and those of its halves.
const HALVES: [&str; 3] = [".kv_b_proj.weight", ".embed_q.weight", ".unembed_out.weight"];

/// What mlx-lm has otherwise than the architecture's table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Family {
    /// Its own word for the `model_type`.
    pub(super) model_type: Option<String>,
    /// Keys of `config.json` and those whose values it looks for there.
    pub(super) copies: BTreeMap<String, String>,
    /// What its names of tensors begin with besides.
    prefix: String,
    /// The module in which it stacks experts, if it is not `switch_mlp`.
    experts: Option<String>,
    /// Its names where they are not the table's first.
    names: BTreeMap<Role, String>,
    /// Matrices that it has as floats alone.
    plain: Vec<Role>,
    /// Whether it has `kv_b_proj` in halves by heads, that of keys transposed.
    heads: bool,
    /// Whether norms are stored with one added, but for those of delta nets.
    pub(super) raised: bool,
    /// Whether its layers can have sliding windows, where some have none.
    windows: bool,
    /// Whether each of its layers has experts.
    all_experts: bool,
    /// Tensors that are in its files and that it does not read, and what follows.
    unread: BTreeMap<Role, String>,
}

impl Family {
    fn all() -> BTreeMap<String, Self> {
        serde_json::from_str(FAMILIES).expect("the table is tested")
    }

    /// The family of a `model_type`.
    ///
    /// # Errors
    /// A type of which mlx-lm has no model.
    pub fn named(model_type: &str) -> Result<Self> {
        let mut all = Self::all();
        if let Some(family) = all.remove(model_type) {
            return Ok(family);
        }
        let known: Vec<_> = all.into_keys().collect();
        Err(ConvertError::Plan(
            mismatch(
                format_args!("a model_type that it has, one of {}", known.join(", ")),
                format_args!("`{model_type}`"),
            )
            .at("mlx-lm"),
        ))
    }

    /// Roles whose matrices it has as floats alone.
    pub fn float_roles(&self) -> Vec<Role> {
        let halves = self.heads.then_some(Role::KvBProj);
        self.plain.iter().copied().chain(halves).collect()
    }

    /// Whether it has these roles, of which a checkpoint has one tensor, in one tensor as well.
    pub fn shares(&self, roles: &[Role]) -> bool {
        let own = |role: &Role| role.is_expert() || self.names.contains_key(role);
        !roles.iter().any(own)
    }

    /// Whether its norms of this role have one added.
    pub(super) fn raises(&self, role: Role) -> bool {
        use Role::{FinalNorm, InputNorm, KNorm, PostAttentionNorm, QNorm};
        self.raised && matches!(role, FinalNorm | InputNorm | KNorm | PostAttentionNorm | QNorm)
    }
}

/// Rows of one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    /// Of all the tensor, in values.
    pub(super) shape: Vec<u64>,
    /// The tensor's row, all dimensions but the last counted together, that the first one is.
    pub(super) first: u64,
}

/// `kv_b_proj` in two tensors.
pub(super) struct Halves {
    /// `[heads, cols, key_rows]`.
    pub(super) keys: Place,
    /// `[heads, value_rows, cols]`.
    pub(super) values: Place,
    pub(super) key_rows: u64,
    pub(super) value_rows: u64,
}

/// The places of a model's tensors.
pub(super) struct MlxPlaces<'a> {
    pub(super) family: &'a Family,
    spec: &'a ModelSpec,
    arch: Arch,
}

impl<'a> MlxPlaces<'a> {
    /// # Errors
    /// A model without a built-in table.
    pub(super) fn new(family: &'a Family, spec: &'a ModelSpec) -> Result<Self> {
        let arch = Arch::builtin(&spec.model_type).ok_or_else(|| {
            let found = &spec.model_type;
            ConvertError::Plan(
                mismatch("a built-in architecture", format_args!("`{found}`")).at("mlx-lm"),
            )
        })?;
        Ok(Self { family, spec, arch })
    }

    /// What mlx-lm computes otherwise than the model says: a line each.
    ///
    /// # Errors
    /// A model that mlx-lm cannot load.
    pub(super) fn differences(&self) -> Result<Vec<String>> {
        let dense = self
            .spec
            .layers
            .iter()
            .position(|layer| layer.num_experts() == 0);
        if let Some(layer) = dense.filter(|_| self.family.all_experts) {
            let detail = mismatch("experts in every layer", format_args!("none in layer {layer}"))
                .at("mlx-lm");
            return Err(ConvertError::Plan(detail));
        }
        let attentions = || {
            self.spec
                .layers
                .iter()
                .filter_map(|layer| layer.mixer.attention())
        };
        let mut lines = Vec::new();
        let windows = || attentions().filter_map(|attention| attention.sliding_window);
        let everywhere = windows().count() == attentions().count();
        let missing = everywhere || !self.family.windows;
        if let Some(window) = windows().min().filter(|_| missing) {
            lines.push(format!(
                "mlx-lm has no sliding windows in this model: past {window} positions it computes \
                 something else"
            ));
        }
        if attentions().any(|attention| attention.clip_qkv.is_some()) {
            lines.push(
                "mlx-lm does not clip queries, keys and values as this model does".to_owned(),
            );
        }
        lines.extend(self.family.unread.values().cloned());
        let scalings = || {
            self.spec
                .layers
                .iter()
                .filter_map(|layer| scaling(&layer.mixer))
        };
        let whole =
            |scaling: &RopeScaling| matches!(scaling, RopeScaling::Yarn { truncate: false, .. });
        if scalings().any(whole) {
            lines.push(
                "mlx-lm rounds the borders of YaRN's ramp, which this model does not (truncate is \
                 false): its frequencies differ a little"
                    .to_owned(),
            );
        }
        if scalings().any(|scaling| matches!(scaling, RopeScaling::Longrope { .. })) {
            lines.push("mlx-lm takes longrope's long factors at every length".to_owned());
        }
        if scalings().any(|scaling| matches!(scaling, RopeScaling::Dynamic { .. })) {
            lines.push(
                "mlx-lm does not know rope_scaling `dynamic`: without it in config.json it computes what we \
                 do, up to max_position_embeddings"
                    .to_owned(),
            );
        }
        Ok(lines)
    }

    /// Where a tensor of a unit lies.
    ///
    /// # Errors
    /// A tensor that the architecture's table has in no one place.
    pub(super) fn place(&self, unit: Unit, entry: &TensorEntry) -> Result<Place> {
        let (role, rows, cols) = (entry.role, entry.rows, entry.cols);
        let own = match self.family.names.get(&role) {
            Some(name) => Some(view(Arch::filled(name, unit), rows, cols)),
            None => self.view(unit, (role, rows, cols)),
        };
        let whole = |view: &SourceView| {
            let lined_up = view.col_stride == 1 && view.start.is_multiple_of(cols);
            lined_up && (rows == 1 || view.row_stride == cols)
        };
        let Some(own) = own.filter(whole) else {
            let detail = format!("mlx-lm: {role} of {unit}: its table has no place for it there");
            return Err(ConvertError::plan(detail));
        };
        let shape = match &own.shape[..] {
            [1, _] if !role.is_expert() && role != Role::SharedExpertGate => vec![cols],
            _ if role.is_convolution() => vec![rows, cols, 1],
            shape => shape.to_vec(),
        };
        let name = format!("{}{}", self.family.prefix, own.tensor);
        Ok(Place { name, shape, first: own.start / cols })
    }

    /// The place by the table's rows.
    fn view(&self, unit: Unit, (role, rows, cols): (Role, u64, u64)) -> Option<SourceView> {
        let like = view(String::new(), rows, cols);
        if matches!(unit, Unit::Expert { .. }) {
            let module = self.family.experts.as_deref().unwrap_or(STACK);
            return self
                .arch
                .stacked_place(self.spec, unit, (role, module), &like);
        }
        self.arch
            .own_place(self.spec, unit, (role, [rows, cols]), &like)
    }

    /// The two tensors that stand for `kv_b_proj`, where they do.
    pub(super) fn halves(&self, unit: Unit, entry: &TensorEntry) -> Result<Option<Halves>> {
        if !self.family.heads || entry.role != Role::KvBProj {
            return Ok(None);
        }
        let layer = unit
            .layer()
            .and_then(|layer| self.spec.layers.get(layer as usize));
        let Some(Mixer::Latent(latent)) = layer.map(|layer| &layer.mixer) else { return Ok(None) };
        let [heads, key_rows, value_rows] =
            [latent.heads, latent.qk_nope_head_dim, latent.v_head_dim].map(u64::from);
        let name = self.place(unit, entry)?.name;
        let [_, keys, values] = HALVES.map(|end| name.replace(HALVES[0], end));
        let place =
            |name, dims: [u64; 2]| Place { name, shape: vec![heads, dims[0], dims[1]], first: 0 };
        Ok(Some(Halves {
            keys: place(keys, [entry.cols, key_rows]),
            values: place(values, [value_rows, entry.cols]),
            key_rows,
            value_rows,
        }))
    }
}

/// How a layer's rotation is scaled.
const fn scaling(mixer: &Mixer) -> Option<&RopeScaling> {
    match mixer {
        Mixer::Attention(spec) => match &spec.rope {
            Some(rope) => Some(&rope.scaling),
            None => None,
        },
        Mixer::Latent(spec) => Some(&spec.rope.scaling),
        Mixer::DeltaNet(_) | Mixer::ShortConv(_) => None,
    }
}

/// All of a tensor, in a type that does not matter.
fn view(name: String, rows: u64, cols: u64) -> SourceView {
    SourceView::whole(name, Float::F32, vec![rows, cols], cols)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;
    use shardwright_quant::Encoding;
    use shardwright_testing::fixture;

    use super::*;

    /// What mlx-lm builds, and `configs/mlx.json` leaves out: the types with the reason.
    const WITHOUT: &[(&str, &str)] = &[
        ("bitnet", "its matrices are ternary and nothing else"),
        ("deepseek_v32", "its indexer is left out of bundles"),
        ("glm_moe_dsa", "its indexer is left out of bundles"),
    ];

    fn json(name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
    }

    /// The numbers of `0-2,5`.
    fn numbers(text: &str) -> Vec<String> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<u32>().unwrap()..=last.parse().unwrap()
        };
        let parts = text.split(',').flat_map(range);
        parts.map(|n| n.to_string()).collect()
    }

    /// Names with shape and kind of a line.
    fn described(line: &str) -> Vec<(String, (Vec<u64>, bool))> {
        let [name, shape, kind] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let shape: Vec<u64> = shape.split('x').map(|n| n.parse().unwrap()).collect();
        let mut names = vec![String::new()];
        for part in name.split('.') {
            let ranged = part.starts_with(|c: char| c.is_ascii_digit());
            let parts = if ranged { numbers(part) } else { vec![part.to_owned()] };
            let longer = |name: &String| {
                let dot = if name.is_empty() { "" } else { "." };
                let parts = parts.iter();
                parts
                    .map(|part| format!("{name}{dot}{part}"))
                    .collect::<Vec<_>>()
            };
            names = names.iter().flat_map(longer).collect();
        }
        let kinds = (shape, kind == "coded");
        names
            .into_iter()
            .map(|name| (name, kinds.clone()))
            .collect()
    }

    /// Names, shapes and whether they may be codes, of what we write for a configuration.
    fn written(family: &Family, config: &Value) -> BTreeMap<String, (Vec<u64>, bool)> {
        let model_type = config["model_type"].as_str().unwrap();
        let spec = Arch::builtin(model_type).unwrap();
        let spec = spec.spec_of(Path::new("config.json"), config).unwrap();
        let places = MlxPlaces::new(family, &spec).unwrap();
        let mut all = BTreeMap::new();
        for unit in spec.units() {
            for shape in spec.tensors(unit) {
                let (role, dims) = (shape.role, [shape.rows, shape.cols]);
                if family.unread.contains_key(&role) {
                    continue;
                }
                let like = view(String::new(), shape.rows, shape.cols);
                let entry = TensorEntry::new(role, dims, Encoding::F32, like);
                if let Some(halves) = places.halves(unit, &entry).unwrap() {
                    all.extend([halves.keys, halves.values].map(|p| (p.name, (p.shape, true))));
                    continue;
                }
                let place = places.place(unit, &entry).unwrap();
                let bias = place.name.rsplit('.').next() == Some("bias");
                let matrix = place.shape.len() > 1 && !bias;
                let floats = role.is_convolution() || family.float_roles().contains(&role);
                all.insert(place.name, (place.shape, matrix && !floats));
            }
        }
        all
    }

    #[test]
    fn names_shapes_and_what_may_be_codes_are_those_of_the_models_that_mlx_lm_builds() {
        let names = json("mlx/names.json");
        let mut seen = 0;
        for (case, lines) in names["cases"].as_object().unwrap() {
            let config = match case.strip_prefix("golden/") {
                Some(name) => json(&format!("golden/{name}/config.json")),
                None => json(case)["config"].clone(),
            };
            let model_type = config["model_type"].as_str().unwrap();
            let Ok(family) = Family::named(model_type) else {
                assert!(WITHOUT.iter().any(|(name, _)| *name == model_type), "{case}");
                continue;
            };
            if case == "golden/qwen2_moe" {
                // Its first layer is dense, which mlx-lm has no place for: refused.
                continue;
            }
            let lines = lines.as_array().unwrap().iter();
            let expected = lines.flat_map(|line| described(line.as_str().unwrap()));
            let (mut found, mut expected) =
                (written(&family, &config), expected.collect::<BTreeMap<_, _>>());
            for (name, (_, coded)) in &mut found {
                // A bias in a module of codes has no mark of its own.
                *coded &= name.ends_with(".weight");
            }
            let both: Vec<_> = found
                .keys()
                .filter(|name| expected.get(*name) == found.get(*name))
                .cloned()
                .collect();
            found.retain(|name, _| !both.contains(name));
            expected.retain(|name, _| !both.contains(name));
            assert!(
                found.is_empty() && expected.is_empty(),
                "{case}: ours {found:?}, mlx-lm's {expected:?}"
            );
            seen += 1;
        }
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn the_table_of_families_parses_and_a_stranger_is_refused_by_name() {
        assert!(Family::all().len() > 40);
        let error = Family::named("arcee").unwrap_err().to_string();
        assert!(error.ends_with("found `arcee`") && error.contains("qwen3_next"), "{error}");
    }
}
