//! GPTQ and AWQ: `X.qweight` with inputs as rows, beside `X.qzeros` and `X.scales`.

use serde_json::Value;
use shardwright_quant::Float;

use super::Grouping;
use super::setting::{number, shown};
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;

/// What the name of codes ends in.
const CODES: &str = ".qweight";
/// What names of other parts end in.
const ENDINGS: &[&str] = &[".qzeros", ".scales", ".g_idx"];
/// Types of scales.
const SCALE_TYPES: &[Dtype] =
    &[Dtype::Float(Float::F16), Dtype::Float(Float::Bf16), Dtype::Float(Float::F32)];

/// Parameters of either.
pub(super) struct Transposed {
    bits: u8,
    /// None for one group of all columns.
    group_size: Option<u64>,
    packing: Packing,
}

enum Packing {
    Gptq { zeros_stored_minus_one: bool },
    Awq,
}

/// Sizes of one tensor.
struct Extent {
    rows: u64,
    cols: u64,
    groups: u64,
    /// Columns of a group.
    step: u64,
}

impl Transposed {
    pub(super) fn gptq(config: &Value) -> Result<Self, String> {
        let zeros_stored_minus_one = match config.get("checkpoint_format").map(|f| (f, f.as_str()))
        {
            None | Some((Value::Null, _) | (_, Some("gptq"))) => true,
            Some((_, Some("gptq_v2"))) => false,
            Some((found, _)) => {
                return Err(format!(
                    "`checkpoint_format`: expected \"gptq\" or \"gptq_v2\", found {found}"
                ));
            }
        };
        let bits = number(config, "bits", &[2, 4, 8])? as u8;
        Ok(Self {
            bits,
            group_size: group_size(config)?,
            packing: Packing::Gptq { zeros_stored_minus_one },
        })
    }

    pub(super) fn awq(config: &Value) -> Result<Self, String> {
        match config.get("version").map(|v| (v, v.as_str())) {
            None => {}
            Some((_, Some(version))) if version.eq_ignore_ascii_case("gemm") => {}
            Some((found, _)) => return Err(format!("`version`: expected \"gemm\", found {found}")),
        }
        number(config, "bits", &[4])?;
        Ok(Self { bits: 4, group_size: group_size(config)?, packing: Packing::Awq })
    }

    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        let Some(module) = name.strip_suffix(CODES) else { return Ok(()) };
        grouping.part(name, name, &[Dtype::I32])?;
        let part = |part: &str| format!("{module}.{part}");
        let size = self.size(grouping, name, stored)?;
        let (scales, zeros) = (part("scales"), part("qzeros"));
        let per_word = 32 / u64::from(self.bits);
        let found = grouping.part(name, &scales, SCALE_TYPES)?;
        grouping.check_shape(name, &scales, &found.shape, &[vec![size.groups, size.rows]])?;
        let found = grouping.part(name, &zeros, &[Dtype::I32])?;
        let shape = vec![size.groups, size.rows.div_ceil(per_word)];
        grouping.check_shape(name, &zeros, &found.shape, &[shape])?;
        let (codes, group_size) = (name.to_owned(), size.step);
        let decoder = match self.packing {
            Packing::Awq => Decoder::Awq { codes, zero_points: zeros, scales, group_size },
            Packing::Gptq { zeros_stored_minus_one } => {
                let index = part("g_idx");
                let held = grouping.files.stored.contains_key(&index);
                if held {
                    let found = grouping.part(name, &index, &[Dtype::I32])?;
                    grouping.check_shape(name, &index, &found.shape, &[vec![size.cols]])?;
                }
                let groups = held.then_some(index);
                let bits = self.bits;
                let zero_points = zeros;
                Decoder::Gptq {
                    codes,
                    zero_points,
                    scales,
                    groups,
                    bits,
                    group_size,
                    zeros_stored_minus_one,
                }
            }
        };
        let shape = vec![size.rows, size.cols];
        grouping.add(part("weight"), Float::F32, shape, decoder)
    }

    fn size(&self, grouping: &Grouping<'_>, name: &str, stored: &StoredTensor) -> Result<Extent> {
        let per_word = 32 / u64::from(self.bits);
        let [first, second] = stored.shape[..] else {
            let detail = format!("expected two dimensions, found {:?}", stored.shape);
            return Err(grouping.refused(name, detail));
        };
        let (rows, cols) = match self.packing {
            Packing::Gptq { .. } => (second, first.saturating_mul(per_word)),
            Packing::Awq => (second.saturating_mul(per_word), first),
        };
        let group_size = self.group_size.unwrap_or(cols).max(1);
        Ok(Extent { rows, cols, groups: cols.div_ceil(group_size), step: group_size })
    }
}

/// Columns of a group; none for -1.
fn group_size(config: &Value) -> Result<Option<u64>, String> {
    let found = config.get("group_size");
    match found.and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if size > 0 => Ok(Some(size as u64)),
        _ => Err(format!("`group_size`: expected a number above 0 or -1, found {}", shown(found))),
    }
}

/// The codes that a part of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    Some(format!("{}{CODES}", module?))
}
