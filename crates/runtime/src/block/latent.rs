//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on the latents themselves: the
//! projection to keys is moved to the query's side and that to values behind the softmax, so that
//! no key or value of any head is ever stored.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::LatentSpec;
use shardwright_quant::{Attention, Backend, Matrix, VectorLayout, attend, axpy, dot};

use super::capture::InputSite;
use super::kv::{CacheTypes, Ring};
use super::ops::{add_bias, join_heads, rms_norm, rms_norm_in_place};
use super::rope::Rotation;
use super::{Batch, Layer, Work};
use crate::error::{Result, RuntimeError};

/// Threads whose buffers [`buffer_len`] counts.
const THREADS: u64 = 8;

/// Inside the norms of latents, whatever the model's other norms have: the published models leave
/// their constructor's default.
const LATENT_EPS: f32 = 1e-6;

/// Sizes in values.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    heads: usize,
    latent: usize,
    nope: usize,
    rope: usize,
    value: usize,
}

impl Sizes {
    const fn new(spec: &LatentSpec) -> Self {
        Self {
            heads: spec.heads as usize,
            latent: spec.kv_lora_rank as usize,
            nope: spec.qk_nope_head_dim as usize,
            rope: spec.qk_rope_head_dim as usize,
            value: spec.v_head_dim as usize,
        }
    }

    /// What is kept per position: the normed latent and the rotated key.
    const fn kept(self) -> usize {
        self.latent + self.rope
    }

    /// A head's query.
    const fn query(self) -> usize {
        self.nope + self.rope
    }
}

/// Buffers of this mechanism.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The latent of queries, `[n, q_lora_rank]`.
    q_latent: Vec<f32>,
    /// `[n, heads * (nope + rope)]`.
    q: Vec<f32>,
    /// `[n, latent + rope]`: latents, then normed, and keys, then rotated.
    kept: Vec<f32>,
    /// Latents alone, `[n, latent]`.
    latents: Vec<f32>,
    /// By head: `[heads, n, value]`.
    by_head: Vec<f32>,
    /// `[n, heads * value]`.
    mixed: Vec<f32>,
    rotation: Rotation,
}

/// `f32` values that [`Buffers`] and the threads hold for one token.
pub fn buffer_len(spec: &LatentSpec) -> u64 {
    let s = Sizes::new(spec);
    let q_latent = u64::from(spec.q_lora_rank.unwrap_or(0));
    let rows = s.heads * (s.query() + 2 * s.value) + 2 * s.kept();
    let head = s.latent * (s.nope + s.value + 2) + s.rope;
    q_latent + rows as u64 + THREADS * head as u64
}

/// Columns of the widest matrix.
pub fn widest_input(spec: &LatentSpec) -> u32 {
    let latent = spec.kv_lora_rank.max(spec.q_lora_rank.unwrap_or(0));
    latent.max(spec.heads * spec.v_head_dim)
}

/// Latents and rotated keys of the positions seen so far.
#[derive(Debug)]
pub struct LatentCache(Ring);

impl LatentCache {
    /// Room for `capacity` positions.
    pub fn new(spec: &LatentSpec, capacity: usize, types: CacheTypes) -> Self {
        Self(Ring::new(capacity.max(1), 1, layout(spec, types)))
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(spec: &LatentSpec, capacity: usize, types: CacheTypes) -> u64 {
        Ring::byte_len(capacity as u64, 1, layout(spec, types))
    }

    /// Bytes of the floats that a thread makes of blocks.
    pub const fn decoded_byte_len(spec: &LatentSpec, types: CacheTypes) -> u64 {
        layout(spec, types).decoded_byte_len() as u64
    }

    /// Rows by position.
    pub const fn rows(&self) -> &Ring {
        &self.0
    }

    /// Rows by position, to be written.
    pub const fn rows_mut(&mut self) -> &mut Ring {
        &mut self.0
    }
}

/// How a row lies: rotated keys are not for blocks, a small error of theirs moves all scores.
const fn layout(spec: &LatentSpec, types: CacheTypes) -> VectorLayout {
    let s = Sizes::new(spec);
    VectorLayout::new(types.k, s.kept(), s.rope)
}

/// `x += o(attend(norm(x)))` for the rows of `batch`.
///
/// `cache` must have room for all positions.
pub fn forward(
    layer: &Layer<'_>,
    spec: &LatentSpec,
    batch: &mut Batch<'_>,
    cache: &mut LatentCache,
    work: &mut Work,
) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let past = |topk: &u32| batch.first + batch.length > *topk as usize;
    if let Some(topk) = spec.index_topk.filter(past) {
        return Err(RuntimeError::Indexer { position: batch.first.max(topk as usize), topk });
    }
    let norm = layer.norm(Role::InputNorm, layer.hidden)?;
    rms_norm(work.linear.backend, batch.x, &norm, layer.eps, &mut work.normed);
    queries(layer, spec, work)?;
    latents(layer, spec, work)?;
    let b = &mut work.latent;
    rotate(spec, batch, b)?;
    for kept in b.kept.chunks_exact_mut(s.kept()) {
        cache.0.layout().rotate(kept);
    }
    let up = unit.matrix(Role::KvBProj, s.heads * (s.nope + s.value), s.latent)?;
    let (q_rows, kept_rows) = (batch.length * s.heads * s.query(), batch.length * s.kept());
    let mixed_rows = batch.length * s.heads * s.value;
    b.mixed.resize(b.q.len() / q_rows * mixed_rows, 0.0);
    b.by_head.resize(mixed_rows, 0.0);
    let sequences = b.q.chunks(q_rows).zip(b.kept.chunks(kept_rows));
    for ((q, kept), mixed) in sequences.zip(b.mixed.chunks_mut(mixed_rows)) {
        cache.0.push(batch.first, kept);
        let (cache, backend) = (&cache.0, work.linear.backend);
        let attend = Attend { backend, s, spec, up, first: batch.first, cache };
        attend.all_heads(q, &mut b.by_head);
        join_heads(&b.by_head, s.value, batch.length, mixed);
    }
    finish(layer, spec, batch.x, work)
}

/// Leaves queries in `work.latent.q`.
fn queries(layer: &Layer<'_>, spec: &LatentSpec, work: &mut Work) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let width = s.heads * s.query();
    let Work { linear, normed, latent: b, .. } = work;
    let Some(rank) = spec.q_lora_rank.map(|rank| rank as usize) else {
        let matrix = unit.matrix(Role::QProj, width, layer.hidden)?;
        linear.project(InputSite::Mixer, normed, [(matrix, &mut b.q)]);
        return Ok(());
    };
    let down = unit.matrix(Role::QAProj, rank, layer.hidden)?;
    linear.project(InputSite::Mixer, normed, [(down, &mut b.q_latent)]);
    if spec.bias {
        add_bias(&mut b.q_latent, &unit.vector(Role::QABias, rank)?);
    }
    let norm = layer.norm(Role::QANorm, rank)?;
    rms_norm_in_place(linear.backend, &mut b.q_latent, &norm, LATENT_EPS);
    let up = unit.matrix(Role::QBProj, width, rank)?;
    linear.project(InputSite::QueryLatent, &b.q_latent, [(up, &mut b.q)]);
    Ok(())
}

/// Leaves normed latents and keys in `work.latent.kept`.
fn latents(layer: &Layer<'_>, spec: &LatentSpec, work: &mut Work) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let Work { linear, normed, latent: b, .. } = work;
    let down = unit.matrix(Role::KvAProj, s.kept(), layer.hidden)?;
    linear.project(None, normed, [(down, &mut b.kept)]);
    if spec.bias {
        add_bias(&mut b.kept, &unit.vector(Role::KvABias, s.kept())?);
    }
    let norm = layer.norm(Role::KvANorm, s.latent)?;
    b.latents.clear();
    for row in b.kept.chunks_exact_mut(s.kept()) {
        let latent = &mut row[..s.latent];
        rms_norm_in_place(linear.backend, latent, &norm, LATENT_EPS);
        b.latents.extend_from_slice(latent);
    }
    linear
        .captures
        .keep(InputSite::KvLatent, s.latent, &b.latents);
    Ok(())
}

/// Rotates the last values of every head's query, and the key that all heads share.
fn rotate(spec: &LatentSpec, batch: &Batch<'_>, b: &mut Buffers) -> Result<()> {
    let s = Sizes::new(spec);
    b.rotation
        .set(&spec.rope, s.rope, batch.first, batch.length)?;
    for (row, q) in b.q.chunks_exact_mut(s.heads * s.query()).enumerate() {
        for head in q.chunks_exact_mut(s.query()) {
            b.rotation.apply(row % batch.length, &mut head[s.nope..]);
        }
    }
    for (row, kept) in b.kept.chunks_exact_mut(s.kept()).enumerate() {
        b.rotation.apply(row % batch.length, &mut kept[s.latent..]);
    }
    Ok(())
}

/// `x += o(mixed)`.
fn finish(layer: &Layer<'_>, spec: &LatentSpec, x: &mut [f32], work: &mut Work) -> Result<()> {
    let width = (spec.heads * spec.v_head_dim) as usize;
    let Work { linear, normed: out, latent: b, .. } = work;
    let o = layer.unit.matrix(Role::OProj, layer.hidden, width)?;
    linear.project(InputSite::MixerOut, &b.mixed, [(o, &mut *out)]);
    if spec.bias {
        add_bias(out, &layer.unit.vector(Role::OBias, layer.hidden)?);
    }
    layer.join(Role::MixerOutNorm, x, out)
}

/// The attention of one sequence.
struct Attend<'a> {
    backend: Backend,
    s: Sizes,
    spec: &'a LatentSpec,
    /// `[heads * (nope + value), latent]`.
    up: Matrix<'a>,
    /// Position of the first query.
    first: usize,
    cache: &'a Ring,
}

/// What a thread needs for one head.
#[derive(Default)]
struct Head {
    /// `[nope + value, latent]`.
    up: Vec<f32>,
    /// The query in the space of what is kept, `[latent + rope]`.
    query: Vec<f32>,
    /// `[latent]`.
    mixed: Vec<f32>,
}

impl Attend<'_> {
    /// `q: [n, heads, nope + rope]` to `out: [heads, n, value]`.
    fn all_heads(&self, q: &[f32], out: &mut [f32]) {
        let rows = out.len() / (self.s.heads * self.s.value);
        out.par_chunks_mut(rows * self.s.value)
            .enumerate()
            .for_each_init(Head::default, |head, (index, out)| {
                self.one_head(index, q, head, out);
            });
    }

    /// Head `index` of every row. Its part of the projection is decoded once for all of them.
    fn one_head(&self, index: usize, q: &[f32], head: &mut Head, out: &mut [f32]) {
        let (s, each) = (self.s, self.s.nope + self.s.value);
        head.up.resize(each * s.latent, 0.0);
        let rows = index * each..(index + 1) * each;
        self.up.dequantize(self.backend, rows, &mut head.up);
        let queries = q.chunks_exact(s.heads * s.query());
        for (row, (q, out)) in queries.zip(out.chunks_exact_mut(s.value)).enumerate() {
            let q = &q[index * s.query()..(index + 1) * s.query()];
            self.to_latents(q, head);
            self.mix_latents(self.first + row, head);
            // Behind the mix: each value is a row of the projection times the mixed latent.
            let to_value = head.up[s.nope * s.latent..].chunks_exact(s.latent);
            for (out, row) in out.iter_mut().zip(to_value) {
                *out = dot(self.backend, row, &head.mixed);
            }
        }
    }

    /// `score(p) = q · key(p)` is `(upᵀ q) · latent(p)`: leaves `upᵀ q`, with what is rotated
    /// behind it, in `head.query`.
    fn to_latents(&self, q: &[f32], head: &mut Head) {
        let s = self.s;
        head.query.clear();
        head.query.resize(s.latent, 0.0);
        for (q, row) in q
            .iter()
            .zip(head.up[..s.nope * s.latent].chunks_exact(s.latent))
        {
            axpy(self.backend, *q, row, &mut head.query);
        }
        head.query.extend_from_slice(&q[s.nope..]);
        self.cache.layout().rotate(&mut head.query);
    }

    /// The mix of all latents up to `position`, as the softmax of their scores weighs them.
    fn mix_latents(&self, position: usize, head: &mut Head) {
        let rows = self.cache.vectors(0);
        let attention = Attention {
            q: &head.query,
            heads: 1,
            // A row is both: the key is all of it, the value the latent that it begins with.
            keys: rows,
            values: rows,
            capacity: self.cache.capacity(),
            scale: self.spec.softmax_scale,
            cap: None,
            sinks: None,
        };
        head.mixed.resize(self.s.latent, 0.0);
        attend(self.backend, attention, 0..position + 1, &mut head.mixed);
        self.cache.layout().rotate(&mut head.mixed);
    }
}
