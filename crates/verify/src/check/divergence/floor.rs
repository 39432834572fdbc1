//! The divergence below which two bundles cannot be told apart.
//!
//! Equal weights diverge by exactly 0 here, since both models run the same sums in the same order.
//! What a phone computes is rougher: its hidden states have 16 bits. So the original is run against
//! itself with its residual stream rounded to bf16 after the embedding and after every layer, on
//! some of the text. A runtime that rounds inside a layer too has a higher floor, never a lower one.

use serde::{Deserialize, Serialize};
use shardwright_quant::{Float, narrow, widen};

/// One window of this many is run a second time, `MOST` at most: a few percent of the work.
const EVERY: usize = 16;
const MOST: usize = 8;

/// How far the original diverges from itself with hidden states in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Windows that it was measured on, the first of the text.
    pub windows: u64,
    /// Tokens predicted in them.
    pub tokens: u64,
    /// Mean divergence, in nats per token.
    pub kld_mean: f64,
    /// Its standard error.
    pub kld_mean_se: f64,
    /// 99 % of tokens lie below.
    pub kld_p99: f64,
    /// Share of tokens for which both hold the same token most probable.
    pub same_top: f64,
}

/// Windows to measure on, of `count`.
pub(super) fn windows(count: usize) -> usize {
    count.div_ceil(EVERY).min(MOST)
}

/// How many of those are among the windows `first..end`.
pub(super) fn inside(first: usize, end: usize, count: usize) -> usize {
    windows(count).clamp(first, end) - first
}

/// Rounds every value to bf16.
pub(super) fn round(x: &mut [f32]) {
    const BLOCK: usize = 4096;
    let mut bytes = [0; 2 * BLOCK];
    for x in x.chunks_mut(BLOCK) {
        let bytes = &mut bytes[..2 * x.len()];
        narrow(Float::Bf16, x, bytes);
        widen(Float::Bf16, bytes, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest() {
        let mut x = vec![1.0 + 1.0 / 1024.0; 5000];
        x[4999] = 1.0 + 7.0 / 1024.0;
        round(&mut x);
        assert_eq!((x[0], x[4998], x[4999]), (1.0, 1.0, 1.0 + 8.0 / 1024.0));
    }

    #[test]
    fn a_part_of_the_text_is_enough() {
        assert_eq!([1, 16, 17, 64, 1000].map(windows), [1, 1, 2, 4, 8]);
        assert_eq!([(0, 3), (3, 6), (6, 40)].map(|(a, b)| inside(a, b, 64)), [3, 1, 0]);
    }
}
