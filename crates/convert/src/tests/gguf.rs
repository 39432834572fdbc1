//! GGUF files: every value the model's, names and metadata those of llama.cpp's own converter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::checkpoint::gguf::{Header, Value, read_header};
use shardwright_format::io::{AlignedBuf, ReadFile};
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};
use shardwright_quant::{Backend, Encoding, Matrix, Zeros};

use super::{Case, SMALL_EXPORT, fixture};
use crate::engine::{Engine, Limits};
use crate::error::{ConvertError, Remedy};
use crate::{ExportOptions, ExportTarget, PlanOptions, Recipe, export};

/// Metadata of llama.cpp's converter that ours leaves out: what is not computed with, YaRN's usual
/// bounds, and layers that predict further tokens.
const IDLE: &[&str] = &[
    "rope.scaling.finetuned",
    "attention.causal",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_attn_factor",
    "nextn_predict_layers",
];

fn cases() -> Vec<Json> {
    let json = std::fs::read(fixture("gguf/cases.json")).unwrap();
    let cases: Json = serde_json::from_slice(&json).unwrap();
    cases["cases"].as_array().unwrap().clone()
}

fn is_sparse(name: &str) -> bool {
    ["moe", "mixtral", "gpt_oss"]
        .iter()
        .any(|part| name.contains(part))
}

/// The values of a tensor, by its own reader.
fn values(weights: &Weights, unit: Unit, entry: &TensorEntry) -> Vec<f32> {
    let (mut buf, rows) = (AlignedBuf::default(), entry.rows as usize);
    let entry = entry.in_unit(unit);
    weights
        .read_rows(unit, &entry, 0..entry.rows, &mut buf)
        .unwrap();
    let matrix = Matrix::new(entry.encoding, rows, entry.cols as usize, buf.as_slice()).unwrap();
    let mut values = vec![0.0; rows * entry.cols as usize];
    matrix.dequantize(Backend::detect(), 0..rows, &mut values);
    values
}

/// Asserts that a file holds a model, value for value.
fn assert_same(model: &Weights, file: &Path) {
    let read = Weights::open(file).unwrap();
    for unit in model.spec().units() {
        let (expected, found) = (model.layout(unit).unwrap(), read.layout(unit).unwrap());
        assert_eq!(expected.tensors.len(), found.tensors.len(), "{unit}");
        for entry in expected.tensors.iter() {
            let other = found.find(entry.role).unwrap();
            let same = values(model, unit, entry) == values(&read, unit, other);
            assert!(same, "{unit} {}", entry.role);
        }
    }
}

fn exported(model: &Weights, dir: &Path) -> PathBuf {
    let out = dir.join("model.gguf");
    let files = export(model, &out, ExportTarget::Gguf, &SMALL_EXPORT)
        .unwrap()
        .files;
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].blake3, blake3::hash(&bytes).into());
    assert!(!dir.join("model.gguf.partial").exists());
    out
}

/// Tensors and metadata of the files of a model.
fn heads(paths: &[PathBuf]) -> (BTreeMap<String, Vec<u64>>, BTreeMap<String, String>) {
    let (mut tensors, mut metadata) = (BTreeMap::new(), BTreeMap::new());
    for path in paths {
        let file = ReadFile::open(path).unwrap();
        let bytes = read_header(&file).unwrap();
        let header = Header::parse(&bytes, file.len() - bytes.len() as u64).unwrap();
        for tensor in &header.tensors {
            // A row of one is a vector.
            let mut shape = tensor.shape.clone();
            if shape.len() == 2 && shape[0] == 1 {
                shape.remove(0);
            }
            tensors.insert(tensor.name.to_owned(), shape);
        }
        for (key, value) in header.metadata {
            let number = |x: f32| format!("{x:e}");
            let shown = match value {
                Value::F32(x) => number(x),
                Value::F64(x) => number(x as f32),
                other => format!("{other:?}"),
            };
            metadata.insert(key.to_owned(), shown);
        }
    }
    (tensors, metadata)
}

/// Files whose models are not written: their tensors are no rows of a checkpoint's, or their positions
/// have factors.
const READ_ALONE: &[&str] = &[
    "deepseek2",
    "deepseek2-dense",
    "phi3-long",
    "qwen3_5",
    "qwen3_5-mtp",
    "qwen3_5-q",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3_next-q",
];

/// One architecture for each table.
#[test]
fn every_architecture_is_written_as_llama_cpp_writes_it() {
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = serde_json::from_value(case["files"].clone()).unwrap();
        let paths: Vec<_> = names
            .iter()
            .map(|name| fixture("gguf").join(name))
            .collect();
        let model = Weights::open(&paths[0]).unwrap();
        let name = &case["case"];
        if READ_ALONE.iter().any(|other| name == other) {
            let out = dir.path().join("model.gguf");
            export(&model, &out, ExportTarget::Gguf, &SMALL_EXPORT).unwrap_err();
            assert!(!out.exists());
            continue;
        }
        let out = exported(&model, dir.path());
        assert_same(&model, &out);
        let ((mut expected, mut theirs), (found, ours)) = (heads(&paths), heads(&[out]));
        // Layers that predict further tokens are no part of the model.
        let past = format!("blk.{}.", model.spec().layers.len());
        expected.retain(|name, _| !name.starts_with(&past));
        assert_eq!(found, expected, "{name}");
        let architecture = theirs["general.architecture"].clone();
        // Mistral 3 whose queries do not grow is Mistral, which llama.cpp knows as Llama.
        if name == "mistral3" {
            assert_eq!(ours["general.architecture"], "Text(\"llama\")");
            continue;
        }
        assert_eq!(ours["general.architecture"], architecture);
        let prefix = architecture
            .trim_start_matches("Text(\"")
            .trim_end_matches("\")");
        if theirs.contains_key(&format!("{prefix}.nextn_predict_layers")) {
            theirs.remove(&format!("{prefix}.block_count"));
        }
        for (key, value) in &theirs {
            let Some(rest) = key.strip_prefix(&format!("{prefix}.")) else { continue };
            // Positions that nothing scales have no use for what is said of scaling.
            let scaled = theirs.get(&format!("{prefix}.rope.scaling.type"));
            let scaled = scaled.is_some_and(|kind| kind != "Text(\"none\")");
            let unscaled = !scaled && rest.starts_with("rope.scaling.");
            match ours.get(key) {
                // llama.cpp writes a list of these architectures, which it does not read, but a period.
                Some(own) if rest.ends_with("sliding_window_pattern") => {
                    assert!(own == value || value.starts_with("Array"), "{name} {value}");
                }
                Some(own) => assert_eq!(own, value, "{name} {key}"),
                // llama.cpp's graph of this one has one shared expert, whatever is said.
                None if key == "hunyuan-moe.expert_shared_count" => assert_eq!(value, "Whole(1)"),
                None => assert!(unscaled || IDLE.contains(&rest), "{name} {key}: {value}"),
            }
        }
    }
}

/// Codes of every width become blocks, in every place that a file has for them: permuted, stacked and
/// fused rows.
#[test]
fn codes_are_written_as_blocks_that_hold_them() {
    for (name, bits, zeros) in [
        ("golden/llama3", 4, Zeros::Float),
        ("golden/llama-bias", 4, Zeros::Symmetric),
        ("golden/qwen3", 3, Zeros::Integer),
        ("golden/gpt_oss", 8, Zeros::Symmetric),
        ("golden/qwen3", 2, Zeros::Float),
        ("golden/mixtral", 6, Zeros::Integer),
        ("golden/mixtral", 4, Zeros::Integer),
        ("golden/glm4_moe", 4, Zeros::Float),
        ("golden/granitemoe", 8, Zeros::Symmetric),
    ] {
        let encoding = format!("q{bits}g32:f16").parse().unwrap();
        let recipe = Recipe::uniform(encoding, is_sparse(name)).with_zeros(zeros);
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        case.convert(&dir.path().join("b"), 2).unwrap();
        let model = Weights::open(&dir.path().join("b")).unwrap();
        let coded = model.census().unwrap();
        let out = exported(&model, dir.path());
        assert_same(&model, &out);
        let blocks = Weights::open(&out).unwrap();
        let layout = blocks.layout(Unit::Layer(0)).unwrap();
        assert!(layout.tensors.iter().any(|entry| blocks.is_coded(entry)), "{name} {coded:?}");
        assert!(
            layout
                .tensors
                .iter()
                .all(|entry| entry.encoding.float().is_some())
        );
    }
}

/// Trellis codes, wide codes without a zero, scales of bf16: none of them is what a file holds.
const MIXED: &str = r#"{"name":"t","scale_dtype":"bf16","rules":[
    {"match":{"role":["attention.*"]},"encoding":"q8g32","fallback":["keep"]},
    {"match":{"role":["mlp.down_proj","expert.down_proj"]},"encoding":"t3s10","optional":true,"fallback":["keep"]},
    {"match":{"role":["router"]},"encoding":"keep","optional":true},
    {"encoding":"q3g32","fallback":["keep"]}]}"#;

/// Whatever a recipe asks for, the bundle made for a file goes into it value for value.
#[test]
fn a_bundle_for_llama_cpp_goes_into_a_file_exactly() {
    for name in ["llama3", "mixtral", "glm4_moe", "granitemoe"] {
        let source = fixture(&format!("golden/{name}"));
        let recipe = Recipe::parse("t", MIXED).unwrap();
        let checkpoint = Checkpoint::open(&source).unwrap();
        let limits = Limits::new(Engine::Gguf, checkpoint.config()).unwrap();
        let (held, changed) = limits.restrict(recipe.clone());
        for expected in [
            "3 bits in blocks of 4, as it has no smaller ones",
            "more than 4 bits with symmetric zeros, as it has no others",
            "q3_k in place of t3s10, which it has not",
            "scales in f16, as it has no others",
        ] {
            assert!(changed.iter().any(|line| line == expected), "{changed:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        for (at, recipe) in [recipe, held].iter().enumerate() {
            let bundle = dir.path().join(format!("b{at}"));
            Case::new(&source, recipe, PlanOptions::default())
                .unwrap()
                .convert(&bundle, 2)
                .unwrap();
            let model = Weights::open(&bundle).unwrap();
            if at == 0 {
                let out = dir.path().join("model.gguf");
                export(&model, &out, ExportTarget::Gguf, &SMALL_EXPORT).unwrap_err();
            } else {
                assert_same(&model, &exported(&model, dir.path()));
            }
        }
    }
}

/// A bundle's blocks are the file's: permuted, stacked, and of 32 columns where 256 do not divide a row.
#[test]
fn blocks_of_a_bundle_are_those_of_the_file() {
    for (name, encoding) in [
        ("golden/llama3", "q4_k"),
        ("golden/mixtral", "q3_k"),
        ("golden/llama-bias", "q5_k"),
        ("golden/granitemoe", "q8_0"),
        ("fixture-2m", "q6_k"),
        ("fixture-2m", "q2_k"),
        ("golden/qwen3", "iq4_nl"),
        ("fixture-2m", "iq4_xs"),
    ] {
        let recipe = Recipe::uniform(encoding.parse().unwrap(), is_sparse(name));
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let fallbacks = &case.plan.fallbacks;
        let smaller = fallbacks
            .iter()
            .find(|used| used.reason.starts_with("block 256 does not"));
        let large = encoding.ends_with(['k', 's']);
        assert_eq!(smaller.is_some(), large, "{name} {fallbacks:?}");
        let dir = tempfile::tempdir().unwrap();
        case.convert(&dir.path().join("b"), 2).unwrap();
        let model = Weights::open(&dir.path().join("b")).unwrap();
        let layout = model.layout(Unit::Layer(0)).unwrap();
        let block = |entry: &TensorEntry| matches!(entry.encoding, Encoding::Ggml(_));
        assert!(layout.tensors.iter().any(block), "{name}");
        assert_same(&model, &exported(&model, dir.path()));
    }
}

/// A file has the name that its model has, and where that is none or a path its own.
#[test]
fn a_file_is_called_as_its_model_is() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = dir.path().join("ckpt");
    shardwright_testing::copy_dir(&fixture("golden/qwen3"), &ckpt);
    let path = ckpt.join("config.json");
    let mut config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (at, (called, expected)) in [
        (Some("example/Little-1B"), "Little-1B"),
        (Some("Little-1B"), "Little-1B"),
        (Some("/models/Little-1B"), "file-2"),
        (Some("checkpoints/run/Little"), "file-3"),
        (Some("./Little"), "file-4"),
        (Some(""), "file-5"),
        (None, "file-6"),
    ]
    .into_iter()
    .enumerate()
    {
        config["_name_or_path"] = called.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let out = dir.path().join(format!("file-{at}.gguf"));
        export(&Weights::open(&ckpt).unwrap(), &out, ExportTarget::Gguf, &SMALL_EXPORT).unwrap();
        let (_, metadata) = heads(&[out]);
        assert_eq!(metadata["general.name"], format!("Text({expected:?})"));
    }
}

/// Parts of one tensor of a file are in one type, which an allocation keeps to.
#[test]
fn what_shares_a_tensor_of_a_file_is_alike() {
    let limits = |name: &str| Limits::new(Engine::Gguf, &serde_json::json!({"model_type": name}));
    let phi3 = limits("phi3").unwrap();
    assert_eq!(phi3.alike(Role::KProj), [Role::QProj, Role::KProj, Role::VProj]);
    assert_eq!(limits("llama").unwrap().alike(Role::KProj), []);
    let unknown = limits("deepseek_v3").map(|_| ()).unwrap_err().to_string();
    assert!(unknown.contains("found deepseek_v3"), "{unknown}");
}

/// What cannot go exactly is refused with the tensor and what avoids it; nothing is left.
#[test]
fn what_a_file_cannot_hold_is_refused() {
    for (name, encoding, expected, avoids) in [
        ("golden/llama3", "t3s10", "found trellis codes", Some(Remedy::AffineCodes)),
        ("golden/llama3", "q8g32:f16", "found q8 g32 f16 with ", Some(Remedy::SymmetricZeros)),
        ("golden/qwen3_5", "keep", "model_type: expected one of ", None),
    ] {
        let recipe = Recipe::uniform(encoding.parse().unwrap(), false);
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        case.convert(&dir.path().join("b"), 2).unwrap();
        let model = Weights::open(&dir.path().join("b")).unwrap();
        let out = dir.path().join("model.gguf");
        let refused = export(&model, &out, ExportTarget::Gguf, &SMALL_EXPORT).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
        let remedy = match refused {
            ConvertError::NotHeld { remedy, .. } => Some(remedy),
            _ => None,
        };
        assert_eq!(remedy, avoids);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        let other = export(&model, &dir.path().join("b.bin"), ExportTarget::Gguf, &SMALL_EXPORT);
        let other = other.unwrap_err().to_string();
        assert!(other.ends_with("expected the name of a file that ends in .gguf"), "{other}");
    }
}

/// A model whose mathematics the metadata cannot say is refused by the member in which they differ.
#[test]
fn a_model_that_a_file_would_not_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = dir.path().join("ckpt");
    shardwright_testing::copy_dir(&fixture("golden/qwen3"), &ckpt);
    let path = ckpt.join("config.json");
    let mut config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["use_sliding_window"] = true.into();
    config["sliding_window"] = 4.into();
    config["max_window_layers"] = 0.into();
    config.as_object_mut().unwrap().remove("layer_types");
    std::fs::write(&path, config.to_string()).unwrap();
    let model = Weights::open(&ckpt).unwrap();
    let out = dir.path().join("model.gguf");
    let refused = export(&model, &out, ExportTarget::Gguf, &SMALL_EXPORT)
        .unwrap_err()
        .to_string();
    let expected =
        "GGUF cannot say the model: layers[0].mixer.sliding_window: expected 4, found null";
    assert!(refused.ends_with(expected), "{refused}");
    assert!(!out.exists());
}

/// A matrix times `factor`, in a checkpoint of bf16.
fn scaled(path: &Path, name: &str, factor: f32) {
    let mut tensors = shardwright_testing::RawTensors::read(path);
    assert_eq!(tensors.header[name]["dtype"], "BF16");
    let range = tensors.range(name);
    for bytes in tensors.data[range].as_chunks_mut().0 {
        let value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16) * factor;
        *bytes = ((value.to_bits() >> 16) as u16).to_le_bytes();
    }
    std::fs::write(path, tensors.to_bytes()).unwrap();
}

/// Scales that f16 has as subnormal numbers alone are rounded where that is allowed, and the codes stay; what f16 does
/// not reach becomes floats, and nothing is lost.
#[test]
fn codes_stay_where_scales_are_rounded() {
    let recipe = Recipe::uniform("q4g32:bf16".parse().unwrap(), false);
    for (factor, stored, lost) in [(3e-5, "q4_1", true), (3e8, "f32", false)] {
        let dir = tempfile::tempdir().unwrap();
        let ckpt = dir.path().join("ckpt");
        shardwright_testing::copy_dir(&fixture("golden/qwen3"), &ckpt);
        scaled(&ckpt.join("model.safetensors"), "model.layers.0.mlp.up_proj.weight", factor);
        let case = Case::new(&ckpt, &recipe, PlanOptions::default()).unwrap();
        case.convert(&dir.path().join("b"), 2).unwrap();
        let model = Weights::open(&dir.path().join("b")).unwrap();
        let out = dir.path().join("model.gguf");
        let options = ExportOptions { requantize: true, ..SMALL_EXPORT };
        let told = export(&model, &out, ExportTarget::Gguf, &options).unwrap();
        let anew = told.requantized.unwrap();
        assert_eq!((anew.tensors, anew.roles.len()), (1, 1), "{anew:?}");
        assert_eq!(anew.worst, "layer 0 mlp.up_proj");
        let how = format!("q4 g32 bf16 as {stored}");
        assert!(anew.roles[0].stored.contains(&how), "{anew:?}");
        assert_eq!(anew.relative_rmse > 0.0, lost, "{anew:?}");
        // The codes' own error is a tenth of the weights; rounding them again would add as much.
        assert!(anew.relative_rmse < 0.05, "{anew:?}");
    }
}
