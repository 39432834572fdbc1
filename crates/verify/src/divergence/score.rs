//! One token: how two sets of logits differ. All logarithms are natural; all sums are `f64`.

/// How two models predict one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    /// `-ln p(target)` of the original.
    pub(super) nll_original: f64,
    /// `-ln p(target)` of the candidate.
    pub(super) nll: f64,
    /// `Σ p_original (ln p_original - ln p_candidate)` over the whole vocabulary.
    pub(super) kld: f64,
    /// Both hold the same token most probable; of equal ones the first counts.
    pub(super) same_top: bool,
    /// Probability of the original's most probable token.
    pub(super) confidence: f64,
}

impl Score {
    /// Compares logits, `[vocab_size]` each, that predict `target`. None when some are not finite.
    ///
    /// With `z` the logits and `Z = Σ exp(z - max z)`, `ln p = z - max z - ln Z`, so that
    /// the divergence is `Σ p (z - z') - (max z + ln Z) + (max z' + ln Z')`: one exponential per
    /// logit, no floor and no cut tail.
    pub(super) fn new(original: &[f32], candidate: &[f32], target: usize) -> Option<Self> {
        let ((top, most), (top_candidate, most_candidate)) =
            (maximum(original), maximum(candidate));
        let (mut sum, mut sum_candidate, mut shifted) = (0.0, 0.0, 0.0);
        for (&z, &other) in original.iter().zip(candidate) {
            let (z, other) = (f64::from(z), f64::from(other));
            let weight = (z - most).exp();
            sum += weight;
            sum_candidate += (other - most_candidate).exp();
            shifted += weight * (z - other);
        }
        let (log_sum, log_sum_candidate) = (most + sum.ln(), most_candidate + sum_candidate.ln());
        let kld = shifted / sum - log_sum + log_sum_candidate;
        let nll_original = log_sum - f64::from(*original.get(target)?);
        let nll = log_sum_candidate - f64::from(*candidate.get(target)?);
        let finite = kld.is_finite() && nll.is_finite() && nll_original.is_finite();
        finite.then_some(Self {
            nll_original,
            nll,
            // Below zero only by rounding.
            kld: kld.max(0.0),
            same_top: top == top_candidate,
            confidence: 1.0 / sum,
        })
    }

    /// Probability of the target, candidate minus original.
    pub(super) fn probability_change(&self) -> f64 {
        (-self.nll).exp() - (-self.nll_original).exp()
    }
}

/// The first of the largest values, and its place.
fn maximum(z: &[f32]) -> (usize, f64) {
    let start = (0, f32::NEG_INFINITY);
    let (at, most) = z
        .iter()
        .enumerate()
        .fold(start, |best, (i, &z)| if z > best.1 { (i, z) } else { best });
    (at, f64::from(most))
}
