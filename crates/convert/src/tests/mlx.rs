//! Directories for mlx-lm: our own reader finds in them what the bundle holds.

use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, SourceView, Unit};
use shardwright_quant::{Backend, Encoding, Matrix, widen};

use super::*;
use crate::engine::{Engine, Limits};
use crate::error::{ConvertError, Remedy};
use crate::{ExportTarget, Exported, export};
use shardwright_format::checkpoint::read_view;
use shardwright_format::io::AlignedBuf;

/// Of each family that has something of its own.
const CASES: &[&str] = &[
    "deepseek_v3",
    "gemma3",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "kimi_k2",
    "lfm2_moe",
    "llama-bias",
    "llama4",
    "minimax_m2",
    "mixtral-fused",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
];

/// Routers and heads in other bits than the rest, so that modules differ.
const MIXED: &str = r#"{"name":"t","rules":[
    {"match":{"role":["router","attention.o_proj"]},"encoding":"q8g32","optional":true,"fallback":["keep"]},
    {"match":{"role":"expert.down_proj"},"encoding":"t3","optional":true,"fallback":["q6g32","keep"]},
    {"encoding":"q4g32","fallback":["keep"]}]}"#;

/// A bundle for MLX of a golden checkpoint, and what was restricted.
fn made(name: &str, out: &Path) -> (Case, Vec<String>) {
    let dir = fixture(&format!("golden/{name}"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let limits = Limits::new(Engine::Mlx, checkpoint.config()).unwrap();
    let (recipe, changed) = limits.restrict(Recipe::parse("t", MIXED).unwrap());
    let case = Case::new(&dir, &recipe, PlanOptions::default()).unwrap();
    case.convert(out, 1).unwrap();
    (case, changed)
}

fn exported(bundle: &Path, out: &Path, dtype: ExportDtype) -> Result<Exported> {
    let options = ExportOptions { dtype, file_limit: 40_000, ..SMALL_EXPORT };
    export(&Weights::open(bundle).unwrap(), out, ExportTarget::Mlx, &options)
}

pub(super) fn stored(bundle: &Bundle, unit: Unit, entry: &TensorEntry) -> Vec<f32> {
    let mut bytes = AlignedBuf::default();
    bundle
        .read_rows(unit, entry, 0..entry.rows, &mut bytes)
        .unwrap();
    let (rows, cols) = (entry.rows as usize, entry.cols as usize);
    let matrix = Matrix::new(entry.encoding, rows, cols, bytes.as_slice()).unwrap();
    let mut values = vec![0.0; rows * cols];
    matrix.dequantize(Backend::detect(), 0..rows, &mut values);
    values
}

/// What an export holds of a tensor, at its `view` there.
pub(super) fn read_back(back: &Checkpoint, view: &SourceView, entry: &TensorEntry) -> Vec<f32> {
    let mut read = AlignedBuf::default();
    read_view(back, view, 0..entry.rows, entry.cols, &mut read).unwrap();
    let mut values = vec![0.0; (entry.rows * entry.cols) as usize];
    widen(view.dtype, read.as_slice(), &mut values);
    values
}

#[test]
fn what_is_exported_for_mlx_reads_back_as_the_bundle_bit_for_bit() {
    for name in CASES {
        let dir = tempfile::tempdir().unwrap();
        let (made_at, out) = (dir.path().join("b"), dir.path().join("mlx"));
        let (_, changed) = made(name, &made_at);
        assert!(changed.iter().any(|line| line.contains("t3s12")));
        let told = exported(&made_at, &out, ExportDtype::F32).unwrap();
        assert!(
            told.files
                .iter()
                .any(|file| file.path == "model.safetensors.index.json")
        );
        let (bundle, back) = (Bundle::open(&made_at).unwrap(), Checkpoint::open(&out).unwrap());
        let inventory = Inventory::new(&back, None).unwrap();
        let mut coded = 0;
        for unit in bundle.manifest().model.units() {
            for entry in bundle.layout(unit).unwrap().tensors.iter() {
                let tensor = inventory.layout(unit).unwrap().find(entry.role).unwrap();
                let view = &tensor.source;
                let found = read_back(&back, view, entry);
                assert_eq!(found, stored(&bundle, unit, entry), "{name}: {unit} {}", entry.role);
                let code = matches!(entry.encoding, Encoding::Affine(_));
                // Codes are taken for what they are, not merely for values.
                assert_eq!(view.codes(entry.cols), code.then_some(entry.encoding), "{name} {unit}");
                coded += usize::from(code);
            }
        }
        assert!(coded > 10, "{name}");
    }
}

#[test]
fn norms_with_one_added_are_rounded_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    made("qwen3_next", &dir.path().join("b"));
    for (dtype, label) in [(ExportDtype::F32, "F32"), (ExportDtype::Source, "BF16")] {
        let out = dir.path().join(label);
        exported(&dir.path().join("b"), &out, dtype).unwrap();
        let back = Checkpoint::open(&out).unwrap();
        let norm = &back.tensors()["model.norm.weight"];
        let stored = norm
            .decoder
            .as_ref()
            .map(shardwright_format::Decoder::label);
        assert!(stored.unwrap().to_uppercase().contains(label));
    }
}

#[test]
fn what_mlx_cannot_hold_is_refused_with_the_option_that_avoids_it() {
    let dir = tempfile::tempdir().unwrap();
    for (at, (name, rules, expected)) in [
        (
            "llama2",
            r#"{"encoding":"t3s10","fallback":["keep"]}"#,
            "expected floats, affine codes, MXFP4 or MXFP8, which MLX has, found t3 s10",
        ),
        (
            "glm4_moe",
            r#"{"match":{"role":"router"},"encoding":"q8g32"},{"encoding":"keep"}"#,
            "router: expected floats, as mlx-lm has no codes there, found q8 g32 bf16",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = Recipe::parse("t", &format!(r#"{{"name":"t","rules":[{rules}]}}"#)).unwrap();
        let case = Case::new(&fixture(&format!("golden/{name}")), &recipe, PlanOptions::default())
            .unwrap();
        let (bundle, out) = (dir.path().join(format!("b{at}")), dir.path().join(format!("m{at}")));
        case.convert(&bundle, 1).unwrap();
        let error = exported(&bundle, &out, ExportDtype::F32).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
        let limits = matches!(error, ConvertError::NotHeld { remedy: Remedy::EngineLimits, .. });
        assert!(limits, "{error}");
        assert!(!out.exists() && !dir.path().join(format!("m{at}.partial")).exists());
    }
}

#[test]
fn what_is_stored_anew_is_counted_and_what_floats_hold_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (name, rules, lossless) in [
        ("llama2", r#"{"encoding":"t3s10","fallback":["keep"]}"#, false),
        ("glm4_moe", r#"{"match":{"role":"router"},"encoding":"q8g32"},{"encoding":"keep"}"#, true),
    ] {
        let recipe = Recipe::parse("t", &format!(r#"{{"name":"t","rules":[{rules}]}}"#)).unwrap();
        let source = fixture(&format!("golden/{name}"));
        let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
        let (bundle, out) = (dir.path().join(name), dir.path().join(format!("{name}-mlx")));
        case.convert(&bundle, 1).unwrap();
        let options = ExportOptions { requantize: true, ..SMALL_EXPORT };
        let model = Weights::open(&bundle).unwrap();
        let told = export(&model, &out, ExportTarget::Mlx, &options).unwrap();
        let anew = told.requantized.unwrap();
        assert!(anew.tensors > 1 && anew.weights > 500, "{anew:?}");
        assert_eq!(anew.relative_rmse == 0.0, lossless, "{anew:?}");
        assert!(anew.worst_relative_rmse >= anew.relative_rmse && anew.relative_rmse < 0.3);
        let back = Checkpoint::open(&out).unwrap();
        let inventory = Inventory::new(&back, None).unwrap();
        let (unit, mut error, mut power) = (Unit::Layer(1), 0.0, 0.0);
        let bundle = Bundle::open(&bundle).unwrap();
        for entry in bundle.layout(unit).unwrap().tensors.iter() {
            let tensor = inventory.layout(unit).unwrap().find(entry.role).unwrap();
            let found = read_back(&back, &tensor.source, entry);
            for (found, held) in found.iter().zip(stored(&bundle, unit, entry)) {
                error += f64::from((found - held).powi(2));
                power += f64::from(held.powi(2));
            }
        }
        assert_eq!(error == 0.0, lossless);
        assert!((error / power).sqrt() <= anew.worst_relative_rmse);
    }
}
