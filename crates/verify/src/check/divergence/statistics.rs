//! From scored tokens to the figures of a report.
//!
//! The definitions are llama.cpp's (`tools/perplexity`), without the 16-bit rounding of the
//! original's log-probabilities and without the cut of its tail.

use serde::{Deserialize, Serialize};

use super::floor::NoiseFloor;
use super::score::Score;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    mean: f64,
    se: f64,
}

impl Mean {
    /// `se = sqrt((mean x² - mean²) / (n - 1))`, 0 for a single value.
    fn new(values: impl ExactSizeIterator<Item = f64>) -> Self {
        let n = values.len() as f64;
        let (sum, squares) = values.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        let mean = sum / n;
        let variance = (squares / n - mean * mean).max(0.0);
        Self { mean, se: if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// The value at `fraction * (n - 1)` of ascending values, interpolated; 0 of none.
fn percentile(ascending: &[f64], fraction: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    let position = fraction * last as f64;
    let below = position.floor();
    let (low, high) = (ascending[below as usize], ascending[(below as usize + 1).min(last)]);
    low + (position - below) * (high - low)
}

fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// How two models' predictions over a text differ. Logarithms are natural; `_se` is the standard
/// error of the figure before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Tokens predicted.
    pub tokens: u64,
    /// Windows that they lie in; each starts from an empty context.
    pub windows: u64,
    /// Tokens of a window.
    pub window: u64,
    /// Position in a window of the first token that predicts.
    pub first: u64,
    /// Perplexity of the original.
    pub ppl_original: f64,
    #[allow(missing_docs)]
    pub ppl_original_se: f64,
    /// Perplexity of the candidate.
    pub ppl: f64,
    #[allow(missing_docs)]
    pub ppl_se: f64,
    /// `ln(ppl / ppl_original)`; its error uses the correlation of the two.
    pub ln_ppl_ratio: f64,
    #[allow(missing_docs)]
    pub ln_ppl_ratio_se: f64,
    /// Correlation of the two models' `ln p` of the tokens; none when one does not vary.
    pub ln_ppl_correlation: Option<f64>,
    /// `ppl / ppl_original`.
    pub ppl_ratio: f64,
    #[allow(missing_docs)]
    pub ppl_ratio_se: f64,
    /// `ppl - ppl_original`.
    pub ppl_difference: f64,
    #[allow(missing_docs)]
    pub ppl_difference_se: f64,
    /// Mean Kullback-Leibler divergence of the candidate from the original, in nats per token.
    pub kld_mean: f64,
    #[allow(missing_docs)]
    pub kld_mean_se: f64,
    /// The standard error of the mean, windows taken as the independent observations instead of tokens:
    /// the tokens of a window share a context. None for a single window.
    #[serde(default)]
    pub kld_mean_se_by_window: Option<f64>,
    /// Its median over tokens.
    pub kld_median: f64,
    /// 90 % of tokens lie below.
    pub kld_p90: f64,
    /// 95 %.
    pub kld_p95: f64,
    /// 99 %.
    pub kld_p99: f64,
    /// 99.9 %.
    pub kld_p999: f64,
    /// The largest.
    pub kld_max: f64,
    /// 10 % of tokens lie below.
    pub kld_p10: f64,
    /// 5 %.
    pub kld_p05: f64,
    /// 1 %.
    pub kld_p01: f64,
    /// 0.1 %.
    pub kld_p001: f64,
    /// The smallest.
    pub kld_min: f64,
    /// Mean change of the probability of the text's token.
    pub dp_mean: f64,
    #[allow(missing_docs)]
    pub dp_mean_se: f64,
    /// Root mean square of that change.
    pub dp_rms: f64,
    #[allow(missing_docs)]
    pub dp_rms_se: f64,
    /// The change at [`DP_FRACTIONS`], largest first.
    pub dp_percentiles: Vec<f64>,
    /// Share of tokens for which both hold the same token most probable.
    pub same_top: f64,
    #[allow(missing_docs)]
    pub same_top_se: f64,
    /// Tokens for which they do not.
    pub top_flips: u64,
    /// Share of the original's five most probable tokens that are among the candidate's five, averaged
    /// over tokens; none in reports of earlier versions.
    #[serde(default)]
    pub top5_overlap: Option<f64>,
    #[serde(default)]
    #[allow(missing_docs)]
    pub top5_overlap_se: Option<f64>,
    /// The same figures by how sure the original is of its most probable token.
    pub by_confidence: Vec<Bucket>,
    /// How many tokens diverge by how much.
    pub kld_histogram: Vec<Bin>,
    /// What the original's own arithmetic comes to in 16 bits; none where it was not measured.
    #[serde(default)]
    pub noise_floor: Option<NoiseFloor>,
    /// Drift of the residual stream: after the embedding, then after each layer.
    pub layers: Vec<super::LayerDrift>,
}

/// Where [`Divergence::dp_percentiles`] are taken, from the maximum to the minimum.
pub const DP_FRACTIONS: [f64; 13] =
    [1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0];

/// Tokens whose most probable continuation has a probability of `from` up to `to`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Least probability.
    pub from: f64,
    /// Probability that is no longer part.
    pub to: f64,
    /// Tokens.
    pub tokens: u64,
    /// Their mean divergence.
    pub kld_mean: f64,
    /// Share of them whose most probable continuation is the same.
    pub same_top: f64,
}

/// Tokens whose divergence is at least `from` and below `to`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Least divergence; the first bin holds everything below it too.
    pub from: f64,
    /// Divergence that is no longer part; the last bin holds everything above it too.
    pub to: f64,
    /// Tokens.
    pub tokens: u64,
}

/// Edges of the confidence buckets.
const CONFIDENCES: [f64; 6] = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0];
/// The histogram's bins: this many to a decade, from `10^FIRST_DECADE` to `10^LAST_DECADE`.
const BINS_PER_DECADE: i32 = 4;
const FIRST_DECADE: i32 = -9;
const LAST_DECADE: i32 = 2;

impl Divergence {
    /// These figures of the original beside itself, as the floor of others.
    pub(super) const fn as_noise_floor(&self, windows: usize) -> NoiseFloor {
        NoiseFloor {
            windows: windows as u64,
            tokens: self.tokens,
            kld_mean: self.kld_mean,
            kld_mean_se: self.kld_mean_se,
            kld_p99: self.kld_p99,
            same_top: self.same_top,
        }
    }

    /// Sums up scored tokens, `per_window` of each window; drift and windows are left for the caller.
    pub(super) fn new(scores: &[Score], per_window: usize) -> Self {
        let mut all = Self { tokens: scores.len() as u64, ..Self::default() };
        if scores.is_empty() {
            return all;
        }
        all.set_perplexity(scores);
        all.set_kld(scores);
        all.kld_mean_se_by_window = error_by_window(scores, per_window);
        all.set_probabilities(scores);
        all.by_confidence = CONFIDENCES
            .windows(2)
            .map(|edge| bucket(scores, edge[0], edge[1]))
            .collect();
        all.kld_histogram = histogram(scores);
        all
    }

    fn set_perplexity(&mut self, scores: &[Score]) {
        let n = scores.len() as f64;
        let base = Mean::new(scores.iter().map(|s| s.nll_original));
        let test = Mean::new(scores.iter().map(|s| s.nll));
        // The covariance of the two means. Both models err on the same tokens, so that their difference has a
        // smaller error than either: var(a - b) = var(a) + var(b) - 2 cov(a, b).
        let product = scores.iter().map(|s| s.nll * s.nll_original).sum::<f64>() / n;
        let covariance = if n > 1.0 { (product - base.mean * test.mean) / (n - 1.0) } else { 0.0 };
        let spread = |a: f64, b: f64, ab: f64| (a * a + b * b - 2.0 * ab).max(0.0).sqrt();
        (self.ppl_original, self.ppl) = (base.mean.exp(), test.mean.exp());
        (self.ppl_original_se, self.ppl_se) = (self.ppl_original * base.se, self.ppl * test.se);
        let correlation = covariance / (base.se * test.se);
        self.ln_ppl_correlation = correlation.is_finite().then_some(correlation);
        self.ln_ppl_ratio = test.mean - base.mean;
        self.ln_ppl_ratio_se = spread(test.se, base.se, covariance);
        // To first order, the error of f(x) is |f'(x)| times that of x; here f = exp, which is its own slope.
        self.ppl_ratio = self.ln_ppl_ratio.exp();
        self.ppl_ratio_se = self.ppl_ratio * self.ln_ppl_ratio_se;
        self.ppl_difference = self.ppl - self.ppl_original;
        let product = self.ppl * self.ppl_original * covariance;
        self.ppl_difference_se = spread(self.ppl_se, self.ppl_original_se, product);
    }

    fn set_kld(&mut self, scores: &[Score]) {
        let mean = Mean::new(scores.iter().map(|s| s.kld));
        (self.kld_mean, self.kld_mean_se) = (mean.mean, mean.se);
        let sorted = ascending(scores.iter().map(|s| s.kld));
        for (fraction, figure) in [
            (0.0, &mut self.kld_min),
            (0.001, &mut self.kld_p001),
            (0.01, &mut self.kld_p01),
            (0.05, &mut self.kld_p05),
            (0.1, &mut self.kld_p10),
            (0.5, &mut self.kld_median),
            (0.9, &mut self.kld_p90),
            (0.95, &mut self.kld_p95),
            (0.99, &mut self.kld_p99),
            (0.999, &mut self.kld_p999),
            (1.0, &mut self.kld_max),
        ] {
            *figure = percentile(&sorted, fraction);
        }
    }

    fn set_probabilities(&mut self, scores: &[Score]) {
        let n = scores.len() as f64;
        let mean = Mean::new(scores.iter().map(Score::probability_change));
        let square = Mean::new(scores.iter().map(|s| s.probability_change().powi(2)));
        (self.dp_mean, self.dp_mean_se) = (mean.mean, mean.se);
        // The error of a root by the same rule: the slope of sqrt(x) is 1 / (2 sqrt(x)).
        self.dp_rms = square.mean.sqrt();
        self.dp_rms_se = if self.dp_rms > 0.0 { 0.5 / self.dp_rms * square.se } else { 0.0 };
        let sorted = ascending(scores.iter().map(Score::probability_change));
        self.dp_percentiles = DP_FRACTIONS
            .iter()
            .map(|&f| percentile(&sorted, f))
            .collect();
        let same = scores.iter().filter(|s| s.same_top).count();
        self.top_flips = (scores.len() - same) as u64;
        self.same_top = same as f64 / n;
        let overlap = Mean::new(scores.iter().map(|s| s.top_overlap));
        (self.top5_overlap, self.top5_overlap_se) = (Some(overlap.mean), Some(overlap.se));
        // Each token agrees or not: a binomial share.
        let variance = self.same_top * (1.0 - self.same_top);
        self.same_top_se = if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
    }
}

/// The standard error of the mean divergence over windows of equal length: that of their own means. The
/// mean of all tokens is the mean of the windows' means, and windows do not see each other.
fn error_by_window(scores: &[Score], per_window: usize) -> Option<f64> {
    let windows = scores.chunks_exact(per_window.max(1));
    if windows.len() < 2 {
        return None;
    }
    let mean = |window: &[Score]| window.iter().map(|s| s.kld).sum::<f64>() / window.len() as f64;
    Some(Mean::new(windows.map(mean)).se)
}

fn bucket(scores: &[Score], from: f64, to: f64) -> Bucket {
    let inside = |s: &&Score| s.confidence >= from && (s.confidence < to || to >= 1.0);
    let scores: Vec<_> = scores.iter().filter(inside).collect();
    let n = scores.len().max(1) as f64;
    Bucket {
        from,
        to,
        tokens: scores.len() as u64,
        kld_mean: scores.iter().map(|s| s.kld).sum::<f64>() / n,
        same_top: scores.iter().filter(|s| s.same_top).count() as f64 / n,
    }
}

fn histogram(scores: &[Score]) -> Vec<Bin> {
    let count = (LAST_DECADE - FIRST_DECADE) * BINS_PER_DECADE;
    let edge =
        |i: i32| 10f64.powf(f64::from(FIRST_DECADE) + f64::from(i) / f64::from(BINS_PER_DECADE));
    let mut bins: Vec<_> = (0..count)
        .map(|i| Bin { from: edge(i), to: edge(i + 1), tokens: 0 })
        .collect();
    for score in scores {
        let above = bins.partition_point(|bin| bin.from <= score.kld);
        bins[above.saturating_sub(1)].tokens += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const VECTORS: &str = include_str!("../../../../../fixtures/vectors/divergence.json");

    fn floats(value: &Value) -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect()
    }

    fn scores(vectors: &Value) -> Vec<Score> {
        let vocab = vectors["vocab"].as_u64().unwrap() as usize;
        let logits = |key: &str| {
            floats(&vectors[key])
                .iter()
                .map(|&z| z as f32)
                .collect::<Vec<_>>()
        };
        let (base, test, targets) = (logits("base"), logits("test"), floats(&vectors["targets"]));
        let rows = base.chunks(vocab).zip(test.chunks(vocab)).zip(targets);
        rows.map(|((base, test), target)| Score::new(base, test, target as usize).unwrap())
            .collect()
    }

    fn close(name: &str, found: f64, expected: f64) {
        let error = (found - expected).abs();
        assert!(error <= 1e-12 + 1e-10 * expected.abs(), "{name}: {found} is not {expected}");
    }

    #[test]
    fn tokens_agree_with_the_vectors() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let expected = |key: &str| floats(&vectors["per_token"][key]);
        let same = vectors["per_token"]["same_top"].as_array().unwrap();
        for (i, score) in scores(&vectors).iter().enumerate() {
            close("kld", score.kld, expected("kld")[i]);
            close("nll", score.nll, expected("nll")[i]);
            close("nll_base", score.nll_original, expected("nll_base")[i]);
            close("dp", score.probability_change(), expected("dp")[i]);
            assert_eq!(score.same_top, same[i].as_bool().unwrap(), "token {i}");
        }
    }

    #[test]
    fn summary_agrees_with_the_vectors() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let d = Divergence::new(&scores(&vectors), 1);
        for (name, found) in [
            ("tokens", d.tokens as f64),
            ("kld_mean", d.kld_mean),
            ("kld_mean_unc", d.kld_mean_se),
            ("kld_median", d.kld_median),
            ("kld_p90", d.kld_p90),
            ("kld_p95", d.kld_p95),
            ("kld_p99", d.kld_p99),
            ("kld_p99.9", d.kld_p999),
            ("kld_max", d.kld_max),
            ("kld_min", d.kld_min),
            ("ppl", d.ppl),
            ("ppl_unc", d.ppl_se),
            ("ppl_base", d.ppl_original),
            ("ppl_base_unc", d.ppl_original_se),
            ("ln_ppl_ratio", d.ln_ppl_ratio),
            ("ln_ppl_ratio_unc", d.ln_ppl_ratio_se),
            ("ln_ppl_correlation", d.ln_ppl_correlation.unwrap()),
            ("same_top", d.same_top),
            ("same_top_unc", d.same_top_se),
            ("dp_mean", d.dp_mean),
            ("dp_mean_unc", d.dp_mean_se),
            ("dp_rms", d.dp_rms),
            ("dp_rms_unc", d.dp_rms_se),
        ] {
            close(name, found, vectors["summary"][name].as_f64().unwrap());
        }
        assert_eq!(d.kld_histogram.iter().map(|b| b.tokens).sum::<u64>(), d.tokens);
        assert_eq!(d.by_confidence.iter().map(|b| b.tokens).sum::<u64>(), d.tokens);
        assert_eq!(d.top_flips, 4);
        // With windows of one token the two errors are the same.
        close("by window", d.kld_mean_se_by_window.unwrap(), d.kld_mean_se);
    }

    #[test]
    fn windows_are_what_varies() {
        let score = |kld| Score { kld, ..Score::new(&[0.0, 1.0], &[0.0, 1.0], 0).unwrap() };
        let scores = [1.0, 3.0, 2.0, 2.0, 5.0, 5.0].map(score);
        // Means 2, 2 and 5: a mean of 3 and a variance of 3.
        close("by window", error_by_window(&scores, 2).unwrap(), 1.0);
        assert_eq!(error_by_window(&scores, 6), None);
        assert_eq!(error_by_window(&scores[..2], 2), None);
    }

    #[test]
    fn logits_that_are_not_finite_have_no_score() {
        assert_eq!(Score::new(&[0.0, f32::NAN], &[0.0, 0.0], 0), None);
        assert_eq!(Score::new(&[0.0, 0.0], &[0.0, f32::INFINITY], 0), None);
        assert_eq!(Score::new(&[0.0, 0.0], &[0.0, 0.0], 2), None);
    }

    #[test]
    fn no_tokens_give_no_figures() {
        assert_eq!(Divergence::new(&[], 1), Divergence::default());
    }
}
