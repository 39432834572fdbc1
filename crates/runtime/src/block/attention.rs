//! Grouped-query attention.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{AttentionSpec, QkNorm};
use shardwright_quant::{Backend, Matrix, axpy, dot};

use super::kv::KvCache;
use super::ops::{add, add_bias, rms_norm, rms_norm_in_place, softmax};
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
    u64::from(spec.head_dim) * (2 * heads + 2 * kv + 1)
}

/// Positions that the cache must hold: a window if the layer has one, else the whole context.
pub fn cache_capacity(spec: &AttentionSpec, context: usize) -> usize {
    let window = spec.sliding_window.map_or(context, |w| w as usize);
    context.min(window).max(1)
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
    let norm = layer.unit.vector(Role::InputNorm, layer.hidden)?;
    rms_norm(backend, x, &norm, layer.eps, &mut work.normed);
    work.record.note(Site::Mixer, &work.normed);
    project(layer, spec, batch.rows, work)?;
    condition(layer, spec, batch, work)?;
    let Work { linear, normed: out, attention: b, record, .. } = work;
    for (row, mixed) in b.mixed.chunks_mut(batch.length * q_width(spec)).enumerate() {
        let q = row * batch.length * q_width(spec);
        let kv = row * batch.length * cache_width(spec);
        let kv = kv..kv + batch.length * cache_width(spec);
        cache.push(batch.first, &b.k[kv.clone()], &b.v[kv]);
        let q = &b.q[q..q + mixed.len()];
        attend(backend, spec, batch.first, cache, q, mixed);
    }
    let o = layer
        .unit
        .matrix(Role::OProj, layer.hidden, q_width(spec))?;
    record.note(Site::MixerOut, &b.mixed);
    linear.project(&b.mixed, batch.rows, [(o, &mut *out)]);
    if spec.o_bias {
        add_bias(out, &layer.unit.vector(Role::OBias, layer.hidden)?);
    }
    add(x, out);
    Ok(())
}

/// Queries, keys and values, and room for what is mixed from them.
fn project(layer: &Layer<'_>, spec: &AttentionSpec, rows: usize, work: &mut Work) -> Result<()> {
    let unit = &layer.unit;
    let (q_width, kv_width) = (q_width(spec), cache_width(spec));
    let matrix = |role, width| -> Result<Matrix<'_>> { unit.matrix(role, width, layer.hidden) };
    let Work { linear, normed, attention: b, .. } = work;
    let products = [
        (matrix(Role::QProj, q_width)?, &mut b.q),
        (matrix(Role::KProj, kv_width)?, &mut b.k),
        (matrix(Role::VProj, kv_width)?, &mut b.v),
    ];
    linear.project(normed, rows, products);
    b.mixed.resize(rows * q_width, 0.0);
    if spec.qkv_bias {
        add_bias(&mut b.q, &unit.vector(Role::QBias, q_width)?);
        add_bias(&mut b.k, &unit.vector(Role::KBias, kv_width)?);
        add_bias(&mut b.v, &unit.vector(Role::VBias, kv_width)?);
    }
    Ok(())
}

/// Norms, clips and rotates queries and keys, in the order of the models that do each.
fn condition(layer: &Layer<'_>, spec: &AttentionSpec, batch: Batch, work: &mut Work) -> Result<()> {
    let Work { linear, attention: b, .. } = work;
    let norms = |q_len, k_len| -> Result<_> {
        let q = layer.unit.vector(Role::QNorm, q_len)?;
        Ok((q, layer.unit.vector(Role::KNorm, k_len)?))
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
    b.rotation.set(&spec.rope, dim, batch.first, batch.length);
    for (x, width) in [(&mut b.q, q_width(spec)), (&mut b.k, cache_width(spec))] {
        let rows = x.chunks_exact_mut(width).enumerate();
        rows.for_each(|(row, x)| b.rotation.apply(row % batch.length, x));
    }
    Ok(())
}

/// `out = softmax(q · keysᵀ / sqrt(head_dim)) · values`, for rows `q: [n, heads * head_dim]` at
/// positions `first ..`, whose keys are in the cache.
fn attend(
    backend: Backend,
    spec: &AttentionSpec,
    first: usize,
    cache: &KvCache,
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, kv_heads) = (spec.head_dim as usize, spec.kv_heads as usize);
    let group = (spec.heads / spec.kv_heads) as usize * dim;
    let task = |scores: &mut Vec<f32>, (i, (q, out)): (usize, (&[f32], &mut [f32]))| {
        let (position, kv_head) = (first + i / kv_heads, i % kv_heads);
        let window = spec.sliding_window.map_or(usize::MAX, |w| w as usize);
        let seen = (position + 1).saturating_sub(window)..position + 1;
        let head = kv_head * dim..(kv_head + 1) * dim;
        for (q, out) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            scores.clear();
            let scale = 1.0 / (dim as f32).sqrt();
            let keys = seen.clone().map(|p| cache.key(p, head.clone()));
            scores.extend(keys.map(|key| dot(backend, q, key) * scale));
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

const fn q_width(spec: &AttentionSpec) -> usize {
    spec.heads as usize * spec.head_dim as usize
}
