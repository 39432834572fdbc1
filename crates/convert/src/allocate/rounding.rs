//! A tensor through codes and back, and what other encodings would do to it, by a sample of its rows.

use std::collections::BTreeMap;

use rayon::prelude::*;
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Refusal, Role, Unit};
use shardwright_quant::{
    Affine, Backend, Encoding, Float, Job, Matrix, Method, PartsMut, QuantStats, Trellis, Zeros,
    narrow, quantize, widen,
};

use crate::calibrate::objectives::{Objectives, SharedObjective};
use crate::error::{ConvertError, Result};
use crate::recipe::EncodingSpec;

/// Bits at which a role is tried.
pub const REFERENCE_BITS: u8 = 3;
/// Rows of a tensor that every encoding is tried on: full steps of a trellis tile, for rows that only fill one up
/// leave a path free to suit the others, and its error would be that of more bits.
const SAMPLE_ROWS: usize = 2 * Trellis::ROW_STEP as usize;
/// Tensors of a role that rows are taken of: each expert's inputs are factored for itself.
const SAMPLE_TENSORS: usize = 4;
/// Rows rounded at a time.
const CHUNK_ROWS: usize = 64;

/// Errors of a role's outputs in each encoding, beside those in the reference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodingErrors {
    reference: QuantStats,
    /// None where no tensor can be stored so.
    each: Vec<Option<QuantStats>>,
}

impl EncodingErrors {
    /// The ratio of an encoding's error to the reference's; none for an encoding that cannot be.
    pub fn ratio(&self, encoding: usize) -> Option<f64> {
        let found = self.each.get(encoding)?.as_ref()?;
        let (own, reference) = (error(found), error(&self.reference));
        Some(if reference > 0.0 { own / reference } else { 0.0 })
    }

    fn merge(&mut self, other: &Self) {
        self.reference.merge(&other.reference);
        self.each
            .resize(other.each.len().max(self.each.len()), None);
        for (own, other) in self.each.iter_mut().zip(&other.each) {
            if let Some(other) = other {
                own.get_or_insert_default().merge(other);
            }
        }
    }
}

/// Of the outputs where the inputs are known, of the weights where not.
fn error(stats: &QuantStats) -> f64 {
    let known = stats.output > 0.0;
    let (error, all) =
        if known { (stats.output_error, stats.output) } else { (stats.sum_sq_error, stats.sum_sq) };
    if error > 0.0 { error / all } else { 0.0 }
}

/// The model with one role of some units quantized, and what each of `encodings` would do to it.
pub fn quantized(
    original: &Weights,
    (units, role): (&[Unit], Role),
    objectives: &Objectives,
    encodings: &[EncodingSpec],
) -> Result<(Weights, EncodingErrors)> {
    let step = units.len().div_ceil(SAMPLE_TENSORS).max(1);
    let each: Result<Vec<_>> = units
        .par_iter()
        .enumerate()
        .map(|(at, unit)| {
            let tensor = Tensor::read(original, *unit, role)?;
            let sampled = at.is_multiple_of(step) && !encodings.is_empty();
            let errors = sampled.then(|| tensor.errors(objectives, encodings));
            Ok(((*unit, role), tensor.requantized(objectives)?, errors.transpose()?))
        })
        .collect();
    let (mut patches, mut errors) = (BTreeMap::new(), EncodingErrors::default());
    for (key, bytes, found) in each? {
        patches.insert(key, bytes);
        if let Some(found) = found {
            errors.merge(&found);
        }
    }
    Ok((original.patched(patches), errors))
}

/// A tensor's bytes and what it is.
struct Tensor {
    unit: Unit,
    entry: TensorEntry,
    bytes: Vec<u8>,
    /// Its type and the codes it is tried in; none where no group fits.
    reference: Option<(Float, Encoding)>,
}

impl Tensor {
    fn read(original: &Weights, unit: Unit, role: Role) -> Result<Self> {
        let layout = original.layout(unit)?;
        let missing = || FormatError::file(original.root(), format!("{unit}: no {role}"));
        let entry = layout.find(role).ok_or_else(missing)?.clone();
        let mut bytes = AlignedBuf::default();
        original.read_rows(unit, &entry, 0..entry.rows, &mut bytes)?;
        let (bytes, reference) = (bytes.as_slice().to_vec(), reference(&entry));
        Ok(Self { unit, entry, bytes, reference })
    }

    /// The same bytes after a round through the reference codes.
    fn requantized(self, objectives: &Objectives) -> Result<Vec<u8>> {
        let Some((dtype, encoding)) = self.reference else { return Ok(self.bytes) };
        let mut values = vec![0.0; (self.entry.rows * self.entry.cols) as usize];
        widen(dtype, &self.bytes, &mut values);
        self.round(encoding, objectives, &mut values)?;
        let mut out = self.bytes;
        narrow(dtype, &values, &mut out);
        Ok(out)
    }

    /// What the reference and each encoding do to some rows, evenly spread.
    fn errors(
        &self,
        objectives: &Objectives,
        encodings: &[EncodingSpec],
    ) -> Result<EncodingErrors> {
        let Some((dtype, reference)) = self.reference else { return Ok(EncodingErrors::default()) };
        let (rows, cols) = (self.entry.rows as usize, self.entry.cols as usize);
        let count = SAMPLE_ROWS.min(rows);
        let len = cols * dtype.size();
        let mut sample = vec![0.0; count * cols];
        for (at, row) in sample.chunks_exact_mut(cols).enumerate() {
            // The middle of each of `count` equal stretches.
            let from = (2 * at + 1) * rows / (2 * count);
            widen(dtype, &self.bytes[from * len..][..len], row);
        }
        let measure = |encoding| self.round(encoding, objectives, &mut sample.clone());
        let each = encodings.iter().map(|spec| {
            let encoding = spec.resolve(dtype, None);
            // What cannot hold the shape is no choice.
            let fits = |e: &Encoding| e.parts(self.entry.rows, self.entry.cols).is_ok();
            encoding.filter(fits).map(measure).transpose()
        });
        let each: Result<Vec<_>> = each.collect();
        Ok(EncodingErrors { reference: measure(reference)?, each: each? })
    }

    /// Takes whole rows through an encoding and back. Each row's codes depend on it alone.
    fn round(
        &self,
        encoding: Encoding,
        objectives: &Objectives,
        values: &mut [f32],
    ) -> Result<QuantStats> {
        let refuse = |e: Refusal| {
            ConvertError::Plan(e.at(format_args!("{} {}", self.unit, self.entry.role)))
        };
        let entry = TensorEntry { encoding, ..self.entry.clone() };
        let costs = objectives
            .objective(self.unit, &entry, Method::Gptq)
            .map_err(refuse)?;
        let cols = entry.cols as usize;
        let chunks = values.par_chunks_mut(CHUNK_ROWS * cols);
        let each: Result<Vec<_>> = chunks
            .map(|x| round_rows(encoding, cols, &costs, x).map_err(refuse))
            .collect();
        let mut all = QuantStats::default();
        for stats in each? {
            all.merge(&stats);
        }
        Ok(all)
    }
}

/// The type of a tensor and the codes it is tried in; none where no group fits.
fn reference(entry: &TensorEntry) -> Option<(Float, Encoding)> {
    let dtype = entry.encoding.float()?;
    let scales = if dtype == Float::Bf16 { Float::Bf16 } else { Float::F16 };
    let group = [64, 32]
        .into_iter()
        .find(|group| entry.cols.is_multiple_of(u64::from(*group)))?;
    Some((dtype, Encoding::Affine(Affine::new(REFERENCE_BITS, group, scales).ok()?)))
}

fn round_rows(
    encoding: Encoding,
    cols: usize,
    costs: &SharedObjective,
    values: &mut [f32],
) -> Result<QuantStats, Refusal> {
    let (backend, rows) = (Backend::detect(), values.len() / cols);
    let parts = encoding
        .parts(rows as u64, cols as u64)
        .map_err(|e| e.to_string())?;
    let mut bytes = vec![0; parts.total() as usize];
    let parts = PartsMut::split(encoding, rows, cols, &mut bytes).map_err(|e| e.to_string())?;
    let objective = costs.as_objective();
    let method = Method::Gptq.given(objective);
    let zeros = Zeros::Float;
    let job = Job { backend, x: values, cols, encoding, method, zeros, objective };
    let stats = quantize(&job, parts).map_err(|e| e.to_string())?;
    let matrix = Matrix::new(encoding, rows, cols, &bytes).map_err(|e| e.to_string())?;
    matrix.dequantize(backend, 0..rows, values);
    Ok(stats)
}
