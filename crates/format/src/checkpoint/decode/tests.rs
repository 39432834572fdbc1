//! Decoded values against what each scheme says, read whole, in parts, and across.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shardwright_quant::{Backend, Matrix, f8_e4m3, widen};

use super::*;
use crate::checkpoint::testing::{Held, message, write_held};
use crate::checkpoint::{Dtype, own_codes, read_rows, read_view};
use crate::io::AlignedBuf;
use crate::{Role, SourceView, TensorEntry};

/// Values of the checkpoint's tensor `name`, seen as rows of `cols` with these strides.
fn read(
    checkpoint: &Checkpoint,
    name: &str,
    (start, row_stride, col_stride): (u64, u64, u64),
    (rows, cols): (Range<u64>, u64),
) -> Vec<f32> {
    let info = &checkpoint.tensors()[name];
    let view = SourceView { start, row_stride, col_stride, ..info.view(name, 0) };
    let mut buf = AlignedBuf::default();
    read_view(checkpoint, &view, rows, cols, &mut buf).unwrap();
    let mut values = vec![0.0; buf.len() / info.dtype.size()];
    widen(info.dtype, buf.as_slice(), &mut values);
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A checkpoint of quantized tensors.
fn checkpoint(config: &Value, tensors: &[Held]) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    write_held(dir.path(), &json!({ "quantization_config": config }), tensors);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// Reads a tensor of `shape` whole, by odd pieces of rows, transposed, and every other row, and
/// compares with `expected`.
fn check_views(checkpoint: &Checkpoint, name: &str, expected: &[f32]) {
    let shape = &checkpoint.tensors()[name].shape;
    let [.., _, cols] = shape[..] else { panic!("{shape:?}") };
    let all = expected.len() as u64 / cols;
    assert_eq!(bits(&read(checkpoint, name, (0, cols, 1), (0..all, cols))), bits(expected));
    for first in 0..all {
        let part = read(checkpoint, name, (3, cols, 1), (first..first + 1, cols - 5));
        let at = (first * cols + 3) as usize;
        assert_eq!(bits(&part), bits(&expected[at..at + cols as usize - 5]), "row {first}");
    }
    let across = read(checkpoint, name, (2, 1, cols), (0..cols - 2, all));
    let column = |c: u64| (0..all).map(move |r| expected[(r * cols + c) as usize]);
    assert_eq!(bits(&across), bits(&(2..cols).flat_map(column).collect::<Vec<_>>()));
    let odd = read(checkpoint, name, (cols, 2 * cols, 1), (0..all / 2, cols));
    let rows = expected.chunks(cols as usize).skip(1).step_by(2);
    assert_eq!(bits(&odd), bits(&rows.flatten().copied().collect::<Vec<_>>()));
}

/// The encoding of a tensor's own codes, whose values, read whole and every other row, are compared with `expected`.
fn check_codes(checkpoint: &Checkpoint, name: &str, expected: &[f32]) -> Option<String> {
    let info = &checkpoint.tensors()[name];
    let cols = *info.shape.last()?;
    let all = expected.len() as u64 / cols;
    let entry = |start, row_stride, rows| {
        let source = SourceView { start, row_stride, ..info.view(name, cols) };
        TensorEntry::new(Role::QProj, [rows, cols], info.dtype.into(), source)
    };
    let encoding = own_codes(checkpoint, &entry(0, cols, all)).unwrap()?;
    for (start, step) in [(0, 1), (1, 2)] {
        let rows = (all - start).div_ceil(step);
        let entry = TensorEntry { encoding, ..entry(start * cols, step * cols, rows) };
        let mut buf = AlignedBuf::default();
        read_rows(checkpoint, &entry, 0..rows, &mut buf).unwrap();
        let matrix = Matrix::new(encoding, rows as usize, cols as usize, buf.as_slice()).unwrap();
        let mut values = vec![0.0; (rows * cols) as usize];
        matrix.dequantize(Backend::detect(), 0..rows as usize, &mut values);
        let wanted = expected.chunks(cols as usize);
        let wanted = wanted.skip(start as usize).step_by(step as usize);
        // Equal, not the same bits: a zero may change its sign.
        assert_eq!(values, wanted.flatten().copied().collect::<Vec<_>>());
    }
    Some(encoding.label())
}

#[test]
fn fp8_blocks_with_ragged_edges_and_several_matrices() {
    let (matrices, rows, cols, block) = (3, 10_u64, 23_u64, [4_u64, 8_u64]);
    let codes: Vec<u8> = (0..matrices * rows * cols)
        .map(|i| (i * 37 % 251) as u8 & 0xf7)
        .collect();
    let scales: Vec<f32> = (0..matrices * 3 * 3)
        .map(|i| (i as f32 + 0.3) / 7.0)
        .collect();
    let stored = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let config = json!({ "quant_method": "fp8", "weight_block_size": block });
    let scale_type = Dtype::Float(Float::F32);
    let (_dir, checkpoint) = checkpoint(
        &config,
        &[
            ("a.weight", Dtype::F8E4m3, vec![matrices, rows, cols], codes.clone()),
            ("a.weight_scale_inv", scale_type, vec![matrices, 3, 3], stored),
        ],
    );
    let value = |i: u64| {
        let (matrix, r, c) = (i / (rows * cols), i / cols % rows, i % cols);
        let scale = scales[(matrix * 9 + r / block[0] * 3 + c / block[1]) as usize];
        f8_e4m3(codes[i as usize]) * scale
    };
    let expected: Vec<_> = (0..matrices * rows * cols).map(value).collect();
    check_views(&checkpoint, "a.weight", &expected);
    let names: Vec<_> = checkpoint.tensors().keys().collect();
    assert_eq!(names, ["a.weight"], "scales are no tensors of their own");
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.chunks_exact(2).map(byte).collect()
}

fn numbers(value: &Value) -> Vec<u64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect()
}

/// Every scheme, each with values that another implementation made.
#[test]
fn values_are_those_of_other_implementations() {
    let cases = include_str!("../../../../../fixtures/vectors/sources.json");
    let cases: Vec<Value> = serde_json::from_str(cases).unwrap();
    assert!(cases.len() > 30);
    let mut encodings = BTreeMap::<_, u32>::new();
    for (at, case) in cases.iter().enumerate() {
        let held: Vec<Held> = case["stored"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stored| {
                let name = stored["name"].as_str().unwrap().to_owned().leak();
                let dtype = Dtype::parse(stored["dtype"].as_str().unwrap()).unwrap();
                (&*name, dtype, numbers(&stored["shape"]), unhex(&stored["bytes"]))
            })
            .collect();
        let (_dir, checkpoint) = checkpoint(&case["config"], &held);
        let name = case["name"].as_str().unwrap();
        let info = &checkpoint.tensors()[name];
        eprintln!("case {at}, {}: {}", case["by"], info.decoder.as_ref().unwrap().label());
        assert_eq!(info.shape, numbers(&case["shape"]));
        let bytes = unhex(&case["values"]);
        let mut expected = vec![0.0; bytes.len() / 4];
        widen(Float::F32, &bytes, &mut expected);
        check_views(&checkpoint, name, &expected);
        let own = check_codes(&checkpoint, name, &expected);
        *encodings.entry(own.unwrap_or_default()).or_default() += 1;
        assert_eq!(checkpoint.tensors().len(), 1, "parts are no tensors of their own");
        assert_eq!(checkpoint.unused().count(), 0);
    }
    // Without codes of their own are rows that no group divides, columns in an order of their own, and scales of 32 bits
    // in MLX, which rounds twice.
    let expected = [
        ("", 22),
        ("e2m1 g16 f32", 5),
        ("e2m1 g32 e8m0", 4),
        ("e4m3 g32 e8m0", 1),
        ("e4m3 g32 f32", 1),
        ("q2 g32 bf16", 1),
        ("q3 g32 f32", 2),
        ("q3 g64 f16", 1),
        ("q4 g32 bf16", 3),
        ("q4 g32 f32", 4),
        ("q4 g64 bf16", 1),
        ("q4 g64 f32", 1),
        ("q6 g128 f16", 1),
        ("q6 g32 bf16", 1),
        ("q8 g32 f32", 1),
        ("q8 g64 bf16", 1),
        ("q8 g64 f32", 3),
    ];
    let encodings = encodings.iter().map(|(label, n)| (label.as_str(), *n));
    assert_eq!(encodings.collect::<Vec<_>>(), expected);
}

#[test]
fn codes_that_are_no_numbers_stay_so() {
    let config = json!({ "quant_method": "fp8" });
    let scales =
        ("a.weight_scale_inv", Dtype::Float(Float::F32), vec![1, 1], 1_f32.to_le_bytes().to_vec());
    let weight = ("a.weight", Dtype::F8E4m3, vec![1, 8], vec![0x7f, 0xff, 0, 1, 2, 3, 4, 5]);
    let (_dir, fp8) = checkpoint(&config, &[weight, scales]);
    let values = read(&fp8, "a.weight", (0, 8, 1), (0..1, 8));
    assert!(values[0].is_nan() && values[1].is_nan() && values[2..].iter().all(|v| v.is_finite()));
    let blocks = ("a_blocks", Dtype::U8, vec![1, 2, 16], vec![0x77; 32]);
    let powers = ("a_scales", Dtype::U8, vec![1, 2], vec![255, 253]);
    let (_dir, mxfp4) = checkpoint(&json!({ "quant_method": "mxfp4" }), &[blocks, powers]);
    let values = read(&mxfp4, "a_blocks", (0, 64, 1), (0..1, 64));
    assert!(values[..32].iter().all(|v| v.is_nan()), "255 is no power");
    assert!(values[32..].iter().all(|v| v.is_infinite()), "6 * 2^126 leaves 32 bits");
}

/// Whole numbers with a sign, a scale to a row: codes about 128.
#[test]
fn bytes_with_a_sign_are_codes_about_their_middle() {
    let weights = json!({ "num_bits": 8, "type": "int", "strategy": "channel" });
    let config = json!({ "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } });
    let bytes = (0..=255).collect();
    let scales = [0.1_f32, 1.0, -3.0, 0.7];
    let scales = scales.map(f32::to_le_bytes).as_flattened().to_vec();
    let held = [
        ("a.weight", Dtype::I8, vec![4, 64], bytes),
        ("a.weight_scale", Dtype::Float(Float::F32), vec![4, 1], scales),
    ];
    let (_dir, checkpoint) = checkpoint(&config, &held);
    let values = read(&checkpoint, "a.weight", (0, 64, 1), (0..4, 64));
    assert_eq!((values[0], values[64], values[255]), (0.0, 64.0, -0.7));
    assert_eq!(check_codes(&checkpoint, "a.weight", &values).as_deref(), Some("q8 g64 f32"));
}

/// An index of columns that says what is so without it changes nothing.
#[test]
fn columns_that_an_index_leaves_in_order_keep_their_codes() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 });
    for (turned, expected) in [(false, Some("q4 g32 f32")), (true, None)] {
        let group = |col: i32| if turned { 1 - col / 32 } else { col / 32 };
        let index = (0..64).flat_map(|col| group(col).to_le_bytes());
        let bytes = |len: u8| {
            (0..len)
                .map(|byte| byte.wrapping_mul(37))
                .collect::<Vec<_>>()
        };
        let scales = [0x2a66_u16, 0x1e67]
            .map(u16::to_le_bytes)
            .as_flattened()
            .repeat(8);
        let held = [
            ("a.qweight", Dtype::I32, vec![8, 8], [bytes(128), bytes(128)].concat()),
            ("a.qzeros", Dtype::I32, vec![2, 1], bytes(8)),
            ("a.scales", Dtype::Float(Float::F16), vec![2, 8], scales),
            ("a.g_idx", Dtype::I32, vec![64], index.collect()),
        ];
        let (_dir, checkpoint) = checkpoint(&config, &held);
        let values = read(&checkpoint, "a.weight", (0, 64, 1), (0..8, 64));
        assert_eq!(check_codes(&checkpoint, "a.weight", &values).as_deref(), expected);
    }
}

#[test]
fn a_column_of_no_group_is_refused() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 });
    let index: Vec<u8> = (0..32_i32)
        .flat_map(|i| (i / 31 * 2 - 1).to_le_bytes())
        .collect();
    let held = [
        ("a.qweight", Dtype::I32, vec![4, 8], vec![0; 128]),
        ("a.qzeros", Dtype::I32, vec![1, 1], vec![0; 4]),
        ("a.scales", Dtype::Float(Float::F16), vec![1, 8], vec![0; 16]),
        ("a.g_idx", Dtype::I32, vec![32], index),
    ];
    let (dir, checkpoint) = checkpoint(&config, &held);
    let info = checkpoint.tensors()["a.weight"].clone();
    let view = info.view("a.weight", 32);
    let read = read_view(&checkpoint, &view, 0..8, 32, &mut AlignedBuf::default());
    assert_eq!(
        message(dir.path(), read),
        "DIR: tensor `a.g_idx`: expected groups below 1, found -1"
    );
}
