//! Conversions with a text: the same bytes whatever happens on the way.

use crate::tests::SMALL_BUFFERS;
use shardwright_format::io::partial_path;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::{self, LineHashes};
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, Role, Unit};
use shardwright_quant::Method;
use shardwright_runtime::layerwise::LayerPass;

use super::{Case, contents, copy_dir, fixture, noise};
use crate::calibrate::streams::Streams;
use crate::calibrate::{Corpus, Keep, SavedStatistics, save_statistics};
use crate::{
    Calibration, ConversionReport, ConvertError, ConvertOptions, PlanOptions, Recipe, Result,
};

/// A dense model in two files with a tied head, one with experts, a shared one among them, and one
/// of each mixer and kind of routing besides.
const MODELS: [&str; 6] = [
    "golden/llama3",
    "golden/qwen2_moe",
    "golden/deepseek_v3",
    "golden/gpt_oss",
    "golden/llama4",
    "golden/qwen3_5_moe",
];
const WINDOW: usize = 16;

/// A checkpoint, a plan that says it is calibrated, and the text.
struct Calibrated {
    case: Case,
    corpus: Corpus,
}

/// Everything but norms and routers in one encoding.
fn recipe(encoding: &str) -> Recipe {
    let json = format!(
        r#"{{"name": "{encoding}", "rules": [
          {{"match": {{"role": ["router", "shared_expert_gate"]}}, "encoding": "keep", "optional": true}},
          {{"encoding": "{encoding}", "fallback": [32, "keep"]}}]}}"#
    );
    Recipe::parse(encoding, &json).unwrap()
}

fn inventory(dir: &Path) -> Inventory {
    Inventory::new(&Checkpoint::open(dir).unwrap(), None).unwrap()
}

/// Tokens that look random, as a text of the model in `dir`.
fn corpus(dir: &Path, seed: u32, tokens: usize) -> Corpus {
    let (checkpoint, inventory) = (Checkpoint::open(dir).unwrap(), inventory(dir));
    let vocab = inventory.spec.vocab_size as f32;
    let original = Weights::from_checkpoint(checkpoint, inventory);
    let token = |x: f32| (f32::midpoint(x, 1.0) * vocab).min(vocab - 1.0) as u32;
    let tokens: Vec<u32> = noise(seed, tokens).into_iter().map(token).collect();
    let text = format!("{tokens:?}");
    let record = manifest::Calibration {
        text_blake3: Some(blake3::hash(text.as_bytes()).into()),
        tokens: tokens.len() as u64,
        window: WINDOW as u32,
        statistics_blake3: None,
        line_hashes: LineHashes::from_text(&text),
    };
    Corpus { original: Arc::new(original), tokens, window: WINDOW, record, tokenizer_bytes: 0 }
}

fn plan(dir: &Path, recipe: &Recipe, record: &manifest::Calibration) -> Case {
    let calibration = Some(record.clone());
    let options = PlanOptions { calibration, ..PlanOptions::default() };
    Case::new(dir, recipe, options).unwrap()
}

impl Calibrated {
    fn new(dir: &Path, encoding: &str) -> Self {
        let corpus = corpus(dir, 7, 6 * WINDOW);
        Self { case: plan(dir, &recipe(encoding), &corpus.record), corpus }
    }

    fn convert(&self, out: &Path, threads: usize) -> Result<ConversionReport> {
        run(&self.case, Calibration::Text(&self.corpus), out, threads, false)
    }

    fn resume(&self, out: &Path) -> Result<ConversionReport> {
        run(&self.case, Calibration::Text(&self.corpus), out, 2, true)
    }

    /// Converts until `count` shards are done, then stops.
    fn interrupt(&self, out: &Path, count: usize, resume: bool) {
        let cancel = AtomicBool::new(count == 0);
        let calibration = Calibration::Text(&self.corpus);
        let options = ConvertOptions {
            threads: 2,
            resume,
            cancel: &cancel,
            calibration,
            buffers: SMALL_BUFFERS,
        };
        let stopped = self.case.run(out, &options, &|progress| {
            if progress.shards >= count {
                cancel.store(true, Ordering::Relaxed);
            }
        });
        match stopped {
            Err(ConvertError::Cancelled { done, total, .. }) => assert!(done < total),
            // The last shards may be done before the flag is seen.
            other => assert!(other.is_ok(), "{other:?}"),
        }
    }
}

fn run(
    case: &Case,
    calibration: Calibration<'_>,
    out: &Path,
    threads: usize,
    resume: bool,
) -> Result<ConversionReport> {
    let cancel = AtomicBool::new(false);
    case.run(
        out,
        &ConvertOptions { threads, resume, cancel: &cancel, calibration, buffers: SMALL_BUFFERS },
        &|_| {},
    )
}

/// What `corpus` shows, by way of a file.
fn saved(corpus: &Corpus, keep: Keep, threads: usize, path: &Path) -> SavedStatistics {
    save_statistics(path, corpus, keep, threads, &AtomicBool::new(false), &|_| {}).unwrap();
    let statistics = SavedStatistics::read(path, corpus.original.spec()).unwrap();
    let inventory = inventory(corpus.original.root());
    statistics.check(path, &inventory).unwrap();
    statistics
}

#[test]
fn threads_do_not_change_a_byte() {
    for name in MODELS {
        for encoding in ["q2g32", "t2s10"] {
            let dir = tempfile::tempdir().unwrap();
            let made = Calibrated::new(&fixture(name), encoding);
            let [one, two] = [1, 2].map(|threads| {
                let out = dir.path().join(threads.to_string());
                made.convert(&out, threads).unwrap();
                contents(&out)
            });
            assert!(one == two, "{name} {encoding}");
            for file in &made.case.plan.files {
                assert_eq!(one[&file.path].len() as u64, file.size, "{name} {}", file.path);
            }
        }
    }
}

#[test]
fn statistics_and_what_is_made_of_them_do_not_depend_on_threads() {
    for (name, keep) in MODELS
        .into_iter()
        .zip([Keep::Full, Keep::Diagonal].into_iter().cycle())
    {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(&fixture(name), 7, 6 * WINDOW);
        let [one, two] = [1, 2].map(|threads| {
            let path = dir.path().join(format!("{threads}.safetensors"));
            let statistics = saved(&corpus, keep, threads, &path);
            let case = plan(&fixture(name), &recipe("q2g32"), &statistics.record);
            let out = dir.path().join(threads.to_string());
            run(&case, Calibration::Statistics(&statistics), &out, threads, false).unwrap();
            (std::fs::read(path).unwrap(), contents(&out))
        });
        assert!(one.0 == two.0, "{name}: statistics");
        assert!(one.1 == two.1, "{name}: bundle");
    }
}

#[test]
fn an_interruption_anywhere_changes_nothing() {
    for (name, encoding, step) in [
        ("golden/llama3", "q2g32", 1),
        ("golden/qwen2_moe", "q3g32", 4),
        ("golden/qwen2_moe", "t2s10", 11),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let made = Calibrated::new(&fixture(name), encoding);
        let whole = dir.path().join("whole");
        made.convert(&whole, 2).unwrap();
        let expected = contents(&whole);
        for count in (0..made.case.plan.units().count()).step_by(step) {
            let out = dir.path().join(count.to_string());
            made.interrupt(&out, count, false);
            if !out.exists() {
                made.interrupt(&out, count + 2, true);
            }
            if !out.exists() {
                made.resume(&out).unwrap();
            }
            assert!(contents(&out) == expected, "{name} {encoding} {count}");
            assert!(!partial_path(&out).exists());
        }
    }
}

#[test]
fn a_damaged_shard_is_made_again_from_the_same_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    copy_dir(&fixture("golden/qwen2_moe"), &source);
    let note = |text: &str| std::fs::write(source.join("note.txt"), text).unwrap();
    note("a");
    let made = Calibrated::new(&source, "q2g32");
    let whole = dir.path().join("whole");
    made.convert(&whole, 2).unwrap();
    // A copied file that is not what was planned stops the conversion after its last shard.
    let out = dir.path().join("out");
    note("ab");
    made.convert(&out, 2).unwrap_err();
    note("a");
    let bundle = partial_path(&out).join("bundle");
    for file in ["dense-000.bin", "experts/layer-003.bin"] {
        let mut bytes = std::fs::read(bundle.join(file)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 512].fill(0xa5);
        std::fs::write(bundle.join(file), bytes).unwrap();
    }
    made.resume(&out).unwrap();
    assert!(contents(&out) == contents(&whole));
}

#[test]
fn what_was_begun_with_one_text_is_not_finished_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("golden/llama3");
    let made = Calibrated::new(&source, "q2g32");
    let out = dir.path().join("out");
    made.interrupt(&out, 2, false);
    let message = format!(
        "{}: cannot resume: it was begun with another calibration; give the same text or \
         statistics, tokens and window, or remove it",
        partial_path(&out).display()
    );
    let other = corpus(&source, 8, 6 * WINDOW);
    let shorter = corpus(&source, 7, 5 * WINDOW);
    for other in [other, shorter] {
        let case = plan(&source, &recipe("q2g32"), &other.record);
        let error = run(&case, Calibration::Text(&other), &out, 2, true).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let statistics = saved(&made.corpus, Keep::Full, 2, &dir.path().join("s.safetensors"));
    let case = plan(&source, &recipe("q2g32"), &statistics.record);
    let error = run(&case, Calibration::Statistics(&statistics), &out, 2, true).unwrap_err();
    assert_eq!(error.to_string(), message);
    let case = Case::new(&source, &recipe("q2g32"), PlanOptions::default()).unwrap();
    assert_eq!(case.resume(&out).unwrap_err().to_string(), message);
    made.resume(&out).unwrap();
}

#[test]
fn feedback_lowers_the_error_of_outputs() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let made = Calibrated::new(&fixture(name), "q2g32");
        let [gptq, search] = [Method::Gptq, Method::Search].map(|method| {
            let recipe = recipe("q2g32").with_method(method);
            let case = plan(&fixture(name), &recipe, &made.corpus.record);
            let out = dir.path().join(method.name());
            run(&case, Calibration::Text(&made.corpus), &out, 2, false).unwrap()
        });
        let [a, b] = [&gptq, &search].map(|report| report.calibration.as_ref().unwrap());
        // Where 2 bits leave nothing of a model, its divergence says little.
        let spoiled = b.divergence > 4.0;
        assert!(
            spoiled || a.divergence < b.divergence,
            "{name}: {} {}",
            a.divergence,
            b.divergence
        );
        let coded = |r: &&crate::TensorReport| r.method.is_some() && r.role != Role::EmbedTokens;
        for tensor in gptq.tensors.iter().filter(coded) {
            let error = tensor.relative_output_error;
            assert!(error.is_some_and(|e| e > 0.0 && e < 1.0), "{}: {error:?}", tensor.tensor);
        }
        for experts in gptq.experts.iter().filter(|e| e.method.is_some()) {
            let error = experts.relative_output_error;
            assert!(error.is_some_and(|e| e > 0.0 && e < 1.0), "{}: {error:?}", experts.tensor);
        }
    }
}

#[test]
fn the_report_says_what_the_finished_bundle_does() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let made = Calibrated::new(&fixture(name), "q2g32");
        let out = dir.path().join("out");
        let seen = made.convert(&out, 2).unwrap().calibration.unwrap();
        let bundle = Weights::from(Bundle::open(&out).unwrap());
        let mut streams = Streams::new(&made.corpus, &bundle, None, 2).unwrap();
        for layer in 0..bundle.spec().layers.len() as u32 {
            streams.step_original().unwrap();
            streams.step_quantized().unwrap();
            assert_eq!(seen.layers[layer as usize], streams.output(layer), "{name}");
        }
        assert_eq!(seen.divergence, streams.divergence(&bundle, 2).unwrap());
    }
}

#[test]
fn where_the_embedding_is_the_head_layers_are_compared_at_the_beginning_of_the_text() {
    let dir = fixture("golden/granitemoe");
    let compared = 2048;
    let corpus = corpus(&dir, 7, compared + 2 * WINDOW);
    let made = Calibrated { case: plan(&dir, &recipe("q2g32"), &corpus.record), corpus };
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let seen = made.convert(&out, 2).unwrap().calibration.unwrap();
    let bundle = Weights::from(Bundle::open(&out).unwrap());
    let mut streams = Streams::new(&made.corpus, &bundle, None, 2).unwrap();
    let pass = |weights| LayerPass::new(weights, &made.corpus.tokens, WINDOW, 2).unwrap();
    let (mut a, mut b) = (pass(&made.corpus.original), pass(&bundle));
    let values = compared * bundle.spec().hidden_size as usize;
    for layer in 0..bundle.spec().layers.len() {
        a.step().unwrap();
        b.step().unwrap();
        let pairs = || a.hidden()[..values].iter().zip(&b.hidden()[..values]);
        let error: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let square: f64 = pairs().map(|(a, _)| f64::from(*a).powi(2)).sum();
        let found = seen.layers[layer].relative_output_error;
        assert!((found - (error / square).sqrt()).abs() < 1e-6 && found > 0.0, "{found}");
        // Experts are counted and predictions compared over all of it.
        streams.step_original().unwrap();
        assert_eq!(Some(&seen.coverage[layer]), streams.step_quantized().unwrap().as_ref());
        assert!(seen.layers[layer] != streams.output(layer as u32));
    }
    assert_eq!(seen.divergence, streams.divergence(&bundle, 2).unwrap());
}

#[test]
fn the_beginning_of_a_long_text_goes_through_the_original() {
    let dir = fixture("golden/llama3");
    let long = corpus(&dir, 7, 8192 + WINDOW);
    let tokens = long.tokens[..8192].to_vec();
    let beginning = Corpus { tokens, ..corpus(&dir, 7, WINDOW) };
    let folder = tempfile::tempdir().unwrap();
    let [(made, seen), (begun, other)] =
        [("long", &long), ("beginning", &beginning)].map(|(name, text)| {
            let (case, out) =
                (plan(&dir, &recipe("q2g32"), &text.record), folder.path().join(name));
            let report = run(&case, Calibration::Text(text), &out, 2, false).unwrap();
            (Bundle::open(&out).unwrap(), report.calibration.unwrap())
        });
    // Its embedding, which is its head, is made by that alone; layers by all of the text.
    let hash = |bundle: &Bundle, unit| {
        let shard = bundle
            .manifest()
            .dense
            .iter()
            .find(|shard| shard.unit == unit);
        shard.unwrap().blake3
    };
    assert_eq!(hash(&made, Unit::Embedding), hash(&begun, Unit::Embedding));
    assert_ne!(hash(&made, Unit::Layer(0)), hash(&begun, Unit::Layer(0)));
    // Predictions are compared on it.
    let bundle = Weights::from(made);
    let [a, b] = [&long, &beginning].map(|text| {
        let mut streams = Streams::new(text, &bundle, None, 2).unwrap();
        for _ in 0..bundle.spec().layers.len() {
            streams.step_original().unwrap();
            streams.step_quantized().unwrap();
        }
        streams.divergence(&bundle, 2).unwrap()
    });
    assert_eq!((a, b), (seen.divergence, seen.divergence));
    assert_ne!(seen.divergence, other.divergence);
}
