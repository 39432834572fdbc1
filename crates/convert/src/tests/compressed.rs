//! Directories of compressed-tensors: our own reader finds in them what the bundle holds.

use shardwright_format::Bundle;
use shardwright_format::weights::Weights;
use shardwright_quant::{Encoding, Zeros};

use super::mlx::{read_back, stored};
use super::*;
use crate::engine::{Engine, Limits};
use crate::error::{ConvertError, Remedy};
use crate::{ExportTarget, Exported, export};

/// One tensor and several for an expert, tensors of several matrices, a tied head, experts in a stack only.
const CASES: &[&str] =
    &["llama3", "llama-bias", "qwen3_moe", "qwen3_moe-fused", "mixtral", "gpt_oss", "qwen3_next"];

/// Widths with zeros of their own and without.
const MIXED: &str = r#"{"name":"t","rules":[
    {"match":{"role":"attention.o_proj"},"encoding":"q8g32","fallback":["keep"]},
    {"match":{"role":["mlp.down_proj","expert.down_proj"]},"encoding":"q3g32","optional":true,"fallback":["keep"]},
    {"encoding":"q4g32","fallback":["keep"]}]}"#;

/// A bundle of a golden checkpoint for vLLM.
fn made(name: &str, rules: &str, out: &Path) -> Vec<String> {
    let dir = fixture(&format!("golden/{name}"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let limits = Limits::new(Engine::CompressedTensors, checkpoint.config()).unwrap();
    let (recipe, changed) = limits.restrict(Recipe::parse("t", rules).unwrap());
    let case = Case::new(&dir, &recipe, PlanOptions::default()).unwrap();
    case.convert(out, 1).unwrap();
    changed
}

fn exported(bundle: &Path, out: &Path) -> Result<Exported> {
    let options = ExportOptions { file_limit: 40_000, ..SMALL_EXPORT };
    export(&Weights::open(bundle).unwrap(), out, ExportTarget::CompressedTensors, &options)
}

#[test]
fn what_is_exported_to_compressed_tensors_reads_back_as_the_bundle_bit_for_bit() {
    for name in CASES {
        let dir = tempfile::tempdir().unwrap();
        let (made_at, out) = (dir.path().join("b"), dir.path().join("ct"));
        let changed = made(name, MIXED, &made_at);
        assert!(changed.iter().any(|line| line.contains("whole zeros")), "{changed:?}");
        exported(&made_at, &out).unwrap();
        let (bundle, back) = (Bundle::open(&made_at).unwrap(), Checkpoint::open(&out).unwrap());
        let inventory = Inventory::new(&back, None).unwrap();
        let (mut coded, mut asymmetric) = (0, 0);
        for unit in bundle.manifest().model.units() {
            for entry in bundle.layout(unit).unwrap().tensors.iter() {
                let tensor = inventory.layout(unit).unwrap().find(entry.role).unwrap();
                let found = read_back(&back, &tensor.source, entry);
                assert_eq!(found, stored(&bundle, unit, entry), "{name}: {unit} {}", entry.role);
                let label = tensor
                    .source
                    .decoder
                    .as_ref()
                    .map(shardwright_format::Decoder::label);
                let label = label.unwrap_or_default();
                let code = matches!(entry.encoding, Encoding::Affine(_));
                assert_eq!(
                    label.starts_with("int"),
                    code,
                    "{name}: {unit} {}: {label}",
                    entry.role
                );
                coded += usize::from(code);
                asymmetric += usize::from(label.contains("asymmetric"));
            }
        }
        assert!(coded > 3 && asymmetric > 0, "{name}: {coded} {asymmetric}");
    }
}

#[test]
fn what_compressed_tensors_cannot_hold_is_refused_with_the_option_that_avoids_it() {
    let dir = tempfile::tempdir().unwrap();
    for (at, (rule, zeros, remedy)) in [
        (r#"{"encoding":"q4g32","fallback":["keep"]}"#, Zeros::Float, Remedy::Floats),
        (r#"{"match":{"role":"embed_tokens"},"encoding":"keep"},{"encoding":"q4g32","fallback":["keep"]}"#, Zeros::Float, Remedy::WholeZeros),
        (r#"{"match":{"role":"embed_tokens"},"encoding":"keep"},{"encoding":"q3g32","fallback":["keep"]}"#, Zeros::Integer, Remedy::SymmetricZeros),
        (r#"{"match":{"role":"embed_tokens"},"encoding":"keep"},{"encoding":"t3s10","fallback":["keep"]}"#, Zeros::Float, Remedy::AffineCodes),
    ]
    .into_iter()
    .enumerate()
    {
        let rules = format!(r#"{{"name":"t","rules":[{rule}]}}"#);
        let mut recipe = Recipe::parse("t", &rules).unwrap();
        recipe.rules.iter_mut().for_each(|rule| rule.zeros = zeros);
        let case = Case::new(&fixture("golden/llama-bias"), &recipe, PlanOptions::default()).unwrap();
        let (made_at, out) = (dir.path().join(format!("b{at}")), dir.path().join(format!("x{at}")));
        case.convert(&made_at, 1).unwrap();
        let error = exported(&made_at, &out).unwrap_err();
        let ConvertError::NotHeld { remedy: found, detail, .. } = &error else { panic!("{error}") };
        assert_eq!(*found, remedy, "{detail}");
        assert!(!out.exists());
    }
}
