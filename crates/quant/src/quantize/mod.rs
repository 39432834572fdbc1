//! Quantization: `f32` rows to codes, scales and biases.

mod blocks;
mod gptq;
mod group;
mod lanes;
mod levels;
mod output;
mod points;
mod search;
mod stats;
#[cfg(test)]
pub mod tests;
mod trellis;
mod zeros;

use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::encoding::{Affine, Encoding, Float, Zeros};
use crate::error::QuantError;
use crate::feedback::HessianFactor;
use crate::kernel::Backend;

use group::PairSearch;

pub use gptq::KEPT_COLS;
pub use stats::QuantStats;

/// How affine codes are chosen. All round the scale and bias of a group to storage first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Bias at the least weight, the largest code at the greatest.
    MinMax,
    /// The least squared error among many clipped ranges, each refined by least squares.
    /// Never worse than [`Self::MinMax`] on any group.
    #[default]
    Search,
    /// The search with every squared error weighted by the second moment of its input. Never worse
    /// than [`Self::MinMax`] on any group in the weighted error. Needs [`Objective::Diagonal`] or
    /// [`Objective::Hessian`].
    Importance,
    /// Column by column; what rounding a column did to the outputs is made up for in the columns
    /// after it (GPTQ, arXiv 2210.17323). Each group's scale and bias are searched, weighted, when
    /// its first column's turn comes. Needs [`Objective::Hessian`].
    Gptq,
}

impl Method {
    /// The lower-case name of recipes and reports: `minmax`, `search`, `importance`, `gptq`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MinMax => "minmax",
            Self::Search => "search",
            Self::Importance => "importance",
            Self::Gptq => "gptq",
        }
    }

    /// The best that the method can be with what `objective` knows of the inputs.
    #[must_use]
    pub const fn given(self, objective: Objective<'_>) -> Self {
        match (objective, self) {
            (Objective::Weights, Self::Importance | Self::Gptq) => Self::Search,
            (Objective::Diagonal(_), Self::Gptq) => Self::Importance,
            _ => self,
        }
    }
}

/// What is known of the inputs of a matrix, and so what an error costs.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// Nothing: all columns count alike.
    Weights,
    /// The second moment of each input, `[cols]`.
    Diagonal(&'a [f32]),
    /// The Gram of the inputs, factored.
    Hessian(&'a HessianFactor),
}

impl Objective<'_> {
    /// Whether the objective is one for `cols` inputs of a matrix in `encoding`.
    fn check(self, cols: usize, encoding: Encoding) -> Result<(), QuantError> {
        match self {
            Self::Weights => Ok(()),
            Self::Diagonal(moments) => {
                check("importance", (cols * 4) as u64, size_of_val(moments))?;
                let bad = |v: &f32| !(v.is_finite() && *v >= 0.0);
                match moments.iter().position(bad) {
                    Some(at) => Err(QuantError::moment(at, at, moments[at])),
                    None => Ok(()),
                }
            }
            Self::Hessian(feedback) => feedback.check(cols, encoding),
        }
    }

    /// The second moment of each input.
    fn moments(&self) -> Result<&[f32], QuantError> {
        match self {
            Self::Weights => {
                let needs = "the second moments of the inputs";
                Err(QuantError::NeedsInputs { method: Method::Importance.name(), needs })
            }
            Self::Diagonal(moments) => Ok(moments),
            Self::Hessian(feedback) => Ok(feedback.moments()),
        }
    }
}

/// Where a quantized matrix goes.
#[derive(Debug)]
pub struct PartsMut<'a> {
    /// Packed codes, `[rows, cols * bits / 8]`; of a trellis, see `docs/FORMAT.md`.
    pub weight: &'a mut [u8],
    /// Scales, `[rows, cols / group_size]`; of a trellis, `[rows]`.
    pub scales: &'a mut [u8],
    /// Biases, as long as `scales`; of a trellis, none.
    pub biases: &'a mut [u8],
}

impl<'a> PartsMut<'a> {
    /// Splits the bytes of a stored `rows × cols` matrix: weight, then scales, then biases.
    ///
    /// # Errors
    /// As [`quantize`]: groups that do not divide a row, or a length that is not the matrix's.
    pub fn split(
        encoding: Encoding,
        rows: usize,
        cols: usize,
        bytes: &'a mut [u8],
    ) -> Result<Self, QuantError> {
        let parts = encoding.parts(rows as u64, cols as u64)?;
        check("stored matrix", parts.total(), bytes.len())?;
        let (weight, rest) = bytes.split_at_mut(parts.weight as usize);
        let (scales, biases) = rest.split_at_mut(parts.scales as usize);
        Ok(Self { weight, scales, biases })
    }

    /// The same parts, for a shorter time.
    const fn reborrow(&mut self) -> PartsMut<'_> {
        PartsMut { weight: self.weight, scales: self.scales, biases: self.biases }
    }
}

fn check(part: &'static str, expected: u64, found: usize) -> Result<(), QuantError> {
    let found = found as u64;
    if expected == found { Ok(()) } else { Err(QuantError::Length { part, expected, found }) }
}

/// Weights, and how they are to be quantized.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Which registers compute; no bit of the result depends on it.
    pub backend: Backend,
    /// Whole rows of `cols` weights.
    pub x: &'a [f32],
    /// Weights of a row.
    pub cols: usize,
    /// The codes wanted.
    pub encoding: Encoding,
    /// How affine codes are chosen. A trellis is always coded column by column with the feedback of
    /// a Hessian, or without any for [`Objective::Weights`].
    pub method: Method,
    /// What the biases of affine codes may be.
    pub zeros: Zeros,
    /// What an error costs.
    pub objective: Objective<'a>,
}

/// Quantizes the weights of `job` into `out`.
///
/// Every bit of the result is the same for every backend, and a row's result does not depend on
/// the rows that are quantized with it; in a trellis, a block of [`Encoding::row_block`] rows,
/// counted from the start of the weights, takes the place of a row.
///
/// # Errors
/// [`QuantError::NotFinite`] and [`QuantError::ScaleRange`] name the first offender, rows counted
/// from the start of the weights; [`QuantError::NeedsInputs`] says what the method needs to know of
/// the inputs; the others say which slice does not fit the shape. After an error the contents of
/// `out` are unspecified.
pub fn quantize(job: &Job<'_>, out: PartsMut<'_>) -> Result<QuantStats, QuantError> {
    let Job { backend, x, cols, encoding, objective, .. } = *job;
    let rows = x.len().checked_div(cols).unwrap_or(0);
    check("weights", (rows * cols * 4) as u64, size_of_val(x))?;
    let parts = encoding.parts(rows as u64, cols as u64)?;
    check("codes", parts.weight, out.weight.len())?;
    check("scales", parts.scales, out.scales.len())?;
    check("biases", parts.biases, out.biases.len())?;
    objective.check(cols, encoding)?;
    if x.is_empty() {
        return Ok(QuantStats::default());
    }
    match encoding {
        Encoding::Affine(affine) if affine.scale_dtype() != Float::F32 => {
            quantize_affine(job, affine, out)
        }
        Encoding::Trellis(trellis) => {
            let feedback = trellis::feedback(objective, x, cols)?;
            backend.run(trellis::QuantizeTrellis { backend, x, cols, trellis, feedback, out })
        }
        Encoding::Ggml(blocks) => quantize_blocks(job, blocks, out),
        // Scales of 32 bits and small floats are those of a source, or nothing.
        Encoding::Affine(_) | Encoding::Minifloat(_) => {
            Err(group::not_finite(x, 0, cols).unwrap_or(QuantError::NoCodes(encoding)))
        }
        plain => Err(QuantError::NoCodes(plain)),
    }
}

/// Blocks, by the same methods as affine codes; what biases may be is the type's own matter.
fn quantize_blocks(
    job: &Job<'_>,
    blocks: Blocks,
    mut out: PartsMut<'_>,
) -> Result<QuantStats, QuantError> {
    let Job { backend, x, cols, method, objective, .. } = *job;
    group::not_finite(x, 0, cols).map_or(Ok(()), Err)?;
    let group = blocks.form().group;
    let (costs, feedback) = match (method, objective) {
        (Method::MinMax | Method::Search, _) => (None, None),
        (Method::Importance, _) => (Some(group::relative(objective.moments()?, group)), None),
        (Method::Gptq, Objective::Hessian(feedback)) => {
            (Some(group::relative(feedback.costs(), group)), Some(feedback))
        }
        (Method::Gptq, _) => return Err(no_gram(method)),
    };
    let search = if method == Method::MinMax { PairSearch::MinMax } else { PairSearch::Search };
    let PartsMut { weight, .. } = out.reborrow();
    let (grid, out_blocks) = (crate::ggml::points(blocks), weight);
    let kernel =
        blocks::QuantizeBlocks { x, cols, blocks, search, costs, feedback, grid, out: out_blocks };
    let mut stats = kernel.run(backend)?;
    output::measure(job, &out, &mut stats);
    Ok(stats)
}

const fn no_gram(method: Method) -> QuantError {
    let needs = "the factored Gram of the inputs";
    QuantError::NeedsInputs { method: method.name(), needs }
}

/// Each group on its own, unless the method is GPTQ.
fn quantize_affine(
    job: &Job<'_>,
    affine: Affine,
    mut out: PartsMut<'_>,
) -> Result<QuantStats, QuantError> {
    let Job { backend, x, cols, method, zeros, objective, .. } = *job;
    let weights;
    let choice = match (method, objective) {
        (Method::MinMax, _) => PairSearch::MinMax,
        (Method::Search, _) => PairSearch::Search,
        (Method::Importance, _) => {
            weights = group::relative(objective.moments()?, affine.group_size());
            PairSearch::Weighted(&weights)
        }
        (Method::Gptq, Objective::Hessian(feedback)) => {
            group::not_finite(x, 0, cols).map_or(Ok(()), Err)?;
            return backend.run(gptq::Gptq { x, cols, affine, zeros, feedback, out });
        }
        (Method::Gptq, _) => return Err(no_gram(method)),
    };
    let groups = group::QuantizeGroups { x, cols, affine, zeros, choice, out: out.reborrow() };
    let mut stats = backend.run(groups)?;
    output::measure(job, &out, &mut stats);
    Ok(stats)
}
