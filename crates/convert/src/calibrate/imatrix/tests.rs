//! Both generations, as llama.cpp writes them for fixture-2m, and what is no such file.

use crate::tests::SMALL_BUFFERS;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use shardwright_format::Refusal;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Checkpoint, read_view};
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, ModelSpec, Unit};
use shardwright_quant::{Backend, Matrix, Method, widen};
use shardwright_testing::fixture;

use super::{Imatrix, Mapped};
use crate::calibrate::observe::observe;
use crate::calibrate::statistics::{InputKey, InputStats};
use crate::calibrate::{Corpus, SavedStatistics};
use crate::{Calibration, ConvertOptions, Plan, PlanOptions, Recipe, convert};

const KINDS: [&str; 2] = ["gguf", "dat"];
/// The expert that the few tokens did not reach.
const UNSEEN: Unit = Unit::Expert { layer: 3, expert: 7 };

fn path(kind: &str) -> PathBuf {
    fixture(&format!("imatrix/fixture-2m.{kind}"))
}

fn bytes(kind: &str) -> Vec<u8> {
    std::fs::read(path(kind)).unwrap()
}

fn model(name: &str) -> (Checkpoint, Inventory) {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    (checkpoint, inventory)
}

fn spec() -> ModelSpec {
    model("fixture-2m").1.spec
}

fn imatrix(bytes: &[u8]) -> Result<Imatrix<'_>, Refusal> {
    if super::is_gguf(bytes) { Imatrix::gguf(bytes) } else { Imatrix::older(bytes) }
}

fn mapped(kind: &str) -> Mapped {
    let bytes = bytes(kind);
    imatrix(&bytes).unwrap().map(&path(kind), &spec()).unwrap()
}

/// What is said of damaged bytes.
fn refusal(bytes: &[u8], spec: &ModelSpec) -> String {
    SavedStatistics::parse(Path::new("m"), bytes, spec)
        .unwrap_err()
        .to_string()
}

/// Where `needle` begins in `bytes`.
fn find(bytes: &[u8], needle: &str) -> usize {
    let mut windows = bytes.windows(needle.len());
    windows.position(|w| w == needle.as_bytes()).unwrap()
}

fn near(a: &[f32], b: &[f32], share: f32) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() <= share * b.abs())
}

#[test]
fn both_generations_say_the_same() {
    let [new, old] = KINDS.map(mapped);
    assert!(new.inputs.keys().eq(old.inputs.keys()));
    for (key, hessian) in &new.inputs {
        let other = old.inputs[key].diagonal();
        assert!(near(&hessian.diagonal(), &other, 1e-6), "{key:?}");
    }
    for mapped in [new, old] {
        let unseen = |key: &&InputKey| (key.layer, key.expert) == (Some(3), Some(7));
        assert_eq!(mapped.inputs.keys().find(unseen), None);
        assert!(mapped.ignored.is_empty(), "{:?}", mapped.ignored);
        // Every place of every layer and expert but one; the head is not in these files.
        assert_eq!(mapped.inputs.len(), 4 * (3 + 2 * 8) - 2);
    }
    let spec = spec();
    let [new, old] = KINDS.map(|kind| SavedStatistics::read(&path(kind), &spec).unwrap());
    assert_eq!((new.record.tokens, new.record.window), (96, 32));
    assert_eq!((old.record.tokens, old.record.window), (0, 0));
    assert!(new.record.text_blake3.is_none());
    let hash = blake3::hash(&bytes("gguf")).into();
    assert_eq!(new.record.statistics_blake3, Some(hash));
}

/// The same text through our own runtime: tokenizers split it a little differently, so that only
/// Places can be told by it. Experts are given too few tokens for that.
#[test]
fn places_are_those_that_llama_saw() {
    let (checkpoint, inventory) = model("fixture-2m");
    let original = Weights::from_checkpoint(checkpoint, inventory);
    let text = fixture("text/evaluation.txt");
    let corpus = Corpus::new(original.into(), &text, 96, 32).unwrap().0;
    let mut seen = InputStats::new();
    let mut take = |inputs| {
        seen.extend::<InputStats>(inputs);
        Ok(())
    };
    observe(&corpus, 2, &AtomicBool::new(false), &|_| {}, &mut take).unwrap();
    for (key, hessian) in mapped("gguf").inputs {
        if key.expert.is_some() {
            continue;
        }
        let theirs = hessian.diagonal();
        let likeness = |other: &InputKey| cosine(&theirs, &seen[other].diagonal());
        let keys = seen.keys().filter(|p| p.expert.is_none());
        let nearest = keys.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        assert_eq!(nearest, Some(&key));
        assert!(likeness(&key) > 0.9, "{key:?} {}", likeness(&key));
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_truncation_is_refused_or_whole() {
    let spec = spec();
    for kind in KINDS {
        let bytes = bytes(kind);
        // Of the older format: the windows' number and the text's name may be missing.
        let name = bytes.len() - "text/evaluation.txt".len() - 4;
        let whole = if kind == "dat" { vec![name - 4, name] } else { vec![] };
        let near_end = bytes.len() - 400;
        let header = 5000;
        let cuts = (0..header)
            .chain((header..near_end).step_by(97))
            .chain(near_end..bytes.len());
        for cut in cuts {
            let read = SavedStatistics::parse(Path::new("m"), &bytes[..cut], &spec);
            assert_eq!(read.is_ok(), whole.contains(&cut), "{kind} {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        let read = SavedStatistics::parse(Path::new("m"), &longer, &spec);
        // GGUF may be padded.
        assert_eq!(read.is_ok(), kind == "gguf");
    }
}

#[test]
fn numbers_of_any_size_are_no_reason_to_panic() {
    let spec = spec();
    for kind in KINDS {
        let mut bytes = bytes(kind);
        for at in 0..2000 {
            for number in [0, 0x7fff_ffff, u32::MAX] {
                let kept: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
                let _ = imatrix(&bytes).map(|read| read.map(Path::new("m"), &spec));
                bytes[at..at + 4].copy_from_slice(&kept);
            }
        }
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_first() {
    let spec = spec();
    let with = |kind: &str, at: usize, number: &[u8]| {
        let mut bytes = bytes(kind);
        bytes[at..at + number.len()].copy_from_slice(number);
        refusal(&bytes, &spec)
    };
    let many = (1u64 << 60).to_le_bytes();
    let tail = "in so short a file, found 1152921504606846976";
    for (at, what, most) in [(8, "tensors", 2699), (16, "metadata", 4982)] {
        let expected = format!("m: expected at most {most} {what} {tail}");
        assert_eq!(with("gguf", at, &many), expected);
    }
    assert_eq!(
        with("dat", 0, &i32::MAX.to_le_bytes()),
        "m: expected at most 3560 entries in so short a file, found 2147483647"
    );
    let values = find(&bytes("dat"), "blk.0.attn_k") + "blk.0.attn_k.weight".len() + 4;
    assert_eq!(
        with("dat", values, &(-5i32).to_le_bytes()),
        "m: entry 0: blk.0.attn_k.weight: expected a positive number of values, found -5"
    );
    let version = with("gguf", 4, &1u32.to_le_bytes());
    assert_eq!(version, "m: expected GGUF of version 2 or 3, little-endian, found 1");
}

#[test]
fn what_is_no_importance_of_the_model_is_refused_by_name() {
    let spec = spec();
    for none in [&b""[..], b"text that says nothing", &[0xff; 64]] {
        assert_eq!(
            refusal(none, &spec),
            "m: expected statistics of `shardwright calibrate` (safetensors), or an importance \
             matrix of llama.cpp (GGUF, or the older imatrix.dat), found none of these"
        );
    }
    for kind in KINDS {
        let bytes = bytes(kind);
        let other = model("golden/qwen3_moe").1.spec;
        let message = refusal(&bytes, &other);
        let width = other.hidden_size;
        let expected =
            format!("m: tensor `blk.0.attn_k.weight`: expected 1 x {width} inputs, found 128");
        assert_eq!(message, expected);
        let mut renamed = bytes;
        while renamed.windows(4).any(|w| w == b"blk.") {
            let at = find(&renamed, "blk.");
            renamed[at..at + 4].copy_from_slice(b"enc.");
        }
        assert_eq!(
            refusal(&renamed, &spec),
            "m: expected importance of the model's matrices, found none"
        );
    }
    let mut model = bytes("gguf");
    let at = find(&model, "imatrix");
    model[at..at + 7].copy_from_slice(b"adapter");
    assert_eq!(refusal(&model, &spec), "m: general.type: expected imatrix, found adapter");
}

#[test]
fn other_names_are_ignored_and_values_checked() {
    let spec = spec();
    let mut odd = bytes("dat");
    let name = find(&odd, "blk.0.attn_k");
    odd[name..name + 12].copy_from_slice(b"blk.0.attn_x");
    let read = SavedStatistics::parse(Path::new("m"), &odd, &spec).unwrap();
    assert_eq!(read.ignored, ["blk.0.attn_x.weight"]);
    let values = find(&odd, "blk.0.attn_q") + "blk.0.attn_q.weight".len() + 8;
    let detail = "expected finite sums of squares";
    for wrong in [-1.0, f32::NAN, f32::INFINITY] {
        odd[values..values + 4].copy_from_slice(&wrong.to_le_bytes());
        let expected = format!("m: tensor `blk.0.attn_q.weight`: {detail}, found {wrong}");
        assert_eq!(refusal(&odd, &spec), expected);
    }
}

/// The older form, in which `count` values of each of some matrices, from `first` on, are zero.
fn zeroed(names: &[&str], first: usize, count: usize) -> Vec<u8> {
    let mut bytes = bytes("dat");
    for name in names {
        let values = find(&bytes, name) + name.len() + 8 + 4 * first;
        bytes[values..values + 4 * count].fill(0);
    }
    bytes
}

/// llama.cpp's older form has no counts: what no text reached is zero there.
#[test]
fn inputs_that_are_zero_are_unknown_and_counted() {
    let (checkpoint, inventory) = model("fixture-2m");
    let recipe = Recipe::parse("r", r#"{"name":"r","rules":[{"encoding":"q4g64"}]}"#);
    let recipe = recipe.unwrap().with_method(Method::Importance);
    let planned = |bytes: &[u8]| {
        let statistics = SavedStatistics::parse(Path::new("m"), bytes, &inventory.spec).unwrap();
        let options = PlanOptions {
            calibration: Some(statistics.record.clone()),
            statistics: Some(statistics.known()),
            ..PlanOptions::default()
        };
        Plan::new(&checkpoint, &inventory, &recipe, &options).unwrap()
    };
    let line = |count, all, what: &str, named: &str| {
        format!(
            "the statistics know nothing of {count} of {all} {what} ({named}): converted as without statistics"
        )
    };
    // An expert that the text of these files did not reach, and the head, which is not in them.
    let head = line(1, 13, "other inputs", "head");
    let notes = [line(1, 32, "experts", "layer 3 expert 7"), head.clone()];
    for kind in KINDS {
        let plan = planned(&bytes(kind));
        assert!(plan.notes.ends_with(&notes), "{:?}", plan.notes);
        let places = ["head", "layers.3.experts.7.expert", "layers.3.experts.7.expert_out"];
        assert_eq!(plan.unguided, places);
    }
    let gate = zeroed(&["blk.0.ffn_gate_exps.weight"], 3 * 128, 128);
    assert_eq!(planned(&gate).unguided.len(), 3);
    let matrices = ["gate", "up", "down"].map(|name| format!("blk.0.ffn_{name}_exps.weight"));
    let expert = zeroed(&matrices.each_ref().map(String::as_str), 3 * 128, 128);
    let notes = [line(2, 32, "experts", "layer 0 expert 3, layer 3 expert 7"), head];
    let plan = planned(&expert);
    assert!(plan.notes.ends_with(&notes), "{:?}", plan.notes);
    let dense = planned(&zeroed(&["blk.1.attn_output.weight"], 0, 128));
    assert_eq!(dense.notes.last(), Some(&line(2, 13, "other inputs", "head, layers.1.mixer_out")));
}

#[test]
fn zeros_everywhere_are_refused() {
    let bytes = bytes("dat");
    let mut read = imatrix(&bytes).unwrap();
    let zeros = vec![[0; 4]; 1 << 16];
    for entry in read.entries.values_mut() {
        entry.sums = &zeros[..entry.sums.len()];
    }
    assert_eq!(
        read.map(Path::new("m"), &spec()).unwrap_err().to_string(),
        "m: expected importance of the model's matrices, found zeros alone: make it again with a text \
         that goes through the model"
    );
}

/// Error of every matrix of a bundle, by unit and role, weighted with `mapped`.
fn weighted_error(bundle: &Path, mapped: &Mapped) -> f64 {
    let (checkpoint, inventory) = model("fixture-2m");
    let bundle = Bundle::open(bundle).unwrap();
    let (mut stored, mut read) = (AlignedBuf::default(), AlignedBuf::default());
    let mut error = 0.0;
    for (unit, tensors) in &inventory.units {
        bundle.read(*unit, &mut stored).unwrap();
        let layout = bundle.layout(*unit).unwrap();
        for (entry, tensor) in layout.tensors.iter().zip(tensors.tensors.iter()) {
            let key = InputKey::for_tensor(*unit, entry.role);
            let Some(hessian) = key.and_then(|p| mapped.inputs.get(&p)) else { continue };
            let importance = hessian.diagonal();
            let (rows, cols) = (entry.rows as usize, entry.cols as usize);
            let len = entry.byte_len().unwrap() as usize;
            let bytes = &stored.as_slice()[entry.offset as usize..][..len];
            let mut found = vec![0.0; rows * cols];
            let matrix = Matrix::new(entry.encoding, rows, cols, bytes).unwrap();
            matrix.dequantize(Backend::detect(), 0..rows, &mut found);
            read_view(&checkpoint, &tensor.source, 0..tensor.rows, tensor.cols, &mut read).unwrap();
            let mut original = vec![0.0; rows * cols];
            widen(tensor.source.dtype, read.as_slice(), &mut original);
            for (at, (a, b)) in found.iter().zip(&original).enumerate() {
                error += f64::from(importance[at % cols]) * f64::from(a - b).powi(2);
            }
        }
    }
    error
}

/// `gptq` does with importance what can be done.
#[test]
fn codes_are_chosen_by_importance() {
    let (checkpoint, inventory) = model("fixture-2m");
    let recipe = Recipe::parse("r", r#"{"name":"r","rules":[{"encoding":"q2g64"}]}"#);
    let recipe = recipe.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let statistics = KINDS.map(|k| SavedStatistics::read(&path(k), &inventory.spec).unwrap());
    let [new, old] = &statistics;
    let settings = [
        (Method::Search, Calibration::None, None),
        (Method::Importance, Calibration::Statistics(new), Some(&new.record)),
        (Method::Gptq, Calibration::Statistics(old), Some(&old.record)),
    ];
    let mapped = mapped("gguf");
    let made = settings.map(|(method, calibration, record)| {
        let recipe = recipe.clone().with_method(method);
        let options = PlanOptions { calibration: record.cloned(), ..PlanOptions::default() };
        let plan = Plan::new(&checkpoint, &inventory, &recipe, &options).unwrap();
        let cancel = AtomicBool::new(false);
        let options = ConvertOptions {
            threads: 2,
            resume: false,
            cancel: &cancel,
            calibration,
            buffers: SMALL_BUFFERS,
        };
        let out = dir.path().join(method.name());
        let report = convert(&plan, &checkpoint, &out, &options, &|_| {}).unwrap();
        (weighted_error(&out, &mapped), report)
    });
    let mut unseen = [AlignedBuf::default(), AlignedBuf::default()];
    for (bytes, method) in unseen.iter_mut().zip([Method::Search, Method::Importance]) {
        let bundle = Bundle::open(&dir.path().join(method.name())).unwrap();
        bundle.read(UNSEEN, bytes).unwrap();
    }
    assert!(unseen[0].as_slice() == unseen[1].as_slice());
    let [(free, without), (guided, report), (again, _)] = &made;
    assert!(*guided < 0.95 * free, "{guided} {free}");
    assert!((guided - again).abs() < 1e-3 * guided, "{guided} {again}");
    assert!(
        without
            .experts
            .iter()
            .all(|e| e.relative_output_error.is_none())
    );
    for experts in &report.experts {
        assert_eq!(experts.method, Some(Method::Importance));
        assert!(experts.relative_output_error.is_some_and(|e| e > 0.0));
    }
}
