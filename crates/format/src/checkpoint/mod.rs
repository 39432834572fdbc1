//! A Hugging Face checkpoint: a directory of `config.json`, `.safetensors` files and whatever else
//! belongs to the model; or a GGUF file in place of both. Opening it reads headers only.

mod decode;
mod dtype;
mod entries;
pub mod gguf;
mod group;
pub mod header;
mod index;
mod listing;
mod view;
pub mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shardwright_quant::Float;

use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, INDEX_LIMIT, ReadFile, read_limited, read_required};
use crate::unit::SourceView;
use index::Index;

pub use decode::Fetch;
pub use dtype::Dtype;
pub(crate) use entries::Entries;
pub use group::{QUANTIZATION_KEYS, Quantization};
pub use index::INDEX_NAME;
pub use listing::Skipped;
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
    /// Opens the checkpoint in `dir`, which may be a snapshot of the Hugging Face cache, or a GGUF
    /// file.
    ///
    /// The checkpoint files are those of the index; without one `model.safetensors` alone;
    /// without that every `.safetensors` file, or the one GGUF model.
    ///
    /// # Errors
    /// A missing or malformed `config.json`, index or header; an index and files that disagree;
    /// a tensor that two files hold; quantized tensors of an unknown scheme, or whose parts are
    /// missing, left over or disagree.
    pub fn open(dir: &Path) -> Result<Self> {
        if let Some(file) = gguf::find(dir)? {
            return gguf::open(&file, dir.is_file());
        }
        let config_path = dir.join(CONFIG_NAME);
        let config = read_config(&config_path)?;
        let index = read_index(&dir.join(INDEX_NAME))?;
        let names = match &index {
            Some(index) => index.file_names(),
            None => unindexed_names(dir)?,
        };
        let mut opened = Self {
            root: dir.to_owned(),
            config_path,
            config,
            made_config: None,
            alone: false,
            files: Vec::with_capacity(names.len()),
            stored: BTreeMap::new(),
            tensors: BTreeMap::new(),
            quantization: None,
            left_out: BTreeSet::new(),
        };
        for name in names {
            opened.add_file(name, index.as_ref())?;
        }
        if let Some(index) = &index {
            opened.check_complete(index)?;
        }
        let (tensors, quantization) = group::group(&opened)?;
        (opened.tensors, opened.quantization) = (tensors, quantization);
        Ok(opened)
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
            return self.same_range((a.file, a.offset, a.len), (b.file, b.offset, b.len));
        };
        for (x, y) in x.parts().into_iter().zip(y.parts()) {
            let (x, y) = (&self.stored[x], &self.stored[y]);
            if !self.same_range((x.file, x.offset, x.len), (y.file, y.offset, y.len))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two ranges hold the same bytes: file, first byte, length.
    fn same_range(&self, a: (usize, u64, u64), b: (usize, u64, u64)) -> Result<bool> {
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
            self.files[b.0].file.read_at(b.1 + at, &mut right)?;
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
    fn add_file(&mut self, name: String, index: Option<&Index>) -> Result<()> {
        let path = self.root.join(&name);
        let file = ReadFile::open(&path).map_err(|e| match (e, index) {
            (FormatError::Io { source, .. }, Some(_)) => {
                FormatError::file(&path, format!("named by {INDEX_NAME}: {source}"))
            }
            (e, _) => e,
        })?;
        let (header, header_len) = header::read(&file)?;
        let at = self.files.len();
        for (tensor, found) in header.tensors {
            self.check_place(&path, &name, &tensor, index)?;
            let (offset, len) = (header_len + found.begin, found.end - found.begin);
            let stored =
                StoredTensor { file: at, dtype: found.dtype, shape: found.shape, offset, len };
            self.stored.insert(tensor, stored);
        }
        self.files.push(CheckpointFile { name, file, header_len });
        Ok(())
    }

    /// Refuses a tensor that the index places elsewhere or that another file holds too.
    fn check_place(
        &self,
        path: &Path,
        file: &str,
        tensor: &str,
        index: Option<&Index>,
    ) -> Result<()> {
        if let Some(other) = self.stored.get(tensor) {
            let detail = format!("`{}` holds it too", self.files[other.file].name);
            return Err(FormatError::tensor(path, tensor, detail));
        }
        let Some(index) = index else { return Ok(()) };
        match index.files.get(tensor) {
            Some(expected) if expected == file => Ok(()),
            Some(expected) => {
                let detail = format!("{INDEX_NAME} places it in `{expected}`");
                Err(FormatError::tensor(path, tensor, detail))
            }
            None => {
                Err(FormatError::tensor(path, tensor, format!("{INDEX_NAME} does not list it")))
            }
        }
    }

    /// Refuses an index that lists what no file holds.
    fn check_complete(&self, index: &Index) -> Result<()> {
        let missing = index
            .files
            .iter()
            .find(|(tensor, _)| !self.stored.contains_key(*tensor));
        missing.map_or(Ok(()), |(tensor, file)| {
            let detail = format!("{INDEX_NAME} places it here, the file does not hold it");
            Err(FormatError::tensor(&self.root.join(file), tensor, detail))
        })
    }
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

fn read_index(path: &Path) -> Result<Option<Index>> {
    read_limited(path, INDEX_LIMIT)?
        .map(|text| Index::parse(path, &text))
        .transpose()
}

/// The checkpoint files of a directory without an index.
fn unindexed_names(dir: &Path) -> Result<BTreeSet<String>> {
    if dir.join(SINGLE_NAME).is_file() {
        return Ok(BTreeSet::from([SINGLE_NAME.to_owned()]));
    }
    let io = |e| FormatError::io(dir, e);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(FILE_SUFFIX)) {
            names.insert(name.to_owned());
        }
    }
    if names.is_empty() {
        return Err(FormatError::file(dir, format!("expected {FILE_SUFFIX} files, found none")));
    }
    Ok(names)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
