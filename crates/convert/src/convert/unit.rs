//! Converts one unit: reads its tensors tile by tile, quantizes them, fills a sink.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use shardwright_format::checkpoint::read_view;
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::{SourceView, Unit};
use shardwright_quant::{
    Backend, Encoding, Float, Guide, Method, Parts, PartsMut, QuantError, QuantStats, narrow,
    quantize, widen,
};

use super::memory::{GATHER_LIMIT, SOURCE_TILE, WEIGHTS_TILE};
use super::sink::Sink;
use super::source::{Reader, Source, extent};
use crate::error::{ConvertError, Result};

/// One thread's buffers and what it reads from.
pub struct Worker<'a> {
    pub reader: Reader<'a>,
    pub stop: &'a AtomicBool,
    /// A tile of the source, row-major, when it does not lie so in the file.
    gathered: AlignedBuf,
    quantizer: Quantizer,
}

/// A unit's tensors, where its experts' values come from filled in.
pub struct UnitJob<'p> {
    pub unit: Unit,
    pub tensors: &'p [TensorEntry],
    pub methods: &'p [Method],
    pub views: Vec<SourceView>,
}

impl<'p> UnitJob<'p> {
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

impl<'a> Worker<'a> {
    pub fn new(reader: Reader<'a>, stop: &'a AtomicBool) -> Self {
        let backend = Backend::detect();
        let quantizer = Quantizer { backend, weights: Vec::new(), again: Vec::new() };
        Self { reader, stop, gathered: AlignedBuf::default(), quantizer }
    }

    /// Converts every tensor of a unit; gives what each lost, or none when asked to stop.
    pub fn convert(
        &mut self,
        job: &UnitJob<'_>,
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
    pub fn prefetch(&self, job: &UnitJob<'_>) -> Result<()> {
        for (entry, view) in job.tensors.iter().zip(&job.views) {
            let info = self.reader.source.info(view)?;
            let mut range = extent(info, view, 0..entry.rows, entry.cols);
            range.end = range.end.min(range.start + 4 * SOURCE_TILE);
            self.reader.source.prefetch(info.file, &range);
        }
        Ok(())
    }

    fn tensor(
        &mut self,
        job: &UnitJob<'_>,
        at: usize,
        sink: &mut Sink<'_>,
    ) -> Result<Option<QuantStats>> {
        let (entry, view) = (&job.tensors[at], &job.views[at]);
        let row_bytes = (entry.cols * view.dtype.size() as u64).max(1);
        let step = (SOURCE_TILE / row_bytes).clamp(1, entry.rows.max(1));
        let parts = entry.encoding.parts(entry.rows, entry.cols);
        let parts =
            parts.map_err(|e| ConvertError::Plan(format!("{} {}: {e}", job.unit, entry.role)))?;
        let mut stats = QuantStats::default();
        for start in (0..entry.rows).step_by(step as usize) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let rows = start..(start + step).min(entry.rows);
            stats.merge(&self.tile(job, at, parts, rows, sink)?);
        }
        Ok(Some(stats))
    }

    fn tile(
        &mut self,
        job: &UnitJob<'_>,
        at: usize,
        parts: Parts,
        rows: Range<u64>,
        sink: &mut Sink<'_>,
    ) -> Result<QuantStats> {
        let (entry, view, method) = (&job.tensors[at], &job.views[at], job.methods[at]);
        let source = self.reader.source;
        let info = source.info(view)?;
        let bytes = if is_packed(view, entry) {
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
            let done = quantizer.fill(bytes, view.dtype, entry, method, &mut parts);
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
    job: &UnitJob<'_>,
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

/// Turns values of the source's type into a tensor's encoding, a few rows at a time.
struct Quantizer {
    backend: Backend,
    weights: Vec<f32>,
    again: Vec<f32>,
}

impl Quantizer {
    /// Fills the parts of whole rows from `bytes`, values of `dtype`.
    fn fill(
        &mut self,
        bytes: &[u8],
        dtype: Float,
        entry: &TensorEntry,
        method: Method,
        out: &mut PartsMut<'_>,
    ) -> Result<QuantStats, Refusal> {
        let cols = entry.cols as usize;
        let step = (WEIGHTS_TILE as usize / cols.max(1)).max(1);
        let rows = bytes.len() / (cols * dtype.size()).max(1);
        let (weight, scales, biases) = (out.weight.len(), out.scales.len(), out.biases.len());
        let (weight, scales, biases) =
            (weight / rows.max(1), scales / rows.max(1), biases / rows.max(1));
        let mut stats = QuantStats::default();
        for first in (0..rows).step_by(step) {
            let last = (first + step).min(rows);
            let part = PartsMut {
                weight: &mut out.weight[first * weight..last * weight],
                scales: &mut out.scales[first * scales..last * scales],
                biases: &mut out.biases[first * biases..last * biases],
            };
            let bytes = &bytes[first * cols * dtype.size()..last * cols * dtype.size()];
            let found = self.fill_few(bytes, dtype, cols, entry.encoding, method, part);
            stats.merge(&found.map_err(|e| e.below(first as u64))?);
        }
        Ok(stats)
    }

    fn fill_few(
        &mut self,
        bytes: &[u8],
        dtype: Float,
        cols: usize,
        encoding: Encoding,
        method: Method,
        out: PartsMut<'_>,
    ) -> Result<QuantStats, Refusal> {
        self.weights.resize(bytes.len() / dtype.size(), 0.0);
        widen(dtype, bytes, &mut self.weights);
        match encoding {
            Encoding::Affine(_) | Encoding::Trellis(_) => {
                let guide = Guide::Weights;
                Ok(quantize(self.backend, &self.weights, cols, encoding, method, guide, out)?)
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
