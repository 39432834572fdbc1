//! Importance matrices of llama.cpp in their older form, which begins with a number of entries: the first byte of the
//! input. What is accepted has finite moments of places that the model has.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_convert::calibrate::SavedStatistics;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;

static INVENTORY: LazyLock<Inventory> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/fixture-2m");
    let checkpoint = Checkpoint::open(&dir).expect("the fixture");
    Inventory::new(&checkpoint, None).expect("a model")
});

fuzz_target!(|data: &[u8]| {
    let Some((count, rest)) = data.split_first() else { return };
    let mut bytes = i32::from(*count).to_le_bytes().to_vec();
    bytes.extend(rest);
    let Ok(read) = SavedStatistics::parse(Path::new("fuzz"), &bytes, &INVENTORY.spec) else { return };
    assert!(read.known().held_bytes <= 8 * bytes.len() as u64, "more moments than the file has bytes for");
    let _ = read.check(Path::new("fuzz"), &INVENTORY);
});
