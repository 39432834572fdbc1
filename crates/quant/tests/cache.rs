//! Blocks of the KV cache are those of gguf-py: `fixtures/vectors/cache.json`, whose `_comment` says what
//! each field holds.

use serde_json::Value;
use shardwright_quant::{CacheType, VectorLayout};

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn blocks_are_those_of_gguf_py_to_the_bit() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/vectors/cache.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let bytes = hex(&vectors["values_hex"]);
    let values: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let cases = vectors["cases"].as_array().unwrap();
    for (case, dtype) in cases.iter().zip([CacheType::Q8_0, CacheType::Q4_0]) {
        assert_eq!(case["type"], dtype.name().to_uppercase());
        // All of them as one vector, and one by one.
        for len in [values.len(), 32] {
            let layout = VectorLayout::new(dtype, len, 0);
            let mut found = Vec::new();
            for x in values.chunks_exact(len) {
                let start = found.len();
                found.resize(start + layout.byte_len(), 0);
                layout.write(x, &mut found[start..]);
            }
            let expected = hex(&case["blocks_hex"]);
            assert_eq!(found.len(), expected.len());
            let size = expected.len() / (values.len() / 32);
            for (i, (a, b)) in found.chunks(size).zip(expected.chunks(size)).enumerate() {
                assert_eq!(a, b, "{} block {i}", dtype.name());
            }
        }
    }
    assert_eq!(cases.len(), 2);
}

#[test]
fn names_in_json_are_those_of_llama_cpp() {
    for dtype in CacheType::ALL {
        assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
    }
}
