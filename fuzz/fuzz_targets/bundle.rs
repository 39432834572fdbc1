//! A bundle: the input is its manifest, its own hash put right, beside files of the sizes that it names, up to a
//! megabyte of them. What opens can be read, unit by unit, or is refused.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use shardwright_format::io::AlignedBuf;
use shardwright_format::{Bundle, Manifest};

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the bundle"));

/// Bytes of files that are written at most.
const MOST: u64 = 1 << 20;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let data = shardwright_fuzz::hashed(data);
    let Ok(manifest) = Manifest::from_bytes(Path::new("fuzz"), &data) else { return };
    if manifest.files.iter().map(|file| file.size).fold(0, u64::saturating_add) > MOST {
        return;
    }
    let dir = DIR.path().join("bundle");
    let _ = fs::remove_dir_all(&dir);
    for file in &manifest.files {
        let path = dir.join(&file.path);
        fs::create_dir_all(path.parent().expect("a place inside")).expect("a directory");
        let bytes: Vec<u8> = (0..file.size).map(|at| (at * 31 % 251) as u8).collect();
        fs::write(path, bytes).expect("a file");
    }
    fs::write(dir.join("manifest.json"), &data).expect("a manifest");
    let Ok(bundle) = Bundle::open(&dir) else { return };
    let mut buf = AlignedBuf::default();
    for unit in manifest.units() {
        if let Ok(layout) = bundle.read(unit, &mut buf) {
            assert!(layout.len <= buf.len() as u64, "{unit}: less than its layout");
        }
    }
});
