//! A short causal convolution of each channel alone.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_quant::Backend;

use crate::error::Result;
use crate::view::UnitView;

/// Multiplications below which a second thread costs more than it brings.
const WORK_PER_TASK: usize = 32 * 1024;

/// A convolution of `channels` channels that sees `kernel` positions.
#[derive(Debug)]
pub struct Convolution {
    channels: usize,
    kernel: usize,
    /// `[channels, kernel]`.
    taps: Vec<f32>,
}

impl Convolution {
    /// Reads the taps of a role.
    ///
    /// # Errors
    /// As [`UnitView::matrix`].
    pub fn read(
        unit: &UnitView<'_>,
        role: Role,
        (channels, kernel): (usize, usize),
        backend: Backend,
    ) -> Result<Self> {
        let mut taps = vec![0.0; channels * kernel];
        let matrix = unit.matrix(role, channels, kernel)?;
        matrix.dequantize(backend, 0..channels, &mut taps);
        Ok(Self { channels, kernel, taps })
    }

    /// `out[t] = then(Σ taps[j] * x[t - kernel + 1 + j])` for each channel of `x: [n, channels]`, with
    /// the inputs in `before`, `[kernel - 1, channels]`, ahead of them; keeps the last ones there.
    pub fn apply(
        &self,
        before: &mut Vec<f32>,
        x: &[f32],
        out: &mut [f32],
        then: impl Fn(f32) -> f32 + Sync,
    ) {
        let Self { channels: width, kernel, taps } = self;
        let (width, kernel) = (*width, *kernel);
        let mut inputs = std::mem::take(before);
        inputs.extend_from_slice(x);
        let rows = out.par_chunks_mut(width).enumerate();
        rows.with_min_len(1 + WORK_PER_TASK / (width * kernel))
            .for_each(|(t, out)| {
                for (channel, out) in out.iter_mut().enumerate() {
                    let taps = &taps[channel * kernel..(channel + 1) * kernel];
                    let seen = (0..kernel).map(|j| inputs[(t + j) * width + channel]);
                    *out = then(seen.zip(taps).map(|(x, tap)| x * tap).sum());
                }
            });
        inputs.drain(..x.len());
        *before = inputs;
    }
}
