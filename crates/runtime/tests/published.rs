//! Configurations of released models, made smaller, against what transformers computes with them.
//! The weights are generated: `fixtures/make_published.py` has the same generator.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use shardwright_format::weights::Weights;
use shardwright_quant::{Float, narrow};
use shardwright_runtime::Head;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_testing::{each_published, fixture};

/// Of the largest logit.
const TOLERANCE: f64 = 1e-4;
/// Of the perplexity.
const PERPLEXITY: f64 = 5e-6;
const TOKENS: usize = 48;

/// A published name, shape and type.
struct Described {
    name: String,
    shape: Vec<usize>,
    float: Float,
}

/// What `mean_and_scale` of the script gives: values lie around the one, and so far.
fn mean_and_scale(name: &str, shape: &[usize]) -> (f32, f32) {
    if name.ends_with("A_log") {
        return (-1.0, 0.5);
    }
    if shape.len() < 2 || name.contains("statics") {
        return (if name.contains("norm") { 1.0 } else { 0.0 }, 0.25);
    }
    let size: f64 = 2.0 / (*shape.last().unwrap() as f64).sqrt();
    (0.0, size.log2().round_ties_even().exp2() as f32)
}

/// The values of a tensor: eight from each step of splitmix64, seeded by FNV-1a of the name.
fn generated(name: &str, shape: &[usize]) -> Vec<f32> {
    let fnv = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let (mean, scale) = mean_and_scale(name, shape);
    let value = |step: u8| {
        let step = step as i8;
        let unit = if mean == 0.0 { f32::from(step) / 128.0 } else { f32::from(step >> 2) / 32.0 };
        mean + scale * unit
    };
    let eight = |n: u64| {
        let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let count: usize = shape.iter().product();
    (1..=count.div_ceil(8) as u64)
        .flat_map(eight)
        .take(count)
        .map(value)
        .collect()
}

/// The numbers of `0-2,5`.
fn numbers(text: &str) -> Vec<String> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<u32>().unwrap()..=last.parse().unwrap()
    };
    text.split(',')
        .flat_map(range)
        .map(|n| n.to_string())
        .collect()
}

/// The tensors of a line: `NAME SHAPE DTYPE`, the name's numbers as ranges.
fn described(line: &str) -> Vec<Described> {
    let [name, shape, dtype] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let shape: Vec<usize> = shape.split('x').map(|size| size.parse().unwrap()).collect();
    let float = if dtype == "F32" { Float::F32 } else { Float::Bf16 };
    let mut names = vec![String::new()];
    for part in name.split('.') {
        let number = part.starts_with(|c: char| c.is_ascii_digit());
        let parts = if number { numbers(part) } else { vec![part.to_owned()] };
        let longer = |name: &String| {
            let dot = if name.is_empty() { "" } else { "." };
            parts
                .iter()
                .map(|part| format!("{name}{dot}{part}"))
                .collect::<Vec<_>>()
        };
        names = names.iter().flat_map(longer).collect();
    }
    let one = |name| Described { name, shape: shape.clone(), float };
    names.into_iter().map(one).collect()
}

/// Writes a checkpoint: its configuration, and generated values for names and shapes.
fn write(folder: &Path, config: &Value, tensors: &Value) {
    let lines = tensors.as_array().unwrap().iter();
    let described: Vec<_> = lines
        .flat_map(|line| described(line.as_str().unwrap()))
        .collect();
    let stored = |tensor: &Described| {
        let values = generated(&tensor.name, &tensor.shape);
        let mut bytes = vec![0; values.len() * tensor.float.size()];
        narrow(tensor.float, &values, &mut bytes);
        bytes
    };
    let bytes: Vec<_> = described.iter().map(stored).collect();
    let views = described.iter().zip(&bytes).map(|(tensor, bytes)| {
        let dtype = if tensor.float == Float::F32 { Dtype::F32 } else { Dtype::BF16 };
        (&tensor.name, TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// The tokens of the text.
fn text() -> Vec<u32> {
    let values = generated("the text", &[TOKENS]);
    values
        .iter()
        .map(|v| (v * 4.0 * 128.0).rem_euclid(256.0) as u32)
        .collect()
}

/// The logits at every position, `[TOKENS, vocabulary]`.
fn logits(folder: &Path) -> Result<(Vec<f32>, usize), String> {
    let weights = Weights::open(folder).map_err(|e| e.to_string())?;
    let mut pass = LayerPass::new(&weights, &text(), TOKENS, 1).unwrap();
    while pass.step().map_err(|e| e.to_string())?.is_some() {}
    let mut head = Head::new(&weights, 1).unwrap();
    let mut logits = vec![0.0; TOKENS * head.vocab_size()];
    head.logits(pass.hidden(), TOKENS, &mut logits).unwrap();
    Ok((logits, head.vocab_size()))
}

/// The perplexity of the text by the logits at each position but the last.
fn perplexity(logits: &[f32], vocab: usize) -> f64 {
    let text = text();
    let rows = logits.chunks_exact(vocab).zip(&text[1..]);
    let loss = rows.map(|(row, next)| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[*next as usize])
    });
    (loss.sum::<f64>() / (TOKENS - 1) as f64).exp()
}

/// What is wrong with a checkpoint's results; none if they are those expected.
fn misfit(folder: &Path, expected: &Value) -> Option<String> {
    let (logits, vocab) = match logits(folder) {
        Ok(found) => found,
        Err(error) => return Some(error),
    };
    let largest = expected["largest"].as_f64().unwrap();
    for (position, row) in logits.chunks_exact(vocab).enumerate() {
        let column = (7 * position + 3) % 256;
        let wanted = expected["logits"][position].as_f64().unwrap();
        let off = (f64::from(row[column]) - wanted).abs() / largest;
        if off.is_nan() || off > TOLERANCE {
            return Some(format!("position {position}: expected {wanted}, found {}", row[column]));
        }
        let best = (0..vocab)
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap();
        let next = &expected["next"][position];
        if !next.is_null() && *next != best {
            return Some(format!("position {position}: expected token {next}, found {best}"));
        }
    }
    let (found, wanted) = (perplexity(&logits, vocab), expected["perplexity"].as_f64().unwrap());
    let off = (found / wanted - 1.0).abs();
    (off > PERPLEXITY).then(|| format!("perplexity: expected {wanted}, found {found}"))
}

/// A release as published, as transformers 5 saves it, and with transformers' own names.
fn published(name: &str) {
    let path = fixture(&format!("published/{name}.json"));
    let case: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (form, config, tensors, expected) in [
        ("published", "config", "tensors", "expected"),
        ("saved", "saved", "tensors", "expected"),
        ("native", "saved", "native", "expected_native"),
    ] {
        if case[tensors].is_null() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &case[config], &case[tensors]);
        assert_eq!(misfit(folder.path(), &case[expected]), None, "{name} ({form})");
    }
}

each_published!(published);
