//! Golden cases: tiny checkpoints and what transformers computes from them.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; broken fixtures should stop it

pub mod random;

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;
use shardwright_format::weights::Weights;

/// Where the fixtures lie.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The entries of a folder's `cases.json`.
fn cases(folder: &str) -> Vec<Value> {
    let list = std::fs::read(fixtures().join(folder).join("cases.json")).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    list["cases"].as_array().unwrap().clone()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// One golden case.
pub struct Case {
    pub name: String,
    path: PathBuf,
    pub golden: Vec<u8>,
}

impl Case {
    /// Every case, variants included.
    pub fn all() -> Vec<Self> {
        let golden = fixtures().join("golden");
        let case = |case: &Value| Self {
            name: text(&case["case"]),
            path: golden.join(text(&case["case"])),
            golden: std::fs::read(golden.join(text(&case["golden"]))).unwrap(),
        };
        cases("golden").iter().map(case).collect()
    }

    /// Every GGUF file.
    pub fn gguf() -> Vec<Self> {
        let case = |case: &Value| Self {
            name: format!("{} (GGUF)", text(&case["case"])),
            path: fixtures().join("gguf").join(text(&case["files"][0])),
            golden: std::fs::read(fixtures().join(text(&case["golden"]))).unwrap(),
        };
        cases("gguf").iter().map(case).collect()
    }

    /// The case called `name`.
    pub fn named(name: &str) -> Self {
        Self::all()
            .into_iter()
            .find(|case| case.name == name)
            .unwrap()
    }

    pub fn weights(&self) -> Weights {
        Weights::open(&self.path).unwrap()
    }

    pub fn tokens(&self) -> Vec<u32> {
        self.integers("input_ids").unwrap()
    }

    /// Values of an `i64` tensor.
    pub fn integers(&self, name: &str) -> Option<Vec<u32>> {
        let bytes = self.bytes(name)?;
        let values = bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        Some(values.map(|v| v as u32).collect())
    }

    /// Values of an `f32` tensor.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let bytes = self.bytes(name)?;
        let values = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        Some(values.collect())
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let tensors = SafeTensors::deserialize(&self.golden).unwrap();
        Some(tensors.tensor(name).ok()?.data().to_vec())
    }
}

/// The largest difference between two slices, relative to the largest expected value.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}
