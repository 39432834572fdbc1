//! A gated delta net behind a short causal convolution (arXiv 2412.06464), as Qwen3-Next has it.

use std::ops::Range;

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{DeltaNetSpec, DeltaProjection};
use shardwright_quant::{Backend, axpy};

use super::capture::InputSite;
use super::convolution::{Convolution, Past};
use super::ops::{join_heads, rms_norm, rms_norm_in_place, scale, sigmoid, silu, softplus};
use super::{Batch, Layer, Work};
use crate::error::Result;

/// Added to the squared length of queries and keys before they are divided by it.
const LENGTH_EPS: f32 = 1e-6;

/// Multiplications below which a second thread costs more than it brings.
const WORK_PER_TASK: usize = 32 * 1024;

/// Sizes in values.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    key_heads: usize,
    heads: usize,
    key: usize,
    value: usize,
    kernel: usize,
}

impl Sizes {
    const fn new(spec: &DeltaNetSpec) -> Self {
        Self {
            key_heads: spec.key_heads as usize,
            heads: spec.value_heads as usize,
            key: spec.key_head_dim as usize,
            value: spec.value_head_dim as usize,
            kernel: spec.conv_kernel as usize,
        }
    }

    const fn keys(self) -> usize {
        self.key_heads * self.key
    }

    const fn values(self) -> usize {
        self.heads * self.value
    }

    /// Queries, keys and values.
    const fn conv(self) -> usize {
        2 * self.keys() + self.values()
    }
}

/// What is remembered of the positions before.
#[derive(Debug)]
pub struct State {
    sizes: Sizes,
    conv: Past,
    /// `[heads, key, value]`.
    recurrent: Vec<f32>,
    trial: Trial,
}

/// The rows of a trial, and what was remembered before them. Its buffers stay from trial to trial.
#[derive(Debug, Default)]
struct Trial {
    on: bool,
    /// `[heads, key, value]`.
    recurrent: Vec<f32>,
    /// As [`Inputs`] has them.
    qkv: Vec<f32>,
    strength: Vec<f32>,
    decay: Vec<f32>,
}

impl Trial {
    const fn inputs(&self) -> Inputs<'_> {
        Inputs {
            qkv: self.qkv.as_slice(),
            strength: self.strength.as_slice(),
            decay: self.decay.as_slice(),
        }
    }
}

impl State {
    /// Nothing remembered.
    pub fn new(spec: &DeltaNetSpec) -> Self {
        let s = Sizes::new(spec);
        let recurrent = vec![0.0; s.heads * s.key * s.value];
        let conv = Past::new(s.conv(), s.kernel);
        Self { sizes: s, conv, recurrent, trial: Trial::default() }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(spec: &DeltaNetSpec) -> u64 {
        let s = Sizes::new(spec);
        Past::byte_len(s.conv(), s.kernel) + 4 * (s.heads * s.key * s.value) as u64
    }

    /// Bytes that a trial of `rows` takes besides.
    pub const fn trial_byte_len(spec: &DeltaNetSpec, rows: usize) -> u64 {
        let s = Sizes::new(spec);
        let inputs = rows * (s.conv() + 2 * s.heads);
        let conv = Past::trial_byte_len(s.conv(), s.kernel, rows);
        conv + 4 * (s.heads * s.key * s.value + inputs) as u64
    }

    /// The rows that come next may have to go again: [`Self::keep`] says how many.
    pub fn begin_trial(&mut self) {
        self.conv.begin_trial();
        self.trial.on = true;
        self.trial.recurrent.clone_from(&self.recurrent);
    }

    /// Ends a trial after its first `rows` rows: their steps are taken again from what was remembered
    /// before them, the same sums in the same order, and without a weight.
    pub fn keep(&mut self, rows: usize) {
        let s = self.sizes;
        self.conv.keep(rows);
        self.trial.on = false;
        let inputs = self.trial.inputs();
        if rows * s.heads < inputs.decay.len() {
            let mut out = vec![0.0; rows * s.values()];
            self.recurrent.copy_from_slice(&self.trial.recurrent);
            let inputs = inputs.rows(s, 0..rows);
            inputs.all_heads(Backend::detect(), s, &mut self.recurrent, &mut out);
        }
    }

    fn forget(&mut self) {
        self.conv.forget();
        self.trial.recurrent.fill(0.0);
        self.recurrent.fill(0.0);
    }

    /// The last inputs of the convolution, oldest first, `[kernel - 1, channels]`.
    pub fn conv(&self) -> &[f32] {
        self.conv.inputs()
    }

    /// The inputs of the convolution and the memory of each head, to be written.
    pub fn parts(&mut self) -> [&mut [f32]; 2] {
        [self.conv.inputs_mut(), &mut self.recurrent]
    }

    /// The memory of each head, `[heads, key_head_dim, value_head_dim]`.
    pub fn recurrent(&self) -> &[f32] {
        &self.recurrent
    }
}

/// Buffers of this mechanism.
#[derive(Debug, Default)]
pub struct Buffers {
    /// As projected, where rows are grouped by key head.
    grouped: Vec<f32>,
    /// Queries, keys and values before the convolution, `[n, conv]`.
    qkv: Vec<f32>,
    /// After it, `[n, conv]`.
    mixed_qkv: Vec<f32>,
    /// Output gates, `[n, values]`.
    z: Vec<f32>,
    /// Write strengths, before sigmoid and after it, `[n, heads]`.
    b: Vec<f32>,
    /// Decays, before softplus and as factors, `[n, heads]`.
    a: Vec<f32>,
    /// `[heads, n, value]`.
    by_head: Vec<f32>,
    /// `[n, heads * value]`.
    mixed: Vec<f32>,
}

/// `f32` values that [`Buffers`] hold for one token.
pub fn buffer_len(spec: &DeltaNetSpec) -> u64 {
    let s = Sizes::new(spec);
    (3 * s.conv() + 5 * s.values() + 6 * s.heads) as u64
}

/// `x += out(norm(delta(conv(in(norm(x))))) * silu(z))` for the rows of `batch`.
pub fn forward(
    layer: &Layer<'_>,
    spec: &DeltaNetSpec,
    batch: &mut Batch<'_>,
    state: &mut State,
    work: &mut Work,
) -> Result<()> {
    let (s, backend) = (Sizes::new(spec), work.linear.backend);
    let norm = layer.norm(Role::InputNorm, layer.hidden)?;
    rms_norm(backend, batch.x, &norm, layer.eps, &mut work.normed);
    project(layer, spec, work)?;
    let recurrence = Recurrence::new(layer, s, backend)?;
    let b = &mut work.delta_net;
    recurrence.gates(&mut b.b, &mut b.a);
    b.mixed.resize(b.z.len(), 0.0);
    b.mixed_qkv.resize(b.qkv.len(), 0.0);
    b.by_head.resize(batch.length * s.values(), 0.0);
    for sequence in 0..b.z.len() / b.by_head.len() {
        // A sequence begins with nothing remembered, even of the one before it in the batch.
        if batch.first == 0 {
            state.forget();
        }
        let rows = sequence * batch.length..(sequence + 1) * batch.length;
        let conv = rows.start * s.conv()..rows.end * s.conv();
        let mixed_qkv = &mut b.mixed_qkv[conv.clone()];
        let (before, inputs) = (&mut state.conv, &b.qkv[conv]);
        recurrence
            .convolution
            .apply(before, inputs, mixed_qkv, silu);
        normalize(s, mixed_qkv);
        let all = Inputs { qkv: &b.mixed_qkv, strength: &b.b, decay: &b.a };
        let inputs = all.rows(s, rows.clone());
        if state.trial.on {
            state.trial.qkv.clear();
            state.trial.qkv.extend_from_slice(inputs.qkv);
            state.trial.strength.clear();
            state.trial.strength.extend_from_slice(inputs.strength);
            state.trial.decay.clear();
            state.trial.decay.extend_from_slice(inputs.decay);
        }
        inputs.all_heads(backend, s, &mut state.recurrent, &mut b.by_head);
        let mixed = rows.start * s.values()..rows.end * s.values();
        join_heads(&b.by_head, s.value, batch.length, &mut b.mixed[mixed]);
    }
    finish(layer, s, batch.x, work)
}

/// Leaves the inputs of the recurrence in `work.delta_net`.
fn project(layer: &Layer<'_>, spec: &DeltaNetSpec, work: &mut Work) -> Result<()> {
    let (s, hidden, unit) = (Sizes::new(spec), layer.hidden, &layer.unit);
    let Work { linear, normed, delta_net: b, .. } = work;
    match spec.projection {
        DeltaProjection::Split => {
            let products = [
                (unit.matrix(Role::DeltaQkv, s.conv(), hidden)?, &mut b.qkv),
                (unit.matrix(Role::DeltaZ, s.values(), hidden)?, &mut b.z),
                (unit.matrix(Role::DeltaB, s.heads, hidden)?, &mut b.b),
                (unit.matrix(Role::DeltaA, s.heads, hidden)?, &mut b.a),
            ];
            linear.project(InputSite::Mixer, normed, products);
        }
        DeltaProjection::Grouped => {
            let qkvz = unit.matrix(Role::DeltaQkvz, s.conv() + s.values(), hidden)?;
            linear.project(InputSite::Mixer, normed, [(qkvz, &mut b.grouped)]);
            ungroup_qkvz(s, b);
            let ba = unit.matrix(Role::DeltaBa, 2 * s.heads, hidden)?;
            linear.project(None, normed, [(ba, &mut b.grouped)]);
            ungroup_ba(s, b);
        }
    }
    Ok(())
}

/// `[n, key_heads, query | key | values | gates]` to `[n, queries | keys | values]` and gates.
fn ungroup_qkvz(s: Sizes, b: &mut Buffers) {
    let values = s.values() / s.key_heads;
    let group = 2 * s.key + 2 * values;
    b.qkv.clear();
    b.z.clear();
    for row in b.grouped.chunks_exact(s.key_heads * group) {
        for part in [0..s.key, s.key..2 * s.key, 2 * s.key..2 * s.key + values] {
            let groups = row.chunks_exact(group);
            groups.for_each(|group| b.qkv.extend_from_slice(&group[part.clone()]));
        }
        let groups = row.chunks_exact(group);
        groups.for_each(|group| b.z.extend_from_slice(&group[2 * s.key + values..]));
    }
}

/// `[n, key_heads, strengths | decays]` to strengths and decays.
fn ungroup_ba(s: Sizes, b: &mut Buffers) {
    let each = s.heads / s.key_heads;
    b.b.clear();
    b.a.clear();
    for group in b.grouped.chunks_exact(2 * each) {
        b.b.extend_from_slice(&group[..each]);
        b.a.extend_from_slice(&group[each..]);
    }
}

/// Divides every query and key of `qkv: [n, conv]` by its length, queries also by `sqrt(key)`.
fn normalize(s: Sizes, qkv: &mut [f32]) {
    for row in qkv.chunks_exact_mut(s.conv()) {
        let heads = row[..2 * s.keys()].chunks_exact_mut(s.key);
        for (i, head) in heads.enumerate() {
            let length: f32 = head.iter().map(|x| x * x).sum::<f32>() + LENGTH_EPS;
            let by = if i < s.key_heads { 1.0 / (s.key as f32).sqrt() } else { 1.0 };
            scale(head, by / length.sqrt());
        }
    }
}

/// The inputs of one sequence.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// After the convolution and normed, `[n, queries | keys | values]`.
    qkv: &'a [f32],
    /// How much is written, `[n, heads]`.
    strength: &'a [f32],
    /// What a head's memory is multiplied with before, `[n, heads]`.
    decay: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// Those of some rows.
    fn rows(&self, s: Sizes, rows: Range<usize>) -> Self {
        let heads = rows.start * s.heads..rows.end * s.heads;
        Self {
            qkv: &self.qkv[rows.start * s.conv()..rows.end * s.conv()],
            strength: &self.strength[heads.clone()],
            decay: &self.decay[heads],
        }
    }

    /// Runs every head over all positions: `memory: [heads, key, value]`, `out: [heads, n, value]`.
    fn all_heads(&self, backend: Backend, s: Sizes, memory: &mut [f32], out: &mut [f32]) {
        let rows = self.qkv.len() / s.conv();
        let heads = memory.par_chunks_mut(s.key * s.value);
        heads
            .zip(out.par_chunks_mut(rows * s.value))
            .enumerate()
            .with_min_len(1 + WORK_PER_TASK / (4 * rows * s.key * s.value))
            .for_each_init(
                || vec![0.0; s.value],
                |delta, (head, (memory, out))| {
                    for (row, out) in out.chunks_exact_mut(s.value).enumerate() {
                        self.step(s, head, row).apply(backend, memory, delta, out);
                    }
                },
            );
    }

    /// A head's step at a row.
    fn step(&self, s: Sizes, head: usize, row: usize) -> Step<'a> {
        let qkv = &self.qkv[row * s.conv()..(row + 1) * s.conv()];
        let key_head = head / (s.heads / s.key_heads);
        let at = row * s.heads + head;
        Step {
            q: &qkv[key_head * s.key..(key_head + 1) * s.key],
            k: &qkv[s.keys() + key_head * s.key..][..s.key],
            v: &qkv[2 * s.keys() + head * s.value..][..s.value],
            decay: self.decay[at],
            strength: self.strength[at],
        }
    }
}

/// A layer's convolution, and what its gates are made with.
struct Recurrence {
    convolution: Convolution,
    /// `exp(A_log)`, per head.
    rate: Vec<f32>,
    /// Per head.
    dt_bias: Vec<f32>,
}

impl Recurrence {
    fn new(layer: &Layer<'_>, s: Sizes, backend: Backend) -> Result<Self> {
        let sizes = (s.conv(), s.kernel);
        let convolution = Convolution::read(&layer.unit, Role::DeltaConv, sizes, backend)?;
        let mut rate = layer.unit.vector(Role::DeltaALog, s.heads)?;
        for rate in &mut rate {
            *rate = libm::expf(*rate);
        }
        let dt_bias = layer.unit.vector(Role::DeltaDtBias, s.heads)?;
        Ok(Self { convolution, rate, dt_bias })
    }

    /// Makes `b` into how much is written and `a` into what memory is multiplied with, `[n, heads]`.
    fn gates(&self, b: &mut [f32], a: &mut [f32]) {
        for b in b.iter_mut() {
            *b = sigmoid(*b);
        }
        for row in a.chunks_exact_mut(self.rate.len()) {
            for ((a, rate), bias) in row.iter_mut().zip(&self.rate).zip(&self.dt_bias) {
                *a = libm::expf(-rate * softplus(*a + bias));
            }
        }
    }
}

/// One head at one position.
struct Step<'a> {
    /// `[key]`.
    q: &'a [f32],
    /// `[key]`.
    k: &'a [f32],
    /// `[value]`.
    v: &'a [f32],
    decay: f32,
    strength: f32,
}

impl Step<'_> {
    /// The gated delta rule on `memory: [key, value]`: `S = decay S`,
    /// `S += k (v - Sᵀ k)ᵀ strength`, `out = Sᵀ q`.
    fn apply(&self, backend: Backend, memory: &mut [f32], delta: &mut [f32], out: &mut [f32]) {
        // One sweep fades the memory and reads what it holds for this key ...
        delta.fill(0.0);
        for (k, memory) in self.k.iter().zip(memory.chunks_exact_mut(out.len())) {
            scale(memory, self.decay);
            axpy(backend, *k, memory, delta);
        }
        for (delta, v) in delta.iter_mut().zip(self.v) {
            *delta = (v - *delta) * self.strength;
        }
        // ... and one writes the difference and reads for the query, which sees what was written.
        out.fill(0.0);
        let rows = memory.chunks_exact_mut(out.len());
        for ((k, q), memory) in self.k.iter().zip(self.q).zip(rows) {
            axpy(backend, *k, delta, memory);
            axpy(backend, *q, memory, out);
        }
    }
}

/// `x += out_proj(norm(mixed) * silu(z))`, each head normed alone.
fn finish(layer: &Layer<'_>, s: Sizes, x: &mut [f32], work: &mut Work) -> Result<()> {
    let Work { linear, normed: out, delta_net: b, .. } = work;
    let norm = layer.unit.vector(Role::DeltaNorm, s.value)?;
    rms_norm_in_place(linear.backend, &mut b.mixed, &norm, layer.eps);
    let gated = b.mixed.iter_mut().zip(&b.z);
    gated.for_each(|(x, z)| *x *= silu(*z));
    let matrix = layer
        .unit
        .matrix(Role::DeltaOutProj, layer.hidden, s.values())?;
    linear.project(InputSite::MixerOut, &b.mixed, [(matrix, &mut *out)]);
    layer.join(Role::MixerOutNorm, x, out)
}
