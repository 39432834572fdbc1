//! One tensor against its source, tile by tile.

use std::ops::Range;

use rayon::prelude::*;
use shardwright_format::Role;
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_quant::{Encoding, Float, Matrix, MatrixError, Parts, QuantStats, narrow};

use super::along::{self, Along, Outside};
use super::pairs::Pair;
use super::range;
use super::steps::Steps;
use super::{FidelityOptions, Slot, sanity_limit};
use crate::check::divergence::Party;
use crate::check::finding::{Finding, Kind};
use crate::check::values;
use crate::error::Result;
use crate::monitor::Meter;

/// Values compared at once where rows lie together in the source, and where columns do.
const TILE: u64 = 1 << 18;
const TRANSPOSED_TILE: u64 = 1 << 20;

/// A row farther from its source than this, relative to the row's own size, was not made from it:
/// zeros in its place would be nearer.
const MAX_ROW_RMSE: f64 = 1.25;

/// A relative RMSE that no limit of a tensor compared by role lies below.
const ANY_RMSE: f64 = 0.1;

/// What scales and biases of 16 bits may add to a row's relative RMSE: a few of bf16's 2^-9.
const ROUNDING: f64 = 1.0 / 64.0;

/// How a tensor differs from its source.
#[derive(Clone, Debug, Default)]
pub(super) struct ValueComparison {
    pub(super) errors: QuantStats,
    /// How long the stored values are along their sources.
    along: Along,
    /// The row of which that is farthest outside of what is honest.
    row_along: Option<(u64, Outside)>,
    /// How codes were chosen.
    steps: Steps,
    /// The row with the largest relative RMSE.
    worst_row: Option<(u64, f64)>,
    /// What the ranges of groups explain of the squared error, beyond the usual limit.
    explained: f64,
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
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    rmse: f64,
    row_rmse: f64,
    /// Whether plain floats must be the original's, rounded to their type.
    exact: bool,
    /// Whether a row that is not one value in the original must not be one here.
    flat: bool,
    /// How far the length along the source may lie outside of what its error explains.
    along: Option<f64>,
    /// Whether more error than `rmse` is right where the ranges of groups explain it.
    ranges: bool,
    /// How codes may have been chosen.
    codes: Codes,
}

/// How codes may have been chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codes {
    /// Nothing is said of it.
    Any,
    /// By a calibration too.
    Calibrated,
    /// By the weights alone.
    Nearest,
}

impl Limits {
    /// Limits of a candidate's tensor: strict for what a bundle made from the original says of itself,
    /// against gross mistakes alone where the two are compared by role.
    pub(super) fn new(
        weights: &Weights,
        slot: &Slot,
        by_role: bool,
        options: &FidelityOptions,
    ) -> Self {
        if by_role {
            return Self::gross(weights, slot, options);
        }
        let calibration = weights
            .bundle()
            .map(|bundle| &bundle.manifest().calibration);
        let codes = match calibration {
            None => Codes::Any,
            Some(None) => Codes::Nearest,
            Some(Some(_)) => Codes::Calibrated,
        };
        Self { codes, ..Self::strict(slot, options) }
    }

    /// In a group of `n` values, rounding to a grid over its range errs by at most half a step a
    /// value, and two values are the range's ends: a relative RMSE of at most
    /// `sqrt(n / 2) / (2^bits - 1)`, which for the largest group, 128, is twice the sanity limit.
    ///
    /// Nothing bounds a row in trellis codes so: feedback may put one row's error where it costs
    /// least. Twice the sanity limit is six times what a row is expected to have.
    fn strict(slot: &Slot, options: &FidelityOptions) -> Self {
        let encoding = slot.entry.encoding;
        let Some(sanity) = sanity_limit(encoding) else {
            // Exactness is the limit.
            let (rmse, row_rmse) = (f64::INFINITY, f64::INFINITY);
            return Self {
                rmse,
                row_rmse,
                exact: true,
                flat: false,
                along: None,
                ranges: false,
                codes: Codes::Any,
            };
        };
        let rmse = options.rmse_limit(encoding);
        let row = 2.0 * sanity.max(rmse) + ROUNDING;
        let (row_rmse, along) = (row.min(MAX_ROW_RMSE), along::margin(encoding));
        let ranges = options.max_rmse.is_none();
        Self { rmse, row_rmse, exact: false, flat: true, along, ranges, codes: Codes::Any }
    }

    /// The sanity limit of as many whole bits as a weight takes, never below [`ANY_RMSE`]: floats of 8 bits
    /// err more than codes of 8 bits, and 16-bit floats were rounded from whatever came before.
    fn gross(weights: &Weights, slot: &Slot, options: &FidelityOptions) -> Self {
        let entry = &slot.entry;
        let values = (entry.rows * entry.cols).max(1) as f64;
        let bytes = weights.stored_as(entry).map_or(0, |(_, bytes)| bytes);
        let bits = (bytes as f64 * 8.0 / values).floor();
        let sanity = (4.0 / (bits.exp2() - 1.0)).clamp(ANY_RMSE, 0.9);
        let coded = weights.is_coded(entry);
        let rmse = options.max_rmse.filter(|_| coded).unwrap_or(sanity);
        let (row_rmse, codes) = (f64::INFINITY, Codes::Any);
        Self { rmse, row_rmse, exact: false, flat: false, along: None, ranges: false, codes }
    }
}

/// Errors that the least f16 explains, as RMS of a row: the largest code times half of it, and
/// half of it for the bias. Smaller ones say nothing.
fn resolution(encoding: Encoding) -> f64 {
    match encoding {
        Encoding::Affine(affine) => f64::from(affine.bits()).exp2() * (-25f64).exp2(),
        Encoding::Ggml(blocks) => {
            let form = blocks.form();
            f64::from(form.largest_level() + 1.0) * f64::from(form.factors.1) * (-25f64).exp2()
        }
        Encoding::Trellis(_)
        | Encoding::Minifloat(_)
        | Encoding::F32
        | Encoding::F16
        | Encoding::Bf16 => 0.0,
    }
}

impl ValueComparison {
    /// Whether nothing was lost.
    pub(super) fn is_exact(&self) -> bool {
        self.errors.sum_sq_error == 0.0 && self.not_finite.is_none()
    }

    /// Adds the comparison of later rows.
    fn merge(&mut self, later: &Self) {
        self.errors.merge(&later.errors);
        self.along.add(later.along);
        self.steps.merge(later.steps);
        if let Some((row, along)) = later.row_along {
            self.consider(row, along);
        }
        if later.worst_row.map(|w| w.1) > self.worst_row.map(|w| w.1) {
            self.worst_row = later.worst_row;
        }
        self.explained += later.explained;
        self.flat_row = self.flat_row.or(later.flat_row);
        self.not_finite = self.not_finite.or(later.not_finite);
        self.inexact = self.inexact.or(later.inexact);
    }

    fn consider(&mut self, row: u64, along: Outside) {
        if along.is_beyond(self.row_along.as_ref().map(|(_, worst)| worst)) {
            self.row_along = Some((row, along));
        }
    }

    pub(super) fn findings(&self, limits: &Limits) -> Vec<Finding> {
        let mut findings = Vec::new();
        let at = |v: &Value| format!("row {}, column {}", v.row, v.col);
        if let Some(value) = &self.not_finite {
            let found = format!("{} from {}", value.found, value.expected);
            findings
                .push(Finding::new(Kind::NotFinite, at(value)).expected("finite weights", found));
        }
        if let Some(value) = self.inexact.as_ref().filter(|_| limits.exact) {
            let finding = Finding::new(Kind::Exactness, at(value));
            findings.push(finding.expected(value.expected, value.found));
        }
        let rmse = self.errors.relative_rmse();
        if rmse > limits.rmse && !self.is_explained(limits) {
            let what = Finding::new(Kind::Error, "relative RMSE");
            findings
                .push(what.expected(format!("at most {:.4}", limits.rmse), format!("{rmse:.4}")));
        } else if let Some((row, rmse)) = self.worst_row.filter(|(_, rmse)| *rmse > limits.row_rmse)
        {
            let what = Finding::new(Kind::Error, format!("relative RMSE of row {row}"));
            findings.push(
                what.expected(format!("at most {:.4}", limits.row_rmse), format!("{rmse:.4}")),
            );
        } else if let Some((row, rmse)) = self.flat_row.filter(|_| limits.flat) {
            let what = Finding::new(Kind::Error, format!("row {row}"));
            let found = format!("one value, at a relative RMSE of {rmse:.4}");
            findings.push(what.expected("several values, as in the source", found));
        } else {
            findings.extend(self.intent(limits));
        }
        findings
    }

    /// Whether the usual limit and the ranges of groups explain the error together.
    fn is_explained(&self, limits: &Limits) -> bool {
        let limit = limits.rmse * limits.rmse * self.errors.sum_sq;
        limits.ranges && self.errors.sum_sq_error <= limit + self.explained
    }

    /// What no error limit notices: values that were scaled, codes that carry something else.
    fn intent(&self, limits: &Limits) -> Option<Finding> {
        let margin = limits.along?;
        let said = |what: String, (expected, found)| {
            Finding::new(Kind::Intent, what).expected(expected, found)
        };
        let whole = Outside::beyond(self.along, &self.errors, margin);
        let whole = whole.map(|whole| said("length along the source".to_owned(), whole.said()));
        let row = self.row_along.map(|(row, along)| {
            said(format!("length of row {row} along the source"), along.said())
        });
        let calibrated = limits.codes == Codes::Calibrated;
        let codes = self.steps.beyond(calibrated);
        let codes = codes.filter(|_| limits.codes != Codes::Any);
        whole
            .or(row)
            .or_else(|| codes.map(|codes| said("codes".to_owned(), codes)))
    }
}

/// Compares a tensor of the original with those that stand for it, each in turn over the same rows. One
/// result per candidate, none where it has no such tensor.
pub(super) fn tensors(
    pair: &Pair,
    original: &Party<'_>,
    candidates: &[Party<'_>],
    meter: &Meter<'_>,
) -> Result<Vec<Option<ValueComparison>>> {
    let work = Work { pair, original, candidates };
    let entry = &pair.original.entry;
    let step = work.rows_at_once();
    let tiles = (0..entry.rows.div_ceil(step)).into_par_iter();
    let compared = tiles.map_init(Tile::default, |tile, i| {
        let rows = i * step..((i + 1) * step).min(entry.rows);
        let compared = work.compare(tile, rows.clone())?;
        let bytes = Tensor { party: original, slot: &pair.original }.matrix_len(&rows);
        meter.add(bytes)?;
        Ok(compared)
    });
    // In the order of rows: sums of floats depend on it.
    let compared: Vec<Vec<Option<ValueComparison>>> = compared.collect::<Result<_>>()?;
    let slots = pair.candidates.iter();
    let mut all: Vec<_> = slots
        .map(|slot| slot.as_ref().map(|_| ValueComparison::default()))
        .collect();
    for tile in &compared {
        for (all, tile) in all.iter_mut().zip(tile) {
            if let (Some(all), Some(tile)) = (all, tile) {
                all.merge(tile);
            }
        }
    }
    Ok(all)
}

/// A tensor where it lies.
struct Tensor<'a> {
    party: &'a Party<'a>,
    slot: &'a Slot,
}

impl Tensor<'_> {
    /// Reads some rows and makes `out` their values, `[rows, cols]`; `bytes` are then as they lie there.
    fn read(&self, rows: &Range<u64>, bytes: &mut AlignedBuf, out: &mut Vec<f32>) -> Result<()> {
        let Slot { unit, entry } = self.slot;
        values::read(self.party.weights, (*unit, entry), rows, bytes, out)
    }

    /// Some rows as they lie in `bytes`.
    fn matrix<'b>(&self, bytes: &'b [u8], rows: usize) -> Result<Matrix<'b>, MatrixError> {
        let entry = &self.slot.entry;
        Matrix::new(entry.encoding, rows, entry.cols as usize, bytes)
    }

    /// Bytes that reading some rows takes.
    fn matrix_len(&self, rows: &Range<u64>) -> u64 {
        let entry = &self.slot.entry;
        let parts = entry.encoding.parts(rows.end - rows.start, entry.cols);
        parts.map_or(0, Parts::total)
    }

    /// Whether its norms are stored as what they are less one.
    fn is_less_one(&self) -> bool {
        let norm = self.slot.entry.role.name().starts_with("norm.");
        norm && self.slot.entry.role != Role::DeltaNorm && self.party.weights.spec().norm_plus_one
    }
}

/// A pair of tensors with the models that they are part of.
struct Work<'a> {
    pair: &'a Pair,
    original: &'a Party<'a>,
    candidates: &'a [Party<'a>],
}

impl Work<'_> {
    fn others(&self) -> impl Iterator<Item = Option<Tensor<'_>>> {
        let slots = self.candidates.iter().zip(&self.pair.candidates);
        slots.map(|(party, slot)| Some(Tensor { party, slot: slot.as_ref()? }))
    }

    /// As many rows as a tile holds, in whole blocks of every encoding.
    fn rows_at_once(&self) -> u64 {
        let entry = &self.pair.original.entry;
        let tile = if entry.source.col_stride == 1 { TILE } else { TRANSPOSED_TILE };
        let slots = self.pair.candidates.iter().flatten();
        let blocks = slots.map(|slot| slot.entry.encoding.row_block());
        // Blocks are of one row, or of as many as a trellis tile has.
        let block = blocks.fold(entry.encoding.row_block(), u64::max);
        (tile / entry.cols.max(1) / block).max(1) * block
    }

    fn compare(&self, tile: &mut Tile, rows: Range<u64>) -> Result<Vec<Option<ValueComparison>>> {
        let original = Tensor { party: self.original, slot: &self.pair.original };
        original.read(&rows, &mut tile.source_bytes, &mut tile.source)?;
        let compare = |other: Option<Tensor<'_>>| {
            let Some(other) = other else { return Ok(None) };
            other.read(&rows, &mut tile.stored_bytes, &mut tile.stored)?;
            Ok(Some(tile.compare(&original, &other, rows.start)))
        };
        self.others().map(compare).collect()
    }
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
    /// Compares what was read, rows from `first` on.
    fn compare(
        &mut self,
        original: &Tensor<'_>,
        other: &Tensor<'_>,
        first: u64,
    ) -> ValueComparison {
        let (cols, encoding) = (other.slot.entry.cols as usize, other.slot.entry.encoding);
        if original.is_less_one() != other.is_less_one() {
            return self.compare_norms(other.is_less_one(), cols, first);
        }
        let mut compared = measure(&self.source, &self.stored, cols, first, Some(encoding));
        if let Encoding::Affine(affine) = encoding
            && let Ok(matrix) = other.matrix(self.stored_bytes.as_slice(), self.stored.len() / cols)
        {
            compared.steps = Steps::measure(affine, &matrix, &self.source, &self.stored);
        }
        if let Some(float) = encoding.float() {
            let expected = if original.slot.entry.encoding == encoding {
                self.source_bytes.as_slice()
            } else {
                round(float, &self.source, &mut self.rounded)
            };
            let found = self.stored_bytes.as_slice();
            let differing = expected
                .chunks(float.size())
                .zip(found.chunks(float.size()))
                .position(|(a, b)| a != b);
            compared.inexact = differing.map(|i| value(&self.source, &self.stored, i, cols, first));
        } else if sanity_limit(encoding).is_none() {
            // Codes of a source give its values, but for the sign of a zero.
            let mut pairs = self.source.iter().zip(&self.stored);
            let differing = pairs.position(|(source, stored)| source != stored);
            compared.inexact = differing.map(|i| value(&self.source, &self.stored, i, cols, first));
        }
        compared
    }

    /// Norms of which one side holds what they are less one, as some formats of the same model do.
    fn compare_norms(&self, other_is_less_one: bool, cols: usize, first: u64) -> ValueComparison {
        let complete = |norm: &[f32]| norm.iter().map(|w| w + 1.0).collect::<Vec<_>>();
        if other_is_less_one {
            measure(&self.source, &complete(&self.stored), cols, first, None)
        } else {
            measure(&complete(&self.source), &self.stored, cols, first, None)
        }
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

/// Errors of whole rows of `cols` values; rows closer than `encoding` can tell count as close.
fn measure(
    source: &[f32],
    stored: &[f32],
    cols: usize,
    first_row: u64,
    encoding: Option<Encoding>,
) -> ValueComparison {
    let resolution = encoding.map_or(0.0, resolution);
    let margin = encoding.and_then(along::margin);
    let least = resolution * resolution * cols as f64;
    let mut all = ValueComparison::default();
    for (row, (x, y)) in (first_row..).zip(source.chunks(cols).zip(stored.chunks(cols))) {
        let (errors, along) = row_errors(x, y);
        all.errors.merge(&errors);
        all.along.add(along);
        let rmse = errors.relative_rmse();
        let told = errors.sum_sq_error > least;
        let outside = margin.filter(|_| told);
        if let Some(outside) = outside.and_then(|margin| Outside::of_row(along, &errors, margin)) {
            all.consider(row, outside);
        }
        let beyond = encoding.map_or(0.0, |encoding| range::beyond(encoding, x, &errors));
        all.explained += beyond;
        if told && beyond == 0.0 && all.worst_row.is_none_or(|(_, worst)| rmse > worst) {
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
fn row_errors(source: &[f32], stored: &[f32]) -> (QuantStats, Along) {
    const PARTS: usize = 8;
    let (mut error, mut size, mut most) = ([0f64; PARTS], [0f64; PARTS], [0f32; PARTS]);
    let (mut product, mut fourth) = ([0f64; PARTS], [0f64; PARTS]);
    let mut add = |x: &[f32], y: &[f32]| {
        for (i, (&x, &y)) in x.iter().zip(y).enumerate() {
            let difference = y - x;
            error[i] += f64::from(difference) * f64::from(difference);
            let square = f64::from(x) * f64::from(x);
            size[i] += square;
            fourth[i] += square * square;
            product[i] += f64::from(x) * f64::from(y);
            most[i] = most[i].max(difference.abs());
        }
    };
    let (x, x_rest) = source.as_chunks::<PARTS>();
    let (y, y_rest) = stored.as_chunks::<PARTS>();
    x.iter().zip(y).for_each(|(x, y)| add(x, y));
    add(x_rest, y_rest);
    let errors = QuantStats {
        weights: source.len() as u64,
        sum_sq_error: error.iter().sum(),
        sum_sq: size.iter().sum(),
        max_abs_error: most.into_iter().fold(0.0, f32::max),
        ..QuantStats::default()
    };
    let [product, fourth] = [product, fourth].map(|parts| parts.iter().sum());
    (errors, Along { product, fourth })
}
