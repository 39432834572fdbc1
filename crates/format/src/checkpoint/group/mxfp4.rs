//! `mxfp4`: the experts of gpt-oss, `N_blocks` beside `N_scales`, rows the outputs.

use shardwright_quant::Float;
use shardwright_quant::foreign::MXFP4_GROUP;

use super::Grouping;
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::mismatch;

/// What the names of values end in.
const BLOCKS: &str = "_blocks";
/// What the names of powers end in.
const SCALES: &str = "_scales";

/// Takes in `N_blocks` `[.., rows, groups, 16]`.
pub(super) fn take(grouping: &mut Grouping<'_>, name: &str, stored: &StoredTensor) -> Result<()> {
    let Some(stem) = name.strip_suffix(BLOCKS) else { return Ok(()) };
    grouping.part(name, name, &[Dtype::U8])?;
    let [lead @ .., rows, groups, bytes] = &stored.shape[..] else {
        let detail = mismatch("[.., rows, groups, 16]", format_args!("{:?}", stored.shape));
        return Err(grouping.refused(name, detail));
    };
    let expected = [lead, &[*rows, *groups, MXFP4_GROUP / 2]].concat();
    if *bytes != MXFP4_GROUP / 2 {
        let detail =
            mismatch(format_args!("shape {expected:?}"), format_args!("{:?}", stored.shape));
        return Err(grouping.refused(name, detail));
    }
    let scales = format!("{stem}{SCALES}");
    let found = grouping.part(name, &scales, &[Dtype::U8])?;
    let shape = [lead, &[*rows, *groups]].concat();
    grouping.check_shape(name, &scales, &found.shape, &[shape])?;
    let cols = groups.saturating_mul(MXFP4_GROUP);
    let decoder = Decoder::Mxfp4 { blocks: name.to_owned(), scales };
    // 16 bits hold every product: one bit of mantissa, and the exponents of bf16 with subnormals.
    grouping.add(name.to_owned(), Float::Bf16, [lead, &[*rows, cols]].concat(), decoder)
}

/// The values that powers of this name belong to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    Some(format!("{}{BLOCKS}", name.strip_suffix(SCALES)?))
}
