//! Codes of a source that no rule makes: small floats, and integers whose scales and biases take 32 bits.

use safetensors::SafeTensors;
use serde_json::Value;
use shardwright_format::Decoder;
use shardwright_format::checkpoint::Dtype;
use shardwright_format::weights::Weights;
use shardwright_quant::{Encoding, Float, Ggml, narrow};

use super::quantized::{Held, holds_some_of, int4_config, requantized};
use super::*;
use crate::engine::{Engine, Limits};
use crate::recipe::TakesOver;
use crate::{ConvertError, ExportOptions, ExportTarget, export};

/// Floats of 4 and of 8 bits, and integers with zero points, whose scales and biases take 32 bits.
#[test]
fn codes_that_no_rule_makes_are_taken_over_where_they_take_no_more() {
    for (name, wanted, own, tensors) in [
        ("gpt_oss-mxfp4", "q4g64", "e2m1 g32 e8m0", 36),
        ("gpt_oss-mxfp4", "q3g64", "", 0),
        ("deepseek_v3-fp8", "q8g32", "e4m3 ", 50),
        ("gemma3-mlx-mxfp8", "q8g64", "e4m3 g32 e8m0", 22),
        ("gemma3-mlx-nvfp4", "q4g64", "", 0),
        ("qwen2-awq", "q4g32", "", 0),
    ] {
        let source = fixture(&format!("golden/{name}"));
        let recipe = Recipe::uniform(wanted.parse().unwrap(), false);
        let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
        let repacked = case.plan.repacked.iter();
        // Where none is expected, any would count.
        let of_own = repacked.filter(|r| r.encoding.starts_with(own));
        let repacked: u64 = of_own.map(|r| r.tensors).sum();
        assert_eq!(repacked, tensors, "{name} {wanted} {:?}", case.plan.repacked.first());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        case.convert(&out, 2).unwrap();
        let is_own = |encoding: Encoding| !own.is_empty() && encoding.label().starts_with(own);
        holds_some_of(&out, &source, &case, is_own);
        // An engine that has none of these has them made anew.
        let held = Recipe { takes_over: TakesOver::None, ..recipe };
        let case = Case::new(&source, &held, PlanOptions::default()).unwrap();
        assert!(case.plan.repacked.is_empty(), "{name}");
    }
}

/// Symmetric codes of 4 bits about zeros of their own, a group to a row, as compressed-tensors packs them.
fn int4_zeros(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
    let module = name.strip_suffix(".weight").unwrap();
    let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for row in values.chunks(cols as usize) {
        let least = row.iter().copied().fold(0.0, f32::min);
        let most = row.iter().copied().fold(0.0, f32::max);
        let scale = Float::F16.round((most - least) / 15.0);
        let zero = (-least / scale).round();
        let code = |value: &f32| ((value / scale).round() + zero).clamp(0.0, 15.0) as u8;
        codes.extend(
            row.chunks(2)
                .map(|pair| code(&pair[0]) | code(&pair[1]) << 4),
        );
        scales.push(scale);
        zeros.push(zero as u32);
    }
    // Eight rows to a word.
    let words = zeros.chunks(8).map(|zeros| {
        let placed = zeros.iter().enumerate().map(|(at, zero)| zero << (4 * at));
        placed.sum::<u32>()
    });
    let words: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    let mut halves = vec![0; scales.len() * 2];
    narrow(Float::F16, &scales, &mut halves);
    let dims = [rows, cols].into_iter().flat_map(u64::to_le_bytes);
    let part = |part: &str| format!("{module}.weight_{part}");
    vec![
        (part("packed"), Dtype::I32, vec![rows, cols / 8], codes),
        (part("scale"), Float::F16.into(), vec![rows, 1], halves),
        (part("zero_point"), Dtype::I32, vec![rows.div_ceil(8), 1], words),
        (part("shape"), Dtype::I64, vec![2], dims.collect()),
    ]
}

/// A bias that is the product of a zero and a scale of 16 bits is exact in 32, and so is the code for zero that an
/// export makes of it.
#[test]
fn integers_with_zero_points_come_through_to_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    let mut config = int4_config();
    config["config_groups"]["group_0"]["weights"]["strategy"] = Value::from("channel");
    requantized("golden/qwen3_moe", &source, config, int4_zeros);
    let json = r#"{"name":"t","rules":[{"match":{"role":["attention.*","expert.gate_proj","expert.up_proj"]},"encoding":"q4g32"},
        {"encoding":"keep"}]}"#;
    let recipe = Recipe::parse("t", json).unwrap();
    let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
    case.convert(&out, 2).unwrap();
    let labels: std::collections::BTreeSet<_> = case
        .plan
        .repacked
        .iter()
        .map(|r| r.encoding.as_str())
        .collect();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["q4 g128 f32", "q4 g64 f32"]);
    holds_some_of(&out, &source, &case, |encoding| encoding.code_bits().is_some());
    let (model, packed) = (Weights::open(&out).unwrap(), dir.path().join("packed"));
    let told = export(&model, &packed, ExportTarget::CompressedTensors, &SMALL_EXPORT).unwrap();
    assert_eq!(told.requantized, None);
    holds_some_of(&out, &packed, &case, |encoding| encoding.code_bits().is_some());
}

/// MXFP4 is a type of GGUF files and a mode of MLX. Compressed-tensors has it stored anew or not at all.
#[test]
fn small_floats_go_where_they_are_held() {
    let json = r#"{"name":"t","rules":[{"match":{"role":"expert.*"},"encoding":"q4g64","fallback":[32]},{"encoding":"keep"}]}"#;
    let source = fixture("golden/gpt_oss-mxfp4");
    let config = Checkpoint::open(&source).unwrap().config().clone();
    let restricted = |engine| {
        let limits = Limits::new(engine, &config).unwrap();
        limits.restrict(Recipe::parse("t", json).unwrap()).0
    };
    let packed = restricted(Engine::CompressedTensors);
    let case = Case::new(&source, &packed, PlanOptions::default()).unwrap();
    assert!(case.plan.repacked.is_empty());
    let recipe = restricted(Engine::Gguf);
    assert_eq!(restricted(Engine::Mlx).takes_over, TakesOver::Mx);
    let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    case.convert(&out, 2).unwrap();
    let (model, file) = (Weights::open(&out).unwrap(), dir.path().join("model.gguf"));
    export(&model, &file, ExportTarget::Gguf, &SMALL_EXPORT).unwrap();
    let written = Weights::open(&file).unwrap();
    let (checkpoint, _) = written.checkpoint().unwrap();
    let blocks = |decoder: &Decoder| matches!(decoder, Decoder::Gguf { kind: Ggml::Mxfp4, .. });
    let decoders = checkpoint
        .tensors()
        .values()
        .filter_map(|info| info.decoder.as_ref());
    assert_eq!(decoders.filter(|decoder| blocks(decoder)).count(), 9);
    holds_some_of(&out, &file, &case, |encoding| matches!(encoding, Encoding::Minifloat(_)));
    let mlx = dir.path().join("mlx");
    let told = export(&model, &mlx, ExportTarget::Mlx, &SMALL_EXPORT).unwrap();
    assert_eq!(told.requantized, None);
    holds_some_of(&out, &mlx, &case, |encoding| matches!(encoding, Encoding::Minifloat(_)));
    let (other, target) = (dir.path().join("other"), ExportTarget::CompressedTensors);
    let refused = export(&model, &other, target, &SMALL_EXPORT).unwrap_err();
    let remedy = matches!(refused, ConvertError::NotHeld { .. });
    assert!(remedy && refused.to_string().contains("found e2m1 g32 e8m0"), "{refused}");
    let options = ExportOptions { requantize: true, ..SMALL_EXPORT };
    let told = export(&model, &other, target, &options).unwrap();
    let anew = told.requantized.unwrap();
    assert!(anew.relative_rmse < 0.2, "{anew:?}");
}

/// A model in MLX's MXFP4 or MXFP8 comes back out as it was.
#[test]
fn modes_of_mlx_are_kept() {
    for (name, wanted, mode) in
        [("gemma3-mlx-mxfp4", "q4g64", "mxfp4"), ("gemma3-mlx-mxfp8", "q8g64", "mxfp8")]
    {
        let source = fixture(&format!("golden/{name}"));
        let config = Checkpoint::open(&source).unwrap().config().clone();
        let recipe = Recipe::uniform(wanted.parse().unwrap(), false);
        let recipe = Limits::new(Engine::Mlx, &config)
            .unwrap()
            .restrict(recipe)
            .0;
        let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (out, mlx) = (dir.path().join("out"), dir.path().join("mlx"));
        case.convert(&out, 2).unwrap();
        let model = Weights::open(&out).unwrap();
        export(&model, &mlx, ExportTarget::Mlx, &SMALL_EXPORT).unwrap();
        holds_some_of(&out, &mlx, &case, |encoding| matches!(encoding, Encoding::Minifloat(_)));
        let said = std::fs::read_to_string(mlx.join("config.json")).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["quantization"]["mode"], mode);
        for (tensor, expected) in tensors_of(&source) {
            let found = tensors_of(&mlx).remove(&tensor);
            assert!(found == Some(expected), "{name} {tensor}");
        }
    }
}

/// The type, shape and bytes of each tensor of a checkpoint's files, by name.
fn tensors_of(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let file = path
            .extension()
            .is_some_and(|ending| ending == "safetensors");
        if !file || path.ends_with("golden.safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let of = (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec());
            all.insert(name, of);
        }
    }
    all
}
