//! Scratch folders, copies and checkpoints to damage.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::fixture;

/// A directory that is removed when dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty one.
    #[allow(clippy::new_without_default)] // a directory on disk is no default value
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One that holds a copy of a fixture as `ckpt`.
    pub fn with(name: &str) -> Self {
        let scratch = Self::new();
        copy_dir(&fixture(name), &scratch.path("ckpt"));
        // The expected values lie beside the checkpoint and are no part of it.
        let _ = fs::remove_file(scratch.path("ckpt/golden.safetensors"));
        scratch
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(value.as_object_mut().unwrap());
        fs::write(&path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
    }

    /// Changes the header and data of a `.safetensors` file.
    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut RawTensors)) {
        let path = self.path(name);
        let mut tensors = RawTensors::read(&path);
        edit(&mut tensors);
        fs::write(&path, tensors.to_bytes()).unwrap();
    }

    /// Changes the bytes of a file.
    pub fn edit_bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path(name);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
}

/// A `.safetensors` file taken apart without any check, so that it can be put together wrongly.
pub struct RawTensors {
    /// The header's members in order.
    pub header: Map<String, Value>,
    /// Everything behind the header.
    pub data: Vec<u8>,
}

impl RawTensors {
    /// Takes a file apart.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        Self { header, data: bytes[8 + len..].to_vec() }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(&self.header).unwrap();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        bytes.extend(&self.data);
        bytes
    }

    /// First and last byte of a tensor's data.
    pub fn range(&self, name: &str) -> Range<usize> {
        let offsets = self.header[name]["data_offsets"].as_array().unwrap();
        offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize
    }
}

/// Copies a directory and what is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Every file below a directory, by its path from there, with its bytes.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What [`contents`] gives, as names with hashes: short enough for an assertion to print.
pub fn digest(dir: &Path) -> Vec<(String, String)> {
    let hash = |bytes: &Vec<u8>| blake3::hash(bytes).to_hex().to_string();
    contents(dir)
        .iter()
        .map(|(name, bytes)| (name.clone(), hash(bytes)))
        .collect()
}
