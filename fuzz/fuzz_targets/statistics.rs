//! Statistics: of our own, and llama.cpp's importance matrices of both generations. What is accepted
//! says of the file what it is.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_convert::calibrate::SavedStatistics;
use shardwright_format::ModelSpec;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;

/// The model that the seeds are of.
static SPEC: LazyLock<ModelSpec> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/fixture-2m");
    let checkpoint = Checkpoint::open(&dir).expect("the fixture");
    Inventory::new(&checkpoint, None).expect("a model").spec
});

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

fuzz_target!(|data: &[u8]| {
    let path = DIR.path().join("statistics");
    fs::write(&path, data).expect("a file");
    let Ok(read) = SavedStatistics::read(&path, &SPEC) else { return };
    assert_eq!(read.record.statistics_blake3, Some(blake3::hash(data).into()));
    assert!(read.known().held_bytes <= 8 * data.len() as u64);
});
