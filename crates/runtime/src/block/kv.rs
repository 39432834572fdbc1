//! Keys and values of the positions seen so far.

/// A ring of positions: each overwrites the one `capacity` before it.
#[derive(Debug)]
pub struct KvCache {
    width: usize,
    capacity: usize,
    /// `[capacity, width]`, after rotation.
    keys: Vec<f32>,
    /// `[capacity, width]`.
    values: Vec<f32>,
}

impl KvCache {
    /// Room for `capacity` positions of `width` values.
    pub fn new(capacity: usize, width: usize) -> Self {
        let len = capacity * width;
        Self { width, capacity, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, width: u64) -> u64 {
        capacity.saturating_mul(width).saturating_mul(8)
    }

    /// Keeps positions `first ..`, one per row of `keys` and `values`, `[n, width]`.
    pub fn push(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        let rows = keys
            .chunks_exact(self.width)
            .zip(values.chunks_exact(self.width));
        for (position, (key, value)) in (first..).zip(rows) {
            let start = position % self.capacity * self.width;
            self.keys[start..start + self.width].copy_from_slice(key);
            self.values[start..start + self.width].copy_from_slice(value);
        }
    }

    /// `range` of the keys at a position.
    pub fn key(&self, position: usize, range: std::ops::Range<usize>) -> &[f32] {
        let start = position % self.capacity * self.width;
        &self.keys[start + range.start..start + range.end]
    }

    /// `range` of the values at a position.
    pub fn value(&self, position: usize, range: std::ops::Range<usize>) -> &[f32] {
        let start = position % self.capacity * self.width;
        &self.values[start + range.start..start + range.end]
    }
}
