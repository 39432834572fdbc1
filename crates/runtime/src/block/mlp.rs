//! The gated feed-forward `down(activation(gate(x), up(x)))`: dense, shared and routed alike.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::model::{DenseSpec, GateActivation, MoeSpec};

use super::ops::{add_bias, clamped_swiglu, gelu_tanh_mul, rms_norm, silu_mul};
use super::record::{Record, Site};
use super::{Layer, Work};
use crate::error::Result;
use crate::linear::Linear;
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

/// Which tensors of a unit form the feed-forward.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// `[width, hidden]`.
    pub gate: Role,
    /// `[width, hidden]`.
    pub up: Role,
    /// `[hidden, width]`.
    pub down: Role,
    /// Biases of the three, where there are any.
    pub biases: Option<[Role; 3]>,
    /// Where its down projection's input is kept.
    pub site: Site,
    /// What is done to gate and up.
    pub activation: GateActivation,
}

/// A layer's only feed-forward.
pub const DENSE: Gated = Gated {
    gate: Role::GateProj,
    up: Role::UpProj,
    down: Role::DownProj,
    biases: None,
    site: Site::FfnOut,
    activation: GateActivation::Silu,
};

/// The same with biases.
pub const DENSE_BIASED: Gated =
    Gated { biases: Some([Role::GateBias, Role::UpBias, Role::DownBias]), ..DENSE };

/// The expert that every token visits.
pub const SHARED: Gated = Gated {
    gate: Role::SharedGateProj,
    up: Role::SharedUpProj,
    down: Role::SharedDownProj,
    biases: None,
    site: Site::SharedOut,
    activation: GateActivation::Silu,
};

/// A routed expert.
const EXPERT: Gated = Gated {
    gate: Role::ExpertGateProj,
    up: Role::ExpertUpProj,
    down: Role::ExpertDownProj,
    biases: None,
    site: Site::ExpertOut,
    activation: GateActivation::Silu,
};

/// The biases of a routed expert.
pub const EXPERT_BIASES: [Role; 3] =
    [Role::ExpertGateBias, Role::ExpertUpBias, Role::ExpertDownBias];

/// A routed expert of a layer.
pub fn expert(spec: &MoeSpec) -> Gated {
    let biases = spec.expert_bias.then_some(EXPERT_BIASES);
    Gated { biases, activation: spec.activation, ..EXPERT }
}

/// `x += mlp(norm(x))` for `x: [n, hidden]`.
pub fn forward(layer: &Layer<'_>, spec: &DenseSpec, x: &mut [f32], work: &mut Work) -> Result<()> {
    let norm = layer.norm(Role::PostAttentionNorm, layer.hidden)?;
    let Work { linear, normed, mlp, record, .. } = work;
    rms_norm(linear.backend, x, &norm, layer.eps, normed);
    record.note(Site::Ffn, normed);
    let roles = if spec.bias { DENSE_BIASED } else { DENSE };
    let roles = Gated { activation: spec.activation, ..roles };
    let shape = (spec.intermediate_size as usize, layer.hidden);
    gated(&layer.unit, roles, shape, normed, (linear, mlp, record))?;
    layer.join(Role::FfnOutNorm, x, &mut mlp.out)
}

/// `buffers.out = down(activation(gate(x), up(x)))` for `x: [n, hidden]` and `shape` = width, hidden.
pub fn gated(
    unit: &UnitView<'_>,
    roles: Gated,
    shape: (usize, usize),
    x: &[f32],
    (linear, buffers, record): (&mut Linear, &mut Buffers, &mut Record),
) -> Result<()> {
    let (width, hidden) = shape;
    let n = x.len() / hidden;
    let Buffers { gate, up, out } = buffers;
    let products = [
        (unit.matrix(roles.gate, width, hidden)?, &mut *gate),
        (unit.matrix(roles.up, width, hidden)?, &mut *up),
    ];
    linear.project(x, n, products);
    if let Some([gate_bias, up_bias, _]) = roles.biases {
        add_bias(gate, &unit.vector(gate_bias, width)?);
        add_bias(up, &unit.vector(up_bias, width)?);
    }
    activate(roles.activation, gate, up);
    record.note(roles.site, gate);
    linear.project(gate, n, [(unit.matrix(roles.down, hidden, width)?, &mut *out)]);
    if let Some([_, _, down_bias]) = roles.biases {
        add_bias(out, &unit.vector(down_bias, hidden)?);
    }
    Ok(())
}

/// `gate = activation(gate, up)`, over threads where that pays.
pub fn activate(activation: GateActivation, gate: &mut [f32], up: &[f32]) {
    const VALUES_PER_TASK: usize = 2048;
    let up = up.par_chunks(VALUES_PER_TASK);
    gate.par_chunks_mut(VALUES_PER_TASK)
        .zip(up)
        .for_each(|(gate, up)| match activation {
            GateActivation::Silu => silu_mul(gate, up),
            GateActivation::GeluTanh => gelu_tanh_mul(gate, up),
            GateActivation::ClampedSwiglu { limit, alpha } => {
                clamped_swiglu((limit, alpha), gate, up);
            }
        });
}
