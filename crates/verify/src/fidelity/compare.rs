//! One tensor against its source, tile by tile.

use std::ops::Range;

use rayon::prelude::*;
use shardwright_format::checkpoint::{Checkpoint, read_view};
use shardwright_format::io::AlignedBuf;
use shardwright_format::{Bundle, FormatError, TensorEntry, Unit};
use shardwright_quant::{Backend, Encoding, Float, Matrix, QuantStats, narrow, widen};

use super::{FidelityOptions, sanity_limit};
use crate::error::Result;
use crate::finding::{Finding, Kind};
use crate::monitor::Meter;

/// Values compared at once where rows lie together in the source, and where columns do.
const TILE: u64 = 1 << 18;
const TRANSPOSED_TILE: u64 = 1 << 20;

/// A row farther from its source than this, relative to the row's own size, was not made from it:
/// zeros in its place would be nearer.
const MAX_ROW_RMSE: f64 = 1.25;

/// What scales and biases of 16 bits may add to a row's relative RMSE: a few of bf16's 2^-9.
const ROUNDING: f64 = 1.0 / 64.0;

/// How a tensor differs from its source.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    pub(super) errors: QuantStats,
    /// The row with the largest relative RMSE.
    worst_row: Option<(u64, f64)>,
    /// The first row that is stored as one value, while its source is not one.
    flat_row: Option<(u64, f64)>,
    /// The first value on either side that is infinite or not a number.
    not_finite: Option<Value>,
    /// The first value of a plain tensor that is not its source rounded to its type.
    inexact: Option<Value>,
}

/// A value, where it lies and what it should be.
#[derive(Clone, Copy, Debug)]
struct Value {
    row: u64,
    col: u64,
    expected: f32,
    found: f32,
}

/// What a tensor's errors must keep to.
pub(super) struct Limits {
    rmse: f64,
    row_rmse: f64,
}

impl Limits {
    /// In a group of `n` values, rounding to a grid over its range errs by at most half a step a
    /// value, and two values are the range's ends: a relative RMSE of at most
    /// `sqrt(n / 2) / (2^bits - 1)`, which for the largest group, 128, is twice the sanity limit.
    ///
    /// Nothing bounds a row in trellis codes so: feedback may put one row's error where it costs
    /// least. Twice the sanity limit is six times what a row is expected to have.
    pub(super) fn of(encoding: Encoding, options: &FidelityOptions) -> Self {
        let Some(sanity) = sanity_limit(encoding) else {
            // Exactness is the limit.
            return Self { rmse: f64::INFINITY, row_rmse: f64::INFINITY };
        };
        let rmse = options.rmse_limit(encoding);
        let row = 2.0 * sanity.max(rmse) + ROUNDING;
        Self { rmse, row_rmse: row.min(MAX_ROW_RMSE) }
    }
}

/// Errors that the least f16 explains, as RMS of a row: the largest code times half of it, and
/// half of it for the bias. Smaller ones say nothing.
fn resolution(encoding: Encoding) -> f64 {
    match encoding {
        Encoding::Affine(affine) => f64::from(affine.bits()).exp2() * (-25f64).exp2(),
        Encoding::Trellis(_) | Encoding::F32 | Encoding::F16 | Encoding::Bf16 => 0.0,
    }
}

impl Comparison {
    /// Whether nothing was lost.
    pub(super) fn is_exact(&self) -> bool {
        self.errors.sum_sq_error == 0.0 && self.not_finite.is_none()
    }

    /// Adds the comparison of later rows.
    fn merge(&mut self, later: &Self) {
        self.errors.merge(&later.errors);
        if later.worst_row.map(|w| w.1) > self.worst_row.map(|w| w.1) {
            self.worst_row = later.worst_row;
        }
        self.flat_row = self.flat_row.or(later.flat_row);
        self.not_finite = self.not_finite.or(later.not_finite);
        self.inexact = self.inexact.or(later.inexact);
    }

    pub(super) fn findings(&self, limits: &Limits) -> Vec<Finding> {
        let mut findings = Vec::new();
        let at = |v: &Value| format!("row {}, column {}", v.row, v.col);
        if let Some(value) = &self.not_finite {
            let found = format!("{} from {}", value.found, value.expected);
            findings
                .push(Finding::new(Kind::NotFinite, at(value)).expected("finite weights", found));
        }
        if let Some(value) = &self.inexact {
            let finding = Finding::new(Kind::Exactness, at(value));
            findings.push(finding.expected(value.expected, value.found));
        }
        let rmse = self.errors.relative_rmse();
        if rmse > limits.rmse {
            let what = Finding::new(Kind::Error, "relative RMSE");
            findings
                .push(what.expected(format!("at most {:.4}", limits.rmse), format!("{rmse:.4}")));
        } else if let Some((row, rmse)) = self.worst_row.filter(|(_, rmse)| *rmse > limits.row_rmse)
        {
            let what = Finding::new(Kind::Error, format!("relative RMSE of row {row}"));
            findings.push(
                what.expected(format!("at most {:.4}", limits.row_rmse), format!("{rmse:.4}")),
            );
        } else if let Some((row, rmse)) = self.flat_row.filter(|_| limits.row_rmse.is_finite()) {
            let what = Finding::new(Kind::Error, format!("row {row}"));
            let found = format!("one value, at a relative RMSE of {rmse:.4}");
            findings.push(what.expected("several values, as in the source", found));
        }
        findings
    }
}

/// How a unit's stored bytes are reached.
pub(super) struct Stored<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) unit: Unit,
}

impl Stored<'_> {
    /// Some rows of a tensor, as a matrix of their own.
    fn matrix<'b>(
        &'b self,
        entry: &TensorEntry,
        rows: Range<u64>,
        buf: &'b mut AlignedBuf,
    ) -> Result<Matrix<'b>> {
        let refuse = |e: &dyn std::fmt::Display| {
            FormatError::file(self.bundle.root(), format!("{} {}: {e}", self.unit, entry.role))
        };
        let count = (rows.end - rows.start) as usize;
        self.bundle.read_rows(self.unit, entry, rows, buf)?;
        let matrix = Matrix::new(entry.encoding, count, entry.cols as usize, buf.as_slice());
        Ok(matrix.map_err(|e| refuse(&e))?)
    }
}

/// Compares a tensor with its source, which must exist as the entry says.
pub(super) fn tensor(
    stored: &Stored<'_>,
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    meter: &Meter<'_>,
) -> Result<Comparison> {
    let tile = if entry.source.col_stride == 1 { TILE } else { TRANSPOSED_TILE };
    let block = entry.encoding.row_block();
    let step = (tile / entry.cols.max(1) / block).max(1) * block;
    let tiles = (0..entry.rows.div_ceil(step)).into_par_iter();
    let compared = tiles.map_init(Tile::default, |tile, i| {
        let rows = i * step..((i + 1) * step).min(entry.rows);
        let compared = tile.compare(stored, checkpoint, entry, rows.clone())?;
        meter.add((rows.end - rows.start) * entry.cols * entry.source.dtype.size() as u64)?;
        Ok(compared)
    });
    // In the order of rows: sums of floats depend on it.
    let compared: Vec<Comparison> = compared.collect::<Result<_>>()?;
    let mut all = Comparison::default();
    for tile in &compared {
        all.merge(tile);
    }
    Ok(all)
}

/// Buffers of one thread.
#[derive(Default)]
struct Tile {
    source_bytes: AlignedBuf,
    stored_bytes: AlignedBuf,
    rounded: Vec<u8>,
    /// `[rows, cols]`
    source: Vec<f32>,
    /// `[rows, cols]`
    stored: Vec<f32>,
}

impl Tile {
    fn compare(
        &mut self,
        stored: &Stored<'_>,
        checkpoint: &Checkpoint,
        entry: &TensorEntry,
        rows: Range<u64>,
    ) -> Result<Comparison> {
        let (cols, first) = (entry.cols as usize, rows.start);
        let values = (rows.end - rows.start) as usize * cols;
        self.source.resize(values, 0.0);
        self.stored.resize(values, 0.0);
        let view = &entry.source;
        read_view(checkpoint, view, rows.clone(), entry.cols, &mut self.source_bytes)?;
        widen(view.dtype, self.source_bytes.as_slice(), &mut self.source);
        let count = (rows.end - rows.start) as usize;
        let matrix = stored.matrix(entry, rows.clone(), &mut self.stored_bytes)?;
        matrix.dequantize(Backend::Scalar, 0..count, &mut self.stored);
        let mut compared =
            measure(&self.source, &self.stored, cols, first, resolution(entry.encoding));
        if let Some(float) = entry.encoding.float() {
            let size = float.size() * cols;
            let found = &matrix.weight()[..count * size];
            let expected = if view.dtype == float {
                self.source_bytes.as_slice()
            } else {
                round(float, &self.source, &mut self.rounded)
            };
            let differing = expected
                .chunks(float.size())
                .zip(found.chunks(float.size()))
                .position(|(a, b)| a != b);
            compared.inexact = differing.map(|i| value(&self.source, &self.stored, i, cols, first));
        }
        Ok(compared)
    }
}

fn value(source: &[f32], stored: &[f32], index: usize, cols: usize, first_row: u64) -> Value {
    Value {
        row: first_row + (index / cols) as u64,
        col: (index % cols) as u64,
        expected: source[index],
        found: stored[index],
    }
}

fn round<'a>(float: Float, source: &[f32], out: &'a mut Vec<u8>) -> &'a [u8] {
    out.resize(source.len() * float.size(), 0);
    narrow(float, source, out);
    out
}

/// Errors of whole rows of `cols` values; rows closer than `resolution` count as close.
fn measure(
    source: &[f32],
    stored: &[f32],
    cols: usize,
    first_row: u64,
    resolution: f64,
) -> Comparison {
    let least = resolution * resolution * cols as f64;
    let mut all = Comparison::default();
    for (row, (x, y)) in (first_row..).zip(source.chunks(cols).zip(stored.chunks(cols))) {
        let errors = row_errors(x, y);
        all.errors.merge(&errors);
        let rmse = errors.relative_rmse();
        let told = errors.sum_sq_error > least;
        if told && all.worst_row.is_none_or(|(_, worst)| rmse > worst) {
            all.worst_row = Some((row, rmse));
        }
        if told && rmse > ROUNDING && is_flat(y) && !is_flat(x) {
            all.flat_row = all.flat_row.or(Some((row, rmse)));
        }
        if !(errors.sum_sq.is_finite() && errors.sum_sq_error.is_finite()) {
            let wrong = x
                .iter()
                .zip(y)
                .position(|(x, y)| !(x.is_finite() && y.is_finite()));
            let at = wrong.map(|i| value(x, y, i, cols, row));
            all.not_finite = all.not_finite.or(at);
        }
    }
    all
}

fn is_flat(row: &[f32]) -> bool {
    row.iter().all(|value| *value == row[0])
}

/// Sums over one row, in eight interleaved parts that are added in order.
fn row_errors(source: &[f32], stored: &[f32]) -> QuantStats {
    const PARTS: usize = 8;
    let (mut error, mut size, mut most) = ([0f64; PARTS], [0f64; PARTS], [0f32; PARTS]);
    let mut add = |x: &[f32], y: &[f32]| {
        for (i, (&x, &y)) in x.iter().zip(y).enumerate() {
            let difference = y - x;
            error[i] += f64::from(difference) * f64::from(difference);
            size[i] += f64::from(x) * f64::from(x);
            most[i] = most[i].max(difference.abs());
        }
    };
    let (x, x_rest) = source.as_chunks::<PARTS>();
    let (y, y_rest) = stored.as_chunks::<PARTS>();
    x.iter().zip(y).for_each(|(x, y)| add(x, y));
    add(x_rest, y_rest);
    QuantStats {
        weights: source.len() as u64,
        sum_sq_error: error.iter().sum(),
        sum_sq: size.iter().sum(),
        max_abs_error: most.into_iter().fold(0.0, f32::max),
        ..QuantStats::default()
    }
}
