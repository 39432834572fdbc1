//! Small checkpoints for tests.

use std::fs;
use std::path::Path;

use shardwright_quant::Float;

use super::{CONFIG_NAME, Checkpoint, Dtype, SINGLE_NAME, header};
use crate::error::FormatError;

/// Name, dtype and shape of a tensor.
pub(crate) type Described = (String, Float, Vec<u64>);

/// A `.safetensors` file with the given header text and `data_len` bytes after it.
pub(crate) fn raw_file(json: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

/// Writes a checkpoint file of zeros.
pub(crate) fn write_zeros(path: &Path, tensors: &[Described]) {
    let described = tensors
        .iter()
        .map(|(name, dtype, shape)| (name.as_str(), *dtype, &shape[..]));
    let mut bytes = header::encode(path, &[], described).unwrap();
    let len: u64 = tensors
        .iter()
        .map(|(_, dtype, shape)| shape.iter().product::<u64>() * dtype.size() as u64)
        .sum();
    bytes.resize(bytes.len() + len as usize, 0);
    fs::write(path, bytes).unwrap();
}

/// The tensors of a checkpoint without their values.
pub(crate) fn described(checkpoint: &Checkpoint) -> Vec<Described> {
    let tensors = checkpoint.tensors().iter();
    tensors
        .map(|(name, info)| (name.clone(), info.dtype, info.shape.clone()))
        .collect()
}

/// The message of a refusal, with `DIR` for the directory.
pub(crate) fn message<T: std::fmt::Debug>(dir: &Path, result: Result<T, FormatError>) -> String {
    result
        .unwrap_err()
        .to_string()
        .replace(&dir.display().to_string(), "DIR")
}

/// Name, dtype, shape and bytes of a stored tensor.
pub(crate) type Held = (&'static str, Dtype, Vec<u64>, Vec<u8>);

/// Writes a checkpoint of one file with a configuration.
pub(crate) fn write_held(dir: &Path, config: &serde_json::Value, tensors: &[Held]) {
    fs::write(dir.join(CONFIG_NAME), config.to_string()).unwrap();
    let path = dir.join(SINGLE_NAME);
    let listed = tensors
        .iter()
        .map(|(name, dtype, shape, _)| (*name, *dtype, &shape[..]));
    let mut bytes = header::encode(&path, &[], listed).unwrap();
    for (.., held) in tensors {
        bytes.extend(held);
    }
    fs::write(path, bytes).unwrap();
}
