//! The folder of flash-moe and the apps made of it: experts record after record in a file for each layer, everything
//! else in one file with a list of tensors, codes as MLX has them. All become tensors under the names that MLX's own
//! checkpoints have behind their wrapper, those of each expert its own.
//!
//! The engine computes where the parts of a record lie from `config.json` and reads no `layout.json`, which some
//! folders lack. Where the two disagree nobody knows what the bytes are, and the folder is refused.

mod codes;
mod dense;
mod experts;

use std::path::Path;

use serde::de::DeserializeOwned;

use super::files::Files;
use super::index::INDEX_NAME;
use super::wrong;
use crate::error::{FormatError, Result};
use crate::io::OpenFile;
use crate::refusal::mismatch;

/// The list of tensors besides experts.
pub const LIST_NAME: &str = "model_weights.json";
/// The file with their bytes.
pub const WHOLE_NAME: &str = "model_weights.bin";
/// The two that it is cut into where it is large: one behind the other they are the whole.
pub const HALF_NAMES: [&str; 2] = ["model_weights_0.bin", "model_weights_1.bin"];
/// Bits of experts' codes, and the directory with the layers' files for each.
pub const DIRECTORIES: [(u8, &str); 2] = [(4, "packed_experts"), (2, "packed_experts_2bit")];
/// What a directory says of its records.
pub const LAYOUT_NAME: &str = "layout.json";
/// The matrices of an expert in the order of a record, each as codes, scales and biases.
pub const EXPERT_MATRICES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// Columns that share a scale, where the configuration does not say.
pub const GROUP_SIZE: u16 = 64;
/// The text of each token, and what makes tokens of text: both of a `tokenizer.json`.
pub const VOCABULARY_NAMES: [&str; 2] = ["vocab.bin", "tokenizer.bin"];
/// Experts of several widths in one file, with a list of their places.
const TIERED: &str = "packed_experts_tiered";

/// The file of a layer's experts, in one of the [`DIRECTORIES`].
pub fn layer_name(layer: u64) -> String {
    format!("layer_{layer:02}.bin")
}

/// Whether a file of a folder, by its path there, has weights.
pub fn holds_weights(name: &str) -> bool {
    let layer = |rest: &str| {
        let number = rest
            .strip_prefix("layer_")
            .and_then(|rest| rest.strip_suffix(".bin"));
        number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    };
    match name.split_once('/') {
        Some((directory, rest)) => DIRECTORIES.iter().any(|(_, d)| *d == directory) && layer(rest),
        None => name == WHOLE_NAME || HALF_NAMES.contains(&name),
    }
}

/// Whether a file of a folder says where weights lie.
pub(super) fn describes_weights(name: &str) -> bool {
    let directory = name.strip_suffix(LAYOUT_NAME);
    let directory = directory.and_then(|name| name.strip_suffix('/'));
    name == LIST_NAME || DIRECTORIES.iter().any(|(_, d)| Some(*d) == directory)
}

/// Whether a directory is such a folder: the engine's files lie in others too, whose own form is read then.
pub(super) fn is_folder(dir: &Path) -> bool {
    let names = DIRECTORIES.map(|(_, name)| name);
    let mut names = names.iter().chain(&[LIST_NAME, TIERED]);
    names.any(|name| dir.join(name).exists())
        && !wrong::holds_weights(dir)
        && !dir.join(INDEX_NAME).exists()
}

/// Reads the configuration, the list of tensors and what there is of experts.
///
/// # Errors
/// Files that are missing, or of another length than the configuration gives them; a list or a layout that
/// contradicts it or its files; experts of two widths.
pub(super) fn open(dir: &Path, open: OpenFile<'_>) -> Result<Files> {
    let mut files = Files::of_directory(dir)?;
    let packed = experts::Packed::find(&files)?;
    dense::add(&mut files, open)?;
    codes::describe(&mut files, packed.bits);
    packed.add(&mut files, open)?;
    Ok(files)
}

/// A stranger's JSON object.
fn object<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    let first = text.trim_ascii_start().first();
    if first != Some(&b'{') {
        return Err(FormatError::file(path, mismatch("a JSON object", "none")));
    }
    serde_json::from_slice(text).map_err(|e| FormatError::file(path, e.to_string()))
}

#[cfg(test)]
mod tests;
