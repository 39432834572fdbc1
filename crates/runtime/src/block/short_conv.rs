//! A gated short convolution in place of attention, as LFM2 has it (arXiv 2511.23404).

use shardwright_format::Role;
use shardwright_format::model::ShortConvSpec;

use super::capture::InputSite;
use super::convolution::{Convolution, Past};
use super::{Batch, Layer, Work};
use crate::error::Result;

/// What is remembered of the positions before.
#[derive(Debug)]
pub struct State {
    /// What the convolution still sees.
    pub conv: Past,
}

impl State {
    /// Nothing remembered.
    pub fn new(spec: &ShortConvSpec, hidden: usize) -> Self {
        Self { conv: Past::new(hidden, spec.conv_kernel as usize) }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(spec: &ShortConvSpec, hidden: usize) -> u64 {
        Past::byte_len(hidden, spec.conv_kernel as usize)
    }

    /// Bytes that a trial of `rows` takes besides.
    pub const fn trial_byte_len(spec: &ShortConvSpec, hidden: usize, rows: usize) -> u64 {
        Past::trial_byte_len(hidden, spec.conv_kernel as usize, rows)
    }
}

/// Buffers of this mechanism.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Both gates and the inputs, `[n, b | c | x]`.
    projected: Vec<f32>,
    /// Inputs times the first gate, `[n, hidden]`.
    gated: Vec<f32>,
    /// After the convolution and the second gate, `[n, hidden]`.
    mixed: Vec<f32>,
}

/// `f32` values that [`Buffers`] hold for one token, taps included.
pub const fn buffer_len(hidden: u64) -> u64 {
    5 * hidden
}

/// `x += out(c * conv(b * x'))` with `[b, c, x'] = in(norm(x))`, for the rows of `batch`.
pub fn forward(
    layer: &Layer<'_>,
    spec: &ShortConvSpec,
    batch: &mut Batch<'_>,
    state: &mut State,
    work: &mut Work,
) -> Result<()> {
    let (hidden, backend) = (layer.hidden, work.linear.backend);
    layer.input(backend, Role::InputNorm, batch.x, &mut work.normed)?;
    let Work { linear, normed: out, short_conv: buffers, .. } = work;
    let Buffers { projected, gated, mixed } = buffers;
    let first = layer.unit.matrix(Role::ShortConvIn, 3 * hidden, hidden)?;
    linear.project(InputSite::Mixer, out, [(first, &mut *projected)]);
    gated.clear();
    for row in projected.chunks_exact(3 * hidden) {
        let (b, x) = (&row[..hidden], &row[2 * hidden..]);
        gated.extend(b.iter().zip(x).map(|(b, x)| b * x));
    }
    mixed.resize(gated.len(), 0.0);
    let sizes = (hidden, spec.conv_kernel as usize);
    let convolution = Convolution::read(&layer.unit, Role::ShortConv, sizes, backend)?;
    let rows = batch.length * hidden;
    for (x, mixed) in gated.chunks(rows).zip(mixed.chunks_mut(rows)) {
        // A sequence begins with nothing remembered, even of the one before it in the batch.
        if batch.first == 0 {
            state.conv.forget();
        }
        convolution.apply(&mut state.conv, x, mixed, |x| x);
    }
    for (row, mixed) in projected
        .chunks_exact(3 * hidden)
        .zip(mixed.chunks_exact_mut(hidden))
    {
        let gate = &row[hidden..2 * hidden];
        mixed.iter_mut().zip(gate).for_each(|(x, c)| *x *= c);
    }
    let last = layer.unit.matrix(Role::ShortConvOut, hidden, hidden)?;
    linear.project(InputSite::MixerOut, mixed, [(last, &mut *out)]);
    layer.join(Role::MixerOutNorm, batch.x, out)
}
