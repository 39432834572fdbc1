//! `fp8`: `X.weight` in FP8 beside `X.weight_scale_inv`, the scale of each block of rows and
//! columns, as DeepSeek-V3, MiniMax-M2 and Qwen store it. A fused tensor `N` has `N_scale_inv`. Others
//! call it `X.weight_scale`: one for a tensor (`AutoFP8`, `ModelOpt`, Quark) or one for each row (FBGEMM).

use serde_json::Value;
use shardwright_quant::Float;

use super::Grouping;
use super::setting::shown;
use crate::checkpoint::files::{Files, StoredTensor};
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// What the names of scales end in.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Types that scales may have, the floats first.
pub(super) const SCALE_TYPES: &[Dtype] =
    &[Dtype::Float(Float::F32), Dtype::Float(Float::Bf16), Dtype::Float(Float::F16), Dtype::F8E8m0];
/// What the names of scales of activations, which nothing here needs, end in.
const ACTIVATIONS: &[&str] = &[
    "activation_scale",
    "input_scale",
    "input_scale_ub",
    "activation_scale_inv",
    "k_scale",
    "v_scale",
    "kv_scale",
    "q_scale",
    "prob_scale",
    "output_scale",
];
/// Its parameters.
#[derive(Default)]
pub(super) struct Fp8 {
    /// Rows and columns of a block; without them the scales show what each is of.
    block: Option<[u64; 2]>,
}

impl Fp8 {
    pub(super) fn parse(config: &Value) -> Result<Self, Refusal> {
        let block = match config.get("weight_block_size") {
            None | Some(Value::Null) => None,
            Some(found) => Some(block_size(found).ok_or_else(|| {
                let found = shown(Some(found));
                mismatch("two numbers above 0", found).at("`weight_block_size`")
            })?),
        };
        Ok(Self { block })
    }

    /// The tensor that scales of this name are of.
    pub(super) fn whole_of(name: &str) -> Option<String> {
        let whole = SCALES.iter().find_map(|ending| name.strip_suffix(ending))?;
        let scaled = *SCALES[0] == name[whole.len()..] || whole.ends_with("weight");
        scaled.then(|| whole.to_owned())
    }

    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        grouping.set_aside_activations(name, ACTIVATIONS);
        if !is_matrix(stored) {
            return Ok(());
        }
        let [.., cols] = stored.shape[..] else { return Ok(()) };
        let scales = scales_of(grouping.files, name);
        let held = grouping.files.stored.get(&scales);
        let by_row = held.is_some_and(|scales| is_by_row(stored, scales));
        let by_row = by_row.then_some([1, cols.max(1)]);
        let shown = || by_row.or_else(|| block_shown(stored, held?));
        let block = self.block.or_else(shown);
        grouping.add_scaled(name, stored, scales, block)
    }

    /// The parameters of tensors that nothing describes, where their scales show all: each in FP8 has one, or
    /// one for each row or block.
    pub(super) fn shown(files: &Files) -> Option<Self> {
        let decided = |name: &String, stored: &StoredTensor| {
            let scales = files.stored.get(&scales_of(files, name));
            let one = |scales: &StoredTensor| scales.shape.iter().all(|n| *n == 1);
            scales.is_some_and(|scales| {
                one(scales) || is_by_row(stored, scales) || block_shown(stored, scales).is_some()
            })
        };
        let all = files.stored.iter();
        let mut matrices = all.filter(|(_, stored)| is_matrix(stored)).peekable();
        matrices.peek()?;
        matrices
            .all(|(name, stored)| decided(name, stored))
            .then(Self::default)
    }
}

/// Whether values are weights in FP8.
fn is_matrix(stored: &StoredTensor) -> bool {
    matches!(stored.dtype, Dtype::F8E4m3 | Dtype::F8E5m2) && stored.shape.len() >= 2
}

/// The name of the scales of the weights `name`.
fn scales_of(files: &Files, name: &str) -> String {
    let [usual, older] = SCALES.map(|ending| format!("{name}{ending}"));
    let held = |name: &String| files.stored.contains_key(name);
    if held(&older) && !held(&usual) { older } else { usual }
}

/// Whether each row of a matrix has a scale.
fn is_by_row(stored: &StoredTensor, scales: &StoredTensor) -> bool {
    let [.., rows, _] = stored.shape[..] else { return false };
    let whole = scales.shape.len() == stored.shape.len();
    match scales.shape[..] {
        [.., n, 1] if whole => rows > 1 && n == rows,
        [n] => rows > 1 && n == rows,
        _ => false,
    }
}

/// Rows and columns of a block by how many scales there are of each. Sides are powers of two, as in every published
/// model, and of these never more than one gives a number of blocks above 1.
fn block_shown(stored: &StoredTensor, scales: &StoredTensor) -> Option<[u64; 2]> {
    let [.., rows, cols] = stored.shape[..] else { return None };
    let [down, across] = match scales.shape[..] {
        // `ModelOpt`'s.
        [down, 1, across, 1] if stored.shape.len() == 2 => [down, across],
        [.., down, across] if scales.shape.len() == stored.shape.len() => [down, across],
        _ => return None,
    };
    let side = |size: u64, blocks: u64| {
        let mut sides = (0..u64::BITS).map(|bit| 1_u64 << bit);
        let whole = (blocks == 1).then_some(size.max(1));
        whole.or_else(|| sides.find(|side| size.div_ceil(*side) == blocks))
    };
    Some([side(rows, down)?, side(cols, across)?])
}

/// Two numbers above 0.
pub(super) fn block_size(value: &Value) -> Option<[u64; 2]> {
    let list = value.as_array()?;
    let sizes: Vec<_> = list.iter().map(|n| n.as_u64().filter(|n| *n > 0)).collect();
    match sizes[..] {
        [Some(rows), Some(cols)] => Some([rows, cols]),
        _ => None,
    }
}

impl Grouping<'_> {
    /// Sets aside a scale of activations.
    pub(super) fn set_aside_activations(&mut self, name: &str, endings: &[&str]) {
        let last = name.rsplit('.').next().unwrap_or(name);
        if endings.iter().any(|ending| last.ends_with(ending)) {
            let reason = "scale of quantized activations; activations are not quantized";
            self.auxiliary.insert(name.to_owned(), reason.to_owned());
        }
    }

    /// Takes in a tensor with a scale per block, or without blocks per tensor.
    pub(super) fn add_scaled(
        &mut self,
        name: &str,
        stored: &StoredTensor,
        scales: String,
        block: Option<[u64; 2]>,
    ) -> Result<()> {
        let [lead @ .., rows, cols] = &stored.shape[..] else { return Ok(()) };
        let found = self.part(name, &scales, SCALE_TYPES)?;
        let block = block.unwrap_or([(*rows).max(1), (*cols).max(1)]);
        let grid = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let mut shapes = vec![[lead, &grid].concat()];
        if grid[1] == 1 {
            shapes.push([lead, &grid[..1]].concat());
        }
        if lead.is_empty() && found.shape.len() == 4 {
            shapes.push(vec![grid[0], 1, grid[1], 1]);
        }
        if grid == [1, 1] && lead.is_empty() {
            shapes.push(Vec::new());
        }
        self.check_shape(name, &scales, &found.shape, &shapes)?;
        let (weight, values) = (name.to_owned(), stored.dtype);
        let powers = found.dtype == Dtype::F8E8m0;
        let decoder = Decoder::Scaled { weight, values, scales, block, powers };
        self.add(name.to_owned(), Float::F32, stored.shape.clone(), decoder)
    }
}
