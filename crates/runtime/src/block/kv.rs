//! What attention keeps of the positions seen so far.

use std::ops::Range;

/// Rows of values by position: each overwrites the one `capacity` before it.
#[derive(Debug)]
pub struct Ring {
    width: usize,
    capacity: usize,
    /// `[capacity, width]`.
    values: Vec<f32>,
}

impl Ring {
    /// Room for `capacity` positions of `width` values.
    pub fn new(capacity: usize, width: usize) -> Self {
        Self { width, capacity, values: vec![0.0; capacity * width] }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, width: u64) -> u64 {
        capacity.saturating_mul(width).saturating_mul(4)
    }

    /// Keeps positions `first ..`, one per row of `rows: [n, width]`.
    pub fn push(&mut self, first: usize, rows: &[f32]) {
        for (position, row) in (first..).zip(rows.chunks_exact(self.width)) {
            let start = position % self.capacity * self.width;
            self.values[start..start + self.width].copy_from_slice(row);
        }
    }

    /// `range` of the values at a position.
    pub fn at(&self, position: usize, range: Range<usize>) -> &[f32] {
        let start = position % self.capacity * self.width;
        &self.values[start + range.start..start + range.end]
    }
}

/// Keys after rotation, and values.
#[derive(Debug)]
pub struct KvCache {
    keys: Ring,
    values: Ring,
}

impl KvCache {
    /// Room for `capacity` positions of `width` keys and as many values.
    pub fn new(capacity: usize, width: usize) -> Self {
        Self { keys: Ring::new(capacity, width), values: Ring::new(capacity, width) }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, width: u64) -> u64 {
        Ring::byte_len(capacity, width).saturating_mul(2)
    }

    /// Keeps positions `first ..`, one per row of `keys` and `values`, `[n, width]`.
    pub fn push(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        self.keys.push(first, keys);
        self.values.push(first, values);
    }

    /// `range` of the keys at a position.
    pub fn key(&self, position: usize, range: Range<usize>) -> &[f32] {
        self.keys.at(position, range)
    }

    /// `range` of the values at a position.
    pub fn value(&self, position: usize, range: Range<usize>) -> &[f32] {
        self.values.at(position, range)
    }
}
