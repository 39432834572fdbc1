//! Values of blocks are those of gguf-py: `fixtures/vectors/ggml.json`, whose `_comment` says what
//! each field holds.

use serde_json::Value;
use shardwright_quant::{Ggml, f4_e2m1};

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/vectors/ggml.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn values(value: &Value) -> Vec<f32> {
    let bytes = hex(value);
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn types_are_those_of_ggml() {
    let vectors = vectors();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), Ggml::ALL.len());
    for case in cases {
        let kind = Ggml::from_id(case["id"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(case["type"], kind.name());
        assert_eq!(case["block_values"], kind.block_values());
        assert_eq!(case["block_bytes"], kind.block_bytes());
    }
    // Q4_2, which ggml removed, and a number without a type.
    assert_eq!((Ggml::from_id(4), Ggml::from_id(1000)), (None, None));
}

#[test]
fn values_are_those_of_gguf_py_to_the_bit() {
    for case in vectors()["cases"].as_array().unwrap() {
        let kind = Ggml::from_id(case["id"].as_u64().unwrap() as u32).unwrap();
        if case.get("values_hex").is_none() {
            continue;
        }
        let (blocks, expected) = (hex(&case["blocks_hex"]), values(&case["values_hex"]));
        let mut found = vec![0.0; expected.len()];
        kind.decode(&blocks, &mut found);
        for (at, (a, b)) in found.iter().zip(&expected).enumerate() {
            let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let block = at as u64 / kind.block_values();
            assert!(same, "{} block {block} value {at}: {a} {b}", kind.name());
        }
        assert!(expected.iter().any(|x| !x.is_finite()));
    }
}

/// What codes and scales stand for are the values, a zero of either sign counting as equal. Of `mxfp4` a byte of 255 is
/// 2^128 to gguf-py, and no number to the specification.
#[test]
fn codes_of_blocks_mean_their_values() {
    let mut seen = 0;
    for case in vectors()["cases"].as_array().unwrap() {
        let kind = Ggml::from_id(case["id"].as_u64().unwrap() as u32).unwrap();
        let value: fn(u8) -> f32 = match kind {
            Ggml::Mxfp4 | Ggml::Nvfp4 => f4_e2m1,
            Ggml::Tq1_0 | Ggml::Tq2_0 => |code| f32::from(code) - 1.0,
            _ => continue,
        };
        let blocks = hex(&case["blocks_hex"]);
        let (codes, scales) = kind.codes(&blocks);
        let mut expected = vec![0.0; codes.len()];
        kind.decode(&blocks, &mut expected);
        let group_size = codes.len() / scales.len();
        for (at, (code, expected)) in codes.iter().zip(expected).enumerate() {
            let scale = scales[at / group_size];
            let found = value(*code) * scale;
            let same =
                scale.is_infinite() || found == expected || found.is_nan() && expected.is_nan();
            assert!(same, "{} value {at}: {found} {expected}", kind.name());
        }
        seen += 1;
    }
    assert!(seen >= 4);
}

#[test]
fn hashes_of_values_are_those_of_gguf_py() {
    let mut seen = 0;
    for case in vectors()["cases"].as_array().unwrap() {
        let Some(expected) = case.get("values_blake3") else { continue };
        let kind = Ggml::from_id(case["id"].as_u64().unwrap() as u32).unwrap();
        let blocks = hex(&case["blocks_hex"]);
        let mut found =
            vec![0.0; blocks.len() / kind.block_bytes() as usize * kind.block_values() as usize];
        kind.decode(&blocks, &mut found);
        let one_nan = |x: &f32| if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { *x };
        let bytes: Vec<_> = found
            .iter()
            .flat_map(|x| one_nan(x).to_le_bytes())
            .collect();
        assert_eq!(*expected, blake3::hash(&bytes).to_string(), "{}", kind.name());
        seen += 1;
    }
    assert_eq!(seen, 13);
}

#[test]
fn names_in_json_are_lower_case() {
    for kind in Ggml::ALL {
        let name = serde_json::to_value(kind).unwrap();
        assert_eq!(name, kind.name().to_lowercase());
    }
}

#[test]
#[should_panic(expected = "34 bytes for 33 values of Q8_0")]
fn parts_of_blocks_are_refused() {
    Ggml::Q8_0.decode(&[0; 34], &mut [0.0; 33]);
}
