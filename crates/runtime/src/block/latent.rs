//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on the latents themselves: the
//! projection to keys is moved to the query's side and that to values behind the softmax, so that
//! no key or value of any head is ever stored.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::LatentSpec;
use shardwright_quant::{Backend, Matrix, axpy, dot};

use super::kv::Ring;
use super::ops::{add_bias, join_heads, rms_norm, rms_norm_in_place, softmax};
use super::record::Site;
use super::rope::Rotation;
use super::{Batch, Layer, Work};
use crate::error::Result;

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

/// Latents and rotated keys of the positions seen so far.
#[derive(Debug)]
pub struct LatentCache(Ring);

impl LatentCache {
    /// Room for `capacity` positions.
    pub fn new(spec: &LatentSpec, capacity: usize) -> Self {
        Self(Ring::new(capacity.max(1), Sizes::new(spec).kept()))
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(spec: &LatentSpec, capacity: usize) -> u64 {
        Ring::byte_len(capacity as u64, Sizes::new(spec).kept() as u64)
    }
}

/// `x += o(attend(norm(x)))` for `x: [batch.rows, hidden]`.
///
/// When a sequence of the batch has several rows, `cache` must hold all its positions.
pub fn forward(
    layer: &Layer<'_>,
    spec: &LatentSpec,
    batch: Batch,
    cache: &mut LatentCache,
    x: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let norm = layer.norm(Role::InputNorm, layer.hidden)?;
    rms_norm(work.linear.backend, x, &norm, layer.eps, &mut work.normed);
    work.record.note(Site::Mixer, &work.normed);
    queries(layer, spec, batch.rows, work)?;
    latents(layer, spec, batch.rows, work)?;
    let b = &mut work.latent;
    rotate(spec, batch, b);
    let up = unit.matrix(Role::KvBProj, s.heads * (s.nope + s.value), s.latent)?;
    b.mixed.resize(batch.rows * s.heads * s.value, 0.0);
    let (q_rows, kept_rows) = (batch.length * s.heads * s.query(), batch.length * s.kept());
    let sequences = b.q.chunks(q_rows).zip(b.kept.chunks(kept_rows));
    let mixed = b.mixed.chunks_mut(batch.length * s.heads * s.value);
    for ((q, kept), mixed) in sequences.zip(mixed) {
        cache.0.push(batch.first, kept);
        b.by_head.resize(mixed.len(), 0.0);
        let attend = Attend { backend: work.linear.backend, s, spec, up, first: batch.first };
        attend.all_heads(&cache.0, q, &mut b.by_head);
        join_heads(&b.by_head, s.value, batch.length, mixed);
    }
    finish(layer, spec, x, work)
}

/// Leaves queries in `work.latent.q`.
fn queries(layer: &Layer<'_>, spec: &LatentSpec, rows: usize, work: &mut Work) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let width = s.heads * s.query();
    let Work { linear, normed, latent: b, record, .. } = work;
    let Some(rank) = spec.q_lora_rank.map(|rank| rank as usize) else {
        let matrix = unit.matrix(Role::QProj, width, layer.hidden)?;
        linear.project(normed, rows, [(matrix, &mut b.q)]);
        return Ok(());
    };
    let down = unit.matrix(Role::QAProj, rank, layer.hidden)?;
    linear.project(normed, rows, [(down, &mut b.q_latent)]);
    if spec.bias {
        add_bias(&mut b.q_latent, &unit.vector(Role::QABias, rank)?);
    }
    let norm = layer.norm(Role::QANorm, rank)?;
    rms_norm_in_place(linear.backend, &mut b.q_latent, &norm, LATENT_EPS);
    record.note(Site::QueryLatent, &b.q_latent);
    let up = unit.matrix(Role::QBProj, width, rank)?;
    linear.project(&b.q_latent, rows, [(up, &mut b.q)]);
    Ok(())
}

/// Leaves normed latents and keys in `work.latent.kept`.
fn latents(layer: &Layer<'_>, spec: &LatentSpec, rows: usize, work: &mut Work) -> Result<()> {
    let (s, unit) = (Sizes::new(spec), &layer.unit);
    let Work { linear, normed, latent: b, record, .. } = work;
    let down = unit.matrix(Role::KvAProj, s.kept(), layer.hidden)?;
    linear.project(normed, rows, [(down, &mut b.kept)]);
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
    record.note(Site::KvLatent, &b.latents);
    Ok(())
}

/// Rotates the last values of every head's query, and the key that all heads share.
fn rotate(spec: &LatentSpec, batch: Batch, b: &mut Buffers) {
    let s = Sizes::new(spec);
    b.rotation
        .set(&spec.rope, s.rope, batch.first, batch.length);
    for (row, q) in b.q.chunks_exact_mut(s.heads * s.query()).enumerate() {
        for head in q.chunks_exact_mut(s.query()) {
            b.rotation.apply(row % batch.length, &mut head[s.nope..]);
        }
    }
    for (row, kept) in b.kept.chunks_exact_mut(s.kept()).enumerate() {
        b.rotation.apply(row % batch.length, &mut kept[s.latent..]);
    }
}

/// `x += o(mixed)`.
fn finish(layer: &Layer<'_>, spec: &LatentSpec, x: &mut [f32], work: &mut Work) -> Result<()> {
    let width = (spec.heads * spec.v_head_dim) as usize;
    let Work { linear, normed: out, latent: b, record, .. } = work;
    record.note(Site::MixerOut, &b.mixed);
    let o = layer.unit.matrix(Role::OProj, layer.hidden, width)?;
    linear.project(&b.mixed, x.len() / layer.hidden, [(o, &mut *out)]);
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
    scores: Vec<f32>,
}

impl Attend<'_> {
    /// `q: [n, heads, nope + rope]` to `out: [heads, n, value]`.
    fn all_heads(&self, cache: &Ring, q: &[f32], out: &mut [f32]) {
        let rows = out.len() / (self.s.heads * self.s.value);
        out.par_chunks_mut(rows * self.s.value)
            .enumerate()
            .for_each_init(Head::default, |head, (index, out)| {
                self.one_head(cache, head, (index, q), out);
            });
    }

    fn one_head(
        &self,
        cache: &Ring,
        head: &mut Head,
        (index, q): (usize, &[f32]),
        out: &mut [f32],
    ) {
        let (s, each) = (self.s, self.s.nope + self.s.value);
        head.up.resize(each * s.latent, 0.0);
        let rows = index * each..(index + 1) * each;
        self.up.dequantize(self.backend, rows, &mut head.up);
        let queries = q.chunks_exact(s.heads * s.query());
        for (row, (q, out)) in queries.zip(out.chunks_exact_mut(s.value)).enumerate() {
            let q = &q[index * s.query()..(index + 1) * s.query()];
            self.one_query(cache, head, (self.first + row, q), out);
        }
    }

    /// `score(p) = q · key(p)` is `(upᵀ q) · latent(p)`, and the mix of values that of latents.
    fn one_query(
        &self,
        cache: &Ring,
        head: &mut Head,
        (position, q): (usize, &[f32]),
        out: &mut [f32],
    ) {
        let s = self.s;
        let (to_key, to_value) = head.up.split_at(s.nope * s.latent);
        head.query.clear();
        head.query.resize(s.latent, 0.0);
        for (q, row) in q.iter().zip(to_key.chunks_exact(s.latent)) {
            axpy(self.backend, *q, row, &mut head.query);
        }
        head.query.extend_from_slice(&q[s.nope..]);
        let score = |p| dot(self.backend, &head.query, cache.at(p, 0..s.kept()));
        head.scores.clear();
        let scores = (0..=position).map(|p| score(p) * self.spec.softmax_scale);
        head.scores.extend(scores);
        softmax(&mut head.scores);
        head.mixed.clear();
        head.mixed.resize(s.latent, 0.0);
        for (p, score) in head.scores.iter().enumerate() {
            axpy(self.backend, *score, cache.at(p, 0..s.latent), &mut head.mixed);
        }
        for (out, row) in out.iter_mut().zip(to_value.chunks_exact(s.latent)) {
            *out = dot(self.backend, row, &head.mixed);
        }
    }
}
