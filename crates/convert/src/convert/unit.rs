//! Converts one unit: reads its tensors tile by tile, quantizes them, fills a sink.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use shardwright_format::checkpoint::{read_view, read_view_through, view_extents};
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::{SourceView, Unit};
use shardwright_quant::{
    Backend, Encoding, Float, Method, Parts, PartsMut, QuantError, QuantStats, narrow, quantize,
    widen,
};

use super::memory::{GATHER_LIMIT, SOURCE_TILE, WEIGHTS_TILE};
use super::repack::copied;
use super::sink::Sink;
use super::source::{Reader, Source, extent};
use crate::calibrate::objectives::{Objectives, SharedObjective};
use crate::error::{ConvertError, Result};

/// Rows that feedback goes through together: whole tiles of a trellis.
const FEEDBACK_ROWS: usize = 256;

/// One thread's buffers and what it reads from.
pub struct TensorQuantizer<'a> {
    pub reader: Reader<'a>,
    pub stop: &'a AtomicBool,
    /// What is known of the inputs; none where units are only confirmed.
    pub objectives: Option<&'a Objectives>,
    /// A tile of the source, row-major, when it does not lie so in the file.
    gathered: AlignedBuf,
    quantizer: Quantizer<'a>,
}

/// A unit's tensors, where its experts' values come from filled in.
pub struct UnitTensors<'p> {
    pub unit: Unit,
    pub tensors: &'p [TensorEntry],
    pub methods: &'p [Method],
    pub views: Vec<SourceView>,
}

impl<'p> UnitTensors<'p> {
    pub fn new(unit: Unit, tensors: &'p [TensorEntry], methods: &'p [Method]) -> Self {
        let view = |t: &TensorEntry| match unit {
            Unit::Expert { expert, .. } => t.source.of_expert(expert),
            _ => t.source.clone(),
        };
        Self { unit, tensors, methods, views: tensors.iter().map(view).collect() }
    }

    /// Bytes of the file between which a strided tensor lies, with those of the unit's other
    /// tensors that share its source tensor: fused matrices are read together.
    fn gather_extent(&self, at: usize, reader: &Reader<'_>) -> Result<Range<u64>> {
        let info = reader.source.info(&self.views[at])?;
        let same = self.tensors.iter().zip(&self.views);
        let same = same.filter(|(_, view)| view.tensor == self.views[at].tensor);
        let extents = same.map(|(t, view)| extent(info, view, 0..t.rows, t.cols));
        Ok(extents
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0))
    }
}

/// Whether rows follow one another without gaps.
fn is_packed(view: &SourceView, entry: &TensorEntry) -> bool {
    view.col_stride == 1 && (view.row_stride == entry.cols || entry.rows == 1)
}

impl<'a> TensorQuantizer<'a> {
    pub fn new(
        reader: Reader<'a>,
        (objectives, pool): (Option<&'a Objectives>, &'a rayon::ThreadPool),
        stop: &'a AtomicBool,
    ) -> Self {
        Self {
            reader,
            stop,
            objectives,
            gathered: AlignedBuf::default(),
            quantizer: Quantizer::new(pool),
        }
    }

    /// Converts every tensor of a unit; gives what each lost, or none when asked to stop.
    pub fn convert(
        &mut self,
        job: &UnitTensors<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Vec<QuantStats>>> {
        let mut stats = Vec::with_capacity(job.tensors.len());
        for at in 0..job.tensors.len() {
            match self.tensor(job, at, sink)? {
                Some(found) => stats.push(found),
                None => return Ok(None),
            }
        }
        Ok(Some(stats))
    }

    /// Asks for the bytes of a unit that will be read soon.
    pub fn prefetch(&self, job: &UnitTensors<'_>) -> Result<()> {
        for (entry, view) in job.tensors.iter().zip(&job.views) {
            let source = self.reader.source;
            let extents = view_extents(source.checkpoint, view, 0..entry.rows, entry.cols)?;
            for (file, mut range) in extents {
                range.end = range.end.min(range.start + 4 * SOURCE_TILE);
                source.prefetch(file, &range);
            }
        }
        Ok(())
    }

    fn tensor(
        &mut self,
        job: &UnitTensors<'_>,
        at: usize,
        sink: &mut Sink<'_>,
    ) -> Result<Option<QuantStats>> {
        let (entry, view) = (&job.tensors[at], &job.views[at]);
        let row_bytes = (entry.cols * view.dtype.size() as u64).max(1);
        let block = entry.encoding.row_block();
        let step = (SOURCE_TILE / row_bytes)
            .min(entry.rows)
            .next_multiple_of(block)
            .max(block);
        let method = self.choose(job, at)?;
        let parts = entry.encoding.parts(entry.rows, entry.cols);
        let parts =
            parts.map_err(|e| ConvertError::Plan(format!("{} {}: {e}", job.unit, entry.role)))?;
        let mut stats = QuantStats::default();
        for start in (0..entry.rows).step_by(step as usize) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let rows = start..(start + step).min(entry.rows);
            stats.merge(&self.tile(job, at, (&method, parts), rows, sink)?);
        }
        Ok(Some(stats))
    }

    /// How the codes of a tensor are chosen, as far as its inputs are known.
    fn choose(&self, job: &UnitTensors<'_>, at: usize) -> Result<Chosen> {
        let (entry, method) = (&job.tensors[at], job.methods[at]);
        let costs = self
            .objectives
            .map_or(Ok(SharedObjective::Weights), |g| g.objective(job.unit, entry, method));
        let refuse = |e| ConvertError::Plan(format!("{} {}: {e}", job.unit, entry.role));
        let costs = costs.map_err(refuse)?;
        Ok(Chosen { encoding: entry.encoding, method: costs.method(method), costs })
    }

    fn tile(
        &mut self,
        job: &UnitTensors<'_>,
        at: usize,
        (chosen, parts): (&Chosen, Parts),
        rows: Range<u64>,
        sink: &mut Sink<'_>,
    ) -> Result<QuantStats> {
        let (entry, view) = (&job.tensors[at], &job.views[at]);
        let source = self.reader.source;
        let info = source.info(view)?;
        let bytes = if view.decoder.is_some() {
            let reader = &mut self.reader;
            let mut fetch = |file, offset, out: &mut [u8]| reader.fetch(file, offset, out);
            let (checkpoint, out) = (source.checkpoint, &mut self.gathered);
            read_view_through(checkpoint, view, rows.clone(), entry.cols, out, &mut fetch)?;
            let decoded = self.gathered.as_slice();
            if let Some(copied) = copied(reader, (view, entry), rows.clone(), decoded)? {
                return sink.rows(entry, parts, rows, |mut parts| Ok(copied.fill(&mut parts)));
            }
            decoded
        } else if is_packed(view, entry) {
            let range = extent(info, view, rows.clone(), entry.cols);
            let ahead = range.end + SOURCE_TILE;
            let last = extent(info, view, 0..entry.rows, entry.cols).end;
            source.prefetch(
                info.file,
                &(ahead.min(last)..(ahead + range.end - range.start).min(last)),
            );
            self.reader.read(info.file, range)?
        } else {
            let around = job.gather_extent(at, &self.reader)?;
            if around.end - around.start <= GATHER_LIMIT {
                let first = info.offset + view.start * info.dtype.size() as u64 - around.start;
                let window = self.reader.read(info.file, around)?;
                gather(&window[first as usize..], view, &rows, entry.cols, &mut self.gathered);
            } else {
                read_view(source.checkpoint, view, rows.clone(), entry.cols, &mut self.gathered)?;
            }
            self.gathered.as_slice()
        };
        let quantizer = &mut self.quantizer;
        sink.rows(entry, parts, rows.clone(), |mut parts| {
            let done = quantizer.fill((bytes, view.dtype), entry.cols as usize, chosen, &mut parts);
            done.map_err(|e| refuse(source, job, at, rows.start, e))
        })
    }
}

/// Puts rows of a strided view, whose first value `bytes` starts with, one after the other.
fn gather(bytes: &[u8], view: &SourceView, rows: &Range<u64>, cols: u64, out: &mut AlignedBuf) {
    let size = view.dtype.size();
    out.resize((rows.end - rows.start) as usize * cols as usize * size);
    let row_len = cols as usize * size;
    let (row_step, col_step) = (view.row_stride as usize * size, view.col_stride as usize * size);
    // Sixteen columns at a time: their cache lines stay at hand while the rows go by.
    for first in (0..cols as usize).step_by(16) {
        let last = (first + 16).min(cols as usize);
        for (r, row) in (rows.start as usize..).zip(out.as_mut_slice().chunks_exact_mut(row_len)) {
            for c in first..last {
                let from = r * row_step + c * col_step;
                row[c * size..(c + 1) * size].copy_from_slice(&bytes[from..from + size]);
            }
        }
    }
}

/// Names the file, tensor and position of what cannot be stored.
fn refuse(
    source: &Source<'_>,
    job: &UnitTensors<'_>,
    at: usize,
    first: u64,
    refusal: Refusal,
) -> ConvertError {
    let refusal = refusal.below(first).to_string();
    let view = &job.views[at];
    // A tensor that holds many matrices needs their name beside the position.
    let detail = match view.shape.len() {
        0..=2 => refusal,
        _ => format!("{} {}: {refusal}", job.unit, job.tensors[at].role),
    };
    source.refuse(view, detail).into()
}

/// Why some rows cannot be stored.
enum Refusal {
    /// Because of one weight or group.
    At { row: u64, col: u64, detail: String },
    /// Because of the shape.
    Shape(String),
}

impl Refusal {
    /// The same, `rows` further down.
    fn below(self, rows: u64) -> Self {
        match self {
            Self::At { row, col, detail } => Self::At { row: row + rows, col, detail },
            Self::Shape(detail) => Self::Shape(detail),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At { row, col, detail } => write!(f, "row {row}, column {col}: {detail}"),
            Self::Shape(detail) => f.write_str(detail),
        }
    }
}

impl From<QuantError> for Refusal {
    fn from(error: QuantError) -> Self {
        match error {
            QuantError::NotFinite { row, col, value } => {
                Self::At { row, col, detail: format!("expected a finite weight, found {value}") }
            }
            QuantError::ScaleRange { row, col, value, dtype } => {
                let dtype = dtype.name();
                let detail =
                    format!("{value} is too large for a scale or bias in {dtype}; use bf16 scales");
                Self::At { row, col, detail }
            }
            other => Self::Shape(other.to_string()),
        }
    }
}

/// How a tensor is stored, and its codes chosen.
struct Chosen {
    encoding: Encoding,
    method: Method,
    costs: SharedObjective,
}

impl Chosen {
    /// Rows that are worth a task of their own; none depends on others.
    fn step(&self, cols: usize) -> usize {
        match self.costs {
            SharedObjective::Hessian(_) => FEEDBACK_ROWS,
            _ => (WEIGHTS_TILE as usize / cols.max(1)).max(1),
        }
        .next_multiple_of(self.encoding.row_block() as usize)
    }
}

/// Turns values of the source's type into a tensor's encoding, some rows at a time.
struct Quantizer<'a> {
    backend: Backend,
    pool: &'a rayon::ThreadPool,
    weights: Vec<f32>,
    again: Vec<f32>,
}

/// Values of whole rows, of the source's type.
type Rows<'a> = (&'a [u8], Float);

impl<'a> Quantizer<'a> {
    fn new(pool: &'a rayon::ThreadPool) -> Self {
        Self { backend: Backend::detect(), pool, weights: Vec::new(), again: Vec::new() }
    }

    /// Fills the parts of whole rows of `cols` values.
    fn fill(
        &mut self,
        (bytes, dtype): Rows<'_>,
        cols: usize,
        chosen: &Chosen,
        out: &mut PartsMut<'_>,
    ) -> Result<QuantStats, Refusal> {
        let (step, row) = (chosen.step(cols), cols * dtype.size());
        let rows = bytes
            .chunks((step * row).max(1))
            .zip(pieces(out, chosen.encoding, step, cols)?);
        let rows = rows.enumerate();
        let mut stats = QuantStats::default();
        if !matches!(chosen.costs, SharedObjective::Hessian(_)) {
            for (at, (bytes, part)) in rows {
                let found = self.fill_few((bytes, dtype), cols, chosen, part);
                stats.merge(&found.map_err(|e| e.below((at * step) as u64))?);
            }
            return Ok(stats);
        }
        // Feedback takes as long as everything else together: it is worth all threads.
        let tasks: Vec<_> = rows.collect();
        let found: Vec<_> = self.pool.install(|| {
            let tasks = tasks.into_par_iter().with_max_len(1);
            let one = |(at, (bytes, part)): (usize, (&[u8], PartsMut<'_>))| {
                let found = Quantizer::new(self.pool).fill_few((bytes, dtype), cols, chosen, part);
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
        (bytes, dtype): Rows<'_>,
        cols: usize,
        chosen: &Chosen,
        out: PartsMut<'_>,
    ) -> Result<QuantStats, Refusal> {
        self.weights.resize(bytes.len() / dtype.size(), 0.0);
        widen(dtype, bytes, &mut self.weights);
        match chosen.encoding {
            Encoding::Affine(_) | Encoding::Trellis(_) => {
                let Chosen { encoding, method, costs } = chosen;
                let objective = costs.as_objective();
                Ok(quantize(self.backend, &self.weights, cols, *encoding, *method, objective, out)?)
            }
            Encoding::F32 => self.plain(bytes, dtype, Float::F32, cols, out.weight),
            Encoding::F16 => self.plain(bytes, dtype, Float::F16, cols, out.weight),
            Encoding::Bf16 => self.plain(bytes, dtype, Float::Bf16, cols, out.weight),
        }
    }

    /// Stores plain floats: the source's bytes where the type is the same.
    fn plain(
        &mut self,
        bytes: &[u8],
        from: Float,
        to: Float,
        cols: usize,
        out: &mut [u8],
    ) -> Result<QuantStats, Refusal> {
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
                return Err(Refusal::At { row, col, detail });
            }
            let error = f64::from(x - y);
            stats.sum_sq_error += error * error;
            stats.sum_sq += f64::from(*x) * f64::from(*x);
            stats.max_abs_error = stats.max_abs_error.max((x - y).abs());
        }
        Ok(stats)
    }
}

fn check_finite(weights: &[f32], cols: usize) -> Result<(), Refusal> {
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
) -> Result<impl Iterator<Item = PartsMut<'o>> + use<'o>, Refusal> {
    let each = encoding.parts(step as u64, cols as u64);
    let each = each.map_err(|e| Refusal::Shape(e.to_string()))?;
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
