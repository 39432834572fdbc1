//! Golden cases: tiny checkpoints and what transformers computes from them.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::fixture;

/// One golden case.
pub struct Golden {
    /// Its name in `cases.json`.
    pub name: String,
    /// The checkpoint's folder, or the GGUF file.
    pub path: PathBuf,
    expected: Vec<u8>,
}

impl Golden {
    /// The case of `golden/cases.json` called `name`.
    pub fn named(name: &str) -> Self {
        let case = entry("golden", name);
        Self::new(name, fixture("golden").join(name), &format!("golden/{}", text(&case["golden"])))
    }

    /// The case of `gguf/cases.json` called `name`.
    pub fn gguf(name: &str) -> Self {
        let case = entry("gguf", name);
        Self::new(name, fixture("gguf").join(text(&case["files"][0])), text(&case["golden"]))
    }

    fn new(name: &str, path: PathBuf, golden: &str) -> Self {
        Self { name: name.to_owned(), path, expected: fs::read(fixture(golden)).unwrap() }
    }

    /// The sequence that the expected values belong to.
    pub fn tokens(&self) -> Vec<u32> {
        self.integers("input_ids").unwrap()
    }

    /// Expected values of an `i64` tensor, if the case has it.
    pub fn integers(&self, name: &str) -> Option<Vec<u32>> {
        let bytes = self.bytes(name)?;
        let values = bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        Some(values.map(|v| v as u32).collect())
    }

    /// Expected values of an `f32` tensor, if the case has it.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let bytes = self.bytes(name)?;
        let values = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        Some(values.collect())
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        Some(tensors.tensor(name).ok()?.data().to_vec())
    }
}

/// What a folder's `cases.json` says of a case.
fn entry(folder: &str, name: &str) -> Value {
    let list = fs::read(fixture(folder).join("cases.json")).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    let mut cases = list["cases"].as_array().unwrap().iter();
    cases.find(|case| case["case"] == name).unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The largest difference between two slices, relative to the largest expected value.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}
