//! What a form cannot hold, stored anew where that is asked for, and what it cost.

use serde::Serialize;
use shardwright_format::FormatError;
use shardwright_format::unit::TensorEntry;
use shardwright_quant::{
    Affine, Backend, Encoding, Float, Job, Method, Objective, PartsMut, QuantStats, Zeros, quantize,
};

use super::walk::{Rows, narrowed};
use crate::error::Result;

/// Groups that are tried for what was a trellis.
const GROUPS: [u16; 2] = [64, 32];

/// The error that storing tensors anew has added.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Requantized {
    /// Tensors that were stored anew, those of each expert counted alone.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Root of the squared error over the squared weights, of all of them together.
    pub relative_rmse: f64,
    /// The tensor with the largest.
    pub worst: String,
    /// Its own.
    pub worst_relative_rmse: f64,
}

/// What adds it up: rows of a tensor come one after the other.
#[derive(Default)]
pub(super) struct Tally {
    total: QuantStats,
    tensors: u64,
    /// The tensor that rows come of, and the worst of those before.
    current: Option<(String, QuantStats)>,
    worst: Option<(String, f64)>,
}

impl Tally {
    fn add(&mut self, tensor: String, stats: &QuantStats) {
        self.total.merge(stats);
        match &mut self.current {
            Some((name, sum)) if *name == tensor => sum.merge(stats),
            _ => {
                self.close();
                self.current = Some((tensor, *stats));
                self.tensors += 1;
            }
        }
    }

    fn close(&mut self) {
        let Some((name, stats)) = self.current.take() else { return };
        let error = stats.relative_rmse();
        if self.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
            self.worst = Some((name, error));
        }
    }

    /// The sum; none where nothing was stored anew.
    pub(super) fn finish(mut self) -> Option<Requantized> {
        self.close();
        let (worst, worst_relative_rmse) = self.worst?;
        let (weights, relative_rmse) = (self.total.weights, self.total.relative_rmse());
        Some(Requantized {
            tensors: self.tensors,
            weights,
            relative_rmse,
            worst,
            worst_relative_rmse,
        })
    }
}

/// What stands for an encoding that a form cannot hold: for a trellis and blocks affine codes of as many bits, for
/// all else, and where no group divides the columns, floats of 32 bits, which lose nothing.
pub(super) fn stand_in(entry: &TensorEntry, floats_only: bool) -> Encoding {
    let bits = match entry.encoding {
        Encoding::Trellis(trellis) => trellis.bits(),
        Encoding::Ggml(blocks) => blocks.form().affine_bits(),
        _ => return Encoding::F32,
    };
    let scale = match entry.source.dtype {
        Float::Bf16 => Float::Bf16,
        Float::F16 | Float::F32 => Float::F16,
    };
    let divides = |group: &u16| !floats_only && entry.cols.is_multiple_of(u64::from(*group));
    let group = GROUPS.into_iter().find(divides);
    let affine = group.and_then(|group| Affine::new(bits, group, scale).ok());
    affine.map_or(Encoding::F32, Encoding::Affine)
}

/// The parts of rows in another encoding, affine codes or floats.
pub(super) fn encoded(
    rows: &Rows<'_>,
    encoding: Encoding,
    tally: &mut Tally,
) -> Result<[Vec<u8>; 3]> {
    let (values, cols) = (rows.values(), rows.entry.cols as usize);
    let name = format!("{} {}", rows.unit, rows.entry.role);
    let refused = |e: String| FormatError::file(rows.entry.source.tensor.as_ref(), e);
    let mut stats = QuantStats { weights: values.len() as u64, ..QuantStats::default() };
    if let Some(float) = encoding.float() {
        let bytes = narrowed(float, &values);
        stats.sum_sq = values.iter().map(|value| f64::from(value * value)).sum();
        tally.add(name, &stats);
        return Ok([bytes, Vec::new(), Vec::new()]);
    }
    let count = (values.len() / cols.max(1)) as u64;
    let parts = encoding
        .parts(count, cols as u64)
        .map_err(|e| refused(e.to_string()))?;
    let mut made = [parts.weight, parts.scales, parts.biases].map(|len| vec![0; len as usize]);
    let [weight, scales, biases] = &mut made;
    let (backend, method, objective) = (Backend::detect(), Method::Search, Objective::Weights);
    let job = Job { backend, x: &values, cols, encoding, method, zeros: Zeros::Float, objective };
    stats =
        quantize(&job, PartsMut { weight, scales, biases }).map_err(|e| refused(e.to_string()))?;
    tally.add(name, &stats);
    Ok(made)
}
