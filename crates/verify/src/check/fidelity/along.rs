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
            let step = 0.5 * f64::from(form.factor_step());
            let scales = if form.is_nested() { step / f64::from(form.factors.1) } else { 0.0 };
            (f64::from(form.widest_steps()), scales)
        }
        Encoding::Minifloat(_) | Encoding::F32 | Encoding::F16 | Encoding::Bf16 => return None,
    };
    Some(0.12 / levels + 1.0 / 512.0 + scales)
}

/// Sums over values `w` of a source and `ŵ` of what is stored for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Along {
    /// `Σ w ŵ`: over `Σ w²` how long the stored values are along their sources, 1 when nothing was lost.
    pub(super) product: f64,
    /// `Σ w⁴`.
    pub(super) fourth: f64,
}

impl Along {
    pub(super) fn add(&mut self, other: Self) {
        self.product += other.product;
        self.fourth += other.fourth;
    }
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
    /// Judges the sums over what `errors` are of.
    pub(super) fn beyond(along: Along, errors: &QuantStats, margin: f64) -> Option<Self> {
        let found = along.product / errors.sum_sq;
        let error = errors.sum_sq_error / errors.sum_sq;
        // Errors grow with the values that they are of, so that the variance of `Σ w (ŵ - w)` goes with `Σ w⁴`:
        // where a few values outweigh all others, few count. Of normal values `n Σ w⁴ = 3 (Σ w²)²`.
        let weights = errors.weights.max(1) as f64;
        let tails = weights * along.fourth / (3.0 * errors.sum_sq * errors.sum_sq);
        let chance = DEVIATIONS * (error * tails.max(1.0) / weights).sqrt();
        let (least, most) = (1.0 - error - margin - chance, 1.0 + margin + chance);
        let excess = (least - found).max(found - most);
        (excess > 0.0).then_some(Self { excess, found, least, most })
    }

    /// The same of one row, if it is long enough to tell.
    pub(super) fn of_row(along: Along, errors: &QuantStats, margin: f64) -> Option<Self> {
        let long = errors.weights as usize >= MIN_COLS;
        long.then(|| Self::beyond(along, errors, margin)).flatten()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What nearest codes of 4 bits, in groups of 32 over the range of each, make of values, scaled by `by`.
    fn judged(source: &[f64], by: f64) -> Option<Outside> {
        let (mut along, mut errors) = (Along::default(), QuantStats::default());
        for group in source.chunks(32) {
            let (low, high) = group
                .iter()
                .fold((f64::MAX, f64::MIN), |(a, b), w| (a.min(*w), b.max(*w)));
            let step = (high - low) / 15.0;
            for &w in group {
                let stored = by * (low + step * ((w - low) / step).round());
                along.add(Along { product: w * stored, fourth: w.powi(4) });
                errors.sum_sq += w * w;
                errors.sum_sq_error += (stored - w) * (stored - w);
            }
        }
        errors.weights = source.len() as u64;
        Outside::beyond(along, &errors, 0.01)
    }

    /// Values of some magnitude, here and there `times` as large.
    fn values(times: f64) -> Vec<f64> {
        let at = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let value = |i| at(i) as f64 / f64::from(1 << 23) - 1.0;
        let large = |i| if at(i + 7).is_multiple_of(40) { times } else { 1.0 };
        (0..4096).map(|i| value(i) * large(i)).collect()
    }

    #[test]
    fn a_few_values_that_outweigh_all_others_tell_little() {
        // Without tails a fifth more is seen, and with some; where a dozen values decide it is chance.
        for times in [1.0, 8.0] {
            assert_eq!(judged(&values(times), 1.0), None, "{times}");
            assert!(judged(&values(times), 1.2).is_some(), "{times}");
        }
        let mut few = values(1.0);
        few[..12]
            .copy_from_slice(&[3e9, -2e9, 7e8, 4e9, -1e9, 1e9, 2e9, -4e9, 5e8, 1e8, -2e8, 9e8]);
        assert_eq!(judged(&few, 1.0), None);
    }
}
