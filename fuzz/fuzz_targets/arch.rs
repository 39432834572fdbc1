//! A table of an architecture, read by a checkpoint of qwen3_moe. What is accepted gives a valid model, or a refusal.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use shardwright_format::arch::{Arch, Inventory};
use shardwright_format::checkpoint::Checkpoint;

static CHECKPOINT: LazyLock<Checkpoint> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden/qwen3_moe");
    Checkpoint::open(&dir).expect("the golden")
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(arch) = Arch::parse(Path::new("fuzz"), text) else { return };
    let Ok(inventory) = Inventory::new(&CHECKPOINT, Some(&arch)) else { return };
    inventory.spec.validate().expect("what was accepted is valid");
    assert_eq!(inventory.units.len(), inventory.spec.units().count());
});
