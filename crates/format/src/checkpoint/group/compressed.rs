//! compressed-tensors: `X.weight_packed` of words with `X.weight_scale` and `X.weight_shape`, or
//! `X.weight` of one byte per value with `X.weight_scale`.

use serde_json::Value;
use shardwright_quant::Float;
use shardwright_quant::foreign::MXFP4_GROUP;

use super::Grouping;
use super::fp8::{SCALE_TYPES, block_size};
use super::setting::shown;
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// What the name of packed codes ends in.
const CODES: &str = ".weight_packed";
/// What names of other parts end in.
const ENDINGS: &[&str] = &[
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_g_idx",
    ".weight_global_scale",
];
/// What names of scales of activations and of the KV cache end in.
const ACTIVATIONS: &[&str] =
    &["input_scale", "output_scale", "k_scale", "v_scale", "input_global_scale"];
/// Formats whose tensors are read.
const FORMATS: &[&str] = &[
    "pack-quantized",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
];

/// Its parameters.
pub(super) struct Compressed {
    /// Those of each group of modules; which group a tensor is of is told by its shape.
    groups: Vec<Group>,
}

/// How the weights of a group of modules are quantized.
struct Group {
    bits: u8,
    strategy: Strategy,
}

/// What shares a scale.
#[derive(Clone, Copy)]
enum Strategy {
    Tensor,
    Channel,
    Group(u64),
    Block([u64; 2]),
}

impl Compressed {
    pub(super) fn parse(config: &Value) -> Result<Self, Refusal> {
        check_format(config.get("format"))?;
        let sparse = config.pointer("/sparsity_config/format");
        if sparse.is_some_and(|format| format != "dense") {
            let found = shown(sparse);
            return Err(mismatch("\"dense\"", found).at("`sparsity_config.format`"));
        }
        let rotated = config.get("transform_config");
        if rotated.is_some_and(|t| t.as_object().is_some_and(|t| !t.is_empty())) {
            return Err(mismatch("none", "transforms").at("`transform_config`"));
        }
        let listed = config.get("config_groups").and_then(Value::as_object);
        let listed = listed.ok_or_else(|| {
            let found = shown(config.get("config_groups"));
            mismatch("groups by name", found).at("`config_groups`")
        })?;
        let mut groups = Vec::new();
        for (name, group) in listed {
            let parsed = Group::parse(group);
            groups.push(parsed.map_err(|e| e.at(format_args!("`config_groups.{name}`")))?);
        }
        Ok(Self { groups })
    }

    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        grouping.set_aside_activations(name, ACTIVATIONS);
        if let Some(module) = name.strip_suffix(CODES) {
            if stored.dtype == Dtype::U8 {
                return take_pairs(grouping, name, module, stored);
            }
            return self.take_packed(grouping, name, module, stored);
        }
        let bytes = matches!(stored.dtype, Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::I8);
        match name.strip_suffix(".weight") {
            Some(module) if bytes => self.take_bytes(grouping, name, module, stored),
            _ => Ok(()),
        }
    }

    fn take_packed(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        module: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        grouping.part(name, name, &[Dtype::I32])?;
        let part = |part: &str| format!("{module}.weight_{part}");
        let (scales, dims, zeros) = (part("scale"), part("shape"), part("zero_point"));
        let shape = grouping.numbers(name, &dims, stored.shape.len())?;
        let held = grouping.part(name, &scales, &SCALE_TYPES[..3])?;
        let scale_dtype = held.dtype.float().unwrap_or(Float::F32);
        let [lead @ .., rows, cols] = &shape[..] else {
            return Err(
                grouping.refused(&dims, mismatch("two or more numbers", format_args!("{shape:?}")))
            );
        };
        let with = |tail: [u64; 2]| [lead, &tail].concat();
        let fits = |group: &&Group| {
            let words = cols.saturating_mul(u64::from(group.bits)).div_ceil(32);
            let scales = group
                .group_size(*cols)
                .map(|size| with([*rows, cols.div_ceil(size)]));
            stored.shape == with([*rows, words]) && scales.is_some_and(|shape| held.shape == shape)
        };
        let Some(group) = self.groups.iter().find(fits) else {
            let detail = mismatch(
                format_args!(
                    "codes and scales of the shape {shape:?} in `{dims}` by one of config_groups"
                ),
                format_args!("{:?} and {:?}", stored.shape, held.shape),
            );
            return Err(grouping.refused(name, detail));
        };
        let group_size = group.group_size(*cols).unwrap_or(*cols).max(1);
        let zero_points = grouping.files.stored.contains_key(&zeros).then_some(zeros);
        if let Some(zeros) = &zero_points {
            let found = grouping.part(name, zeros, &[Dtype::I32])?;
            if !32_u8.is_multiple_of(group.bits) {
                let detail = format!("expected no zero points beside {} bits", group.bits);
                return Err(grouping.refused(zeros, detail));
            }
            let words = rows.saturating_mul(u64::from(group.bits)).div_ceil(32);
            let shape = vec![words, cols.div_ceil(group_size)];
            grouping.check_shape(name, zeros, &found.shape, &[shape])?;
        }
        let groups = index_of(grouping, name, part("g_idx"), *cols)?;
        let (codes, bits) = (name.to_owned(), group.bits);
        let decoder = Decoder::Packed {
            codes,
            scales,
            scale_dtype,
            zero_points,
            dims,
            groups,
            bits,
            group_size,
        };
        grouping.add(format!("{module}.weight"), Float::F32, shape, decoder)
    }

    fn take_bytes(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        module: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        let scales = format!("{module}.weight_scale");
        let held = grouping.part(name, &scales, SCALE_TYPES)?;
        let [lead @ .., rows, cols] = &stored.shape[..] else { return Ok(()) };
        let fits = |group: &&Group| {
            let [r, c] = group.block(*rows, *cols);
            let grid = [rows.div_ceil(r), cols.div_ceil(c)];
            let short =
                held.shape.len() < 2 && held.shape.iter().product::<u64>() == grid[0] * grid[1];
            group.bits == 8 && (held.shape == [lead, &grid].concat() || (lead.is_empty() && short))
        };
        let Some(group) = self.groups.iter().find(fits) else {
            let detail = mismatch(
                format_args!(
                    "a scale per tensor, row, group or block of `{name}` {:?} as config_groups says",
                    stored.shape
                ),
                format_args!("shape {:?}", held.shape),
            );
            return Err(grouping.refused(&scales, detail));
        };
        let block = group.block(*rows, *cols);
        let (weight, values) = (name.to_owned(), stored.dtype);
        let powers = held.dtype == Dtype::F8E8m0;
        let decoder = Decoder::Scaled { weight, values, scales, block, powers };
        grouping.add(name.to_owned(), Float::F32, stored.shape.clone(), decoder)
    }
}

/// The tensor that gives the group of each column (`actorder`: "group"), where the checkpoint has one.
fn index_of(grouping: &Grouping<'_>, of: &str, index: String, cols: u64) -> Result<Option<String>> {
    if !grouping.files.stored.contains_key(&index) {
        return Ok(None);
    }
    let found = grouping.part(of, &index, &[Dtype::I32])?;
    grouping.check_shape(of, &index, &found.shape, &[vec![cols]])?;
    Ok(Some(index))
}

/// Takes in pairs of four-bit floats: with a scale for the tensor NVFP4, without one MXFP4.
fn take_pairs(
    grouping: &mut Grouping<'_>,
    name: &str,
    module: &str,
    stored: &StoredTensor,
) -> Result<()> {
    let whole = format!("{module}.weight");
    let [scales, of_tensor] = ["scale", "global_scale"].map(|part| format!("{whole}_{part}"));
    if grouping.files.stored.contains_key(&of_tensor) {
        let found = grouping.part(name, &of_tensor, &SCALE_TYPES[..1])?;
        grouping.check_shape(name, &of_tensor, &found.shape, &[vec![], vec![1]])?;
        return grouping.add_nvfp4((name, &whole), stored, scales, (Some(of_tensor), true));
    }
    let [lead @ .., rows, bytes] = &stored.shape[..] else {
        let detail = mismatch("a matrix", format_args!("shape {:?}", stored.shape));
        return Err(grouping.refused(name, detail));
    };
    let cols = bytes.saturating_mul(2);
    let shape = [lead, &[*rows, cols / MXFP4_GROUP]].concat();
    let found = grouping.part(name, &scales, &[Dtype::U8, Dtype::F8E8m0])?;
    grouping.check_shape(name, &scales, &found.shape, &[shape])?;
    if !cols.is_multiple_of(MXFP4_GROUP) {
        let detail = mismatch(
            format_args!("rows of whole groups of {MXFP4_GROUP}"),
            format_args!("{cols} codes"),
        );
        return Err(grouping.refused(name, detail));
    }
    let decoder = Decoder::Mxfp4 { blocks: name.to_owned(), scales };
    grouping.add(whole, Float::Bf16, [lead, &[*rows, cols]].concat(), decoder)
}

impl Group {
    fn parse(group: &Value) -> Result<Self, Refusal> {
        if group.get("format").is_some_and(|format| !format.is_null()) {
            check_format(group.get("format"))?;
        }
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let bits = bits
            .filter(|bits| [2, 3, 4, 6, 8].contains(bits))
            .ok_or_else(|| {
                let found = shown(weights.get("num_bits"));
                mismatch("2, 3, 4, 6 or 8", found).at("`weights.num_bits`")
            })?;
        let text = weights.get("strategy").and_then(Value::as_str);
        let size = weights
            .get("group_size")
            .and_then(Value::as_u64)
            .filter(|n| *n > 0);
        let block = weights.get("block_structure").and_then(block_size);
        let strategy = match (text, size, block) {
            (Some("tensor"), ..) => Strategy::Tensor,
            (Some("channel"), ..) => Strategy::Channel,
            // The other one is of four-bit floats, whose groups their parts show.
            (Some("group" | "tensor_group"), Some(size), _) => Strategy::Group(size),
            (Some("block"), _, Some(block)) => Strategy::Block(block),
            _ => {
                let found = shown(weights.get("strategy"));
                let expected = "\"tensor\", \"channel\", \"group\" with its `group_size` or \
                                \"block\" with its `block_structure`";
                return Err(mismatch(expected, found).at("`weights.strategy`"));
            }
        };
        Ok(Self { bits: bits as u8, strategy })
    }

    /// Columns that share a scale, where no two rows do.
    fn group_size(&self, cols: u64) -> Option<u64> {
        match self.strategy {
            Strategy::Channel => Some(cols.max(1)),
            Strategy::Group(size) => Some(size),
            Strategy::Tensor | Strategy::Block(_) => None,
        }
    }

    /// Rows and columns that share a scale.
    fn block(&self, rows: u64, cols: u64) -> [u64; 2] {
        let (rows, cols) = (rows.max(1), cols.max(1));
        match self.strategy {
            Strategy::Tensor => [rows, cols],
            Strategy::Channel => [1, cols],
            Strategy::Group(size) => [1, size],
            Strategy::Block(block) => block,
        }
    }
}

fn check_format(format: Option<&Value>) -> Result<(), Refusal> {
    let known = format
        .and_then(Value::as_str)
        .is_some_and(|f| FORMATS.contains(&f));
    if known {
        return Ok(());
    }
    let (expected, found) = (FORMATS.join(", "), shown(format));
    Err(mismatch(format_args!("one of {expected}"), found).at("`format`"))
}

impl Grouping<'_> {
    /// The whole numbers in the tensor `name`, a part of `of`.
    fn numbers(&self, of: &str, name: &str, count: usize) -> Result<Vec<u64>> {
        let held = self.part(of, name, &[Dtype::I64, Dtype::I32])?;
        self.check_shape(of, name, &held.shape, &[vec![count as u64]])?;
        let size = held.dtype.size();
        let mut bytes = vec![0; count * size];
        self.files.opened[held.file]
            .file
            .read_at(held.offset, &mut bytes)?;
        let numbers = bytes.chunks_exact(size).map(|bytes| {
            let mut wide = [0; 8];
            wide[..size].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        });
        Ok(numbers.collect())
    }
}

/// The weights that a part of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    Some(format!("{}.weight", module?))
}
