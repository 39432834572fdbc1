//! What the tests of all crates share: where the fixtures lie, scratch folders, golden cases and
//! small models.
//!
//! `each_golden!(check)`, `each_gguf!(check)` and `each_published!(check)` make one test per case: a failure names its
//! case and hides no other, and `cargo test check::llama2` runs one alone.
#![allow(clippy::unwrap_used)] // a broken fixture should stop the test

mod files;
mod golden;
#[cfg(feature = "models")]
pub mod models;
pub mod mutate;
pub mod server;
pub mod tls;
mod vocabulary;

use std::path::{Path, PathBuf};

pub use files::{RawTensors, Scratch, contents, copy_dir, digest};
pub use golden::{Golden, error};
pub use vocabulary::widen;

include!(concat!(env!("OUT_DIR"), "/cases.rs"));

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// A file or folder of `fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures").join(name)
}

/// The checkpoint of a golden case.
pub fn golden(case: &str) -> PathBuf {
    fixture("golden").join(case)
}
