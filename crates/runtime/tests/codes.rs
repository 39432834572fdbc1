//! Quantized checkpoints are run in their own codes, which give the very values that are decoded otherwise.
#![allow(clippy::unwrap_used)]

use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{TensorEntry, Unit};
use shardwright_quant::{Backend, Matrix};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, Options, Runtime};
use shardwright_testing::{Golden, each_gguf, each_golden};

/// Cases with tensors whose codes are kept, and how many of these there are.
const CODED: [(&str, usize); 18] = [
    ("bitnet-packed", 21),
    ("deepseek_v3-fp8", 72),
    ("gemma3-mlx", 22),
    ("gemma3-mlx-mxfp4", 22),
    ("gemma3-mlx-mxfp8", 22),
    ("gemma3-mlx-nvfp4", 22),
    ("gpt_oss-mlx", 53),
    ("gpt_oss-mxfp4", 36),
    ("gpt_oss-square-mxfp4", 24),
    ("minimax_m2-fp8", 40),
    ("qwen2-awq", 21),
    ("kimi_k2-int4", 48),
    ("kimi_k2-mlx", 68),
    ("llama4-mlx", 56),
    ("qwen2-mlx", 23),
    ("qwen3_5-mlx", 33),
    ("qwen3_5_moe-mlx", 89),
    ("qwen3_next-mlx", 83),
];
/// The same of GGUF files.
const GGUF_CODED: [(&str, usize); 6] = [
    ("gemma3", 7),
    ("llama3-k", 8),
    ("llama3-q8_0", 22),
    ("qwen3_5-q", 16),
    ("qwen3_moe-k", 15),
    ("qwen3_next-q", 50),
];

/// The values of a tensor, and of two rows of it that are read alone.
fn values(weights: &Weights, unit: Unit, tensor: &TensorEntry) -> Vec<Vec<f32>> {
    let mut buf = AlignedBuf::default();
    let layout = weights.read(unit, &mut buf).unwrap();
    let entry = layout.find(tensor.role).unwrap();
    let len = entry.byte_len().unwrap() as usize;
    let whole = buf.as_slice()[entry.offset as usize..][..len].to_vec();
    let mut out = vec![dequantized(entry, entry.rows, &whole)];
    let last = entry.rows - 1;
    for row in [0, last] {
        weights
            .read_rows(unit, entry, row..row + 1, &mut buf)
            .unwrap();
        out.push(dequantized(entry, 1, buf.as_slice()));
    }
    out
}

fn dequantized(entry: &TensorEntry, rows: u64, bytes: &[u8]) -> Vec<f32> {
    let (rows, cols) = (rows as usize, entry.cols as usize);
    let matrix = Matrix::new(entry.encoding, rows, cols, bytes).unwrap();
    let mut out = vec![0.0; rows * cols];
    matrix.dequantize(Backend::detect(), 0..rows, &mut out);
    out
}

fn logits(weights: &Weights, tokens: &[u32]) -> Vec<f32> {
    let mut pass = LayerPass::new(weights, tokens, tokens.len(), 2).unwrap();
    while pass.step().unwrap().is_some() {}
    let mut head = Head::new(weights, 2).unwrap();
    let mut logits = vec![0.0; tokens.len() * head.vocab_size()];
    head.logits(pass.hidden(), tokens.len(), &mut logits)
        .unwrap();
    logits
}

fn check(case: &Golden, coded_cases: &[(&str, usize)]) {
    let weights = Weights::open(&case.path).unwrap();
    let coded = weights.clone().in_codes().unwrap();
    let mut found = 0;
    for unit in weights.units() {
        let (plain, layout) = (weights.layout(unit).unwrap(), coded.layout(unit).unwrap());
        for (a, b) in plain.tensors.iter().zip(layout.tensors.iter()) {
            assert_eq!((a.role, a.rows, a.cols), (b.role, b.rows, b.cols));
            if a.encoding != b.encoding {
                // Equal, not the same bits: a zero may change its sign.
                assert_eq!(values(&weights, unit, a), values(&coded, unit, b), "{unit} {}", b.role);
                found += 1;
            }
        }
        assert!(layout.len <= plain.len, "{unit}");
    }
    let expected = coded_cases.iter().find(|(name, _)| *name == case.name);
    assert_eq!(found, expected.map_or(0, |(_, count)| *count), "{}", case.name);
    if found == 0 {
        return;
    }
    let tokens = case.tokens();
    let expected = logits(&weights, &tokens);
    assert_eq!(bits(&logits(&coded, &tokens)), bits(&expected));
    let mut runtime = Runtime::open(weights, &Options::default()).unwrap();
    let last = runtime.forward_all(&tokens).unwrap();
    assert_eq!(bits(last), bits(&expected[expected.len() - last.len()..]));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn codes(case: &str) {
    check(&Golden::named(case), &CODED);
}

fn gguf_codes(case: &str) {
    check(&Golden::gguf(case), &GGUF_CODED);
}

each_golden!(codes);
each_gguf!(gguf_codes);
