use shardwright_format::manifest::{Codec, MANIFEST_FILE};

use super::*;
use crate::report::Verdict;
use crate::testing::{FOUR_BITS, Storage, TestBundle};

fn trained() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fixture-2m")
}

fn text() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/text/evaluation.txt")
}

fn request<'a>(
    bundle: &'a TestBundle,
    text: Option<&'a Path>,
    thresholds: Thresholds,
) -> Request<'a> {
    Request {
        bundle: bundle.root.path(),
        checkpoint: Some(&bundle.checkpoint),
        arch: None,
        text,
        windows: Windows { limit: Some(4), ..Windows::of(64) },
        thresholds,
        hash_checkpoint: true,
        threads: 2,
    }
}

fn run(request: &Request<'_>) -> Report {
    verify(request, &Monitor::silent()).unwrap()
}

#[test]
fn a_sound_bundle_of_the_trained_fixture_holds() {
    let bundle = TestBundle::of(&trained(), FOUR_BITS);
    let text = text();
    let limits =
        Thresholds { max_kld: Some(1.0), min_same_top: Some(0.5), ..Thresholds::default() };
    let report = run(&request(&bundle, Some(&text), limits));
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
    let page = report.to_html();
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
    let bundle = TestBundle::of(&trained(), Storage { bits: Some(2), codec: Codec::None });
    let text = text();
    let limits =
        Thresholds { max_kld: Some(1e-6), max_bits_per_weight: Some(2.0), ..Thresholds::default() };
    let report = run(&request(&bundle, Some(&text), limits));
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
    let report = run(&request(&bundle, None, Thresholds::default()));
    assert_eq!((report.verdict, report.findings.len()), (Verdict::Found, 1));
    assert!(report.fidelity.is_none());
    assert_eq!(report.notes, ["not compared with the checkpoint: the bundle is damaged"]);
    bundle.edit(MANIFEST_FILE, |bytes| bytes.truncate(100));
    let report = run(&request(&bundle, None, Thresholds::default()));
    assert_eq!((report.verdict, report.bundle.is_none()), (Verdict::Found, true));
    assert!(report.to_html().contains("1 finding<"));
}

#[test]
fn names_from_outside_are_escaped() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    fs::write(bundle.path("<img src=x onerror=alert(1)>&\"'"), "").unwrap();
    let page = run(&request(&bundle, None, Thresholds::default())).to_html();
    assert!(!page.contains("<img") && page.contains("&lt;img src"));
}

#[test]
fn weights_that_overflow_are_a_finding() {
    let mut bundle = TestBundle::new("llama2", Storage { bits: None, codec: Codec::None });
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
    let report = run(&request(&bundle, None, Thresholds::default()));
    assert_eq!(report.verdict, Verdict::Found);
    let found = failure(VerifyError::Runtime {
        model: Model::Candidate,
        source: RuntimeError::NotFinite { layer: 3, token: 4, channel: 5 },
    });
    let message = "layer 3: its output is not finite at token 4, channel 5";
    assert_eq!(found.unwrap().to_string(), message);
    assert!(failure(VerifyError::Cancelled).is_err());
}

#[test]
fn what_cannot_run_is_said() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let text = text();
    let without =
        Request { checkpoint: None, ..request(&bundle, Some(&text), Thresholds::default()) };
    let error =
        |request: &Request<'_>| verify(request, &Monitor::silent()).unwrap_err().to_string();
    assert_eq!(error(&without), "text: needs the checkpoint to compare predictions with");
    let limit = Thresholds { max_ppl_ratio: Some(1.1), ..Thresholds::default() };
    assert_eq!(
        error(&request(&bundle, None, limit)),
        "max_ppl_ratio: needs a text to be measured with"
    );
    let found = error(&request(&bundle, Some(&text), Thresholds::default()));
    assert!(found.starts_with("original: ") && found.contains("tokenizer.json"), "{found}");
    let alone = Request { checkpoint: None, ..request(&bundle, None, Thresholds::default()) };
    let report = run(&alone);
    assert_eq!((report.verdict, report.fidelity.is_none()), (Verdict::Holds, true));
    report.to_html();
}
