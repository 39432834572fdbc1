use std::fs;
use std::path::Path;

use shardwright_format::weights::Weights;
use shardwright_testing::models::{Codes, FOUR_BITS, TestBundle};
use shardwright_testing::{Golden, fixture, golden};

use shardwright_runtime::CacheTypes;

use super::*;
use crate::{
    Candidate, Divergence, EvalWindows, Fidelity, FidelityOptions, Kind, Monitor, Party, Reading,
    Thresholds, VerifyRequest, divergences, fidelity, verify,
};

fn open(path: &Path) -> Weights {
    Weights::open(path).unwrap()
}

/// Values and predictions of `candidate` against `original`.
fn judge(original: &Path, candidate: &Path) -> (Fidelity, Divergence) {
    let tokens: Vec<u32> = (0..96).map(|i| (i * i * 7 + i * 13) % 61).collect();
    judge_on(original, candidate, &tokens, EvalWindows::new(16))
}

fn judge_on(
    original: &Path,
    candidate: &Path,
    tokens: &[u32],
    windows: EvalWindows,
) -> (Fidelity, Divergence) {
    let (original, candidate) = (open(original), open(candidate));
    let party = |name, weights| Party { name, weights };
    let (original, candidates) = (party("original", &original), [party("it", &candidate)]);
    let options =
        FidelityOptions { max_rmse: None, hash_checkpoint: true, other_source: false, threads: 2 };
    let silent = Monitor::silent();
    let values = fidelity(original, &candidates, &options, &silent).unwrap();
    let found = divergences(
        original,
        &candidates,
        &Reading { tokens, windows, cache: CacheTypes::default(), threads: 2 },
        &silent,
    )
    .unwrap();
    (values.into_iter().next().unwrap(), found.into_iter().next().unwrap().unwrap())
}

/// A quantized variant of a golden holds the golden's own values.
fn holds_the_same(original: &Path, candidate: &Path) {
    let (values, predictions) = judge(original, candidate);
    assert_eq!(values.findings, [], "{}", candidate.display());
    assert!(values.by_role && values.tensors > 0 && values.exact == values.tensors);
    assert_eq!((predictions.kld_max, predictions.same_top), (0.0, 1.0), "{}", candidate.display());
}

#[test]
fn fp8_blocks_are_a_candidate() {
    holds_the_same(&golden("minimax_m2"), &golden("minimax_m2-fp8"));
    holds_the_same(&golden("deepseek_v3"), &golden("deepseek_v3-fp8"));
}

#[test]
fn packed_int4_is_a_candidate() {
    holds_the_same(&golden("kimi_k2"), &golden("kimi_k2-int4"));
}

#[test]
fn mxfp4_is_a_candidate() {
    holds_the_same(&golden("gpt_oss"), &golden("gpt_oss-mxfp4"));
}

/// KL divergence of a row of logits from another, in 64 bits.
fn kl(original: &[f32], candidate: &[f32]) -> f64 {
    let log_sum = |z: &[f32]| z.iter().map(|z| f64::from(*z).exp()).sum::<f64>().ln();
    let (p, q) = (log_sum(original), log_sum(candidate));
    let pairs = original.iter().zip(candidate);
    let terms = pairs.map(|(a, b)| {
        let (a, b) = (f64::from(*a) - p, f64::from(*b) - q);
        a.exp() * (a - b)
    });
    terms.sum()
}

/// Codes that are not the golden's own values diverge as transformers' logits of both say.
fn diverges_as_expected(original: &str, candidate: &str) {
    let (expected, found) = (Golden::named(original), Golden::named(candidate));
    let (tokens, logits) = (expected.tokens(), |case: &Golden| case.floats("logits").unwrap());
    let (a, b) = (logits(&expected), logits(&found));
    let vocab = a.len() / tokens.len();
    let rows = a.chunks(vocab).zip(b.chunks(vocab));
    let each = rows.map(|(a, b)| kl(a, b)).take(tokens.len() - 1);
    let mean = each.sum::<f64>() / (tokens.len() - 1) as f64;
    let windows = EvalWindows::new(tokens.len());
    let (values, predictions) = judge_on(&expected.path, &found.path, &tokens, windows);
    assert_eq!(values.findings, [], "{candidate}");
    assert!(values.by_role && values.rmse > 0.001 && values.exact < values.tensors);
    let wrong = (predictions.kld_mean - mean).abs() / mean;
    assert!(wrong < 1e-4, "{candidate}: expected {mean}, found {}", predictions.kld_mean);
}

#[test]
fn gptq_is_a_candidate() {
    diverges_as_expected("qwen2", "qwen2-gptq");
}

#[test]
fn awq_is_a_candidate() {
    diverges_as_expected("qwen2", "qwen2-awq");
}

#[test]
fn mlx_is_a_candidate() {
    diverges_as_expected("qwen2", "qwen2-mlx");
}

/// As mlx-lm writes them: other names and layouts, norms with one added, and small floats.
#[test]
fn what_mlx_lm_rewrites_is_a_candidate() {
    for base in ["qwen3_next", "qwen3_5", "qwen3_5_moe", "llama4", "gpt_oss", "kimi_k2", "gemma3"] {
        diverges_as_expected(base, &format!("{base}-mlx"));
    }
    for mode in ["mxfp4", "nvfp4", "mxfp8"] {
        diverges_as_expected("gemma3", &format!("gemma3-mlx-{mode}"));
    }
}

#[test]
fn gguf_files_are_candidates_and_originals() {
    let gguf = |name: &str| fixture(&format!("gguf/{name}"));
    holds_the_same(&golden("llama3"), &gguf("llama3.gguf"));
    let (values, predictions) = judge(&golden("llama3"), &gguf("llama3-q8_0.gguf"));
    assert_eq!(values.findings, []);
    assert!(values.rmse > 0.001 && values.rmse < 0.02, "{}", values.rmse);
    assert!(predictions.kld_mean > 0.0 && predictions.kld_mean < 0.01);
    let back = judge(&gguf("llama3-q8_0.gguf"), &golden("llama3")).0;
    assert_eq!((back.findings.len(), back.tensors), (0, values.tensors));
}

#[test]
fn a_bundle_may_be_the_original() {
    let bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    let (values, predictions) = judge(bundle.root.path(), &golden("qwen3_moe"));
    assert_eq!(values.findings, []);
    assert!(predictions.kld_mean > 0.0 && values.exact < values.tensors);
}

#[test]
fn a_bundle_of_another_source_is_one_finding() {
    let gguf = fixture("gguf/llama3-q8_0.gguf");
    let bundle = TestBundle::from_checkpoint(&gguf, FOUR_BITS);
    let (values, predictions) = judge(&golden("llama3"), bundle.root.path());
    let [finding] = &values.findings[..] else { panic!("{:?}", values.findings) };
    assert_eq!(finding.kind, Kind::Checkpoint);
    let finding = finding.to_string();
    for part in ["manifest.json: source of the bundle: expected llama3-q8_0.gguf of ", "q8_0"] {
        assert!(finding.contains(part), "{finding}");
    }
    assert!(values.by_role && values.tensors > 0 && predictions.kld_mean > 0.0);
}

fn request(bundles: &[&TestBundle], original: &Path, other_source: bool) -> VerifyRequest<'static> {
    let path = |bundle: &&TestBundle| Candidate::Bundle(bundle.root.path().to_owned());
    VerifyRequest {
        candidates: bundles.iter().map(path).collect(),
        original: Some((original.to_owned(), open(original))),
        text: None,
        windows: EvalWindows::new(32),
        thresholds: Thresholds::default(),
        hash_checkpoint: true,
        other_source,
        trusted: None,
        cache: CacheTypes::default(),
        threads: 2,
    }
}

#[test]
fn another_source_may_be_wanted() {
    let bundle = TestBundle::from_checkpoint(&fixture("gguf/llama3-q8_0.gguf"), FOUR_BITS);
    let run = |wanted| {
        verify(request(&[&bundle], &golden("llama3"), wanted), &Monitor::silent()).unwrap()
    };
    let found = run(false);
    assert_eq!((found.verdict(), found.candidates[0].findings.len()), (Verdict::Found, 1));
    let wanted = run(true);
    assert_eq!(wanted.verdict(), Verdict::Holds);
    let notes = &wanted.candidates[0].notes;
    assert!(
        notes
            .iter()
            .any(|n| n.starts_with("made from another source, as asked: ")),
        "{notes:?}"
    );
}

#[test]
fn several_candidates_are_judged_as_each_alone() {
    let three = TestBundle::new("llama2", Codes::Affine(3));
    let four = TestBundle::new("llama2", FOUR_BITS);
    let run = |bundles: &[&TestBundle]| {
        verify(request(bundles, &golden("llama2"), false), &Monitor::silent()).unwrap()
    };
    let together = run(&[&three, &four]);
    let alone = [&three, &four].map(|bundle| run(&[bundle]).candidates.remove(0));
    assert_eq!(together.candidates, alone);
    let (text, page) = (together.to_string(), together.to_html(&[]));
    for part in ["====== 2 candidates ======", "verdict: all 2 hold", "mlp.gate_proj"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(page.contains("✓ all hold") && !page.contains("<script"));
}

#[test]
fn a_model_alone_is_checked_for_what_can_be() {
    let path = fixture("gguf/llama3-q8_0.gguf");
    let candidates = vec![Candidate::Model(path.clone(), open(&path))];
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let request = VerifyRequest {
        candidates,
        original: None,
        ..request(&[&bundle], &golden("llama2"), false)
    };
    let found = verify(request, &Monitor::silent()).unwrap();
    let report = &found.candidates[0];
    let structure = report.structure.as_ref().unwrap();
    assert_eq!((report.verdict, structure.files.len()), (Verdict::Holds, 1));
    assert_eq!(structure.files[0].bytes, fs::metadata(&path).unwrap().len());
    let text = report.to_string();
    for part in ["form            : GGUF", "it keeps no record of them", "verdict: holds"] {
        assert!(text.contains(part), "{text}");
    }
    report.to_html(&[]);
}
