//! A short causal convolution of each channel alone.

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_quant::Backend;

use crate::error::Result;
use crate::view::UnitView;

/// Multiplications below which a second thread costs more than it brings.
const WORK_PER_TASK: usize = 32 * 1024;

/// What a convolution still sees of the rows before.
#[derive(Debug)]
pub struct Past {
    channels: usize,
    /// The last inputs, oldest first, `[kernel - 1, channels]`.
    inputs: Vec<f32>,
    /// In a trial: those, and the rows since.
    trial: Option<Vec<f32>>,
}

impl Past {
    /// Nothing seen.
    pub fn new(channels: usize, kernel: usize) -> Self {
        Self { channels, inputs: vec![0.0; (kernel - 1) * channels], trial: None }
    }

    /// Bytes that [`Self::new`] takes.
    pub const fn byte_len(channels: usize, kernel: usize) -> u64 {
        4 * ((kernel - 1) * channels) as u64
    }

    /// Bytes that a trial of `rows` takes besides.
    pub const fn trial_byte_len(channels: usize, kernel: usize, rows: usize) -> u64 {
        4 * ((kernel - 1 + rows) * channels) as u64
    }

    /// The last inputs, oldest first, `[kernel - 1, channels]`.
    pub fn inputs(&self) -> &[f32] {
        &self.inputs
    }

    /// The last inputs, to be written.
    pub fn inputs_mut(&mut self) -> &mut [f32] {
        &mut self.inputs
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.inputs.fill(0.0);
    }

    /// The rows that come next may have to go again: [`Self::keep`] says how many.
    pub fn begin_trial(&mut self) {
        self.trial = Some(Vec::new());
    }

    /// Ends a trial after its first `rows` rows.
    pub fn keep(&mut self, rows: usize) {
        if let Some(all) = self.trial.take().filter(|all| !all.is_empty()) {
            let len = self.inputs.len();
            self.inputs
                .copy_from_slice(&all[rows * self.channels..][..len]);
        }
    }
}

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
    /// the inputs of `past` ahead of them; keeps the last ones there.
    pub fn apply(
        &self,
        past: &mut Past,
        x: &[f32],
        out: &mut [f32],
        then: impl Fn(f32) -> f32 + Sync,
    ) {
        let Self { channels: width, kernel, taps } = self;
        let (width, kernel) = (*width, *kernel);
        let mut inputs = std::mem::take(&mut past.inputs);
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
        if let Some(trial) = &mut past.trial {
            trial.clone_from(&inputs);
        }
        inputs.drain(..x.len());
        past.inputs = inputs;
    }
}
