//! How fast tokens are made one way, to be held against another.

/// Tokens per second, earlier steps counting less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// What it keeps of its past with every step.
    kept: f64,
    tokens: f64,
    seconds: f64,
}

impl Rate {
    /// Of no steps yet.
    pub const fn new(kept: f64) -> Self {
        Self { kept, tokens: 0.0, seconds: 0.0 }
    }

    /// A step of `tokens` that took `seconds`.
    pub fn add(&mut self, tokens: usize, seconds: f64) {
        self.tokens = self.kept * self.tokens + tokens as f64;
        self.seconds = self.kept * self.seconds + seconds;
    }

    /// Whether fewer tokens a second are made than `gain` times those of `other`.
    pub fn slower_than(self, gain: f64, other: Self) -> bool {
        self.tokens * other.seconds < gain * other.tokens * self.seconds
    }
}
