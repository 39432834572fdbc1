//! The gated feed-forward `down(activation(gate(x), up(x)))`: dense, shared and routed alike.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{DenseSpec, GateActivation, MoeSpec, SharedExpertSpec};
use shardwright_quant::{Backend, silu_mul};

use super::capture::InputSite;
use super::ops::{
    add_bias, clamped_swiglu, complete_norm, gelu_tanh_mul, relu2_mul, rms_norm_in_place,
};
use super::{Layer, Work};
use crate::error::Result;
use crate::linear::{Linear, Product};
use crate::view::UnitView;

/// Buffers of this mechanism.
#[derive(Debug, Default)]
pub struct Buffers {
    /// `[n, width]`.
    gate: Vec<f32>,
    /// `[n, width]`.
    up: Vec<f32>,
    /// The result, `[n, hidden]`.
    pub out: Vec<f32>,
}

/// `f32` values that [`Buffers`] hold for one token.
pub fn buffer_len(width: u32) -> u64 {
    3 * u64::from(width)
}

/// Which tensors of a unit form a feed-forward, and what it does with them.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// `[width, hidden]`.
    gate: Role,
    /// `[width, hidden]`.
    up: Role,
    /// `[hidden, width]`.
    down: Role,
    /// Biases of the three, where there are any.
    biases: Option<[Role; 3]>,
    /// What its input is kept as; nothing where that was kept before.
    input: Option<InputSite>,
    /// What its down projection's input is kept as.
    inner: InputSite,
    /// What is done to gate and up.
    activation: GateActivation,
    /// `up` alone, in the place of the gate.
    ungated: bool,
    /// The norm of the down projection's input.
    inner_norm: Option<InnerNorm>,
    width: usize,
    hidden: usize,
}

/// A norm before the down projection, with the weights of [`Role::FfnInnerNorm`].
#[derive(Clone, Copy, Debug)]
struct InnerNorm {
    eps: f32,
    plus_one: bool,
}

impl Gated {
    /// A layer's only feed-forward.
    pub fn dense(spec: &DenseSpec, layer: &Layer<'_>) -> Self {
        let norm = InnerNorm { eps: layer.eps, plus_one: layer.norm_plus_one };
        Self {
            gate: Role::GateProj,
            up: Role::UpProj,
            down: Role::DownProj,
            biases: spec
                .bias
                .then_some([Role::GateBias, Role::UpBias, Role::DownBias]),
            input: Some(InputSite::Ffn),
            inner: InputSite::FfnOut,
            activation: spec.activation,
            ungated: spec.ungated,
            inner_norm: spec.inner_norm.then_some(norm),
            width: spec.intermediate_size as usize,
            hidden: layer.hidden,
        }
    }

    /// The expert that every token visits. Its input is the router's.
    pub const fn shared(spec: &SharedExpertSpec, hidden: usize) -> Self {
        Self {
            gate: Role::SharedGateProj,
            up: Role::SharedUpProj,
            down: Role::SharedDownProj,
            biases: None,
            input: None,
            inner: InputSite::SharedOut,
            activation: GateActivation::Silu,
            ungated: false,
            inner_norm: None,
            width: spec.intermediate_size as usize,
            hidden,
        }
    }

    /// A routed expert.
    pub fn expert(spec: &MoeSpec, hidden: usize) -> Self {
        let biases = [Role::ExpertGateBias, Role::ExpertUpBias, Role::ExpertDownBias];
        Self {
            gate: Role::ExpertGateProj,
            up: Role::ExpertUpProj,
            down: Role::ExpertDownProj,
            biases: spec.expert_bias.then_some(biases),
            input: Some(InputSite::Expert),
            inner: InputSite::ExpertOut,
            activation: spec.activation,
            ungated: false,
            inner_norm: None,
            width: spec.moe_intermediate_size as usize,
            hidden,
        }
    }

    /// `buffers.out = down(activation(gate(x), up(x)))` for `x: [n, hidden]`, whose first rows are
    /// those of the first job. What a row gives depends on nothing but the row and its unit. Where inputs of matrices are
    /// all that is asked for, nothing that means anything is in `buffers.out`: no matrix of the layer comes after.
    pub fn forward(
        &self,
        jobs: &[Job<'_>],
        x: &[f32],
        linear: &mut Linear,
        buffers: &mut Buffers,
    ) -> Result<()> {
        // Rows of different experts lie one after another in one buffer, so that all their products go to the
        // threads together; each job takes its own stretch of it.
        let Buffers { gate, up, out } = buffers;
        let n = x.len() / self.hidden;
        gate.resize(n * self.width, 0.0);
        up.resize(n * self.width, 0.0);
        out.resize(n * self.hidden, 0.0);
        if let Some(site) = self.input {
            linear.captures.keep(site, self.hidden, x);
        }
        self.project(jobs, x, linear, (gate, up))?;
        activate(linear.backend, self.activation, gate, up);
        if let Some(norm) = self.inner_norm {
            for (job, rows) in by_job(jobs, gate) {
                let mut weight = job.unit.vector(Role::FfnInnerNorm, self.width)?;
                complete_norm(norm.plus_one, &mut weight);
                rms_norm_in_place(linear.backend, rows, &weight, norm.eps);
            }
        }
        if linear.captures.are_all() {
            linear.captures.keep_all(self.inner, self.width, gate);
            return Ok(());
        }
        linear.compute(products(jobs, self.down, gate, out)?);
        match self.biases {
            Some([_, _, down_bias]) => add_biases(jobs, down_bias, out),
            None => Ok(()),
        }
    }

    /// What the activation takes: gate and up, or up and ones where there is no gate.
    fn project(
        &self,
        jobs: &[Job<'_>],
        x: &[f32],
        linear: &mut Linear,
        (gate, up): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        if self.ungated {
            // The activation multiplies by up: ones leave it alone.
            linear.compute(products(jobs, self.up, x, gate)?);
            up.fill(1.0);
            return match self.biases {
                Some([_, up_bias, _]) => add_biases(jobs, up_bias, gate),
                None => Ok(()),
            };
        }
        // All jobs' products go to the threads at once: those of one row are small.
        let mut both = products(jobs, self.gate, x, gate)?;
        both.extend(products(jobs, self.up, x, up)?);
        linear.compute(both);
        if let Some([gate_bias, up_bias, _]) = self.biases {
            add_biases(jobs, gate_bias, gate)?;
            add_biases(jobs, up_bias, up)?;
        }
        Ok(())
    }
}

/// A unit with a feed-forward, and the rows that go through it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The weights.
    pub unit: UnitView<'a>,
    /// How many rows.
    pub rows: usize,
}

/// Each job's product of its rows of `x: [n, cols]` with the matrix of a role, into `out: [n, rows]`.
fn products<'a>(
    jobs: &[Job<'a>],
    role: Role,
    mut x: &'a [f32],
    out: &'a mut [f32],
) -> Result<Vec<Product<'a>>> {
    let n: usize = jobs.iter().map(|job| job.rows).sum();
    let (rows, cols) = (out.len() / n.max(1), x.len() / n.max(1));
    let mut products = Vec::with_capacity(2 * jobs.len());
    for (job, out) in by_job(jobs, out) {
        let (own, rest) = x.split_at(job.rows * cols);
        x = rest;
        products.push(Product { matrix: job.unit.matrix(role, rows, cols)?, x: own, out });
    }
    Ok(products)
}

/// Adds each job's bias with a role to its rows of `out: [n, width]`.
fn add_biases(jobs: &[Job<'_>], role: Role, out: &mut [f32]) -> Result<()> {
    let width = out.len() / jobs.iter().map(|job| job.rows).sum::<usize>().max(1);
    for (job, rows) in by_job(jobs, out) {
        add_bias(rows, &job.unit.vector(role, width)?);
    }
    Ok(())
}

/// Every job with its share of `values: [n, width]`.
fn by_job<'j, 'u, 'v>(
    jobs: &'j [Job<'u>],
    values: &'v mut [f32],
) -> impl Iterator<Item = (&'j Job<'u>, &'v mut [f32])> {
    let width = values.len() / jobs.iter().map(|job| job.rows).sum::<usize>().max(1);
    let mut rest = values;
    jobs.iter().map(move |job| {
        let (own, after) = std::mem::take(&mut rest).split_at_mut(job.rows * width);
        rest = after;
        (job, own)
    })
}

/// `x += mlp(norm(x))` for `x: [n, hidden]`.
pub fn forward(layer: &Layer<'_>, spec: &DenseSpec, x: &mut [f32], work: &mut Work) -> Result<()> {
    let Work { linear, normed, mlp, .. } = work;
    layer.input(linear.backend, Role::PostAttentionNorm, x, normed)?;
    let job = Job { unit: layer.unit, rows: x.len() / layer.hidden };
    Gated::dense(spec, layer).forward(&[job], normed, linear, mlp)?;
    layer.join(Role::FfnOutNorm, x, &mut mlp.out)
}

/// `gate = activation(gate, up)`, over threads where that pays.
fn activate(backend: Backend, activation: GateActivation, gate: &mut [f32], up: &[f32]) {
    const VALUES_PER_TASK: usize = 2048;
    let up = up.par_chunks(VALUES_PER_TASK);
    gate.par_chunks_mut(VALUES_PER_TASK)
        .zip(up)
        .for_each(|(gate, up)| match activation {
            GateActivation::Silu => silu_mul(backend, gate, up),
            GateActivation::GeluTanh => gelu_tanh_mul(gate, up),
            GateActivation::Relu2 => relu2_mul(gate, up),
            GateActivation::ClampedSwiglu { limit, alpha } => {
                clamped_swiglu(limit, alpha, gate, up);
            }
        });
}
