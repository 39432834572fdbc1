//! How long stored values are along their source. An error limit alone lets values shrink or grow on purpose,
//! as far as rounding could have moved them in any direction; honest rounding hardly moves them in this one.
//!
//! With `w` the source, `ŵ` what is stored, `e² = |ŵ - w|² / |w|²` and `p = <w, ŵ> / <w, w>`: the best codes
//! for a squared error leave an error orthogonal to `ŵ`, so `p = 1 - e²`; a grid over the whole range leaves
//! one orthogonal to `w`, so `p = 1`. Every method lies between, but for a margin that was measured
//! (docs/FIDELITY.md).

use shardwright_quant::{Encoding, QuantStats};

/// Columns from which on a row is judged alone.
const MIN_COLS: usize = 64;

/// What errors that point nowhere add to a projection, in standard deviations: the largest of a million is 5.
const DEVIATIONS: f64 = 6.0;

/// How far beyond both ends a projection may lie: one and a half to five times the most that was measured, and
/// what scales of 16 bits may be off. None for plain floats.
pub(super) fn margin(encoding: Encoding) -> Option<f64> {
    let (levels, scales) = match encoding {
        Encoding::Affine(affine) => (f64::from(affine.bits()).exp2() - 1.0, 0.0),
        Encoding::Trellis(trellis) => (f64::from(trellis.bits()).exp2(), 0.0),
        Encoding::Ggml(blocks) => {
            let form = blocks.form();
            // Scales that are whole numbers of another are off by up to half of one.
            let scales = if form.is_nested() { 0.5 / f64::from(form.factors.1) } else { 0.0 };
            (f64::from(form.max_code()), scales)
        }
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => return None,
    };
    Some(0.12 / levels + 1.0 / 512.0 + scales)
}

/// A projection that nothing honest has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outside {
    /// How far it lies outside.
    excess: f64,
    found: f64,
    least: f64,
    most: f64,
}

impl Outside {
    /// Judges `product`, the sum of `w ŵ` over what `errors` are of.
    pub(super) fn beyond(product: f64, errors: &QuantStats, margin: f64) -> Option<Self> {
        let found = product / errors.sum_sq;
        let error = errors.sum_sq_error / errors.sum_sq;
        let chance = DEVIATIONS * (error / errors.weights.max(1) as f64).sqrt();
        let (least, most) = (1.0 - error - margin - chance, 1.0 + margin + chance);
        let excess = (least - found).max(found - most);
        (excess > 0.0).then_some(Self { excess, found, least, most })
    }

    /// The same of one row, if it is long enough to tell.
    pub(super) fn of_row(product: f64, errors: &QuantStats, margin: f64) -> Option<Self> {
        let long = errors.weights as usize >= MIN_COLS;
        long.then(|| Self::beyond(product, errors, margin))
            .flatten()
    }

    pub(super) fn is_beyond(&self, other: Option<&Self>) -> bool {
        other.is_none_or(|other| self.excess > other.excess)
    }

    /// What is expected and what was found, in words.
    pub(super) fn said(&self) -> (String, String) {
        let Self { found, least, most, .. } = self;
        (format!("{least:.4} to {most:.4}"), format!("{found:.4}"))
    }
}
