//! Golden cases: tiny checkpoints and what transformers computes from them.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; broken fixtures should stop it

pub mod random;

use std::path::PathBuf;

use safetensors::SafeTensors;
use shardwright_format::weights::Weights;

/// Where the fixtures lie.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// One golden case.
pub struct Case {
    pub name: String,
    pub golden: Vec<u8>,
}

impl Case {
    /// Every case, variants included.
    pub fn all() -> Vec<Self> {
        let list = std::fs::read(fixtures().join("golden/cases.json")).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        let text = |case: &serde_json::Value, key: &str| case[key].as_str().unwrap().to_owned();
        let case = |case: &serde_json::Value| Self {
            name: text(case, "case"),
            golden: std::fs::read(fixtures().join("golden").join(text(case, "golden"))).unwrap(),
        };
        list["cases"].as_array().unwrap().iter().map(case).collect()
    }

    /// The case called `name`.
    pub fn named(name: &str) -> Self {
        Self::all()
            .into_iter()
            .find(|case| case.name == name)
            .unwrap()
    }

    pub fn weights(&self) -> Weights {
        Weights::open(&fixtures().join("golden").join(&self.name)).unwrap()
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
