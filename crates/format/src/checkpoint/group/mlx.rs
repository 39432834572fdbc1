//! MLX: `X.weight` of words beside `X.scales`, and in the affine mode `X.biases`; and what mlx-lm
//! rewrites in models of some families.

use std::collections::BTreeMap;

use serde_json::Value;
use shardwright_quant::Float;
use shardwright_quant::foreign::{MXFP4_GROUP, NVFP4_GROUP};

use super::Grouping;
use super::setting::{number, shown};
use crate::checkpoint::files::{Files, StoredTensor, TensorInfo};
use crate::checkpoint::names::nested;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// Types of scales and biases.
const SCALE_TYPES: &[Dtype] =
    &[Dtype::Float(Float::Bf16), Dtype::Float(Float::F16), Dtype::Float(Float::F32)];
/// Widths of codes.
const BITS: &[u64] = &[2, 3, 4, 5, 6, 8];
/// Codes that share a scale in the affine mode.
const SIZES: &[u64] = &[16, 32, 64, 128];
/// Its bits and group size where a module says none.
const AFFINE: [u64; 2] = [4, 64];
/// What names of parts besides the weight end in.
const ENDINGS: &[&str] = &[".scales", ".biases", ".global_scale"];
/// Norms to which mlx-lm adds one where it turns the convolutions of gated delta nets, by what their names
/// end in.
const RAISED: &[&str] = &[
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];
/// What the name of such a convolution ends in.
const CONVOLUTION: &str = ".linear_attn.conv1d.weight";
/// What the names of the two halves of `kv_b_proj` end in, and its own.
const HALVES: [&str; 3] = [".embed_q.weight", ".unembed_out.weight", ".kv_b_proj.weight"];

/// What codes are and how many share a scale.
#[derive(Clone, Copy)]
struct Mode {
    kind: Kind,
    bits: u8,
    group_size: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Affine,
    Mxfp4,
    Nvfp4,
    Mxfp8,
}

/// Its parameters.
pub(super) struct Mlx {
    mode: Mode,
    /// Those of modules that have their own.
    modules: BTreeMap<String, Mode>,
    /// Modules that are not quantized.
    pub(super) kept: Vec<String>,
}

impl Mlx {
    pub(super) fn parse(config: &Value) -> Result<Self, Refusal> {
        let mode = Mode::parse(config, false)?;
        let mut parsed = Self { mode, modules: BTreeMap::new(), kept: Vec::new() };
        for (name, value) in config.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => {
                    let mode = Mode::parse(value, true);
                    let mode = mode.map_err(|e| e.at(format_args!("`{name}`")))?;
                    parsed.modules.insert(name.clone(), mode);
                }
                Value::Bool(false) => parsed.kept.push(name.clone()),
                _ => {}
            }
        }
        Ok(parsed)
    }

    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        let Some(module) = name.strip_suffix(".weight") else { return Ok(()) };
        let [lead @ .., rows, words] = &stored.shape[..] else { return Ok(()) };
        if stored.dtype != Dtype::U32 {
            return Ok(());
        }
        let mode = self.mode_of(grouping.files.module_in_files(name), module);
        let Mode { kind, bits, group_size } = mode;
        let cols = words.saturating_mul(32) / u64::from(bits);
        if cols % group_size != 0
            || cols.saturating_mul(u64::from(bits)) != words.saturating_mul(32)
        {
            let detail = mismatch(
                format_args!("rows of whole groups of {group_size} codes of {bits} bits"),
                format_args!("{words} words"),
            );
            return Err(grouping.refused(name, detail));
        }
        let shape = [lead, &[*rows, cols / group_size]].concat();
        let whole = [lead, &[*rows, cols]].concat();
        if kind != Kind::Affine {
            let decoder = scaled(grouping, name, &shape, mode)?;
            return grouping.add(name.to_owned(), Float::F32, whole, decoder);
        }
        let [scales, biases] = ["scales", "biases"].map(|part| format!("{module}.{part}"));
        let mut types = SCALE_TYPES;
        for part in [&scales, &biases] {
            let found = grouping.part(name, part, types)?;
            grouping.check_shape(name, part, &found.shape, std::slice::from_ref(&shape))?;
            types = std::slice::from_ref(&found.dtype);
        }
        let scale_dtype = types[0].float().unwrap_or(Float::F32);
        let weight = name.to_owned();
        let decoder = Decoder::Mlx { weight, scales, biases, scale_dtype, bits, group_size };
        grouping.add(name.to_owned(), Float::F32, whole, decoder)
    }
}

impl Mlx {
    /// The mode of a module, which its file may call otherwise; or the key, where the model stood within another
    /// and its tensors alone were renamed.
    fn mode_of(&self, in_file: Option<&str>, module: &str) -> Mode {
        let own = |name: &str| self.modules.get(name);
        let nested = || nested(module).iter().find_map(|name| own(name));
        let found = in_file.and_then(own).or_else(|| own(module));
        *found.or_else(nested).unwrap_or(&self.mode)
    }
}

/// Whether the tensors are MLX's: words beside scales, under names that no other scheme has together.
pub(super) fn shows(files: &Files) -> bool {
    let has = |name: &str| files.stored.get(name);
    files.stored.keys().any(|name| {
        let module = name.strip_suffix(".scales");
        let weight = module.and_then(|module| has(&format!("{module}.weight")));
        weight.is_some_and(|weight| weight.dtype == Dtype::U32)
    })
}

/// Small floats in the words of `name`, with a byte of scale for each group: `shape`.
fn scaled(grouping: &Grouping<'_>, name: &str, shape: &[u64], mode: Mode) -> Result<Decoder> {
    let part = |part: &str| format!("{}{part}", name.trim_end_matches(".weight"));
    let (codes, scales, of_tensor) = (name.to_owned(), part(".scales"), part(".global_scale"));
    let found = grouping.part(name, &scales, &[Dtype::U8])?;
    grouping.check_shape(name, &scales, &found.shape, &[shape.to_vec()])?;
    if grouping.files.stored.contains_key(&of_tensor) {
        return Err(grouping.refused(&of_tensor, "a scale for the whole tensor is not read"));
    }
    Ok(match mode.kind {
        Kind::Affine | Kind::Mxfp4 => Decoder::Mxfp4 { blocks: codes, scales },
        Kind::Nvfp4 => Decoder::Nvfp4 { codes, scales, tensor_scale: None, divided: false },
        Kind::Mxfp8 => {
            let block = [1, mode.group_size];
            let values = Dtype::F8E4m3;
            Decoder::Scaled { weight: codes, values, scales, block, powers: true }
        }
    })
}

impl Mode {
    /// What `config` says; `own`, of a module, may leave out bits and group size, for which mlx takes the mode's
    /// own (`_defaults_for_mode`), not those of the model.
    ///
    /// # Errors
    /// A mode that is not known, or bits and groups that it does not have.
    fn parse(config: &Value, own: bool) -> Result<Self, Refusal> {
        let found = config.get("mode").filter(|mode| !mode.is_null());
        let (kind, bits, sizes): (_, _, &[u64]) = match found.map(|mode| mode.as_str()) {
            None | Some(Some("affine")) => (Kind::Affine, BITS, SIZES),
            Some(Some("mxfp4")) => (Kind::Mxfp4, &[4], &[MXFP4_GROUP]),
            Some(Some("nvfp4")) => (Kind::Nvfp4, &[4], &[NVFP4_GROUP]),
            Some(Some("mxfp8")) => (Kind::Mxfp8, &[8], &[MXFP4_GROUP]),
            _ => {
                let known = "\"affine\", \"mxfp4\", \"nvfp4\" or \"mxfp8\"";
                return Err(mismatch(known, shown(found)).at("`mode`"));
            }
        };
        let given = |key: &str, known: &[u64], usual: u64| match config.get(key) {
            None | Some(Value::Null) if own => Ok(usual),
            _ => number(config, key, known),
        };
        let [usual_bits, usual_size] = match kind {
            Kind::Affine => AFFINE,
            _ => [bits[0], sizes[0]],
        };
        let bits = given("bits", bits, usual_bits)? as u8;
        Ok(Self { kind, bits, group_size: given("group_size", sizes, usual_size)? })
    }
}

/// Makes of what mlx-lm rewrote what the model's own checkpoint holds: takes one off the norms where a
/// convolution is turned, as mlx-lm adds one there and only there, and joins the halves of `kv_b_proj`.
pub(super) fn restore(tensors: &mut BTreeMap<String, TensorInfo>) {
    let turned = |(name, info): (&String, &TensorInfo)| {
        name.ends_with(CONVOLUTION) && matches!(info.shape[..], [_, taps, 1] if taps > 1)
    };
    if tensors.iter().any(turned) {
        let norms = tensors.iter_mut().filter(|(name, info)| {
            info.shape.len() == 1 && RAISED.iter().any(|ending| name.ends_with(ending))
        });
        for (name, info) in norms.filter(|(_, info)| info.decoder.is_none()) {
            info.decoder = Some(Decoder::plain(name.clone(), info.dtype, true));
            info.dtype = Float::F32;
        }
    }
    join_heads(tensors);
}

/// Joins the halves of every `kv_b_proj` that has its keys and values apart.
pub(in crate::checkpoint) fn join_heads(tensors: &mut BTreeMap<String, TensorInfo>) {
    let keys = tensors.keys().filter(|name| name.ends_with(HALVES[0]));
    for keys in keys.cloned().collect::<Vec<_>>() {
        join_halves(tensors, &keys);
    }
}

/// Joins `X.embed_q` `[heads, cols, key rows]` with `X.unembed_out` `[heads, value rows, cols]`; leaves
/// them if these are not their shapes.
fn join_halves(tensors: &mut BTreeMap<String, TensorInfo>, keys: &str) -> Option<()> {
    let module = keys.strip_suffix(HALVES[0])?;
    let (values, whole) = (format!("{module}{}", HALVES[1]), format!("{module}{}", HALVES[2]));
    let (first, second) = (tensors.get(keys)?, tensors.get(&values)?);
    let ([heads, cols, key_rows], [same_heads, value_rows, same_cols]) = (
        <[u64; 3]>::try_from(&first.shape[..]).ok()?,
        <[u64; 3]>::try_from(&second.shape[..]).ok()?,
    );
    let rows = key_rows.checked_add(value_rows)?.checked_mul(heads)?;
    if (heads, cols) != (same_heads, same_cols) || tensors.contains_key(&whole) {
        return None;
    }
    let joined = TensorInfo {
        dtype: first.dtype_with(second),
        shape: vec![rows, cols],
        decoder: Some(Decoder::Heads {
            keys: first.as_part(keys),
            values: second.as_part(&values),
            key_rows,
            value_rows,
        }),
        ..first.clone()
    };
    tensors.remove(keys);
    tensors.remove(&values);
    tensors.insert(whole, joined);
    Some(())
}

/// The weight that a part of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    Some(format!("{}.weight", module?))
}
