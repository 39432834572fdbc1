//! Grouped-query attention.

use std::ops::Range;

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{AttentionSpec, QkNorm, TemperatureSpec};
use shardwright_quant::{
    Attention, Backend, Matrix, Part, SPANS, Span, VectorLayout, attend, spans,
};

use super::capture::InputSite;
use super::kv::KvCache;
use super::ops::{add_bias, rms_norm_in_place, scale, sigmoid};
use super::rope::Rotation;
use super::{Batch, Layer, Work};
use crate::error::Result;

/// Multiplications below which a second thread costs more than it brings.
const WORK_PER_TASK: usize = 32 * 1024;

/// Below as many groups of heads for each thread, threads share positions as well: three groups would leave one of two
/// threads idle for a third of the time.
const FEW_GROUPS: usize = 4;

/// Buffers of this mechanism.
#[derive(Debug, Default)]
pub struct Buffers {
    /// `[n, heads * head_dim]`.
    q: Vec<f32>,
    /// Output gates, `[n, heads * head_dim]`, where there are any.
    gate: Vec<f32>,
    /// `[n, kv_heads * head_dim]`.
    k: Vec<f32>,
    /// `[n, kv_heads * head_dim]`.
    v: Vec<f32>,
    /// `[n, heads * head_dim]`.
    mixed: Vec<f32>,
    rotation: Rotation,
}

/// `f32` values that [`Buffers`] hold for one token.
pub fn buffer_len(spec: &AttentionSpec) -> u64 {
    let (heads, kv) = (u64::from(spec.heads), u64::from(spec.kv_heads));
    let gates = if spec.output_gate { 2 * heads } else { 0 };
    u64::from(spec.head_dim) * (2 * heads + gates + 2 * kv + 1)
}

/// Positions that the cache must hold when `rows` of them come at a time: what the first of these
/// sees and the others besides. That is a window or chunk if the layer has one, else the context.
pub fn cache_capacity(spec: &AttentionSpec, context: usize, rows: usize) -> usize {
    let limit = |size: Option<u32>| size.map_or(context, |size| size as usize);
    let seen = limit(spec.sliding_window).min(limit(spec.attention_chunk_size));
    context.min(seen.saturating_add(rows.max(1) - 1)).max(1)
}

/// Keys (or values) per position.
pub fn cache_width(spec: &AttentionSpec) -> usize {
    spec.kv_heads as usize * spec.head_dim as usize
}

/// `x += o(attend(q(norm(x)), k(norm(x)), v(norm(x))))` for the rows of `batch`.
///
/// `cache` must have room for the rows of a sequence besides the positions that the first sees.
pub fn forward(
    layer: &Layer<'_>,
    spec: &AttentionSpec,
    batch: &mut Batch<'_>,
    cache: &mut KvCache,
    work: &mut Work,
) -> Result<()> {
    let backend = work.linear.backend;
    layer.input(backend, Role::InputNorm, batch.x, &mut work.normed)?;
    project(layer, spec, work)?;
    condition(layer, spec, batch, work)?;
    let sinks = || layer.unit.vector(Role::Sinks, spec.heads as usize);
    let sinks = spec.sinks.then(sinks).transpose()?;
    let Work { linear, normed: out, attention: b, .. } = work;
    let [k, v] = [cache.keys().layout(), cache.values().layout()];
    rotate(k, &mut b.q);
    rotate(k, &mut b.k);
    rotate(v, &mut b.v);
    b.mixed.resize(b.q.len(), 0.0);
    let (q_rows, kv_rows) = (batch.length * q_width(spec), batch.length * cache_width(spec));
    let sequences = b.q.chunks(q_rows).zip(b.mixed.chunks_mut(q_rows));
    let kv = b.k.chunks(kv_rows).zip(b.v.chunks(kv_rows));
    for ((q, mixed), (k, v)) in sequences.zip(kv) {
        cache.push(batch.first, k, v);
        let (sinks, first) = (sinks.as_deref(), batch.first);
        Attend { backend, spec, sinks, first, cache }.all_rows(q, mixed);
    }
    // Rotated values were mixed: the mix is turned back.
    rotate(v, &mut b.mixed);
    if spec.output_gate {
        let gated = b.mixed.iter_mut().zip(&b.gate);
        gated.for_each(|(x, gate)| *x *= sigmoid(*gate));
    }
    if spec.inner_norm {
        let norm = layer.norm(Role::MixerInnerNorm, q_width(spec))?;
        rms_norm_in_place(backend, &mut b.mixed, &norm, layer.eps);
    }
    let o = layer
        .unit
        .matrix(Role::OProj, layer.hidden, q_width(spec))?;
    linear.project(InputSite::MixerOut, &b.mixed, [(o, &mut *out)]);
    if spec.o_bias {
        add_bias(out, &layer.unit.vector(Role::OBias, layer.hidden)?);
    }
    layer.join(Role::MixerOutNorm, batch.x, out)
}

/// Queries, keys and values.
fn project(layer: &Layer<'_>, spec: &AttentionSpec, work: &mut Work) -> Result<()> {
    let (unit, kv_width) = (&layer.unit, cache_width(spec));
    let q_width = if spec.output_gate { 2 * q_width(spec) } else { q_width(spec) };
    let matrix = |role, width| -> Result<Matrix<'_>> { unit.matrix(role, width, layer.hidden) };
    let Work { linear, normed, attention: b, .. } = work;
    let products = [
        (matrix(Role::QProj, q_width)?, &mut b.q),
        (matrix(Role::KProj, kv_width)?, &mut b.k),
        (matrix(Role::VProj, kv_width)?, &mut b.v),
    ];
    linear.project(InputSite::Mixer, normed, products);
    if spec.qkv_bias {
        add_bias(&mut b.q, &unit.vector(Role::QBias, q_width)?);
        add_bias(&mut b.k, &unit.vector(Role::KBias, kv_width)?);
        add_bias(&mut b.v, &unit.vector(Role::VBias, kv_width)?);
    }
    if spec.output_gate {
        split_gate(spec.head_dim as usize, &mut b.q, &mut b.gate);
    }
    Ok(())
}

/// Parts `q: [n, heads, 2 * dim]` into queries and gates, `[n, heads, dim]` each.
fn split_gate(dim: usize, q: &mut Vec<f32>, gate: &mut Vec<f32>) {
    gate.clear();
    for head in 0..q.len() / (2 * dim) {
        let start = 2 * dim * head;
        gate.extend_from_slice(&q[start + dim..start + 2 * dim]);
        q.copy_within(start..start + dim, dim * head);
    }
    q.truncate(gate.len());
}

/// Norms, clips and rotates queries and keys, in the order of the models that do each.
fn condition(
    layer: &Layer<'_>,
    spec: &AttentionSpec,
    batch: &Batch<'_>,
    work: &mut Work,
) -> Result<()> {
    let Work { linear, attention: b, .. } = work;
    let norms = |q_len, k_len| -> Result<_> {
        Ok([layer.norm(Role::QNorm, q_len)?, layer.norm(Role::KNorm, k_len)?])
    };
    let norm = |b: &mut Buffers, [q, k]: [Vec<f32>; 2]| {
        rms_norm_in_place(linear.backend, &mut b.q, &q, layer.eps);
        rms_norm_in_place(linear.backend, &mut b.k, &k, layer.eps);
    };
    if spec.qk_norm == QkNorm::Full {
        norm(b, norms(q_width(spec), cache_width(spec))?);
    }
    if let Some(c) = spec.clip_qkv {
        for x in [&mut b.q, &mut b.k, &mut b.v] {
            for x in x.iter_mut() {
                *x = x.clamp(-c, c);
            }
        }
    }
    let dim = spec.head_dim as usize;
    if spec.qk_norm == QkNorm::PerHead {
        norm(b, norms(dim, dim)?);
    }
    if let Some(rope) = &spec.rope {
        b.rotation.set(rope, dim, batch.first, batch.length)?;
        for (x, width) in [(&mut b.q, q_width(spec)), (&mut b.k, cache_width(spec))] {
            let rows = x.chunks_exact_mut(width).enumerate();
            rows.for_each(|(row, x)| b.rotation.apply(row % batch.length, x));
        }
    }
    match spec.qk_norm {
        QkNorm::PerHeadRotated => norm(b, norms(dim, dim)?),
        QkNorm::Weightless => norm(b, [vec![1.0; dim], vec![1.0; dim]]),
        QkNorm::None | QkNorm::PerHead | QkNorm::Full => {}
    }
    if let Some(temperature) = &spec.temperature {
        for (row, q) in b.q.chunks_exact_mut(q_width(spec)).enumerate() {
            let factor = temperature_at(*temperature, batch.first + row % batch.length);
            scale(q, factor);
        }
    }
    Ok(())
}

/// Rotates the vector of every head where the cache keeps blocks.
fn rotate(layout: VectorLayout, x: &mut [f32]) {
    x.chunks_exact_mut(layout.len())
        .for_each(|vector| layout.rotate(vector));
}

fn temperature_at(spec: TemperatureSpec, position: usize) -> f32 {
    let counted = if spec.from_zero { position } else { position + 1 };
    let steps = (counted as f32 / spec.floor_scale).floor();
    libm::log1pf(steps) * spec.attn_scale + 1.0
}

/// The attention of one sequence.
struct Attend<'a> {
    backend: Backend,
    spec: &'a AttentionSpec,
    /// Per head, one more score of no value.
    sinks: Option<&'a [f32]>,
    /// Position of the first query.
    first: usize,
    cache: &'a KvCache,
}

impl Attend<'_> {
    /// `out = softmax(q · keysᵀ / sqrt(head_dim)) · values`, for rows `q: [n, heads * head_dim]`
    /// at positions `first ..`, whose keys are in the cache.
    fn all_rows(&self, q: &[f32], out: &mut [f32]) {
        let group = (self.spec.heads / self.spec.kv_heads * self.spec.head_dim) as usize;
        let cost = (self.first + 1) * group * 2;
        if q.len() / group < FEW_GROUPS * rayon::current_num_threads() && cost > WORK_PER_TASK {
            return self.in_spans(group, q, out);
        }
        q.par_chunks(group)
            .zip(out.par_chunks_mut(group))
            .enumerate()
            .with_min_len(1 + WORK_PER_TASK / cost)
            .for_each(|(i, (q, out))| {
                let (attention, positions) = self.one_group(i, q);
                attend(self.backend, attention, positions, out);
            });
    }

    /// Threads share the positions too. The same result as [`attend`] gives of each group.
    fn in_spans(&self, group: usize, q: &[f32], out: &mut [f32]) {
        let tasks: Vec<(usize, Span<'_>)> = q
            .chunks(group)
            .enumerate()
            .flat_map(|(i, q)| {
                let (attention, positions) = self.one_group(i, q);
                spans(attention, positions).map(move |span| (i, span))
            })
            .collect();
        let width = self.spec.head_dim as usize;
        let attend = |(i, span): (usize, Span<'_>)| (i, span.attend(self.backend, width));
        let parts: Vec<(usize, Part)> = tasks.into_par_iter().map(attend).collect();
        for (parts, out) in parts.chunk_by(|a, b| a.0 == b.0).zip(out.chunks_mut(group)) {
            let mut all = parts[0].1.clone();
            for (_, part) in &parts[1..] {
                all.join(self.backend, part);
            }
            all.finish(out);
        }
    }

    /// The heads of one row that share keys and values, group `index` of all rows' groups, and the positions that the
    /// row sees.
    fn one_group<'q>(&'q self, index: usize, q: &'q [f32]) -> (Attention<'q>, Range<usize>) {
        let (dim, kv_heads) = (self.spec.head_dim as usize, self.spec.kv_heads as usize);
        let (position, kv_head) = (self.first + index / kv_heads, index % kv_heads);
        let (keys, heads) = (self.cache.keys(), q.len() / dim);
        let attention = Attention {
            q,
            heads,
            keys: keys.vectors(kv_head),
            values: self.cache.values().vectors(kv_head),
            capacity: keys.capacity(),
            scale: self.spec.softmax_scale.unwrap_or(1.0 / (dim as f32).sqrt()),
            cap: self.spec.score_cap,
            sinks: self.sinks.map(|sinks| &sinks[kv_head * heads..]),
        };
        (attention, first_seen(self.spec, position)..position + 1)
    }
}

/// Bytes that a thread takes for parts of a long context.
pub const fn parts_byte_len(spec: &AttentionSpec) -> u64 {
    let heads = (spec.heads / spec.kv_heads) as usize;
    (FEW_GROUPS * SPANS * Part::byte_len(heads, spec.head_dim as usize)) as u64
}

/// The first position that `position` sees.
pub fn first_seen(spec: &AttentionSpec, position: usize) -> usize {
    let window = spec.sliding_window.map_or(usize::MAX, |w| w as usize);
    let chunk = spec.attention_chunk_size.map_or(usize::MAX, |c| c as usize);
    (position + 1)
        .saturating_sub(window)
        .max(position / chunk * chunk)
}

const fn q_width(spec: &AttentionSpec) -> usize {
    spec.heads as usize * spec.head_dim as usize
}
