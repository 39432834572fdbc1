//! A Hugging Face checkpoint: a directory of `config.json`, `.safetensors` files and whatever else
//! belongs to the model; or a GGUF file in place of both, or the folder of flash-moe. Opening it reads headers only.

mod bundle;
mod decode;
mod discover;
mod file_names;
mod files;
pub mod flash_moe;
pub mod gguf;
mod group;
pub mod header;
mod hub;
mod index;
mod listing;
mod names;
mod safetensors;
pub(crate) mod tokenizer;
mod view;
pub(crate) mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use shardwright_quant::widen;

use crate::decoder::Decoder;
use crate::error::Result;
use crate::io::{OpenFile, ReadFile, read_limited};
use crate::unit::SourceView;
use files::Files;
use group::Grouped;

pub use crate::dtype::Dtype;
pub(crate) use bundle::source_tensors;
pub use decode::Fetch;
pub use file_names::{
    CHAT_TEMPLATE_NAME, CONFIG_NAME, SINGLE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
pub use files::{CheckpointFile, Described, StoredTensor, TensorInfo};
pub use group::{QUANTIZATION_KEYS, Quantization, describes_quantization};
pub use header::refuse_pointer;
pub use hub::{cached_snapshot, is_repository, repository_folder, resolve};
pub use index::INDEX_NAME;
pub use listing::{Skipped, clutter, clutter_directory, is_document};
pub use tokenizer::{NamedToken, SpaceBefore, TokensBeside};
pub use view::{TensorFile, read_codes, read_view, read_view_through, view_extents, write_view};
pub(crate) use view::{own_codes, read_rows, read_unit};
pub use wrong::lfs_pointer;

/// An open checkpoint: its configuration, headers and file handles, no weights.
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    tensors: BTreeMap<String, TensorInfo>,
    quantization: Option<Quantization>,
    /// Names of files that hold no tensor that [`Self::keep`] kept.
    files_outside: BTreeSet<String>,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`, which may be a GGUF file, a folder of flash-moe, a snapshot of the Hugging
    /// Face cache, or what [`resolve`] finds one by.
    ///
    /// The checkpoint files are those of the index; without one that fits `model.safetensors` alone,
    /// a complete numbered set, or every `.safetensors` file; or the one GGUF model.
    ///
    /// # Errors
    /// A missing or malformed `config.json`, index or header; two complete models that differ; a
    /// tensor that two files hold; what is no checkpoint, by name; quantized tensors of an unknown scheme, or whose parts are
    /// missing, left over or disagree.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_through(&resolve(dir), &ReadFile::open)
    }

    /// As [`Self::open`], where `open` reads the files of weights: in `dir` each has its name and length, and
    /// need not have its bytes.
    ///
    /// # Errors
    /// As [`Self::open`], and what `open` refuses.
    pub fn open_through(dir: &Path, open: OpenFile<'_>) -> Result<Self> {
        safetensors::refuse_one_of_several(dir)?;
        let (files, grouped) = if let Some(file) = gguf::find(dir)? {
            gguf::open(&file, dir.is_file(), open)?
        } else {
            let packed = flash_moe::is_folder(dir);
            let files =
                if packed { flash_moe::open(dir, open) } else { safetensors::open(dir, open) };
            let files = files?;
            let grouped = group::group(&files)?;
            (files, grouped)
        };
        let Grouped { tensors, quantization } = grouped;
        Ok(Self { files, tensors, quantization, files_outside: BTreeSet::new() })
    }

    /// What is odd about the checkpoint and was put right: a line each.
    pub fn notes(&self) -> &[String] {
        &self.files.notes
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.files.root
    }

    /// The file with a vocabulary in another form that stands for a `tokenizer.json`, if one does: its name,
    /// and why no `tokenizer.json` is made of it, where none is.
    pub fn vocabulary(&self) -> Option<(&str, Option<&str>)> {
        let beside = self.files.synthesized.beside()?;
        Some((beside.name(), beside.made().err()))
    }

    /// The bytes of one of [`Self::copies`] that no file of the checkpoint holds: `config.json`,
    /// `tokenizer.json` or `tokenizer_config.json` made from the metadata of a GGUF file, or `tokenizer.json`
    /// of a vocabulary in another form.
    ///
    /// # Errors
    /// Metadata of a tokenizer that is not known.
    pub fn synthesized(&self, path: &str) -> Result<Option<&[u8]>> {
        self.files.synthesized.get(path)
    }

    /// The bytes of a file beside the weights, at most `limit`, or of one that is
    /// [`Self::synthesized`].
    ///
    /// # Errors
    /// As [`Self::synthesized`]; a file that is too long, and what the operating system refuses.
    pub fn companion(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.synthesized(name)? {
            Some(made) => Ok(Some(made.to_owned())),
            None => read_limited(&self.files.root.join(name), limit),
        }
    }

    /// Whether the checkpoint is a file, and what else lies in its directory no part of it.
    pub const fn is_single_file(&self) -> bool {
        self.files.single_file
    }

    /// The object of `config.json`.
    pub const fn config(&self) -> &Value {
        &self.files.config
    }

    /// What the metadata of a GGUF file say of the model that [`Self::config`], from a file beside it, describes
    /// too; none where it is made from them, or they say too little.
    pub const fn described(&self) -> Option<&Described> {
        self.files.described.as_ref()
    }

    /// The path of `config.json`, or of the file that says what would be in it.
    pub fn config_path(&self) -> &Path {
        &self.files.config_path
    }

    /// The checkpoint files, sorted by name.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files.opened
    }

    /// Bytes of memory that reading the files holds at most, besides what is read: of files elsewhere.
    pub fn reading_memory(&self) -> u64 {
        let held = self.files().iter().map(|f| f.file.memory());
        held.max().unwrap_or_default()
    }

    /// Every tensor of weights by name, quantized ones as they are once decoded.
    pub const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Every tensor by name as the files hold it.
    pub const fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.files.stored
    }

    /// Bytes that the tensor of a view takes in the checkpoint's files, all parts of a quantized one
    /// together; 0 for one that it does not hold.
    pub fn stored_len(&self, view: &SourceView) -> u64 {
        let parts = view.decoder.as_ref().map(Decoder::stored_names);
        let parts = parts.unwrap_or_else(|| vec![view.tensor.as_str()]);
        let stored = parts
            .into_iter()
            .filter_map(|part| self.files.stored.get(part));
        stored.map(|stored| stored.len).sum()
    }

    /// Stored tensors that are neither weights nor parts of any: integers that no scheme reads.
    pub fn unused(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        let parts = self
            .tensors
            .values()
            .filter_map(|info| info.decoder.as_ref());
        let parts: BTreeSet<_> = parts.flat_map(Decoder::stored_names).collect();
        let part = move |name: &str| parts.contains(name) || self.is_auxiliary(name);
        let stored = self
            .files
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
        let parts = decoder.stored_names().into_iter();
        let len: u64 = parts
            .filter_map(|name| Some(self.files.stored.get(name)?.len))
            .sum();
        let share = u128::from(len) * u128::from(values) / u128::from(info.values().max(1));
        u64::try_from(share).ok()
    }

    /// What is quantized and how; none for a checkpoint of plain floats.
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    fn is_auxiliary(&self, name: &str) -> bool {
        let auxiliary = self.quantization.as_ref().map(|q| &q.auxiliary);
        auxiliary.is_some_and(|auxiliary| auxiliary.contains_key(name))
    }

    /// The path of the file that holds a tensor of this checkpoint, or its values or codes.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.files.opened[tensor.file].file.path()
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
            return self.files.same_range(a, &self.files, b);
        };
        for (x, y) in x.stored_names().into_iter().zip(y.stored_names()) {
            let (x, y) = (&self.files.stored[x], &self.files.stored[y]);
            let (x, y) = ((x.file, x.offset, x.len), (y.file, y.offset, y.len));
            if !self.files.same_range(x, &self.files, y)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every value of a tensor of plain floats is zero. Reads it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn is_zero(&self, info: &TensorInfo) -> Result<bool> {
        let mut piece = [0; 1 << 12];
        for first in (0..info.len).step_by(piece.len()) {
            let piece = &mut piece[..(info.len - first).min(1 << 12) as usize];
            self.files.opened[info.file]
                .file
                .read_at(info.offset + first, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
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
            self.files.opened[info.file]
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

    /// Forgets the tensors that `wanted` does not hold for, and the files that hold no others.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| wanted(name));
        let decoders = self
            .tensors
            .values()
            .filter_map(|info| info.decoder.as_ref());
        let parts: BTreeSet<_> = decoders.flat_map(Decoder::stored_names).collect();
        let Files { stored, opened, .. } = &mut self.files;
        stored.retain(|name, _| wanted(name) || parts.contains(name.as_str()));
        if let Some(quantization) = &mut self.quantization {
            quantization.auxiliary.retain(|name, _| wanted(name));
        }
        let used: BTreeSet<_> = stored.values().map(|stored| stored.file).collect();
        let number = |file| used.range(..file).count();
        self.tensors
            .values_mut()
            .for_each(|info| info.file = number(info.file));
        for stored in stored.values_mut() {
            stored.file = number(stored.file);
        }
        for (at, file) in std::mem::take(opened).into_iter().enumerate() {
            if used.contains(&at) {
                opened.push(file);
            } else {
                self.files_outside.insert(file.name);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
