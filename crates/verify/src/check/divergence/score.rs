//! One token: how two sets of logits differ. All logarithms are natural; all sums are `f64`.

use serde::{Deserialize, Serialize};
use shardwright_quant::{Backend, softmaxes};

/// How two models predict one token. In a file it is a list of its members in their order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Listed", into = "Listed")]
pub(crate) struct Score {
    /// `-ln p(target)` of the original.
    pub(super) nll_original: f64,
    /// `-ln p(target)` of the candidate.
    pub(super) nll: f64,
    /// `Σ p_original (ln p_original - ln p_candidate)` over the whole vocabulary.
    pub(super) kld: f64,
    /// Both hold the same token most probable; of equal ones the first counts.
    pub(super) same_top: bool,
    /// Share of the original's most probable tokens, [`TOP`] of them, that are among the candidate's.
    pub(super) top_overlap: f64,
    /// Probability of the original's most probable token.
    pub(super) confidence: f64,
}

/// The members of a score.
type Listed = (f64, f64, f64, bool, f64, f64);

impl From<Listed> for Score {
    fn from((nll_original, nll, kld, same_top, top_overlap, confidence): Listed) -> Self {
        Self { nll_original, nll, kld, same_top, top_overlap, confidence }
    }
}

impl From<Score> for Listed {
    fn from(score: Score) -> Self {
        let Score { nll_original, nll, kld, same_top, top_overlap, confidence } = score;
        (nll_original, nll, kld, same_top, top_overlap, confidence)
    }
}

/// Most probable tokens whose overlap is counted.
const TOP: usize = 5;

impl Score {
    /// Compares logits, `[vocab_size]` each, that predict `target`. None when some are not finite.
    ///
    /// One exponential per logit, no floor and no cut tail.
    pub(super) fn new(original: &[f32], candidate: &[f32], target: usize) -> Option<Self> {
        let softmaxes = softmaxes(Backend::detect(), original, candidate);
        let [log_sum, log_sum_candidate] = softmaxes.log_sums();
        let kld = softmaxes.divergence();
        let tops = [most_probable(original), most_probable(candidate)];
        let nll_original = log_sum - f64::from(*original.get(target)?);
        let nll = log_sum_candidate - f64::from(*candidate.get(target)?);
        let finite = kld.is_finite() && nll.is_finite() && nll_original.is_finite();
        finite.then_some(Self {
            nll_original,
            nll,
            // Below zero only by rounding.
            kld: kld.max(0.0),
            same_top: tops[0][0] == tops[1][0],
            top_overlap: overlap(&tops, original.len()),
            confidence: 1.0 / softmaxes.sums[0],
        })
    }

    /// Probability of the target, candidate minus original.
    pub(super) fn probability_change(&self) -> f64 {
        (-self.nll).exp() - (-self.nll_original).exp()
    }
}

/// Share of the [`TOP`] most probable tokens, of `vocab_size`, that both have, in whatever order.
fn overlap([most, others]: &[[usize; TOP]; 2], vocab_size: usize) -> f64 {
    let count = TOP.min(vocab_size);
    let shared = most[..count].iter().filter(|token| others.contains(token));
    shared.count() as f64 / count.max(1) as f64
}

/// The tokens of the largest logits, largest first; of equal ones the first counts. No token where
/// the vocabulary has fewer.
fn most_probable(z: &[f32]) -> [usize; TOP] {
    let (mut tokens, mut values) = ([usize::MAX; TOP], [f32::NEG_INFINITY; TOP]);
    for (token, &value) in z.iter().enumerate() {
        // Nearly every logit ends here: the rest of the loop is rare.
        if value <= values[TOP - 1] {
            continue;
        }
        let at = values.partition_point(|kept| *kept >= value);
        tokens[at..].rotate_right(1);
        values[at..].rotate_right(1);
        (tokens[at], values[at]) = (token, value);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_most_probable_tokens_are_compared() {
        let z = [0.0, 3.0, 1.0, 3.0, 2.0, -1.0, 5.0];
        assert_eq!(most_probable(&z), [6, 1, 3, 4, 2]);
        let overlap =
            |z: &[f32], other: &[f32]| overlap(&[most_probable(z), most_probable(other)], z.len());
        assert_eq!(overlap(&z, &z), 1.0);
        // Tokens 6, 1 and 3 leave the first five for 0, 2 and 5, of which 2 was among them.
        assert_eq!(overlap(&z, &[4.0, 0.0, 3.0, 0.0, 2.0, 1.0, 0.0]), 0.6);
        assert_eq!(most_probable(&[1.0, 2.0])[..3], [1, 0, usize::MAX]);
        assert_eq!(overlap(&[1.0, 2.0], &[2.0, 1.0]), 1.0);
    }
}
