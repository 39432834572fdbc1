//! Grouped-query attention.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{AttentionSpec, QkNorm, TemperatureSpec};
use shardwright_quant::{Backend, Matrix, axpy, dot};

use super::kv::KvCache;
use super::ops::{add_bias, rms_norm, rms_norm_in_place, scale, sigmoid, softmax};
use super::record::Site;
use super::rope::Rotation;
use super::{Batch, Layer, Work};
use crate::error::Result;

/// Multiplications below which a second thread costs more than it brings.
const WORK_PER_TASK: usize = 32 * 1024;

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

/// Positions that the cache must hold: a window or chunk if the layer has one, else the whole
/// context.
pub fn cache_capacity(spec: &AttentionSpec, context: usize) -> usize {
    let limit = |size: Option<u32>| size.map_or(context, |size| size as usize);
    let (window, chunk) = (limit(spec.sliding_window), limit(spec.attention_chunk_size));
    context.min(window).min(chunk).max(1)
}

/// Keys (or values) per position.
pub fn cache_width(spec: &AttentionSpec) -> usize {
    spec.kv_heads as usize * spec.head_dim as usize
}

/// `x += o(attend(q(norm(x)), k(norm(x)), v(norm(x))))` for `x: [batch.rows, hidden]`.
///
/// When a sequence of the batch has several rows, `cache` must hold all its positions.
pub fn forward(
    layer: &Layer<'_>,
    spec: &AttentionSpec,
    batch: Batch,
    cache: &mut KvCache,
    x: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let backend = work.linear.backend;
    let norm = layer.norm(Role::InputNorm, layer.hidden)?;
    rms_norm(backend, x, &norm, layer.eps, &mut work.normed);
    work.record.note(Site::Mixer, &work.normed);
    project(layer, spec, batch.rows, work)?;
    condition(layer, spec, batch, work)?;
    let sinks = || layer.unit.vector(Role::Sinks, spec.heads as usize);
    let sinks = spec.sinks.then(sinks).transpose()?;
    let Work { linear, normed: out, attention: b, record, .. } = work;
    for (row, mixed) in b.mixed.chunks_mut(batch.length * q_width(spec)).enumerate() {
        let q = row * batch.length * q_width(spec);
        let kv = row * batch.length * cache_width(spec);
        let kv = kv..kv + batch.length * cache_width(spec);
        cache.push(batch.first, &b.k[kv.clone()], &b.v[kv]);
        let q = &b.q[q..q + mixed.len()];
        attend(backend, (spec, sinks.as_deref()), batch.first, cache, q, mixed);
    }
    if spec.output_gate {
        let gated = b.mixed.iter_mut().zip(&b.gate);
        gated.for_each(|(x, gate)| *x *= sigmoid(*gate));
    }
    let o = layer
        .unit
        .matrix(Role::OProj, layer.hidden, q_width(spec))?;
    record.note(Site::MixerOut, &b.mixed);
    linear.project(&b.mixed, batch.rows, [(o, &mut *out)]);
    if spec.o_bias {
        add_bias(out, &layer.unit.vector(Role::OBias, layer.hidden)?);
    }
    layer.join(Role::MixerOutNorm, x, out)
}

/// Queries, keys and values, and room for what is mixed from them.
fn project(layer: &Layer<'_>, spec: &AttentionSpec, rows: usize, work: &mut Work) -> Result<()> {
    let unit = &layer.unit;
    let (kv_width, mixed) = (cache_width(spec), rows * q_width(spec));
    let q_width = if spec.output_gate { 2 * q_width(spec) } else { q_width(spec) };
    let matrix = |role, width| -> Result<Matrix<'_>> { unit.matrix(role, width, layer.hidden) };
    let Work { linear, normed, attention: b, .. } = work;
    let products = [
        (matrix(Role::QProj, q_width)?, &mut b.q),
        (matrix(Role::KProj, kv_width)?, &mut b.k),
        (matrix(Role::VProj, kv_width)?, &mut b.v),
    ];
    linear.project(normed, rows, products);
    b.mixed.resize(mixed, 0.0);
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
fn condition(layer: &Layer<'_>, spec: &AttentionSpec, batch: Batch, work: &mut Work) -> Result<()> {
    let Work { linear, attention: b, .. } = work;
    let norms = |q_len, k_len| -> Result<_> {
        Ok((layer.norm(Role::QNorm, q_len)?, layer.norm(Role::KNorm, k_len)?))
    };
    let norm = |b: &mut Buffers, (q, k): (Vec<f32>, Vec<f32>)| {
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
        b.rotation.set(rope, dim, batch.first, batch.length);
        for (x, width) in [(&mut b.q, q_width(spec)), (&mut b.k, cache_width(spec))] {
            let rows = x.chunks_exact_mut(width).enumerate();
            rows.for_each(|(row, x)| b.rotation.apply(row % batch.length, x));
        }
    }
    if spec.qk_norm == QkNorm::Weightless {
        norm(b, (vec![1.0; dim], vec![1.0; dim]));
    }
    if let Some(temperature) = &spec.temperature {
        for (row, q) in b.q.chunks_exact_mut(q_width(spec)).enumerate() {
            let factor = temperature_at(*temperature, batch.first + row % batch.length);
            scale(q, factor);
        }
    }
    Ok(())
}

fn temperature_at(spec: TemperatureSpec, position: usize) -> f32 {
    let steps = ((position as f32 + 1.0) / spec.floor_scale).floor();
    steps.ln_1p() * spec.attn_scale + 1.0
}

/// `out = softmax(q · keysᵀ / sqrt(head_dim)) · values`, for rows `q: [n, heads * head_dim]` at
/// positions `first ..`, whose keys are in the cache. Each head's sink is one more score, of no
/// value.
fn attend(
    backend: Backend,
    (spec, sinks): (&AttentionSpec, Option<&[f32]>),
    first: usize,
    cache: &KvCache,
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, kv_heads) = (spec.head_dim as usize, spec.kv_heads as usize);
    let group = (spec.heads / spec.kv_heads) as usize * dim;
    let task = |scores: &mut Vec<f32>, (i, (q, out)): (usize, (&[f32], &mut [f32]))| {
        let (position, kv_head) = (first + i / kv_heads, i % kv_heads);
        let scale = spec.softmax_scale.unwrap_or(1.0 / (dim as f32).sqrt());
        let seen = first_seen(spec, position)..position + 1;
        let head = kv_head * dim..(kv_head + 1) * dim;
        let sinks = sinks.map(|sinks| &sinks[kv_head * group / dim..]);
        let heads = q.chunks_exact(dim).zip(out.chunks_exact_mut(dim));
        for (i, (q, out)) in heads.enumerate() {
            scores.clear();
            let keys = seen.clone().map(|p| cache.key(p, head.clone()));
            scores.extend(keys.map(|key| dot(backend, q, key) * scale));
            scores.extend(sinks.map(|sinks| sinks[i]));
            softmax(scores);
            out.fill(0.0);
            for (p, score) in seen.clone().zip(scores.iter()) {
                axpy(backend, *score, cache.value(p, head.clone()), out);
            }
        }
    };
    let cost = (first + 1) * group * 2;
    q.par_chunks(group)
        .zip(out.par_chunks_mut(group))
        .enumerate()
        .with_min_len(1 + WORK_PER_TASK / cost)
        .for_each_init(Vec::new, task);
}

/// The first position that `position` sees.
fn first_seen(spec: &AttentionSpec, position: usize) -> usize {
    let window = spec.sliding_window.map_or(usize::MAX, |w| w as usize);
    let chunk = spec.attention_chunk_size.map_or(usize::MAX, |c| c as usize);
    (position + 1)
        .saturating_sub(window)
        .max(position / chunk * chunk)
}

const fn q_width(spec: &AttentionSpec) -> usize {
    spec.heads as usize * spec.head_dim as usize
}
