//! A long context in spans, which threads attend to at the same time.

use std::ops::Range;

use super::{Attention, BLOCK, Seen, attend_heads, power};
use crate::kernel::{Backend, Kernel, Simd};

/// Positions of the shortest span: fewer are not worth a thread.
const SPAN: usize = 8 * BLOCK;

/// Spans at most: what each gives is kept until all are joined.
pub const SPANS: usize = 16;

/// `positions` in parts that can be attended to at the same time: at least 256 each, at most sixteen of them.
/// How they are parted depends on their number alone.
pub fn spans(attention: Attention<'_>, positions: Range<usize>) -> impl Iterator<Item = Span<'_>> {
    let Range { start: first, end } = positions;
    let even = positions.len().div_ceil(SPANS).next_multiple_of(BLOCK);
    let len = even.max(SPAN);
    positions.step_by(len).map(move |start| {
        // A sink is seen once, before all positions.
        let sinks = attention.sinks.filter(|_| start == first);
        let attention = Attention { sinks, ..attention };
        Span { attention, positions: start..end.min(start + len) }
    })
}

/// Some of the positions that a query attends to.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    attention: Attention<'a>,
    positions: Range<usize>,
}

impl Span<'_> {
    /// What its positions give of values of `width` columns.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn attend(self, backend: Backend, width: usize) -> Part {
        let Self { attention: a, positions } = self;
        assert_eq!(a.q.len(), a.heads * a.keys.layout.len(), "queries of {} heads", a.heads);
        assert!(width <= a.values.layout.len(), "{width} columns of values");
        let seen = |head: usize| match a.sinks {
            // As a score of weight 1 that added nothing.
            Some(sinks) => Seen { highest: sinks[head], sum: 1.0 },
            None => Seen { highest: f32::NEG_INFINITY, sum: 0.0 },
        };
        let mut part =
            Part { values: vec![0.0; a.heads * width], seen: (0..a.heads).map(seen).collect() };
        attend_heads(backend, &a, positions, &mut part);
        part
    }
}

/// What some positions give: a sum of values, each times its weight, and the sum of the weights.
#[derive(Clone, Debug)]
pub struct Part {
    /// `[heads, value_dim]`.
    pub(super) values: Vec<f32>,
    /// Of each head.
    pub(super) seen: Vec<Seen>,
}

impl Part {
    /// Bytes of a part of `heads` and values of `width` columns.
    pub const fn byte_len(heads: usize, width: usize) -> usize {
        heads * (width * size_of::<f32>() + size_of::<Seen>())
    }

    /// Adds what the positions behind these give.
    pub fn join(&mut self, backend: Backend, later: &Self) {
        backend.run(Join { part: self, later });
    }

    /// Writes the means of the values, `[heads, value_dim]`.
    pub fn finish(&self, out: &mut [f32]) {
        let width = out.len() / self.seen.len();
        let heads = out
            .chunks_exact_mut(width)
            .zip(self.values.chunks_exact(width));
        for ((out, values), seen) in heads.zip(&self.seen) {
            let scale = 1.0 / seen.sum;
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * scale;
            }
        }
    }
}

struct Join<'a> {
    part: &'a mut Part,
    later: &'a Part,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part: Part { values, seen }, later } = self;
        let width = values.len() / seen.len();
        let heads = values
            .chunks_exact_mut(width)
            .zip(later.values.chunks_exact(width));
        for ((values, more), (seen, other)) in heads.zip(seen.iter_mut().zip(&later.seen)) {
            let highest = seen.highest.max(other.highest);
            let old = power(s, seen.highest - highest);
            let new = power(s, other.highest - highest);
            for (value, more) in values.iter_mut().zip(more) {
                *value = *value * old + more * new;
            }
            *seen = Seen { highest, sum: seen.sum * old + other.sum * new };
        }
    }
}
