//! A GGUF file. What is accepted
//! - keeps every tensor inside the file, apart from the others, in whole blocks;
//! - as a checkpoint gives values of every tensor, or a refusal.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::checkpoint::gguf::Header;
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

fuzz_target!(|data: &[u8]| {
    let Ok(header) = Header::parse(data, 0) else { return };
    let mut end = header.data;
    for tensor in &header.tensors {
        let values: u64 = tensor.shape.iter().product();
        assert_eq!(tensor.len, values / tensor.kind.block_values() * tensor.kind.block_bytes());
        assert!(end <= tensor.offset, "a tensor over another");
        end = tensor.offset + tensor.len;
    }
    assert!(header.tensors.is_empty() || end <= data.len() as u64, "a tensor outside the file");

    let path = DIR.path().join("model.gguf");
    fs::write(&path, data).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    let Ok(inventory) = Inventory::new(&checkpoint, None) else { return };
    let units: Vec<_> = inventory.spec.units().take(20).collect();
    let weights = Weights::from_checkpoint(checkpoint, inventory);
    let mut buf = AlignedBuf::default();
    for unit in units {
        weights.read(unit, &mut buf).expect("what was accepted is read");
    }
});
