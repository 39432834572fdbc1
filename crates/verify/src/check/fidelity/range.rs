//! What rounding to a grid over a group's range explains, where a few values outweigh all others.

use shardwright_quant::{Affine, Encoding, QuantStats};

use super::usual_limit;

/// What scales and biases of 16 bits may move a value by, relative to the largest of its group: two roundings to
/// bf16.
const ROUNDING: f64 = 1.0 / 256.0;

/// How much of the squared error of `row` lies beyond the usual limit of `encoding` and is yet what rounding
/// explains; 0 where nothing lies beyond it, or where more does than is explained.
///
/// Of a group that holds one value of each sign far from all others, a grid over its range has no level near
/// zero: all others then err by up to half a step, more than they weigh.
pub(super) fn beyond(encoding: Encoding, row: &[f32], errors: &QuantStats) -> f64 {
    let (Encoding::Affine(affine), Some(limit)) = (encoding, usual_limit(encoding)) else {
        return 0.0;
    };
    let beyond = errors.sum_sq_error - limit * limit * errors.sum_sq;
    if beyond > 0.0 && errors.sum_sq_error <= of_ranges(affine, row) { beyond } else { 0.0 }
}

/// Most squared error of `row` when each of its groups is rounded to the nearest level of a grid over its range:
/// half a step a value.
fn of_ranges(affine: Affine, row: &[f32]) -> f64 {
    let steps = f64::from(affine.bits()).exp2() - 1.0;
    let groups = row.chunks(affine.group_size());
    let error = groups.map(|group| {
        // From zero on, where a group lies beyond it: a grid with a whole number for zero reaches that far.
        let (least, most) = group
            .iter()
            .fold((0f64, 0f64), |(least, most), w| (least.min((*w).into()), most.max((*w).into())));
        let half = (most - least) / steps / 2.0 + most.max(-least) * ROUNDING;
        group.len() as f64 * half * half
    });
    error.sum()
}
