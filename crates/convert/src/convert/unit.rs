//! Converts one unit: reads its tensors tile by tile, quantizes them, fills a sink.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use shardwright_format::checkpoint::{read_view_through, view_extents};
use shardwright_format::io::AlignedBuf;
use shardwright_format::{Refusal, mismatch};
use shardwright_quant::{
    Backend, Encoding, Float, Job, KEPT_COLS, Method, PartsMut, QuantError, QuantStats, Zeros,
    narrow, quantize, widen,
};

use super::memory::Buffers;
use super::repack::{CODED_LIMIT, copied};
use super::sink::Sink;
use super::source::{Reader, Source};
use crate::calibrate::objectives::{Objectives, SharedObjective};
use crate::error::{ConvertError, Result};
use crate::plan::{PlannedTensor, PlannedUnit};

/// Rows that feedback goes through together: whole tiles of a trellis.
const FEEDBACK_ROWS: usize = 256;

thread_local! {
    /// Weights of a task, kept for the next one: of matrices of up to [`KEPT_COLS`] columns, as rounding keeps its own.
    static WEIGHTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// One thread's buffers and what it reads from.
pub struct TensorQuantizer<'a> {
    pub reader: Reader<'a>,
    pub stop: &'a AtomicBool,
    /// What is known of the inputs; none where units are only confirmed.
    pub objectives: Option<&'a Objectives>,
    pub buffers: Buffers,
    /// A tile of the source, row-major.
    tile: AlignedBuf,
    rows: RowQuantizer<'a>,
}

impl<'a> TensorQuantizer<'a> {
    pub fn new(
        reader: Reader<'a>,
        objectives: Option<&'a Objectives>,
        pool: &'a rayon::ThreadPool,
        buffers: Buffers,
        stop: &'a AtomicBool,
    ) -> Self {
        let rows = RowQuantizer::new(pool, buffers.weights_tile as usize);
        Self { reader, stop, objectives, buffers, tile: AlignedBuf::default(), rows }
    }

    /// Converts every tensor of a unit; gives what each lost, or none when asked to stop.
    pub fn convert(
        &mut self,
        unit: &PlannedUnit<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Vec<QuantStats>>> {
        let mut stats = Vec::with_capacity(unit.tensors.len());
        for tensor in &unit.tensors {
            match self.tensor(tensor, sink)? {
                Some(found) => stats.push(found),
                None => return Ok(None),
            }
        }
        if let Some(objectives) = self.objectives {
            objectives.forget(unit.unit);
        }
        Ok(Some(stats))
    }

    /// Asks for the first bytes of a unit that will be read soon.
    pub fn prefetch(&self, unit: &PlannedUnit<'_>) -> Result<()> {
        let most = 4 * self.buffers.source_tile;
        unit.tensors
            .iter()
            .try_for_each(|tensor| self.prefetch_rows(tensor, 0..tensor.entry.rows, most))
    }

    fn prefetch_rows(&self, tensor: &PlannedTensor<'_>, rows: Range<u64>, most: u64) -> Result<()> {
        let source = self.reader.source;
        for (file, mut range) in
            view_extents(source.checkpoint, &tensor.view, rows, tensor.entry.cols)?
        {
            range.end = range.end.min(range.start.saturating_add(most));
            source.prefetch(file, &range);
        }
        Ok(())
    }

    /// Rows that are read and quantized together.
    fn tile_rows(&self, tensor: &PlannedTensor<'_>) -> u64 {
        let (entry, view) = (tensor.entry, &tensor.view);
        let row_bytes = (entry.cols * view.dtype.size() as u64).max(1);
        let block = entry.encoding.row_block();
        // Transposed rows lie between each other's values: all that fit are gathered at once, so
        // that the file is read once and not once for each tile.
        let bytes = match view.col_stride {
            1 => self.buffers.source_tile,
            _ => self.buffers.gather_limit / 2,
        };
        (bytes / row_bytes)
            .min(entry.rows)
            .next_multiple_of(block)
            .max(block)
    }

    fn tensor(
        &mut self,
        tensor: &PlannedTensor<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<Option<QuantStats>> {
        let (entry, step) = (tensor.entry, self.tile_rows(tensor));
        let objective = match self.objectives {
            // A factor of many inputs takes long enough to be worth all threads.
            Some(objectives) => self
                .rows
                .pool
                .install(|| objectives.objective(tensor.unit, entry, tensor.method)),
            None => Ok(SharedObjective::Weights),
        };
        let objective = objective
            .map_err(|e| ConvertError::plan(format!("{} {}: {e}", tensor.unit, entry.role)))?;
        let method = tensor.method.given(objective.as_objective());
        let (encoding, zeros) = (entry.encoding, tensor.zeros);
        let how = How { encoding, method, zeros, objective };
        let mut stats = QuantStats::default();
        for start in (0..entry.rows).step_by(step as usize) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let end = (start + step).min(entry.rows);
            let soon = (end + step).min(entry.rows)..(end + 2 * step).min(entry.rows);
            self.prefetch_rows(tensor, soon, u64::MAX)?;
            stats.merge(&self.tile(tensor, &how, start..end, sink)?);
        }
        Ok(Some(stats))
    }

    fn tile(
        &mut self,
        tensor: &PlannedTensor<'_>,
        how: &How,
        rows: Range<u64>,
        sink: &mut Sink<'_>,
    ) -> Result<QuantStats> {
        let (entry, view, reader) = (tensor.entry, &tensor.view, &mut self.reader);
        let source = reader.source;
        let mut fetch = |file, offset, out: &mut [u8]| reader.fetch(file, offset, out);
        let (checkpoint, out) = (source.checkpoint, &mut self.tile);
        read_view_through(checkpoint, view, rows.clone(), entry.cols, out, &mut fetch)?;
        let values =
            Values { bytes: self.tile.as_slice(), dtype: view.dtype, cols: entry.cols as usize };
        if let Some(copied) = copied(reader, tensor, rows.clone(), values.bytes)? {
            return sink.rows(entry, rows, |mut parts| Ok(copied.fill(&mut parts)));
        }
        let quantizer = &mut self.rows;
        sink.rows(entry, rows.clone(), |mut parts| {
            let done = quantizer.fill(values, how, &mut parts);
            done.map_err(|e| refuse(source, tensor, rows.start, e))
        })
    }
}

/// Names the file, tensor and position of what cannot be stored.
fn refuse(
    source: &Source<'_>,
    tensor: &PlannedTensor<'_>,
    first: u64,
    fault: RowFault,
) -> ConvertError {
    let refusal = Refusal::from(fault.below(first));
    // A tensor that holds many matrices needs their name beside the position.
    let detail = match tensor.view.shape.len() {
        0..=2 => refusal,
        _ => refusal.at(format_args!("{} {}", tensor.unit, tensor.entry.role)),
    };
    source.refuse(&tensor.view, detail).into()
}

/// Why some rows cannot be stored.
enum RowFault {
    /// Because of one weight or group.
    At { row: u64, col: u64, detail: Refusal },
    /// Because of the shape.
    Shape(String),
}

impl RowFault {
    /// The same, `rows` further down.
    fn below(self, rows: u64) -> Self {
        match self {
            Self::At { row, col, detail } => Self::At { row: row + rows, col, detail },
            Self::Shape(_) => self,
        }
    }
}

impl From<RowFault> for Refusal {
    fn from(fault: RowFault) -> Self {
        match fault {
            RowFault::At { row, col, detail } => detail.at(format_args!("row {row}, column {col}")),
            RowFault::Shape(detail) => detail.into(),
        }
    }
}

impl From<QuantError> for RowFault {
    fn from(error: QuantError) -> Self {
        match error {
            QuantError::NotFinite { row, col, value } => {
                Self::At { row, col, detail: mismatch("a finite weight", value) }
            }
            QuantError::ScaleRange { row, col, value, dtype } => {
                let dtype = dtype.name();
                let detail =
                    format!("{value} is too large for a scale or bias in {dtype}; use bf16 scales");
                Self::At { row, col, detail: detail.into() }
            }
            other => Self::Shape(other.to_string()),
        }
    }
}

/// How the rows of a tensor are stored, and their codes chosen.
struct How {
    encoding: Encoding,
    method: Method,
    zeros: Zeros,
    objective: SharedObjective,
}

/// Values of whole rows, as the source has them.
#[derive(Clone, Copy)]
struct Values<'a> {
    bytes: &'a [u8],
    dtype: Float,
    cols: usize,
}

/// Turns values of the source's type into a tensor's encoding, some rows at a time.
struct RowQuantizer<'a> {
    backend: Backend,
    pool: &'a rayon::ThreadPool,
    /// Weights quantized at a time.
    tile: usize,
    weights: Vec<f32>,
    again: Vec<f32>,
}

impl<'a> RowQuantizer<'a> {
    fn new(pool: &'a rayon::ThreadPool, tile: usize) -> Self {
        Self { backend: Backend::detect(), pool, tile, weights: Vec::new(), again: Vec::new() }
    }

    /// Rows that are worth a task of their own; none depends on others.
    fn step(&self, how: &How, cols: usize) -> usize {
        match how.objective {
            SharedObjective::Hessian(_) => FEEDBACK_ROWS,
            _ => (self.tile / cols.max(1)).max(1),
        }
        .next_multiple_of(how.encoding.row_block() as usize)
    }

    /// Fills the parts of whole rows.
    fn fill(
        &mut self,
        values: Values<'_>,
        how: &How,
        out: &mut PartsMut<'_>,
    ) -> Result<QuantStats, RowFault> {
        let Values { bytes, dtype, cols } = values;
        let (step, row) = (self.step(how, cols), cols * dtype.size());
        let rows = bytes
            .chunks((step * row).max(1))
            .zip(pieces(out, how.encoding, step, cols)?);
        let rows = rows.enumerate();
        let mut stats = QuantStats::default();
        if !matches!(how.objective, SharedObjective::Hessian(_)) {
            for (at, (bytes, part)) in rows {
                let found = self.fill_few(Values { bytes, ..values }, how, part);
                stats.merge(&found.map_err(|e| e.below((at * step) as u64))?);
            }
            return Ok(stats);
        }
        // Feedback takes as long as everything else together: it is worth all threads.
        let tasks: Vec<_> = rows.collect();
        let found: Vec<_> = self.pool.install(|| {
            let tasks = tasks.into_par_iter().with_max_len(1);
            let one = |(at, (bytes, part)): (usize, (&[u8], PartsMut<'_>))| {
                let mut quantizer = RowQuantizer::new(self.pool, self.tile);
                quantizer.weights = WEIGHTS.take();
                let found = quantizer.fill_few(Values { bytes, ..values }, how, part);
                if cols <= KEPT_COLS {
                    WEIGHTS.set(quantizer.weights);
                }
                found.map_err(|e| e.below((at * step) as u64))
            };
            tasks.map(one).collect()
        });
        found
            .into_iter()
            .try_for_each(|found| found.map(|found| stats.merge(&found)))?;
        Ok(stats)
    }

    fn fill_few(
        &mut self,
        values: Values<'_>,
        how: &How,
        out: PartsMut<'_>,
    ) -> Result<QuantStats, RowFault> {
        let Values { bytes, dtype, cols } = values;
        self.weights.resize(bytes.len() / dtype.size(), 0.0);
        widen(dtype, bytes, &mut self.weights);
        if let Some(float) = how.encoding.float() {
            return self.plain(values, float, out.weight);
        }
        check_size(&self.weights, cols)?;
        let job = Job {
            backend: self.backend,
            x: &self.weights,
            cols,
            encoding: how.encoding,
            method: how.method,
            zeros: how.zeros,
            objective: how.objective.as_objective(),
        };
        Ok(quantize(&job, out)?)
    }

    /// Stores plain floats: the source's bytes where the type is the same.
    fn plain(
        &mut self,
        values: Values<'_>,
        to: Float,
        out: &mut [u8],
    ) -> Result<QuantStats, RowFault> {
        let Values { bytes, dtype: from, cols } = values;
        check_finite(&self.weights, cols)?;
        let weights = self.weights.len() as u64;
        if from == to {
            out.copy_from_slice(bytes);
            return Ok(QuantStats { weights, ..QuantStats::default() });
        }
        narrow(to, &self.weights, out);
        self.again.resize(self.weights.len(), 0.0);
        widen(to, out, &mut self.again);
        let mut stats = QuantStats { weights, ..QuantStats::default() };
        for (at, (x, y)) in self.weights.iter().zip(&self.again).enumerate() {
            if !y.is_finite() {
                let (row, col) = ((at / cols) as u64, (at % cols) as u64);
                let detail = format!("{x} is too large for {}", to.name());
                return Err(RowFault::At { row, col, detail: detail.into() });
            }
            let error = f64::from(x - y);
            stats.sum_sq_error += error * error;
            stats.sum_sq += f64::from(*x) * f64::from(*x);
            stats.max_abs_error = stats.max_abs_error.max((x - y).abs());
        }
        Ok(stats)
    }
}

/// Refuses weights that no scale within the format's limits reaches. What is not finite is refused later.
fn check_size(weights: &[f32], cols: usize) -> Result<(), RowFault> {
    // Without an early end the common case is one vector loop.
    if weights
        .iter()
        .fold(true, |all, x| all & (x.abs() < CODED_LIMIT))
    {
        return Ok(());
    }
    let large = |x: &f32| x.is_finite() && x.abs() >= CODED_LIMIT;
    let Some(at) = weights.iter().position(large) else { return Ok(()) };
    let (row, col) = ((at / cols) as u64, (at % cols) as u64);
    let detail = format!("{} is too large for codes: expected weights below 2^111", weights[at]);
    Err(RowFault::At { row, col, detail: detail.into() })
}

fn check_finite(weights: &[f32], cols: usize) -> Result<(), RowFault> {
    // Without an early end the common case is one vector loop.
    if weights.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    let at = weights
        .iter()
        .position(|x| !x.is_finite())
        .unwrap_or_default();
    let (row, col) = ((at / cols) as u64, (at % cols) as u64);
    Err(QuantError::NotFinite { row, col, value: weights[at] }.into())
}

/// The parts of `out` for every `step` rows of `cols` values.
fn pieces<'o>(
    out: &'o mut PartsMut<'_>,
    encoding: Encoding,
    step: usize,
    cols: usize,
) -> Result<impl Iterator<Item = PartsMut<'o>> + use<'o>, RowFault> {
    let each = encoding.parts(step as u64, cols as u64);
    let each = each.map_err(|e| RowFault::Shape(e.to_string()))?;
    let split = |bytes: &'o mut [u8], each: u64| {
        let pieces = bytes.chunks_mut((each as usize).max(1)).map(Some);
        // A part that the encoding has not is empty in every piece.
        pieces.chain(std::iter::repeat_with(move || (each == 0).then(<&mut [u8]>::default)))
    };
    let weight = split(&mut *out.weight, each.weight);
    let rest = split(&mut *out.scales, each.scales).zip(split(&mut *out.biases, each.biases));
    Ok(weight.zip(rest).map_while(|(weight, (scales, biases))| {
        Some(PartsMut { weight: weight?, scales: scales?, biases: biases? })
    }))
}
