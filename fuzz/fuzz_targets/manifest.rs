//! `manifest.json`, its own hash put right so that the rest is reached. What is accepted
//! - is valid, and survives encoding and parsing;
//! - has no field that was read over;
//! - keeps every shard inside its file, aligned, and apart from the others.
#![no_main]

use std::collections::BTreeMap;
use std::path::{Component, Path};

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::Value;
use shardwright_format::Manifest;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let path = Path::new("manifest.json");
    let data = shardwright_fuzz::hashed(data);
    let Ok(manifest) = Manifest::from_bytes(path, &data) else { return };
    manifest.validate().expect("what was accepted is valid");

    let bytes = manifest.to_bytes();
    let again = Manifest::from_bytes(path, &bytes).expect("what was written is read");
    assert_eq!(again, Manifest { blake3: again.blake3, ..manifest.clone() });

    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("it is JSON");
    let (given, mut kept) = (json(&data), json(&bytes));
    kept["blake3"] = given["blake3"].clone();
    assert_eq!(shardwright_fuzz::lost(&given, &kept), None, "a field was read over");
    check_places(&manifest);
});

/// Marks every shard's bytes in its file, by another way than the validator's.
fn check_places(manifest: &Manifest) {
    let mut files: BTreeMap<&str, (u64, Vec<(u64, u64)>)> = BTreeMap::new();
    for file in &manifest.files {
        let inside = Path::new(&file.path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        assert!(inside && file.path != "manifest.json", "{}", file.path);
        assert!(files.insert(&file.path, (file.size, Vec::new())).is_none(), "{}", file.path);
    }
    let mut claim = |name: &str, offset: u64, len: u64| {
        let (size, ranges) = files.get_mut(name).expect("a listed file");
        let end = offset.checked_add(len).expect("a range");
        assert!(end <= *size && offset % manifest.alignment == 0, "{name}: {offset} {len}");
        ranges.push((offset, end));
    };
    for shard in &manifest.dense {
        claim(&shard.file, shard.offset, shard.len);
    }
    for experts in &manifest.experts {
        for expert in experts.numbers() {
            let extent = experts.extent(expert).expect("an expert");
            claim(&experts.file, extent.offset, extent.len);
        }
    }
    for (name, (_, ranges)) in &mut files {
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{name}: {ranges:?}");
    }
}
