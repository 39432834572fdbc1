//! Our codes and values are MLX's: `fixtures/vectors/mlx_affine.json`, whose `_comment` says what
//! each field holds.

use serde_json::Value;
use shardwright_quant::{Affine, Backend, Encoding, Float, Matrix, pack, unpack};

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/vectors/mlx_affine.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn affine(case: &Value) -> Affine {
    let dtype = if case["scale_dtype"] == "float16" { Float::F16 } else { Float::Bf16 };
    Affine::new(number(&case["bits"]) as u8, number(&case["group_size"]) as u16, dtype).unwrap()
}

#[test]
fn codes_are_packed_as_mlx_packs_them() {
    for case in vectors()["cases"].as_array().unwrap() {
        let bits = number(&case["bits"]) as u8;
        let codes: Vec<u8> = case["codes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| number(c) as u8)
            .collect();
        let packed = hex(&case["packed_hex"]);
        let (mut bytes, mut back) = (vec![0; packed.len()], vec![0; codes.len()]);
        pack(bits, &codes, &mut bytes);
        assert_eq!(bytes, packed, "{bits} bits");
        unpack(bits, &packed, &mut back);
        assert_eq!(back, codes, "{bits} bits");
    }
}

#[test]
fn values_are_those_mlx_dequantizes() {
    for case in vectors()["cases"].as_array().unwrap() {
        let (rows, cols) = (number(&case["rows"]), number(&case["cols"]));
        let parts = ["packed_hex", "scales_hex", "biases_hex"].map(|part| hex(&case[part]));
        let encoding = Encoding::Affine(affine(case));
        let bytes = parts.concat();
        let matrix = Matrix::new(encoding, rows, cols, &bytes).unwrap();
        for backend in Backend::available() {
            let mut values = vec![0.0f32; rows * cols];
            matrix.dequantize(backend, 0..rows, &mut values);
            let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let what = format!("{} on {}", encoding.label(), backend.name());
            assert!(values == hex(&case["dequantized_f32_hex"]), "{what}");
        }
    }
}

#[test]
fn an_expert_record_is_three_matrices() {
    let record = &vectors()["expert_record"];
    let (affine, bytes) = (affine(record), hex(&record["record_hex"]));
    let (hidden, inner) =
        (number(&record["hidden_size"]), number(&record["moe_intermediate_size"]));
    let mut rest = &bytes[..];
    let shapes =
        [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)];
    for (name, rows, cols) in shapes {
        let encoding = Encoding::Affine(affine);
        let total = encoding.parts(rows as u64, cols as u64).unwrap().total() as usize;
        let matrix = Matrix::new(encoding, rows, cols, &rest[..total]).unwrap();
        let mut codes = vec![0; rows * cols];
        unpack(affine.bits(), matrix.weight(), &mut codes);
        let digits: String = codes
            .iter()
            .filter_map(|&c| char::from_digit(c.into(), 16))
            .collect();
        assert!(record["codes_hex_digits"][name] == digits.as_str(), "{name}");
        rest = &rest[total..];
    }
    assert!(rest.is_empty());
}
