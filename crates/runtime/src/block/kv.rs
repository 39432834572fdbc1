//! What attention keeps of the positions seen so far.

use serde::{Deserialize, Serialize};
use shardwright_quant::{Float, Kept, narrow};

/// How keys and values are kept. Each is rounded once to its type, to nearest, when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheTypes {
    /// Keys; of latent attention all that is kept.
    pub k: Float,
    /// Values.
    pub v: Float,
}

impl Default for CacheTypes {
    /// As they were computed.
    fn default() -> Self {
        Self { k: Float::F32, v: Float::F32 }
    }
}

/// Rows of values by position: each overwrites the one `capacity` before it.
#[derive(Debug)]
pub struct Ring {
    width: usize,
    capacity: usize,
    dtype: Float,
    /// `[capacity, width]`, of `dtype`.
    values: Vec<u8>,
    /// Rows of earlier positions were written over, or never there.
    start: usize,
}

impl Ring {
    /// Room for `capacity` positions of `width` values.
    pub fn new(capacity: usize, width: usize, dtype: Float) -> Self {
        Self { width, capacity, dtype, values: vec![0; capacity * width * dtype.size()], start: 0 }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, width: u64, dtype: Float) -> u64 {
        capacity
            .saturating_mul(width)
            .saturating_mul(dtype.size() as u64)
    }

    /// Keeps positions `first ..`, one per row of `rows: [n, width]`.
    pub fn push(&mut self, first: usize, rows: &[f32]) {
        if first == 0 {
            self.start = 0;
        }
        let (dtype, mut end) = (self.dtype, first);
        for (position, row) in (first..).zip(rows.chunks_exact(self.width)) {
            narrow(dtype, row, self.row_mut(position));
            end += 1;
        }
        self.start = self.start.max(end.saturating_sub(self.capacity));
    }

    /// Begins at `start`, with nothing before it.
    pub const fn begin(&mut self, start: usize) {
        self.start = start;
    }

    /// The first position whose row is here.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Bytes of a row.
    pub const fn row_len(&self) -> usize {
        self.width * self.dtype.size()
    }

    /// The bytes of the row of a position.
    pub fn row(&self, position: usize) -> &[u8] {
        let len = self.row_len();
        &self.values[position % self.capacity * len..][..len]
    }

    /// The bytes of the row of a position, to be written.
    pub fn row_mut(&mut self, position: usize) -> &mut [u8] {
        let len = self.row_len();
        &mut self.values[position % self.capacity * len..][..len]
    }

    /// All rows; that of a position is row `position % capacity`.
    pub fn rows(&self) -> Kept<'_> {
        Kept { dtype: self.dtype, bytes: &self.values }
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
    pub fn new(capacity: usize, width: usize, types: CacheTypes) -> Self {
        let ring = |dtype| Ring::new(capacity, width, dtype);
        Self { keys: ring(types.k), values: ring(types.v) }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, width: u64, types: CacheTypes) -> u64 {
        let values = Ring::byte_len(capacity, width, types.v);
        Ring::byte_len(capacity, width, types.k).saturating_add(values)
    }

    /// Keeps positions `first ..`, one per row of `keys` and `values`, `[n, width]`.
    pub fn push(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        self.keys.push(first, keys);
        self.values.push(first, values);
    }

    /// Keys and values, to be written.
    pub const fn rings(&mut self) -> [&mut Ring; 2] {
        [&mut self.keys, &mut self.values]
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
