//! `model.safetensors.index.json`: which file of a checkpoint holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::entries::Entries;
use crate::error::{FormatError, Result};
use crate::io::stays_inside;
use crate::refusal::mismatch;

/// The index's file name.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Tensor name to file name.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) files: BTreeMap<String, String>,
}

/// Other members, such as `metadata.total_size`, describe and do not decide.
#[derive(Deserialize)]
struct RawIndex {
    weight_map: Entries<String>,
}

impl Index {
    /// Checks the text of the index at `path`.
    ///
    /// # Errors
    /// Malformed JSON, a tensor that appears twice, a file outside the index's directory.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let raw: RawIndex = serde_json::from_slice(json)
            .map_err(|e| FormatError::file(path, format!("index: {e}")))?;
        let mut files = BTreeMap::new();
        for (tensor, file) in raw.weight_map.0 {
            let file = file
                .strip_prefix("./")
                .map_or_else(|| file.clone(), str::to_owned);
            if !stays_inside(&file) {
                let detail = mismatch("a file inside the checkpoint", format_args!("`{file}`"));
                return Err(FormatError::tensor(path, &tensor, detail));
            }
            files.insert(tensor, file);
        }
        if files.is_empty() {
            return Err(FormatError::file(
                path,
                mismatch("tensors in `weight_map`", "none").at("index"),
            ));
        }
        Ok(Self { files })
    }

    /// The names of the files, sorted.
    pub(super) fn file_names(&self) -> BTreeSet<String> {
        self.files.values().cloned().collect()
    }
}
