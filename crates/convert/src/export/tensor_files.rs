//! `.safetensors` files whose tensors are filled in any order.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use shardwright_format::FormatError;
use shardwright_format::checkpoint::{Dtype, INDEX_NAME, SINGLE_NAME, TensorFile, header};

use super::companions::write_json;
use crate::error::Result;

/// A tensor that is to be written.
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
}

impl Tensor {
    pub(super) fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    pub(super) fn byte_len(&self) -> u64 {
        self.values() * self.dtype.size() as u64
    }
}

/// Where a tensor lies in the files.
#[derive(Clone, Copy)]
struct Spot {
    file: usize,
    /// Its first byte.
    base: u64,
    /// Bytes of a value.
    size: usize,
}

/// The files, open.
pub(super) struct TensorFiles {
    files: Vec<(PathBuf, File)>,
    spots: BTreeMap<String, Spot>,
    /// Bytes of all tensors.
    total: u64,
}

impl TensorFiles {
    /// Writes the headers, which say `format`, and makes room for the tensors; a file is begun
    /// before one passes `limit` bytes.
    pub(super) fn create(
        dir: &Path,
        tensors: &BTreeMap<String, Tensor>,
        limit: u64,
        format: &str,
    ) -> Result<Self> {
        let groups = split(tensors, limit);
        let total = tensors.values().map(Tensor::byte_len).sum();
        let mut writing = Self { files: Vec::new(), spots: BTreeMap::new(), total };
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
            let metadata = [("format".to_owned(), format.to_owned())];
            let header = header::encode(&path, &metadata, listed)?;
            let mut base = header.len() as u64;
            for (name, tensor) in entries {
                let spot = Spot { file: at, base, size: tensor.dtype.size() };
                writing.spots.insert(name.to_owned(), spot);
                base += tensor.byte_len();
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

    /// Where a tensor is written; none for one that [`Self::create`] was not given.
    pub(super) fn tensor(&self, name: &str) -> Option<TensorFile<'_>> {
        let spot = self.spots.get(name)?;
        let (path, file) = &self.files[spot.file];
        Some(TensorFile { path, file, offset: spot.base, size: spot.size })
    }

    /// Writes the index, where there is more than one file or it is wanted of one too.
    pub(super) fn index(&self, dir: &Path, of_one: bool) -> Result<()> {
        if self.files.len() < 2 && !of_one {
            return Ok(());
        }
        let name = |spot: &Spot| {
            self.files[spot.file]
                .0
                .file_name()
                .map(|n| n.to_string_lossy())
        };
        let map = self
            .spots
            .iter()
            .map(|(tensor, spot)| (tensor.clone(), json!(name(spot))));
        let map: serde_json::Map<_, _> = map.collect();
        let index = json!({ "metadata": { "total_size": self.total }, "weight_map": map });
        write_json(&dir.join(INDEX_NAME), &index)
    }
}

/// Names in order, cut before a file passes the limit.
fn split(tensors: &BTreeMap<String, Tensor>, limit: u64) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = vec![Vec::new()];
    let mut size = 0;
    for (name, tensor) in tensors {
        let len = tensor.byte_len();
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
