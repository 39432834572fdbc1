//! `config.json`, and after a NUL `generation_config.json`, to the model they describe. What is
//! accepted is a valid model that survives JSON.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use shardwright_format::ModelSpec;
use shardwright_format::arch::Arch;
use shardwright_format::checkpoint::{CONFIG_NAME, Checkpoint, SINGLE_NAME};

/// A checkpoint without tensors.
static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for the config");
    fs::write(dir.path().join(SINGLE_NAME), b"\x02\0\0\0\0\0\0\0{}").expect("an empty checkpoint");
    dir
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (config, generation) = (parts.next().unwrap_or_default(), parts.next());
    fs::write(DIR.path().join(CONFIG_NAME), config).expect("a config");
    let generation_path = DIR.path().join("generation_config.json");
    match generation {
        Some(text) => fs::write(generation_path, text).expect("a generation config"),
        None => drop(fs::remove_file(generation_path)),
    }
    let Ok(checkpoint) = Checkpoint::open(DIR.path()) else { return };
    let model_type = checkpoint
        .config()
        .get("model_type")
        .and_then(|name| name.as_str());
    let Some(arch) = model_type.and_then(Arch::builtin) else { return };
    let Ok(spec) = arch.spec(&checkpoint) else { return };

    spec.validate().expect("what was accepted is valid");
    let json = serde_json::to_vec(&spec).expect("a model is JSON");
    let again: ModelSpec = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, spec);
    for unit in spec.units().take(100) {
        assert!(!spec.tensors(unit).is_empty(), "{unit} has no tensors");
    }
});
