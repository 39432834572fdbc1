//! A packed bundle: the input is its manifest, a NUL and its pieces as they are stored, each with a head whose hash is
//! right and the whole with one too. What is read through has the sizes of the manifest.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_format::FormatError;
use shardwright_format::pack::{PACK_MAGIC, PACK_VERSION, PIECE_LEN, Packed};

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

fuzz_target!(|data: &[u8]| {
    let path = DIR.path().join("packed");
    fs::write(&path, packed(data)).expect("a file");
    let Ok(packed) = Packed::open(&path) else { return };
    let (manifest, mut sizes) = (packed.manifest().clone(), std::collections::BTreeMap::new());
    let read = packed.each(|entry, offset, bytes| {
        assert!(bytes.len() <= PIECE_LEN);
        let size = sizes.entry(entry.path.clone()).or_insert(0);
        assert_eq!(*size, offset, "{}", entry.path);
        *size += bytes.len() as u64;
        Ok::<_, FormatError>(())
    });
    if read.is_ok() {
        for file in &manifest.files {
            assert_eq!(sizes.get(&file.path), Some(&file.size), "{}", file.path);
        }
    }
});

/// A packed file around a manifest with its own hash put right. What follows the NUL are pieces: two bytes of their
/// length, then what is stored of them.
fn packed(data: &[u8]) -> Vec<u8> {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let manifest = shardwright_fuzz::hashed(&data[..end]);
    let mut out = PACK_MAGIC.to_vec();
    out.extend(PACK_VERSION.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend((manifest.len() as u64).to_le_bytes());
    for piece in manifest.chunks(PIECE_LEN) {
        add(&mut out, piece, piece);
    }
    let mut rest = data.get(end + 1..).unwrap_or_default();
    while let Some((len, after)) = rest.split_first_chunk() {
        let (stored, after) = after.split_at(after.len().min(u16::from_le_bytes(*len).into()));
        let raw = zstd::bulk::decompress(stored, PIECE_LEN);
        add(&mut out, stored, raw.as_deref().unwrap_or(stored));
        rest = after;
    }
    let hash = blake3::hash(&out);
    out.extend(*hash.as_bytes());
    out
}

/// A piece that is stored so and was `raw`.
fn add(out: &mut Vec<u8>, stored: &[u8], raw: &[u8]) {
    out.extend((stored.len() as u32).to_le_bytes());
    out.extend(*blake3::hash(raw).as_bytes());
    out.extend(stored);
}
