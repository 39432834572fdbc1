//! A trace of a run. What is read has rates between 0 and 1, under every policy, and none beats the best possible one.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_runtime::replay::Replay;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

fuzz_target!(|data: &[u8]| {
    let path = DIR.path().join("trace");
    fs::write(&path, data).expect("a file");
    let Ok(replay) = Replay::read(&path) else { return };
    replay.bought().expect("a trace that was read");
    for rates in replay.rates().expect("a trace that was read") {
        for rate in [rates.in_use, rates.lru, rates.lfu, rates.best] {
            assert!((0.0..=1.0).contains(&rate), "{rate}");
        }
        assert!(rates.best >= rates.lru.max(rates.lfu), "{} slots", rates.slots);
    }
});
