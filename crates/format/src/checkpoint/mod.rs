//! A Hugging Face checkpoint: a directory of `config.json`, `.safetensors` files and whatever else
//! belongs to the model. Opening it reads headers only.

mod entries;
pub mod gguf;
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

use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, INDEX_LIMIT, ReadFile, read_limited, read_required};
use index::Index;

pub(crate) use entries::Entries;
pub use index::INDEX_NAME;
pub use listing::Skipped;
pub use view::read_view;
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
    files: Vec<CheckpointFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// One `.safetensors` file.
#[derive(Debug)]
pub struct CheckpointFile {
    /// Path from the checkpoint's directory.
    pub name: String,
    /// The open file.
    pub file: ReadFile,
    /// The byte at which its data starts.
    pub header_len: u64,
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Position in [`Checkpoint::files`].
    pub file: usize,
    /// Type of its values.
    pub dtype: Float,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`, which may be a snapshot of the Hugging Face cache.
    ///
    /// The checkpoint files are those of the index; without one `model.safetensors` alone;
    /// without that every `.safetensors` file.
    ///
    /// # Errors
    /// A missing or malformed `config.json`, index or header; an index and files that disagree;
    /// a tensor that two files hold.
    pub fn open(dir: &Path) -> Result<Self> {
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
            files: Vec::with_capacity(names.len()),
            tensors: BTreeMap::new(),
        };
        for name in names {
            opened.add_file(name, index.as_ref())?;
        }
        if let Some(index) = &index {
            opened.check_complete(index)?;
        }
        Ok(opened)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The object of `config.json`.
    pub const fn config(&self) -> &Value {
        &self.config
    }

    /// The path of `config.json`.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// The checkpoint files, sorted by name.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// Every tensor by name.
    pub const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The path of the file that holds a tensor of this checkpoint.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.files[tensor.file].file.path()
    }

    /// Whether two tensors hold the same bytes. Reads both, piece by piece.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn same_bytes(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        if a.len != b.len || a.dtype != b.dtype {
            return Ok(false);
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for at in (0..a.len).step_by(PIECE as usize) {
            let len = PIECE.min(a.len - at) as usize;
            left.resize(len, 0);
            right.resize(len, 0);
            self.files[a.file].file.read_at(a.offset + at, &mut left)?;
            self.files[b.file].file.read_at(b.offset + at, &mut right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
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
            let info = TensorInfo { file: at, dtype: found.dtype, shape: found.shape, offset, len };
            self.tensors.insert(tensor, info);
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
        if let Some(other) = self.tensors.get(tensor) {
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
            .find(|(tensor, _)| !self.tensors.contains_key(*tensor));
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
