//! Decoded values against what each scheme says, read whole, in parts, and across.

use serde_json::{Value, json};
use shardwright_quant::{f8_e4m3, widen};

use super::*;
use crate::SourceView;
use crate::checkpoint::testing::{Held, write_held};
use crate::checkpoint::{Dtype, read_view};
use crate::io::AlignedBuf;

/// Values of the checkpoint's tensor `name`, seen as rows of `cols` with these strides.
fn read(
    checkpoint: &Checkpoint,
    name: &str,
    (start, row_stride, col_stride): (u64, u64, u64),
    (rows, cols): (Range<u64>, u64),
) -> Vec<f32> {
    let info = &checkpoint.tensors()[name];
    let view = SourceView {
        tensor: name.to_owned(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        start,
        row_stride,
        col_stride,
        expert_stride: 0,
        decoder: info.decoder.clone(),
    };
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
