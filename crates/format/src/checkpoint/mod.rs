//! A Hugging Face checkpoint: a directory of `config.json`, `.safetensors` files and whatever else
//! belongs to the model; or a GGUF file in place of both. Opening it reads headers only.

mod decode;
mod discover;
mod dtype;
mod entries;
pub mod gguf;
mod group;
pub mod header;
mod hub;
mod index;
mod listing;
mod names;
mod view;
pub mod weights;
pub(crate) mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use shardwright_quant::{Float, widen};

use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, ReadFile, read_required};
use crate::unit::SourceView;
use index::Index;

pub use decode::Fetch;
pub use dtype::Dtype;
pub(crate) use entries::Entries;
pub use group::{QUANTIZATION_KEYS, Quantization};
pub use hub::{is_repository, resolve};
pub use index::INDEX_NAME;
pub use listing::{Skipped, clutter};
pub use view::{read_affine, read_view, read_view_through, view_extents};
pub use weights::CheckpointWeights;

/// The model's configuration.
pub const CONFIG_NAME: &str = "config.json";
/// The one file of a checkpoint that is not split.
pub const SINGLE_NAME: &str = "model.safetensors";
/// What the names of checkpoint files end in.
const FILE_SUFFIX: &str = ".safetensors";

/// An open checkpoint: its configuration, headers and file handles, no weights.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    config_path: PathBuf,
    config: Value,
    /// Bytes of a `config.json` that no file holds.
    made_config: Option<Vec<u8>>,
    /// Whether only what belongs to every model is taken from the directory.
    alone: bool,
    files: Vec<CheckpointFile>,
    stored: BTreeMap<String, StoredTensor>,
    tensors: BTreeMap<String, TensorInfo>,
    quantization: Option<Quantization>,
    /// Names of files whose tensors [`Self::keep`] left out.
    left_out: BTreeSet<String>,
    notes: Vec<String>,
}

/// One `.safetensors` or GGUF file.
#[derive(Debug)]
pub struct CheckpointFile {
    /// Path from the checkpoint's directory.
    pub name: String,
    /// The open file.
    pub file: ReadFile,
    /// The byte at which its data starts.
    pub header_len: u64,
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Position in [`Checkpoint::files`].
    pub file: usize,
    /// Type of its values.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A tensor of weights: as stored, or decoded from several stored ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Position in [`Checkpoint::files`]; of the part with the values or codes if it is decoded.
    pub file: usize,
    /// Type of its values, once decoded.
    pub dtype: Float,
    /// Outermost dimension first, once decoded.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes there.
    pub len: u64,
    /// How its values are made, if it is quantized.
    pub decoder: Option<Decoder>,
}

impl TensorInfo {
    /// Values.
    pub fn values(&self) -> u64 {
        // No overflow: the header's check, or that of grouping, has multiplied them.
        self.shape.iter().product()
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`, which may be a GGUF file, a snapshot of the Hugging Face cache,
    /// or what [`resolve`] finds one by.
    ///
    /// The checkpoint files are those of the index; without one that fits `model.safetensors` alone,
    /// a complete numbered set, or every `.safetensors` file; or the one GGUF model.
    ///
    /// # Errors
    /// A missing or malformed `config.json`, index or header; two complete models that differ; a
    /// tensor that two files hold; what is no checkpoint, by name; quantized tensors of an unknown scheme, or whose parts are
    /// missing, left over or disagree.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = &resolve(dir);
        refuse_part(dir)?;
        if let Some(file) = gguf::find(dir)? {
            return gguf::open(&file, dir.is_file());
        }
        let config_path = dir.join(CONFIG_NAME);
        if let Some(wrong) = wrong::directory(dir).filter(|_| !config_path.exists()) {
            return Err(FormatError::file(dir, wrong));
        }
        let config = read_config(&config_path)?;
        let found = discover::find(dir)?;
        let mut opened = Self::empty(dir, config_path, config);
        for name in found.names {
            opened.add_file(name, found.index.is_some())?;
        }
        opened.check_rival(found.rival)?;
        opened.notes.extend(found.notes);
        opened
            .notes
            .extend(found.index.and_then(|index| opened.differences(&index)));
        opened.notes.extend(names::normalize(&mut opened.stored));
        opened.refuse_unmerged()?;
        let (tensors, quantization) = group::group(&opened)?;
        (opened.tensors, opened.quantization) = (tensors, quantization);
        Ok(opened)
    }

    fn empty(root: &Path, config_path: PathBuf, config: Value) -> Self {
        Self {
            root: root.to_owned(),
            config_path,
            config,
            made_config: None,
            alone: false,
            files: Vec::new(),
            stored: BTreeMap::new(),
            tensors: BTreeMap::new(),
            quantization: None,
            left_out: BTreeSet::new(),
            notes: Vec::new(),
        }
    }

    /// What is odd about the checkpoint and was put right: a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bytes of one of [`Self::copies`] that no file of the checkpoint holds: `config.json`
    /// made from the metadata of a GGUF file.
    pub fn made(&self, path: &str) -> Option<&[u8]> {
        self.made_config.as_deref().filter(|_| path == CONFIG_NAME)
    }

    /// Whether the checkpoint is a file, and what else lies in its directory no part of it.
    pub const fn is_alone(&self) -> bool {
        self.alone
    }

    /// The object of `config.json`.
    pub const fn config(&self) -> &Value {
        &self.config
    }

    /// The path of `config.json`, or of the file that says what would be in it.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// The checkpoint files, sorted by name.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Every tensor of weights by name, quantized ones as they are once decoded.
    pub const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Every tensor by name as the files hold it.
    pub const fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    /// Bytes that the tensor of a view takes in the checkpoint's files, all parts of a quantized one
    /// together; 0 for one that it does not hold.
    pub fn stored_len(&self, view: &SourceView) -> u64 {
        let parts = view.decoder.as_ref().map(Decoder::parts);
        let parts = parts.unwrap_or_else(|| vec![view.tensor.as_str()]);
        let stored = parts.into_iter().filter_map(|part| self.stored.get(part));
        stored.map(|stored| stored.len).sum()
    }

    /// Stored tensors that are neither weights nor parts of any: integers that no scheme reads.
    pub fn undecoded(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        let parts = self
            .tensors
            .values()
            .filter_map(|info| info.decoder.as_ref());
        let parts: BTreeSet<_> = parts.flat_map(Decoder::parts).collect();
        let part = move |name: &str| parts.contains(name) || self.is_spare(name);
        let stored = self
            .stored
            .iter()
            .map(|(name, stored)| (name.as_str(), stored));
        stored.filter(move |(name, _)| !self.tensors.contains_key(*name) && !part(name))
    }

    /// Bytes of the files that a view of so many values is made of, its share of them where the
    /// tensor has more; none for a tensor that is not there.
    pub fn stored_bytes(&self, view: &SourceView, values: u64) -> Option<u64> {
        let info = self.tensors.get(&view.tensor)?;
        let Some(decoder) = &info.decoder else { return Some(values * info.dtype.size() as u64) };
        let parts = decoder.parts().into_iter();
        let len: u64 = parts
            .filter_map(|name| Some(self.stored.get(name)?.len))
            .sum();
        let share = u128::from(len) * u128::from(values) / u128::from(info.values().max(1));
        u64::try_from(share).ok()
    }

    /// What is quantized and how; none for a checkpoint of plain floats.
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    fn is_spare(&self, name: &str) -> bool {
        let spare = self.quantization.as_ref().map(|q| &q.spare);
        spare.is_some_and(|spare| spare.contains_key(name))
    }

    /// The path of the file that holds a tensor of this checkpoint, or its values or codes.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.files[tensor.file].file.path()
    }

    /// Whether two tensors hold the same bytes, decoded alike. Reads both, piece by piece.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn same_bytes(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        let nameless =
            |info: &TensorInfo| info.decoder.as_ref().map(|d| d.renamed(|_| String::new()));
        if a.shape != b.shape || a.dtype != b.dtype || nameless(a) != nameless(b) {
            return Ok(false);
        }
        let (Some(x), Some(y)) = (&a.decoder, &b.decoder) else {
            let (a, b) = ((a.file, a.offset, a.len), (b.file, b.offset, b.len));
            return self.same_range(a, self, b);
        };
        for (x, y) in x.parts().into_iter().zip(y.parts()) {
            let (x, y) = (&self.stored[x], &self.stored[y]);
            let (x, y) = ((x.file, x.offset, x.len), (y.file, y.offset, y.len));
            if !self.same_range(x, self, y)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two matrices of plain floats of different types hold the same values. Reads both.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn same_floats(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        const PIECE: u64 = 1 << 18;
        if a.shape != b.shape || a.decoder.is_some() || b.decoder.is_some() {
            return Ok(false);
        }
        let read = |info: &TensorInfo, first: u64, count: u64| -> Result<Vec<f32>> {
            let size = info.dtype.size() as u64;
            let mut bytes = vec![0; (count * size) as usize];
            self.files[info.file]
                .file
                .read_at(info.offset + first * size, &mut bytes)?;
            let mut values = vec![0.0; count as usize];
            widen(info.dtype, &bytes, &mut values);
            Ok(values)
        };
        for first in (0..a.values()).step_by(PIECE as usize) {
            let count = PIECE.min(a.values() - first);
            if read(a, first, count)? != read(b, first, count)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two ranges, of this checkpoint and of another, hold the same bytes: file, first byte,
    /// length.
    fn same_range(&self, a: (usize, u64, u64), other: &Self, b: (usize, u64, u64)) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        if a.2 != b.2 {
            return Ok(false);
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for at in (0..a.2).step_by(PIECE as usize) {
            let len = PIECE.min(a.2 - at) as usize;
            left.resize(len, 0);
            right.resize(len, 0);
            self.files[a.0].file.read_at(a.1 + at, &mut left)?;
            other.files[b.0].file.read_at(b.1 + at, &mut right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets the tensors that `wanted` does not hold for, and the files that hold no others.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| wanted(name));
        let decoders = self
            .tensors
            .values()
            .filter_map(|info| info.decoder.as_ref());
        let parts: BTreeSet<_> = decoders.flat_map(Decoder::parts).collect();
        self.stored
            .retain(|name, _| wanted(name) || parts.contains(name.as_str()));
        if let Some(quantization) = &mut self.quantization {
            quantization.spare.retain(|name, _| wanted(name));
        }
        let used: BTreeSet<_> = self.stored.values().map(|stored| stored.file).collect();
        let number = |file| used.range(..file).count();
        self.tensors
            .values_mut()
            .for_each(|info| info.file = number(info.file));
        self.stored
            .values_mut()
            .for_each(|stored| stored.file = number(stored.file));
        for (at, file) in std::mem::take(&mut self.files).into_iter().enumerate() {
            if used.contains(&at) {
                self.files.push(file);
            } else {
                self.left_out.insert(file.name);
            }
        }
    }

    /// Opens one file and takes in its tensors.
    fn add_file(&mut self, name: String, indexed: bool) -> Result<()> {
        let path = self.root.join(&name);
        let file = ReadFile::open(&path).map_err(|e| match e {
            FormatError::Io { source, .. } if indexed => {
                FormatError::file(&path, format!("named by {INDEX_NAME}: {source}"))
            }
            e => e,
        })?;
        let (header, header_len) = header::read(&file)?;
        let at = self.files.len();
        for (tensor, found) in header.tensors {
            if let Some(other) = self.stored.get(&tensor) {
                let detail = format!("`{}` holds it too", self.files[other.file].name);
                return Err(FormatError::tensor(&path, &tensor, detail));
            }
            let (offset, len) = (header_len + found.begin, found.end - found.begin);
            let stored =
                StoredTensor { file: at, dtype: found.dtype, shape: found.shape, offset, len };
            self.stored.insert(tensor, stored);
        }
        self.files.push(CheckpointFile { name, file, header_len });
        Ok(())
    }

    /// Where the index and the files disagree, if they do. The files are right: what the model needs
    /// and they do not hold is missed later.
    fn differences(&self, index: &Index) -> Option<String> {
        let holder = |tensor: &String| {
            let stored = self.stored.get(tensor)?;
            Some(self.files[stored.file].name.as_str())
        };
        let wrong = index.files.iter();
        let wrong = wrong.filter(|(tensor, file)| holder(tensor) != Some(file.as_str()));
        let unlisted = self.stored.keys();
        let unlisted = unlisted.filter(|tensor| !index.files.contains_key(*tensor));
        let odd: Vec<_> = wrong.map(|(tensor, _)| tensor).chain(unlisted).collect();
        let first = odd.first()?;
        let more = match odd.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        Some(format!(
            "{INDEX_NAME} does not place `{first}`{more} as the files do, which are right"
        ))
    }

    /// Refuses another complete set of files beside this one, unless it holds the same values.
    fn check_rival(&mut self, names: BTreeSet<String>) -> Result<()> {
        let Some(first) = names.first().cloned() else { return Ok(()) };
        let mut rival = Self::empty(&self.root, self.config_path.clone(), Value::Null);
        // What cannot be read is no model to confuse this one with.
        if names
            .into_iter()
            .any(|name| rival.add_file(name, false).is_err())
        {
            return Ok(());
        }
        let shared = self.stored.iter();
        let shared = shared.filter_map(|(name, a)| Some((name, a, rival.stored.get(name)?)));
        let shared: Vec<_> = shared.collect();
        if shared.len() * 2 < self.stored.len() {
            return Ok(());
        }
        for (name, a, b) in shared {
            let alike = (a.dtype, &a.shape) == (b.dtype, &b.shape);
            let (x, y) = ((a.file, a.offset, a.len), (b.file, b.offset, b.len));
            if !alike || !self.same_range(x, &rival, y)? {
                let detail = format!(
                    "two complete models that differ, `{}` and `{first}` (first in tensor `{name}`): \
                     keep one of them here",
                    self.files[0].name
                );
                return Err(FormatError::file(&self.root, detail));
            }
        }
        self.notes.push(format!(
            "`{first}` holds the same weights as `{}` and is not read",
            self.files[0].name
        ));
        Ok(())
    }

    /// Refuses weights of an adapter among those of its model.
    fn refuse_unmerged(&self) -> Result<()> {
        let lora = |name: &&String| name.contains(".lora_A.") || name.contains(".lora_B.");
        let Some(name) = self.stored.keys().find(lora) else { return Ok(()) };
        let path = self.files[self.stored[name].file].file.path();
        let detail =
            "weights of an adapter that is not merged: merge it, with merge_and_unload of peft";
        Err(FormatError::tensor(path, name, detail))
    }
}

/// Refuses a file of a checkpoint in place of its directory.
fn refuse_part(path: &Path) -> Result<()> {
    let part = path.extension().and_then(|end| end.to_str());
    if !part.is_some_and(|end| ["safetensors", "json", "bin"].contains(&end)) || !path.is_file() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let detail = format!("one file of a checkpoint: name its directory, {}", parent.display());
    Err(FormatError::file(path, detail))
}

fn read_config(path: &Path) -> Result<Value> {
    let text = read_required(path, CONFIG_LIMIT)?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|e| FormatError::file(path, e.to_string()))?;
    if config.is_object() {
        Ok(config)
    } else {
        Err(FormatError::file(path, "expected a JSON object"))
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
