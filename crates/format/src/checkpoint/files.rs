//! What the files of a checkpoint say: configuration and headers, no weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shardwright_quant::Float;

use super::file_names::CONFIG_NAME;
use super::gguf::Synthesized;
use super::tokenizer::Beside;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, ReadFile, read_required};
use crate::manifest::Hash;
use crate::unit::SourceView;
use crate::written_json;

/// Configuration, headers and file handles.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) root: PathBuf,
    pub(super) config_path: PathBuf,
    pub(super) config: Value,
    /// What the metadata of a GGUF file say where a `config.json` beside it is used.
    pub(super) described: Option<Described>,
    /// Files that others describe and none holds.
    pub(super) synthesized: Synthesized,
    /// Whether only what belongs to every model is taken from the directory.
    pub(super) single_file: bool,
    pub(super) opened: Vec<CheckpointFile>,
    pub(super) stored: BTreeMap<String, StoredTensor>,
    /// Names in the files of tensors that [`Self::stored`] has under others.
    pub(super) first_names: BTreeMap<String, String>,
    /// What is odd and was put right: a line each.
    pub(super) notes: Vec<String>,
}

/// A model as the metadata of a GGUF file describe it.
#[derive(Debug)]
pub struct Described {
    /// The configuration that they give.
    pub config: Value,
    /// Other values of `model_type` that files of the architecture are made from.
    pub also: Vec<String>,
}

impl Files {
    /// A directory of files, none of which is open yet.
    pub(super) fn new(root: PathBuf, config_path: PathBuf, config: Value) -> Self {
        Self {
            root,
            config_path,
            config,
            described: None,
            synthesized: Synthesized::default(),
            single_file: false,
            opened: Vec::new(),
            stored: BTreeMap::new(),
            first_names: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// A directory with a configuration, and maybe a vocabulary in a form of its own.
    ///
    /// # Errors
    /// A missing or malformed `config.json`.
    pub(super) fn of_directory(dir: &Path) -> Result<Self> {
        let config_path = dir.join(CONFIG_NAME);
        let config = read_config(&config_path)?;
        let beside = Beside::find(dir, config["model_type"].as_str().unwrap_or_default());
        let synthesized = Synthesized::from_vocabulary(beside);
        Ok(Self { synthesized, ..Self::new(dir.to_owned(), config_path, config) })
    }

    /// The module that a stored tensor is a part of, as its file and so the configuration call it, where the
    /// tensor has another name here.
    pub(super) fn module_in_files(&self, name: &str) -> Option<&str> {
        let (module, _) = self.first_names.get(name)?.rsplit_once('.')?;
        Some(module)
    }

    /// Whether two ranges, of these files and of others, hold the same bytes: file, first byte,
    /// length.
    pub(super) fn same_range(
        &self,
        a: (usize, u64, u64),
        other: &Self,
        b: (usize, u64, u64),
    ) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        if a.2 != b.2 {
            return Ok(false);
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for at in (0..a.2).step_by(PIECE as usize) {
            let len = PIECE.min(a.2 - at) as usize;
            left.resize(len, 0);
            right.resize(len, 0);
            self.opened[a.0].file.read_at(a.1 + at, &mut left)?;
            other.opened[b.0].file.read_at(b.1 + at, &mut right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One `.safetensors` or GGUF file, or one of a bundle's files of shards.
#[derive(Debug)]
pub struct CheckpointFile {
    /// Path from the checkpoint's directory.
    pub name: String,
    /// The open file.
    pub file: ReadFile,
    /// The byte at which its data starts.
    pub header_len: u64,
    /// The hash that it should have, if it is a bundle's.
    pub blake3: Option<Hash>,
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Position in [`Checkpoint::files`](super::Checkpoint::files).
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
    /// Position in [`Checkpoint::files`](super::Checkpoint::files); of the stored tensor with the
    /// values or codes if it is decoded.
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
    /// How the values of this tensor, called `name`, are made where another is made of them.
    pub(super) fn as_part(&self, name: &str) -> Box<Decoder> {
        let plain = || Decoder::plain(name.to_owned(), self.dtype, false);
        Box::new(self.decoder.clone().unwrap_or_else(plain))
    }

    /// The type for values of both.
    pub(super) fn dtype_with(&self, other: &Self) -> Float {
        if self.dtype == other.dtype { self.dtype } else { Float::F32 }
    }

    /// Values.
    pub fn values(&self) -> u64 {
        // No overflow: the header's check, or that of grouping, has multiplied them.
        self.shape.iter().product()
    }

    /// All of it, as the tensor `name`, row after row of `cols` values.
    pub fn view(&self, name: &str, cols: u64) -> SourceView {
        let whole = SourceView::whole(name.to_owned(), self.dtype, self.shape.clone(), cols);
        SourceView { decoder: self.decoder.clone(), ..whole }
    }
}

/// Reads a `config.json`.
pub(super) fn read_config(path: &Path) -> Result<Value> {
    let text = read_required(path, CONFIG_LIMIT)?;
    let config = written_json::parse(&text).map_err(|e| FormatError::file(path, e.to_string()))?;
    if config.is_object() {
        Ok(config)
    } else {
        Err(FormatError::file(path, "expected a JSON object"))
    }
}
