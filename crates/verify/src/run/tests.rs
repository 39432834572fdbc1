use std::fs;

use shardwright_format::manifest::{Calibration, LineHashes, MANIFEST_FILE, Manifest, REPORT_FILE};

use super::*;
use crate::check::finding::{Finding, Kind};
use crate::report::Verdict;
use shardwright_testing::fixture;
use shardwright_testing::models::{Codes, FOUR_BITS, TestBundle};

fn trained() -> PathBuf {
    fixture("fixture-2m")
}

fn text() -> PathBuf {
    fixture("text/evaluation.txt")
}

fn request<'a>(
    bundle: &TestBundle,
    text: Option<&'a Path>,
    thresholds: Thresholds,
) -> VerifyRequest<'a> {
    VerifyRequest {
        candidates: vec![Candidate::Bundle(bundle.root.path().to_owned())],
        original: Some((bundle.checkpoint.clone(), Weights::open(&bundle.checkpoint).unwrap())),
        text,
        windows: EvalWindows { limit: Some(4), ..EvalWindows::new(64) },
        thresholds,
        hash_checkpoint: true,
        other_source: false,
        trusted: None,
        cache: CacheTypes::default(),
        threads: 2,
    }
}

fn run(request: VerifyRequest<'_>) -> Report {
    let ladder = verify(request, &Monitor::silent()).unwrap();
    ladder.candidates.into_iter().next().unwrap()
}

#[test]
fn a_sound_bundle_of_the_trained_fixture_holds() {
    let bundle = TestBundle::from_checkpoint(&trained(), FOUR_BITS);
    let text = text();
    let limits =
        Thresholds { max_kld: Some(1.0), min_same_top: Some(0.5), ..Thresholds::default() };
    let report = run(request(&bundle, Some(&text), limits));
    assert_eq!((report.verdict, &report.findings[..]), (Verdict::Holds, &[][..]));
    let d = report.divergence.as_ref().unwrap();
    assert!(d.ppl_original > 1.0 && d.kld_mean > 0.0 && d.kld_mean < 0.5, "{d:?}");
    let bits = report.bits_per_weight.unwrap();
    assert!(bits > 4.0 && bits < 6.0, "{bits}");
    let bytes = fs::read(&text).unwrap();
    assert_eq!(report.text.as_ref().unwrap().blake3, blake3::hash(&bytes).into());
    pages_and_json(&report);
}

/// The report survives JSON, and its page stands alone.
fn pages_and_json(report: &Report) {
    let json = serde_json::to_string(report).unwrap();
    assert_eq!(&serde_json::from_str::<Report>(&json).unwrap(), report);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for field in [
        "tokens",
        "ppl_original",
        "ppl",
        "kld_mean",
        "kld_mean_se",
        "kld_median",
        "kld_p90",
        "kld_p95",
        "kld_p99",
        "kld_p999",
        "kld_max",
        "same_top",
    ] {
        assert!(value["divergence"][field].is_number(), "{field}");
    }
    let page = report.to_html(&[]);
    assert_eq!(page.matches("<svg").count(), 2);
    for alien in ["http:", "https:", "<script", "src=", "url(", "NaN", "none</td>"] {
        assert!(!page.contains(alien), "{alien}");
    }
    let text = report.to_string();
    for block in [
        "====== Fidelity ======",
        "====== Perplexity statistics ======",
        "Mean    KLD:",
        "Same top p:",
        "verdict: holds",
    ] {
        assert!(text.contains(block), "{block}");
    }
}

#[test]
fn a_limit_that_is_not_kept_is_found() {
    let bundle = TestBundle::from_checkpoint(&trained(), Codes::Affine(2));
    let text = text();
    let limits =
        Thresholds { max_kld: Some(1e-6), max_bits_per_weight: Some(2.0), ..Thresholds::default() };
    let report = run(request(&bundle, Some(&text), limits));
    assert_eq!(report.verdict, Verdict::Found);
    let [bits, kld] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert!(
        bits.to_string()
            .starts_with("bits per weight: expected at most 2, found "),
        "{bits}"
    );
    assert!(
        kld.to_string()
            .starts_with("mean KLD: expected at most 0.000001, found "),
        "{kld}"
    );
    assert!(report.to_string().ends_with("verdict: 2 findings\n"));
}

#[test]
fn a_damaged_bundle_is_not_compared() {
    let bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    bundle.edit("dense-000.bin", |bytes| bytes[0] ^= 1);
    let report = run(request(&bundle, None, Thresholds::default()));
    assert_eq!((report.verdict, report.findings.len()), (Verdict::Found, 1));
    assert!(report.fidelity.is_none());
    assert_eq!(report.notes, ["not compared with the checkpoint: the bundle is damaged"]);
    bundle.edit(MANIFEST_FILE, |bytes| bytes.truncate(100));
    let report = run(request(&bundle, None, Thresholds::default()));
    assert_eq!((report.verdict, report.bundle.is_none()), (Verdict::Found, true));
    assert!(report.to_html(&[]).contains("1 finding<"));
}

#[test]
fn names_from_outside_are_escaped() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    fs::write(bundle.path("<img src=x onerror=alert(1)>&\"'"), "").unwrap();
    let page = run(request(&bundle, None, Thresholds::default())).to_html(&[]);
    assert!(!page.contains("<img") && page.contains("&lt;img src"));
}

#[test]
fn weights_that_overflow_are_a_finding() {
    let mut bundle = TestBundle::new("llama2", Codes::Plain);
    let shard = &bundle.manifest.dense[1];
    let (start, end) = (shard.offset as usize, (shard.offset + shard.len) as usize);
    let size = shard.tensors[0].encoding.float().unwrap().size();
    bundle.edit("dense-000.bin", |bytes| bytes[start + size - 1] = 0x7f);
    let bytes = fs::read(bundle.path("dense-000.bin")).unwrap();
    bundle.manifest.dense[1].blake3 = blake3::hash(&bytes[start..end]).into();
    let files = bundle.manifest.files.iter_mut();
    files
        .filter(|f| f.path == "dense-000.bin")
        .for_each(|f| f.blake3 = blake3::hash(&bytes).into());
    bundle.rewrite(|_| ());
    let report = run(request(&bundle, None, Thresholds::default()));
    assert_eq!(report.verdict, Verdict::Found);
}

#[test]
fn what_cannot_run_is_said() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let text = text();
    let without =
        VerifyRequest { original: None, ..request(&bundle, Some(&text), Thresholds::default()) };
    let error =
        |request: VerifyRequest<'_>| verify(request, &Monitor::silent()).unwrap_err().to_string();
    assert_eq!(error(without), "text: needs the checkpoint to compare predictions with");
    let limit = Thresholds { max_ppl_ratio: Some(1.1), ..Thresholds::default() };
    assert_eq!(
        error(request(&bundle, None, limit)),
        "max_ppl_ratio: needs a text to be measured with"
    );
    let found = error(request(&bundle, Some(&text), Thresholds::default()));
    assert!(found.starts_with("original: ") && found.contains("tokenizer.json"), "{found}");
    let alone = VerifyRequest { original: None, ..request(&bundle, None, Thresholds::default()) };
    let report = run(alone);
    assert_eq!((report.verdict, report.fidelity.is_none()), (Verdict::Holds, true));
    report.to_html(&[]);
}

fn calibrated(bundle: &TestBundle, text: &str) {
    let calibration = Calibration {
        text_blake3: Some(blake3::hash(text.as_bytes()).into()),
        tokens: 1000,
        window: 64,
        statistics_blake3: None,
        line_hashes: LineHashes::from_text(text),
    };
    let path = bundle.path(REPORT_FILE);
    if fs::read(&path).unwrap() == b"{}\n" {
        fs::write(&path, r#"{"calibration": {"tokens": 1000, "window": 64}}"#).unwrap();
    }
    let report = fs::read(&path).unwrap();
    bundle.rewrite(|manifest| {
        manifest.calibration = Some(calibration);
        let entry = manifest.files.iter_mut().find(|f| f.path == REPORT_FILE);
        let entry = entry.unwrap();
        (entry.size, entry.blake3) = (report.len() as u64, blake3::hash(&report).into());
    });
}

/// A manifest signed anew without its record of the calibration, or with another one.
#[test]
fn a_record_that_the_report_contradicts_is_found() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    calibrated(&bundle, "a text");
    let told = || run(request(&bundle, None, Thresholds::default())).findings;
    let only = |findings: Vec<Finding>| {
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        finding.to_string()
    };
    assert_eq!(told(), []);
    let path = bundle.path(MANIFEST_FILE);
    let signed = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    let resign = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = signed.clone();
        change(&mut manifest);
        fs::write(&path, manifest.to_bytes()).unwrap();
    };
    resign(&|m| m.calibration = None);
    let place = "report.json: calibration, as in the manifest";
    let known = "1000 tokens in windows of 64";
    assert_eq!(only(told()), format!("{place}: expected none, found {known}"));
    resign(&|m| m.calibration.as_mut().unwrap().tokens = 7);
    let expected = format!("{place}: expected 7 tokens in windows of 64, found {known}");
    assert_eq!(only(told()), expected);
    fs::write(bundle.path(REPORT_FILE), "[]").unwrap();
    let report = fs::read(bundle.path(REPORT_FILE)).unwrap();
    resign(&|m| {
        let entry = m.files.iter_mut().find(|f| f.path == REPORT_FILE).unwrap();
        (entry.size, entry.blake3) = (report.len() as u64, blake3::hash(&report).into());
    });
    assert_eq!(
        only(told()),
        "report.json: contents: expected one JSON object, found something else"
    );
}

#[test]
fn the_calibration_text_is_no_evaluation() {
    let bundle = TestBundle::from_checkpoint(&trained(), FOUR_BITS);
    let path = text();
    let content = fs::read_to_string(&path).unwrap();
    calibrated(&bundle, &content);
    let same = request(&bundle, Some(&path), Thresholds::default());
    let error = verify(same, &Monitor::silent()).unwrap_err().to_string();
    let expected = "evaluation.txt: expected a text that the bundle was not calibrated with, found its \
                    calibration text: it would be judged on what it was fitted to";
    assert!(error.ends_with(expected), "{error}");
    assert_eq!(run(request(&bundle, None, Thresholds::default())).verdict, Verdict::Holds);
}

#[test]
fn lines_of_the_calibration_text_are_a_warning() {
    let bundle = TestBundle::from_checkpoint(&trained(), FOUR_BITS);
    let path = text();
    let content = fs::read_to_string(&path).unwrap();
    let half = &content[..content.floor_char_boundary(content.len() / 2)];
    calibrated(&bundle, half);
    let report = run(request(&bundle, Some(&path), Thresholds::default()));
    assert_eq!(report.verdict, Verdict::Holds);
    let record = report.calibration.as_ref().unwrap();
    let shared = record.shared_lines.unwrap();
    assert!((0.3..0.8).contains(&shared.fraction()), "{shared:?}");
    let warning = report.warnings.iter().find(|w| w.kind == Kind::Overlap);
    let warning = warning.unwrap().to_string();
    let expected = format!(
        "lines of the calibration text in this one: found {} of {} lines looked up",
        shared.shared, shared.compared
    );
    assert!(warning.starts_with(&expected), "{warning}");
    assert!(report.to_string().contains("====== Warnings ======"));
    calibrated(&bundle, "nothing that the evaluation text has in any of its lines\n");
    let report = run(request(&bundle, Some(&path), Thresholds::default()));
    assert!(report.warnings.iter().all(|w| w.kind != Kind::Overlap), "{:?}", report.warnings);
}

#[test]
fn what_the_conversion_says_of_its_calibration_is_shown() {
    let bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    let told = r#"{"calibration": {"tokens": 1000, "window": 64, "rule": "fewer than 8 tokens: <all>",
        "coverage": [{"layer": 0, "tokens": [500, 0, 20, 30, 7, 450], "starved": [1, 4]}],
        "layers": [{"layer": 0, "relative_output_error": 0.0123}], "later": 1}}"#;
    fs::write(bundle.path("report.json"), told).unwrap();
    calibrated(&bundle, "a text");
    let report = run(request(&bundle, None, Thresholds::default()));
    let told = report
        .calibration
        .as_ref()
        .unwrap()
        .conversion
        .clone()
        .unwrap();
    assert_eq!(told.coverage[0].starved, [1, 4]);
    let page = report.to_html(&[]);
    for part in ["fewer than 8 tokens: &lt;all&gt;", "2 of 6", "0.0123"] {
        assert!(page.contains(part), "{part}");
    }
    fs::write(bundle.path("report.json"), r#"{"calibration": 7}"#).unwrap();
    let report = run(request(&bundle, None, Thresholds::default()));
    assert!(report.calibration.unwrap().conversion.is_none());
}
