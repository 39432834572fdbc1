//! What attention keeps of the positions seen so far.

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

    /// All rows; that of a position is row `position % capacity`.
    pub fn rows(&self) -> &[f32] {
        &self.values
    }

    /// Values per row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// How many rows there are.
    pub const fn capacity(&self) -> usize {
        self.capacity
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

    /// Keys by position.
    pub const fn keys(&self) -> &Ring {
        &self.keys
    }

    /// Values by position.
    pub const fn values(&self) -> &Ring {
        &self.values
    }
}
