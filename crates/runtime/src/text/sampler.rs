//! Choosing the next token.

use shardwright_format::{Refusal, mismatch};

/// How to choose. A temperature of 0 takes the most likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Only the `k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// The setting, expected and found.
    pub fn validate(&self) -> Result<(), Refusal> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(mismatch("0 or more", self.temperature).at("temperature"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(mismatch("above 0, at most 1", self.top_p).at("top-p"));
        }
        Ok(())
    }
}

/// Chooses tokens. The same settings and logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    /// Candidates: logit, later probability, and token.
    candidates: Vec<(f64, u32)>,
}

impl Sampler {
    /// Begins at the seed.
    pub const fn new(sampling: Sampling) -> Self {
        Self { sampling, state: sampling.seed, candidates: Vec::new() }
    }

    /// The next token after `logits: [vocab_size]`, which are finite.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature == 0.0 {
            return greedy(logits);
        }
        self.candidates.clear();
        let tokens = logits.iter().zip(0..);
        self.candidates
            .extend(tokens.map(|(logit, token)| (f64::from(*logit), token)));
        // Likeliest first; of equal ones the lower token.
        self.candidates
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.sampling.top_k > 0 {
            self.candidates.truncate(self.sampling.top_k);
        }
        let Some(&(max, best)) = self.candidates.first() else { return 0 };
        let mut sum = 0.0;
        for (p, _) in &mut self.candidates {
            *p = ((*p - max) / f64::from(self.sampling.temperature)).exp();
            sum += *p;
        }
        let mut reach = self.nucleus(sum) * self.uniform();
        for &(p, token) in &self.candidates {
            reach -= p;
            if reach < 0.0 {
                return token;
            }
        }
        best
    }

    /// Keeps the fewest candidates that reach top-p of `sum`; gives their sum.
    fn nucleus(&mut self, sum: f64) -> f64 {
        let mut kept = 0.0;
        for (i, (p, _)) in self.candidates.iter().enumerate() {
            kept += p;
            if kept >= f64::from(self.sampling.top_p) * sum {
                self.candidates.truncate(i + 1);
                break;
            }
        }
        kept
    }

    /// Below 1, at least 0: `SplitMix64` (Steele, Lea and Flood, 2014), its upper 53 bits.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The most likely token; of equal ones the lowest.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 2.0, 1.0];

    fn draw(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..n).map(|_| sampler.next(&LOGITS)).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_best() {
        assert_eq!(draw(Sampling::default(), 3), [1, 1, 1]);
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let warm = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        assert_eq!(draw(warm, 50), draw(warm, 50));
        assert_ne!(draw(warm, 50), draw(Sampling { seed: 8, ..warm }, 50));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let draws = draw(Sampling { temperature: 1.0, ..Sampling::default() }, 20_000);
        let sum: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (token, logit) in (0..).zip(LOGITS) {
            let share = draws.iter().filter(|t| **t == token).count() as f64 / 20_000.0;
            assert!((share - f64::from(logit).exp() / sum).abs() < 0.02, "{token}: {share}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let warm = Sampling { temperature: 5.0, ..Sampling::default() };
        let by_k = draw(Sampling { top_k: 2, ..warm }, 500);
        let by_p = draw(Sampling { top_p: 0.6, temperature: 1.0, ..warm }, 500);
        for draws in [by_k, by_p] {
            assert!(draws.iter().all(|t| *t == 1 || *t == 2));
            assert!(draws.contains(&1) && draws.contains(&2));
        }
        assert!(
            draw(Sampling { top_p: 0.3, temperature: 1.0, ..warm }, 99)
                .iter()
                .all(|t| *t == 1)
        );
    }

    #[test]
    fn settings_that_mean_nothing_are_refused() {
        let hot = Sampling { temperature: f32::NAN, ..Sampling::default() };
        assert_eq!(hot.validate().unwrap_err(), mismatch("0 or more", "NaN").at("temperature"));
        let none = Sampling { top_p: 0.0, ..Sampling::default() };
        assert_eq!(none.validate().unwrap_err(), mismatch("above 0, at most 1", 0).at("top-p"));
    }
}
