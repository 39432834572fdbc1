//! Statistics into a file, a layer at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use shardwright_format::checkpoint::header;
use shardwright_format::io::replace;
use shardwright_format::manifest;
use shardwright_format::report::LayerCoverage;
use shardwright_format::{FormatError, ModelSpec};
use shardwright_quant::Float;

use super::Corpus;
use super::observe::{Keep, observe};
use super::saved::{RECORD, name};
use super::statistics::{Hessian, InputKey, InputStats};
use crate::error::Result;

/// Runs the text through the original and writes what it shows of the inputs to `path`, by way of a file beside it:
/// how often experts were picked, per layer that has some. `progress` is told the layers done.
///
/// # Errors
/// Weights that cannot be read, values that are not finite, a stop by the caller, and what the operating system refuses.
pub fn save_statistics(
    path: &Path,
    corpus: &Corpus,
    keep: Keep,
    threads: usize,
    cancel: &AtomicBool,
    progress: &dyn Fn(u32),
) -> Result<Vec<LayerCoverage>> {
    let mut seen = Vec::new();
    replace(path, |partial| {
        let mut writer = Writer::new(partial, corpus.original.spec(), &corpus.record)?;
        let mut take = |inputs: InputStats| writer.add(&inputs, keep);
        seen = observe(corpus, threads, cancel, progress, &mut take)?;
        writer.finish()
    })?;
    Ok(seen)
}

/// Bytes by which what a header says of a place may be longer than was counted: in another order its two offsets have
/// more digits.
const DIGITS: usize = 2 * 20;

/// A file of statistics. Its header comes last, into room that is left for one with every place of the model: which of
/// them the text reaches is not known before.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    metadata: Vec<(String, String)>,
    /// Bytes before the first value.
    room: u64,
    /// What was written, in its order.
    written: Vec<(String, Vec<u64>)>,
}

impl Writer {
    /// Begins the file `path` for what `record` was observed with, of a model.
    ///
    /// # Errors
    /// What the operating system refuses.
    fn new(path: &Path, spec: &ModelSpec, record: &manifest::Calibration) -> Result<Self> {
        let record = serde_json::to_string(record);
        let record = record.map_err(|e| FormatError::file(path, e.to_string()))?;
        let metadata = vec![(RECORD.to_owned(), record)];
        let all = places(spec).into_iter();
        let all: Vec<_> = all
            .map(|(key, cols)| (name(key), vec![cols, cols]))
            .collect();
        let room = (encoded(path, &metadata, &all)?.len() + DIGITS * all.len()) as u64;
        let io = |e| FormatError::io(path, e);
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        file.seek(SeekFrom::Start(room)).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, metadata, room, written: Vec::new() })
    }

    /// Adds what was observed of some places, as much of it as is to be kept.
    ///
    /// # Errors
    /// What the operating system refuses.
    fn add(&mut self, inputs: &InputStats, keep: Keep) -> Result<()> {
        for (key, hessian) in inputs {
            let cols = hessian.cols() as u64;
            let (shape, values) = match (hessian, keep) {
                (Hessian::Full(values), Keep::Full) => (vec![cols, cols], Cow::from(values)),
                (other, _) => (vec![cols], Cow::from(other.diagonal())),
            };
            for value in values.iter() {
                let written = self.file.write_all(&value.to_le_bytes());
                written.map_err(|e| FormatError::io(&self.path, e))?;
            }
            self.written.push((name(*key), shape));
        }
        Ok(())
    }

    /// Writes the header.
    ///
    /// # Errors
    /// What the operating system refuses; places that the model does not have.
    fn finish(mut self) -> Result<()> {
        let io = |e| FormatError::io(&self.path, e);
        let mut bytes = encoded(&self.path, &self.metadata, &self.written)?;
        if bytes.len() as u64 > self.room {
            let detail = "more places than the model has inputs";
            return Err(FormatError::file(&self.path, detail).into());
        }
        // Spaces behind the JSON are a part of it.
        bytes.resize(self.room as usize, b' ');
        bytes[..header::PREFIX_LEN as usize]
            .copy_from_slice(&(self.room - header::PREFIX_LEN).to_le_bytes());
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&bytes).map_err(io)?;
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        Ok(file.sync_all().map_err(io)?)
    }
}

fn encoded(
    path: &Path,
    metadata: &[(String, String)],
    tensors: &[(String, Vec<u64>)],
) -> Result<Vec<u8>> {
    let tensors = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), Float::F32, &shape[..]));
    Ok(header::encode(path, metadata, tensors)?)
}

/// Every place of a model, and its inputs.
fn places(spec: &ModelSpec) -> BTreeMap<InputKey, u64> {
    let tensors = spec
        .units()
        .flat_map(|unit| spec.tensors(unit).into_iter().map(move |t| (unit, t)));
    let keys = tensors.filter_map(|(unit, t)| Some((InputKey::for_tensor(unit, t.role)?, t.cols)));
    keys.collect()
}
