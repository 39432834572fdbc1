//! What the targets share: a mutator that knows JSON, and an oracle for fields that are read over.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::Value;
use shardwright_testing::mutate::{Random, edit};

/// Mutates the text in `data[..size]`: one time in four as bytes, else as the JSON tree it is.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random::new(u64::from(seed));
    let tree = serde_json::from_slice(&data[..size]).ok();
    let Some(mut tree) = tree.filter(|_| random.below(4) != 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(3) {
        edit(&mut tree, &mut random);
    }
    // As manifests are written: their first bytes are fixed.
    match serde_json::to_vec_pretty(&tree) {
        Ok(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

/// How manifests begin, before the digits of their own hash.
const PREFIX: &[u8] = b"{\n  \"blake3\": \"";
const DIGITS: std::ops::Range<usize> = PREFIX.len()..PREFIX.len() + 64;

/// A manifest with its own hash put right, so that the rest of it is reached.
pub fn hashed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.starts_with(PREFIX) && bytes.len() >= DIGITS.end {
        bytes[DIGITS].fill(b'0');
        let hash = blake3::hash(&bytes).to_hex();
        bytes[DIGITS].copy_from_slice(hash.as_bytes());
    }
    bytes
}

/// Where `kept`, which a parser made of `given`, lacks or changes something of it.
///
/// Null and absent are the same, letters of either case too (hexadecimal digits), and numbers that
/// are not whole are not compared: they are rounded to f32.
pub fn lost(given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, given)| {
            let kept = kept.get(name).unwrap_or(&Value::Null);
            lost(given, kept).map(|path| format!("{name}.{path}"))
        }),
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => given
            .iter()
            .zip(kept)
            .find_map(|(given, kept)| lost(given, kept)),
        // Defaults are not written.
        (Value::Array(empty), Value::Null) if empty.is_empty() => None,
        (Value::Number(zero), Value::Null) if zero.as_u64() == Some(0) => None,
        (Value::Number(given), Value::Number(kept)) => {
            let whole = given.as_u64().zip(kept.as_u64());
            whole
                .filter(|(given, kept)| given != kept)
                .map(|w| format!("{w:?}"))
        }
        (Value::String(given), Value::String(kept)) if given.eq_ignore_ascii_case(kept) => None,
        // serde's other spelling of a bare word: `{"head": null}`.
        (Value::Object(given), Value::String(kept)) if given.get(kept) == Some(&Value::Null) => {
            None
        }
        (given, kept) if given == kept => None,
        (given, kept) => Some(format!(": {given} became {kept}")),
    }
}
