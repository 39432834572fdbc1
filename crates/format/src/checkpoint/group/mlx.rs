//! MLX's affine mode: `X.weight` of words beside `X.scales` and `X.biases`.

use std::collections::BTreeMap;

use serde_json::Value;
use shardwright_quant::Float;

use super::Grouping;
use super::setting::{number, shown};
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;

/// Types of scales and biases.
const SCALE_TYPES: &[Dtype] =
    &[Dtype::Float(Float::Bf16), Dtype::Float(Float::F16), Dtype::Float(Float::F32)];
/// Widths of codes.
const BITS: &[u64] = &[2, 3, 4, 5, 6, 8];
/// What names of parts besides the weight end in.
const ENDINGS: &[&str] = &[".scales", ".biases"];

/// Bits of a code and columns of a group.
type Width = (u8, u64);

/// Its parameters.
pub(super) struct Mlx {
    width: Width,
    /// Those of modules that have their own.
    modules: BTreeMap<String, Width>,
    /// Modules that are not quantized.
    pub(super) kept: Vec<String>,
}

impl Mlx {
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut parsed = Self { width: width(config)?, modules: BTreeMap::new(), kept: Vec::new() };
        for (name, value) in config.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => {
                    let width = width(value).map_err(|e| format!("`{name}`: {e}"))?;
                    parsed.modules.insert(name.clone(), width);
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
        let (bits, group_size) = *self.modules.get(module).unwrap_or(&self.width);
        let cols = words.saturating_mul(32) / u64::from(bits);
        if cols % group_size != 0
            || cols.saturating_mul(u64::from(bits)) != words.saturating_mul(32)
        {
            let detail = format!(
                "expected rows of whole groups of {group_size} codes of {bits} bits, found {words} \
                 words"
            );
            return Err(grouping.refused(name, detail));
        }
        let shape = [lead, &[*rows, cols / group_size]].concat();
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
        grouping.add(name.to_owned(), Float::F32, [lead, &[*rows, cols]].concat(), decoder)
    }
}

fn width(config: &Value) -> Result<Width, String> {
    match config.get("mode") {
        None => {}
        Some(mode) if mode == "affine" => {}
        other => return Err(format!("`mode`: expected \"affine\", found {}", shown(other))),
    }
    let bits = number(config, "bits", BITS)?;
    let group_size = number(config, "group_size", &[16, 32, 64, 128])?;
    Ok((bits as u8, group_size))
}

/// The weight that a part of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    Some(format!("{}.weight", module?))
}
