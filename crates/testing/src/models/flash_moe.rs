//! A checkpoint that flash-moe's kernels could read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_format::arch::Arch;
use shardwright_format::checkpoint::header;
use shardwright_format::{Role, SourceView};
use shardwright_quant::Float;

use super::noise::Noise;
use crate::{fixture, golden};

/// A Qwen3.5 mixture of experts whose columns are all multiples of 64, with a vocabulary of pairs.
pub fn flash_moe_checkpoint(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let config = config();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = tensors(&config);
    let path = dir.join("model.safetensors");
    let listed = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), Float::Bf16, shape.as_slice()));
    let mut bytes = header::encode(&path, &[], listed).unwrap();
    let noise = Noise::new();
    for shape in tensors.values() {
        let start = bytes.len();
        bytes.resize(start + 2 * shape.iter().product::<u64>() as usize, 0);
        noise.floats(Float::Bf16, 1.0, &mut bytes[start..]);
    }
    fs::write(path, bytes).unwrap();
    let tokenizer = fixture("fixture-2m/tokenizer.json");
    fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
}

fn config() -> Value {
    let path = golden("qwen3_5_moe").join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let parts = config.as_object_mut().unwrap();
    parts.remove("vision_config");
    for (key, value) in [
        ("moe_intermediate_size", 64),
        ("shared_expert_intermediate_size", 64),
        ("linear_value_head_dim", 32),
        ("vocab_size", 1024),
        ("num_experts", 3),
    ] {
        config["text_config"][key] = json!(value);
    }
    config
}

/// The shape of every tensor.
fn tensors(config: &Value) -> BTreeMap<String, Vec<u64>> {
    let arch = Arch::builtin("qwen3_5_moe").unwrap();
    let spec = arch.spec_of(Path::new("config.json"), config).unwrap();
    let mut tensors = BTreeMap::new();
    for unit in spec.units() {
        for shape in spec.tensors(unit) {
            let (role, [rows, cols]) = (shape.role, [shape.rows, shape.cols]);
            let like = SourceView::whole(String::new(), Float::Bf16, vec![rows, cols], cols);
            let view = arch
                .own_place(&spec, unit, (role, [rows, cols]), &like)
                .unwrap();
            let shape = match rows {
                1 if role != Role::SharedExpertGate => vec![cols],
                _ if role.is_convolution() => vec![rows, 1, cols],
                _ => view.shape,
            };
            tensors.insert(view.tensor, shape);
        }
    }
    tensors
}
