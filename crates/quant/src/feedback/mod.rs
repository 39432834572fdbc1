//! What an error in one column costs the others: the Gram of the inputs, factored.
//!
//! GPTQ (arXiv 2210.17323) rounds one column after the other and corrects those that follow with the
//! rows of a Cholesky factor of `H⁻¹`. `QuIP` (arXiv 2307.13304, section 3 and theorem 6) shows that
//! this is the same as feedback from the errors so far through the factor of `H` itself,
//! `H = (F + I) · D · (F + I)ᵀ`, `F` strictly upper triangular, `D` diagonal. So `H` is neither inverted
//! nor factored twice, and the squared error of the outputs is a sum over columns:
//! `ΔW · H · ΔWᵀ = Σ D[k] · (ΔW · (F + I))[k]²`.

mod factor;
mod sweep;
#[cfg(test)]
pub mod tests;
mod update;

use crate::encoding::{Encoding, Trellis};
use crate::error::QuantError;
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::trellis::rotate::rotate;

pub use sweep::{BLOCK, Product, Rows, Sweep};
pub use update::Line;

/// How often a Gram that is not positive definite is damped ten times as much.
const RETRIES: u32 = 4;

/// The factored Gram of the inputs of a matrix.
#[derive(Clone, Debug)]
pub struct HessianFactor {
    cols: usize,
    /// Columns rotated together, 1 for the basis of the weights.
    rotation: usize,
    /// `Fᵀ` below the diagonal, `[cols, cols]`; the rest means nothing.
    factor: Vec<f32>,
    /// `D`, `[cols]`.
    costs: Vec<f32>,
    /// The second moments, the Gram's diagonal before damping, `[cols]`.
    moments: Vec<f32>,
    /// What damping added to each of them.
    added: Vec<f32>,
}

impl HessianFactor {
    /// Factors `gram`, `[cols, cols]`, the mean of `x xᵀ` over inputs `x`, for matrices that are
    /// stored in `encoding`. Only the lower triangle of `gram` is read, both where `encoding` rotates.
    ///
    /// `damping` times the mean of the diagonal is added to the diagonal; ten times as much, and at
    /// least 0.001, each time that the Gram is not positive definite, four times at most. An input that was always 0
    /// costs what damping adds, and neither gives nor takes feedback.
    ///
    /// The result is the same on every CPU. It takes `cols²` values of memory beside `gram`.
    ///
    /// # Errors
    /// [`QuantError::Moment`] names a moment that is not finite, or negative on the diagonal,
    /// [`QuantError::Damping`] a damping that is; [`QuantError::NotPositive`] when no damping helped;
    /// the others say what does not fit `cols` or has no codes.
    pub fn new(
        gram: &[f32],
        cols: usize,
        damping: f32,
        encoding: Encoding,
    ) -> Result<Self, QuantError> {
        Self::in_buffer(Vec::new(), gram, cols, damping, encoding)
    }

    /// As [`Self::new`] in the memory of `buffer`, whatever it holds, where it is large enough.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_buffer(
        buffer: Vec<f32>,
        gram: &[f32],
        cols: usize,
        damping: f32,
        encoding: Encoding,
    ) -> Result<Self, QuantError> {
        Self::new_on(Backend::detect(), buffer, gram, cols, damping, encoding)
    }

    /// The memory that it is in, for [`Self::in_buffer`].
    pub fn into_buffer(self) -> Vec<f32> {
        self.factor
    }

    /// As [`Self::in_buffer`], with the instructions of `backend`.
    pub(crate) fn new_on(
        backend: Backend,
        mut factor: Vec<f32>,
        gram: &[f32],
        cols: usize,
        damping: f32,
        encoding: Encoding,
    ) -> Result<Self, QuantError> {
        if encoding.float().is_some() {
            return Err(QuantError::NoCodes(encoding));
        }
        encoding.parts(1, cols as u64)?;
        check(gram, cols, damping)?;
        let (rotation, mut strength) = (rotation(cols, encoding), damping);
        factor.resize(cols * cols, 0.0);
        // H + damping = R D' Rᵀ with R upper triangular, from the last column to the first. Where a pivot is not
        // positive, the rounding of H weighs more than its least moments: ten times the damping, and again.
        for _ in 0..=RETRIES {
            let (lines, _) = factor.as_chunks_mut();
            backend.run(Load { gram, lines, cols, rotation });
            let moments = diagonal(lines, cols);
            let added = damp(lines, &moments, strength);
            if factor::factor(backend, lines, cols) {
                let costs = normalize(lines, cols);
                return Ok(Self { cols, rotation, factor, costs, moments, added });
            }
            strength = 10.0 * strength.max(1e-4);
        }
        Err(QuantError::NotPositive { cols: cols as u64, damping: strength / 10.0 })
    }

    /// Inputs.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// The second moment of each input, `[cols]`, in the basis of the encoding.
    pub fn moments(&self) -> &[f32] {
        &self.moments
    }

    /// What a squared error costs in each column once all before it are made up for, `[cols]`.
    pub(crate) fn costs(&self) -> &[f32] {
        &self.costs
    }

    /// `Fᵀ`: what the error in column `j < k` asks of column `k`, `[k][..k]`.
    #[inline(always)]
    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.factor[k * self.cols..][..k]
    }

    /// `Σ X H Xᵀ` without damping, from rows `x` and their products `y = x · (F + I)`.
    pub(crate) fn energy(&self, x: &Rows, y: &Rows) -> f64 {
        (y.weighted_squares(&self.costs) - x.weighted_squares(&self.added)).max(0.0)
    }

    /// Whether this was factored for `cols` columns in the basis of `encoding`.
    pub(crate) fn check(&self, cols: usize, encoding: Encoding) -> Result<(), QuantError> {
        if self.cols == cols && self.rotation == rotation(cols, encoding) {
            return Ok(());
        }
        let (expected, found) = (cols as u64, self.cols as u64);
        Err(QuantError::OtherHessian { expected, found, encoding })
    }
}

/// Columns that `encoding` rotates together.
const fn rotation(cols: usize, encoding: Encoding) -> usize {
    match encoding {
        Encoding::Trellis(_) => Trellis::rotation(cols),
        _ => 1,
    }
}

fn check(gram: &[f32], cols: usize, damping: f32) -> Result<(), QuantError> {
    let expected = (cols as u64).saturating_mul(cols as u64).saturating_mul(4);
    let found = size_of_val(gram) as u64;
    if expected != found {
        return Err(QuantError::Length { part: "gram", expected, found });
    }
    if !(damping.is_finite() && damping >= 0.0) {
        return Err(QuantError::Damping(damping));
    }
    for (row, moments) in gram.chunks_exact(cols.max(1)).enumerate() {
        if let Some(col) = moments.iter().position(|v| !v.is_finite()) {
            return Err(QuantError::moment(row, col, moments[col]));
        }
        if moments[row] < 0.0 {
            return Err(QuantError::moment(row, row, moments[row]));
        }
    }
    Ok(())
}

/// Copies `gram`, rotated on both sides, without the products of inputs that were always 0.
struct Load<'a> {
    gram: &'a [f32],
    lines: &'a mut [Line],
    cols: usize,
    rotation: usize,
}

impl Kernel for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (cols, h) = (self.cols, self.lines.as_flattened_mut());
        h.copy_from_slice(self.gram);
        // With Q the rotation, the moments of rotated inputs are Q H Qᵀ: rows, then (transposed) columns.
        if self.rotation > 1 {
            h.chunks_exact_mut(cols)
                .for_each(|row| rotate(row, self.rotation));
            transpose(h, cols);
            h.chunks_exact_mut(cols)
                .for_each(|row| rotate(row, self.rotation));
        }
        // An input that was always 0 says nothing about the others; what its row holds is rounding.
        let dead: Vec<usize> = (0..cols).filter(|&k| h[k * cols + k] <= 0.0).collect();
        for k in dead {
            h[k * cols..][..cols].fill(0.0);
            h.iter_mut().skip(k).step_by(cols).for_each(|v| *v = 0.0);
        }
    }
}

/// Transposes `h`, `[cols, cols]`, in squares that stay in the cache; `cols` is a multiple of 16.
#[inline(always)]
fn transpose(h: &mut [f32], cols: usize) {
    for i0 in (0..cols).step_by(LANES) {
        for j0 in (0..=i0).step_by(LANES) {
            for i in i0..i0 + LANES {
                for j in j0..(j0 + LANES).min(i) {
                    h.swap(i * cols + j, j * cols + i);
                }
            }
        }
    }
}

fn diagonal(lines: &[Line], cols: usize) -> Vec<f32> {
    lines
        .as_flattened()
        .iter()
        .step_by(cols + 1)
        .copied()
        .collect()
}

/// Adds `strength` times the mean of the diagonal to it, or 1 where it would stay 0; says what was
/// added.
fn damp(lines: &mut [Line], moments: &[f32], strength: f32) -> Vec<f32> {
    let mean = moments.iter().map(|v| f64::from(*v)).sum::<f64>() / moments.len() as f64;
    let damping = (f64::from(strength) * mean) as f32;
    let add = |v: &f32| if v + damping > 0.0 { damping } else { 1.0 };
    let added: Vec<f32> = moments.iter().map(add).collect();
    let diagonal = lines
        .as_flattened_mut()
        .iter_mut()
        .step_by(moments.len() + 1);
    diagonal.zip(&added).for_each(|(v, add)| *v += add);
    added
}

/// Divides each row of `Rᵀ` by its pivot, which leaves `Fᵀ`; gives `D`, the squared pivots.
fn normalize(lines: &mut [Line], cols: usize) -> Vec<f32> {
    let rows = lines.as_flattened_mut().chunks_exact_mut(cols.max(1));
    rows.enumerate()
        .map(|(k, row)| {
            let pivot = row[k];
            row[..k].iter_mut().for_each(|v| *v /= pivot);
            pivot * pivot
        })
        .collect()
}
