//! What attention keeps of the positions seen so far.

use serde::{Deserialize, Serialize};
use shardwright_format::model::AttentionSpec;
use shardwright_quant::{CacheType, Kept, VectorLayout};

/// How keys and values are kept. Each is rounded once to its type, to nearest, when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheTypes {
    /// Keys; of latent attention all that is kept.
    pub k: CacheType,
    /// Values.
    pub v: CacheType,
}

impl Default for CacheTypes {
    /// As they were computed.
    fn default() -> Self {
        Self { k: CacheType::F32, v: CacheType::F32 }
    }
}

/// Rows of vectors by position: each overwrites the one `capacity` before it. The vectors of a head lie one after the
/// other, since attention takes head after head: apart from each other they would come from memory at half the speed.
#[derive(Debug)]
pub struct Ring {
    layout: VectorLayout,
    /// Vectors per row.
    vectors: usize,
    capacity: usize,
    /// `[vectors, capacity]`, of `layout`.
    bytes: Vec<u8>,
    /// Rows of earlier positions were written over, or never there.
    start: usize,
}

impl Ring {
    /// Room for `capacity` positions of `vectors` vectors.
    pub fn new(capacity: usize, vectors: usize, layout: VectorLayout) -> Self {
        let bytes = vec![0; capacity * vectors * layout.byte_len()];
        Self { layout, vectors, capacity, bytes, start: 0 }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(capacity: u64, vectors: u64, layout: VectorLayout) -> u64 {
        capacity
            .saturating_mul(vectors)
            .saturating_mul(layout.byte_len() as u64)
    }

    /// Keeps positions `first ..`, one per row of `rows: [n, vectors, len]`.
    pub fn push(&mut self, first: usize, rows: &[f32]) {
        if first == 0 {
            self.start = 0;
        }
        let (layout, mut end) = (self.layout, first);
        for (position, row) in (first..).zip(rows.chunks_exact(self.vectors * layout.len())) {
            for (vector, kept) in row.chunks_exact(layout.len()).zip(self.row_mut(position)) {
                layout.write(vector, kept);
            }
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

    /// How each vector lies.
    pub const fn layout(&self) -> VectorLayout {
        self.layout
    }

    /// Bytes of a row.
    pub const fn row_len(&self) -> usize {
        self.vectors * self.layout.byte_len()
    }

    /// The bytes of each vector of the row of a position.
    pub fn row(&self, position: usize) -> impl Iterator<Item = &[u8]> {
        let (len, at) = (self.layout.byte_len(), position % self.capacity);
        let heads = self.bytes.chunks_exact(self.capacity * len);
        heads.map(move |head| &head[at * len..][..len])
    }

    /// The bytes of each vector of the row of a position, to be written.
    pub fn row_mut(&mut self, position: usize) -> impl Iterator<Item = &mut [u8]> {
        let (len, at) = (self.layout.byte_len(), position % self.capacity);
        let heads = self.bytes.chunks_exact_mut(self.capacity * len);
        heads.map(move |head| &mut head[at * len..][..len])
    }

    /// Vector `index` of all rows; that of a position is number `position % capacity`.
    pub fn vectors(&self, index: usize) -> Kept<'_> {
        let stride = self.layout.byte_len();
        let bytes = &self.bytes[index * self.capacity * stride..][..self.capacity * stride];
        Kept { layout: self.layout, bytes, stride }
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
    /// Room for `capacity` positions.
    pub fn new(spec: &AttentionSpec, capacity: usize, types: CacheTypes) -> Self {
        let [k, v] = layouts(spec, types);
        let ring = |layout| Ring::new(capacity, spec.kv_heads as usize, layout);
        Self { keys: ring(k), values: ring(v) }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(spec: &AttentionSpec, capacity: u64, types: CacheTypes) -> u64 {
        let ([k, v], heads) = (layouts(spec, types), spec.kv_heads as u64);
        Ring::byte_len(capacity, heads, k).saturating_add(Ring::byte_len(capacity, heads, v))
    }

    /// Bytes of the floats that a thread makes of blocks.
    pub const fn decoded_byte_len(spec: &AttentionSpec, types: CacheTypes) -> u64 {
        let [k, v] = layouts(spec, types);
        (k.decoded_byte_len() + v.decoded_byte_len()) as u64
    }

    /// Keeps positions `first ..`, one per row of `keys` and `values`, `[n, kv_heads, head_dim]`.
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

/// How a head's keys and values lie.
const fn layouts(spec: &AttentionSpec, types: CacheTypes) -> [VectorLayout; 2] {
    let dim = spec.head_dim as usize;
    [VectorLayout::new(types.k, dim, 0), VectorLayout::new(types.v, dim, 0)]
}
