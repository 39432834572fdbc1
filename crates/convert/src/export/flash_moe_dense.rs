//! `model_weights.bin` and `.json`: tensors in the order of their names, each at a multiple of 64 bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use shardwright_format::checkpoint::flash_moe::{HALF_NAMES, LIST_NAME, WHOLE_NAME};
use shardwright_format::{FormatError, mismatch};

use super::companions::write_json;
use super::tensor_files::Tensor;
use crate::error::{ConvertError, Result};

/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 64;
/// Larger files are cut in two: a phone maps no more than 4 GiB at once.
const LARGEST: u64 = 3_500_000_000;

/// The files, open, and where tensors lie in them as if they were one.
pub(super) struct DenseFiles {
    /// Each with its first byte.
    files: Vec<(PathBuf, File, u64)>,
    /// First byte and what is there.
    slots: BTreeMap<String, (u64, Value)>,
}

impl DenseFiles {
    /// Makes room for the tensors, in two files if they take more than `limit` bytes.
    ///
    /// # Errors
    /// Tensors that two files do not hold; what the operating system refuses.
    pub(super) fn create(
        dir: &Path,
        tensors: &BTreeMap<String, Tensor>,
        limit: u64,
    ) -> Result<Self> {
        let (mut end, mut slots, mut starts) = (0u64, BTreeMap::new(), vec![0]);
        let sizes = tensors
            .values()
            .map(|t| t.byte_len().next_multiple_of(ALIGNMENT));
        let (total, limit) = (sizes.sum::<u64>(), limit.min(LARGEST));
        for (name, tensor) in tensors {
            let offset = end.next_multiple_of(ALIGNMENT);
            let size = tensor.byte_len();
            let start = starts.last().copied().unwrap_or_default();
            if total > limit && offset > start && offset + size - start > limit {
                starts.push(offset);
            }
            let about = json!({
                "offset": offset,
                "size": size,
                "shape": tensor.shape,
                "dtype": tensor.dtype.label(),
            });
            slots.insert(name.clone(), (offset, about));
            end = offset + size;
        }
        let names: &[&str] = match starts.len() {
            1 => &[WHOLE_NAME],
            2 => &HALF_NAMES,
            found => {
                let detail = mismatch(
                    format_args!("tensors besides experts in two files of {limit} bytes"),
                    found,
                )
                .at("flash-moe");
                return Err(ConvertError::Plan(detail));
            }
        };
        let mut files = Vec::new();
        let ends = starts.iter().skip(1).copied().chain([end]);
        for ((name, start), end) in names.iter().zip(&starts).zip(ends) {
            let path = dir.join(name);
            let io = |e| FormatError::io(&path, e);
            let file = File::create_new(&path).map_err(io)?;
            // Up to the next one's first byte, so that the two are the whole one behind the other.
            file.set_len(end - start).map_err(io)?;
            files.push((path, file, *start));
        }
        Ok(Self { files, slots })
    }

    /// Writes bytes of a tensor, from its byte `at` on.
    pub(super) fn write(&self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((offset, _)) = self.slots.get(name) else { return Ok(()) };
        let holds = |file: &&(PathBuf, File, u64)| file.2 <= *offset;
        if let Some((path, file, start)) = self.files.iter().rev().find(holds) {
            file.write_all_at(bytes, offset - start + at)
                .map_err(|e| FormatError::io(path, e))?;
        }
        Ok(())
    }

    /// Writes the list of tensors, with the model's numbers beside it.
    pub(super) fn describe(&self, dir: &Path, config: &Map<String, Value>) -> Result<()> {
        let tensors = self
            .slots
            .iter()
            .map(|(name, (_, about))| (name.clone(), about.clone()));
        let mut list = json!({
            "model": "qwen3_5_moe",
            "num_tensors": self.slots.len(),
            "tensors": tensors.collect::<Map<_, _>>(),
            "config": config,
        });
        if self.files.len() > 1 {
            list["split"] = json!({
                "num_chunks": self.files.len(),
                "chunk_files": HALF_NAMES,
                "split_offsets": self.files.iter().map(|file| file.2).collect::<Vec<_>>(),
            });
        }
        write_json(&dir.join(LIST_NAME), &list)
    }
}
