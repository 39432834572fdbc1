//! Models to Hugging Face form: every weight dequantized, under the name, in the shape and in the
//! place that it has in a checkpoint of plain floats.

mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shardwright_format::checkpoint::{
    CONFIG_NAME, INDEX_NAME, QUANTIZATION_KEYS, SINGLE_NAME, TensorFile, describes_quantization,
    header, write_view,
};
use shardwright_format::io::{AlignedBuf, CONFIG_LIMIT};
use shardwright_format::manifest::FileKind;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::writer::publish;
use shardwright_format::{Decoder, FormatError, SourceView, Unit};
use shardwright_quant::{Backend, Float, Matrix, MatrixError, narrow};

use crate::convert::partial_path;
use crate::error::{ConvertError, Result};
use crate::plan::PlannedFile;
use places::Places;

/// The type that weights are exported in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportDtype {
    /// 32 bits: every value exactly what the model stands for.
    #[default]
    F32,
    /// That of the checkpoint's values: half the size where it is 16 bits, values of a bundle rounded once more.
    Source,
}

impl ExportDtype {
    const fn for_source(self, source: Float) -> Float {
        match self {
            Self::F32 => Float::F32,
            Self::Source => source,
        }
    }
}

/// How a model is exported.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Type of the weights.
    pub dtype: ExportDtype,
    /// A new checkpoint file is begun before one passes this many bytes.
    pub file_limit: u64,
    /// Weights dequantized at a time, and more only where a block of rows has more.
    pub tile: u64,
    /// Units up to this many bytes are read whole.
    pub whole_limit: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            dtype: ExportDtype::F32,
            file_limit: 5_000_000_000,
            tile: 1 << 20,
            whole_limit: 64 << 20,
        }
    }
}

/// What an export wrote.
#[derive(Debug)]
pub struct Exported {
    /// The files.
    pub files: Vec<PlannedFile>,
    /// How the checkpoint held tensors that are plain floats now.
    pub unquantized: BTreeSet<String>,
}

/// Writes a model as a checkpoint of plain floats to `out`.
///
/// Memory is one unit of at most 64 MiB, or a few rows of a larger one.
///
/// # Errors
/// An output that exists, an excerpt of a model, views that do not fill the checkpoint's tensors, and
/// what the operating system refuses.
pub fn to_hf(weights: &Weights, out: &Path, options: &ExportOptions) -> Result<Exported> {
    if let Some(excerpt) = weights.excerpted() {
        let detail = format!("{excerpt}: expected a model of all layers, as config.json says");
        return Err(FormatError::file(weights.root(), detail).into());
    }
    let partial = partial_path(out);
    for path in [out, &partial] {
        if path.symlink_metadata().is_ok() {
            let detail = "already exists; remove it or choose another name".to_owned();
            return Err(ConvertError::Output { path: path.to_owned(), detail });
        }
    }
    std::fs::create_dir_all(&partial).map_err(|e| FormatError::io(&partial, e))?;
    let exported = export(weights, &partial, options)
        .and_then(|exported| Ok((publish(&partial, out)?, exported).1));
    if exported.is_err() {
        // Nothing half-made is left; that it cannot be removed is no news after the first error.
        let _ = std::fs::remove_dir_all(&partial);
    }
    exported
}

fn export(weights: &Weights, dir: &Path, options: &ExportOptions) -> Result<Exported> {
    let places = Places::new(weights.spec());
    let (tensors, unquantized) = tensors(weights, &places, options.dtype)?;
    let writing = Writing::create(dir, &tensors, &places, options)?;
    let mut buf = AlignedBuf::default();
    for unit in weights.units() {
        writing.unit(weights, unit, &mut buf)?;
    }
    let mut files = writing.finish(dir, &tensors)?;
    let plain = unquantized.is_empty() && options.dtype == ExportDtype::Source;
    for path in companions(weights)? {
        let size = if path == CONFIG_NAME && !plain {
            write_config(weights, dir, options.dtype)?
        } else {
            copy(weights, dir, &path)?
        };
        files.push(PlannedFile { path, size });
    }
    Ok(Exported { files, unquantized })
}

/// Files beside the weights that belong to a checkpoint of plain floats.
fn companions(weights: &Weights) -> Result<Vec<String>> {
    let mut paths = match (weights.bundle(), weights.checkpoint()) {
        (Some(bundle), _) => {
            let copies = bundle.manifest().files.iter();
            let copies = copies.filter(|file| file.kind == FileKind::Copy);
            copies.map(|file| file.path.clone()).collect()
        }
        (_, Some((checkpoint, _))) => checkpoint.copies()?,
        (None, None) => Vec::new(),
    };
    paths.retain(|path| !describes_quantization(path));
    Ok(paths)
}

/// A tensor of the exported checkpoint.
struct Tensor {
    dtype: Float,
    shape: Vec<u64>,
    /// Values that some unit of the model fills.
    filled: u64,
}

impl Tensor {
    fn values(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Every tensor by name, and how the checkpoint held those that are floats only here.
fn tensors(
    weights: &Weights,
    places: &Places,
    dtype: ExportDtype,
) -> Result<(BTreeMap<String, Tensor>, BTreeSet<String>)> {
    let (mut tensors, mut unquantized) = (BTreeMap::<String, Tensor>::new(), BTreeSet::new());
    for unit in weights.units() {
        for entry in weights.layout(unit)?.tensors.iter() {
            let coded = entry.source.decoder.as_ref();
            unquantized.extend(coded.filter(|d| !d.is_plain()).map(Decoder::label));
            let view = places.view(unit, entry);
            let new =
                || Tensor { dtype: dtype.for_source(view.dtype), shape: view.shape, filled: 0 };
            tensors.entry(view.tensor).or_insert_with(new).filled += entry.rows * entry.cols;
        }
    }
    match tensors.iter().find(|(_, t)| t.filled != t.values()) {
        None => Ok((tensors, unquantized)),
        Some((name, t)) => Err(ConvertError::Plan(format!(
            "tensor `{name}`: expected {} values of shape {:?}, the model holds {}",
            t.values(),
            t.shape,
            t.filled
        ))),
    }
}

/// Where a tensor lies in the exported files.
#[derive(Clone, Copy)]
struct Spot {
    file: usize,
    /// Its first byte.
    base: u64,
}

/// The exported files, open.
struct Writing<'a> {
    places: &'a Places,
    options: &'a ExportOptions,
    files: Vec<(PathBuf, File)>,
    spots: BTreeMap<String, Spot>,
}

impl<'a> Writing<'a> {
    /// Writes the headers and makes room for the weights.
    fn create(
        dir: &Path,
        tensors: &BTreeMap<String, Tensor>,
        places: &'a Places,
        options: &'a ExportOptions,
    ) -> Result<Self> {
        let groups = split(tensors, options.file_limit);
        let (files, spots) = (Vec::new(), BTreeMap::new());
        let mut writing = Self { places, options, files, spots };
        for (at, names) in groups.iter().enumerate() {
            let name = match groups.len() {
                1 => SINGLE_NAME.to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
            };
            let path = dir.join(name);
            let entries = names.iter().map(|name| (*name, &tensors[*name]));
            let listed = entries
                .clone()
                .map(|(name, t)| (name, t.dtype, t.shape.as_slice()));
            let metadata = [("format".to_owned(), "pt".to_owned())];
            let header = header::encode(&path, &metadata, listed)?;
            let mut base = header.len() as u64;
            for (name, tensor) in entries {
                writing
                    .spots
                    .insert(name.to_owned(), Spot { file: at, base });
                base += tensor.values() * tensor.dtype.size() as u64;
            }
            let io = |e| FormatError::io(&path, e);
            let mut options = File::options();
            let options = options.read(true).write(true).create_new(true);
            let file = options.open(&path).map_err(io)?;
            file.write_all_at(&header, 0).map_err(io)?;
            file.set_len(base).map_err(io)?;
            writing.files.push((path, file));
        }
        Ok(writing)
    }

    /// Writes every tensor of a unit.
    fn unit(&self, weights: &Weights, unit: Unit, buf: &mut AlignedBuf) -> Result<()> {
        let layout = weights.layout(unit)?;
        let whole = layout.len <= self.options.whole_limit;
        if whole {
            weights.read(unit, buf)?;
        }
        for entry in layout.tensors.iter() {
            let view = self.places.view(unit, entry);
            let dtype = self.options.dtype.for_source(view.dtype);
            let block = entry.encoding.row_block();
            let step = (self.options.tile / entry.cols.max(1) / block).max(1) * block;
            for start in (0..entry.rows).step_by(step as usize) {
                let rows = start..(start + step).min(entry.rows);
                let values = dequantized(weights, (unit, entry), rows.clone(), whole, buf)?;
                self.rows(&view, rows, dtype, &values)?;
            }
        }
        Ok(())
    }

    /// Puts rows of a view where they lie in their tensor.
    fn rows(
        &self,
        view: &SourceView,
        rows: Range<u64>,
        dtype: Float,
        values: &[f32],
    ) -> Result<()> {
        let Some(spot) = self.spots.get(&view.tensor) else { return Ok(()) };
        let (path, file) = &self.files[spot.file];
        let mut bytes = vec![0; values.len() * dtype.size()];
        narrow(dtype, values, &mut bytes);
        let to = TensorFile { path, file, offset: spot.base, size: dtype.size() };
        Ok(write_view(view, rows, &bytes, &to)?)
    }

    /// Makes the files durable and writes the index of more than one.
    fn finish(self, dir: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<PlannedFile>> {
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let mut written = Vec::new();
        for (path, file) in &self.files {
            let io = |e| FormatError::io(path, e);
            file.sync_all().map_err(io)?;
            let size = file.metadata().map_err(io)?.len();
            written.push(PlannedFile { path: name(path), size });
        }
        if self.files.len() > 1 {
            let total: u64 = tensors
                .values()
                .map(|t| t.values() * t.dtype.size() as u64)
                .sum();
            let map = self.spots.iter();
            let map =
                map.map(|(tensor, spot)| (tensor.clone(), json!(name(&self.files[spot.file].0))));
            let map: serde_json::Map<_, _> = map.collect();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            let size = write_json(&dir.join(INDEX_NAME), &index)?;
            written.push(PlannedFile { path: INDEX_NAME.to_owned(), size });
        }
        Ok(written)
    }
}

/// The values of `rows`, which can be read alone, row-major: from the unit in `buf` where it is
/// `whole`, else from the files.
fn dequantized(
    weights: &Weights,
    (unit, entry): (Unit, &TensorEntry),
    rows: Range<u64>,
    whole: bool,
    buf: &mut AlignedBuf,
) -> Result<Vec<f32>> {
    let refuse =
        |e: MatrixError| FormatError::file(weights.root(), format!("{unit} {}: {e}", entry.role));
    let (first, count) = (rows.start as usize, (rows.end - rows.start) as usize);
    let mut values = vec![0.0; count * entry.cols as usize];
    let matrix = |rows: u64, bytes| {
        Matrix::new(entry.encoding, rows as usize, entry.cols as usize, bytes).map_err(refuse)
    };
    if whole {
        let len = entry.byte_len().map_err(|e| refuse(e.into()))?;
        let bytes = &buf.as_slice()[entry.offset as usize..][..len as usize];
        let matrix = matrix(entry.rows, bytes)?;
        matrix.dequantize(Backend::detect(), first..first + count, &mut values);
    } else {
        weights.read_rows(unit, entry, rows, buf)?;
        let matrix = matrix(count as u64, buf.as_slice())?;
        matrix.dequantize(Backend::detect(), 0..count, &mut values);
    }
    Ok(values)
}

/// Names in order, cut before a file passes the limit.
fn split(tensors: &BTreeMap<String, Tensor>, limit: u64) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = vec![Vec::new()];
    let mut size = 0;
    for (name, tensor) in tensors {
        let len = tensor.values() * tensor.dtype.size() as u64;
        if size + len > limit && size > 0 {
            groups.push(Vec::new());
            size = 0;
        }
        size += len;
        if let Some(group) = groups.last_mut() {
            group.push(name);
        }
    }
    groups
}

fn write_json(path: &Path, value: &Value) -> Result<u64> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| FormatError::file(path, e.to_string()))?;
    bytes.push(b'\n');
    std::fs::write(path, &bytes).map_err(|e| FormatError::io(path, e))?;
    Ok(bytes.len() as u64)
}

/// Copies a file, or writes the one that a GGUF file describes; gives its size.
fn copy(weights: &Weights, dir: &Path, path: &str) -> Result<u64> {
    let (from, to) = (weights.root().join(path), dir.join(path));
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|e| FormatError::io(parent, e))?;
    }
    let checkpoint = weights.checkpoint().map(|(checkpoint, _)| checkpoint);
    if let Some(made) = checkpoint
        .map(|c| c.synthesized(path))
        .transpose()?
        .flatten()
    {
        std::fs::write(&to, made).map_err(|e| FormatError::io(&to, e))?;
        return Ok(made.len() as u64);
    }
    Ok(std::fs::copy(&from, &to).map_err(|e| FormatError::io(&from, e))?)
}

/// Writes `config.json` with the weights' new type, and without a word of codes; gives its size.
fn write_config(weights: &Weights, dir: &Path, dtype: ExportDtype) -> Result<u64> {
    let from = weights.root().join(CONFIG_NAME);
    let text = weights
        .companion(CONFIG_NAME, CONFIG_LIMIT)?
        .unwrap_or_default();
    let config = serde_json::from_slice::<Value>(&text);
    let mut config = config.map_err(|e| FormatError::file(&from, e.to_string()))?;
    for place in ["", "/text_config"] {
        if let Some(Value::Object(config)) = config.pointer_mut(place) {
            for key in QUANTIZATION_KEYS {
                config.shift_remove(*key);
            }
        }
        if dtype == ExportDtype::Source {
            continue;
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(value) = config.pointer_mut(&format!("{place}/{key}")) {
                *value = json!("float32");
            }
        }
    }
    write_json(&dir.join(CONFIG_NAME), &config)
}
