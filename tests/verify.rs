//! The three checks of `verify`, its limits and its reports. `bad_bundle` has what it must find.

use std::fs;

use serde_json::{Value, json};
use shardwright_format::manifest::{Calibration, LineHashes, Manifest};
use shardwright_testing::fixture;

use crate::harness::Scratch;

const TEXT: &str = "--against ckpt --text text.txt --windows 4";

/// The fixture, its bundle and the first part of the evaluation text.
fn scratch(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok(&format!("convert ckpt -o out {options}"));
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    scratch
}

#[test]
fn a_sound_bundle_holds() {
    let scratch = scratch("--bits 4");
    assert_eq!(scratch.json("verify out")["verdict"], json!("holds"));
    let report = scratch.json(&format!("verify out {TEXT} --html report.html"));
    assert_eq!(report["verdict"], json!("holds"));
    let plan = scratch.json("plan ckpt --bits 4");
    assert_eq!(report["bits_per_weight"], plan["summary"]["bits_per_weight"]);
    let divergence = &report["divergence"];
    let figure = |name: &str| {
        divergence[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(divergence["tokens"], json!(4 * 255));
    assert!(figure("kld_mean") > 0.0 && figure("kld_mean") < figure("kld_p99"));
    let order = ["kld_median", "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max"];
    assert!(
        order
            .windows(2)
            .all(|pair| figure(pair[0]) <= figure(pair[1])),
        "{divergence}"
    );
    assert!(figure("same_top") > 0.5 && figure("same_top") <= 1.0);
    assert!(figure("kld_mean_se") > 0.0 && figure("ppl") > 1.0 && figure("ppl_original") > 1.0);
    let html = fs::read_to_string(scratch.path("report.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("</html>"));
    for outside in ["http://", "https://", "src=", "@import"] {
        let loads = html
            .replace("http://www.w3.org/2000/svg", "")
            .contains(outside);
        assert!(!loads, "the page loads something: {outside}");
    }
}

#[test]
fn unquantized_weights_do_not_diverge() {
    let scratch = scratch("--bits 8 --set *=keep");
    let report = scratch.json(&format!("verify out {TEXT}"));
    assert_eq!(report["divergence"]["kld_max"], json!(0.0));
    assert_eq!(report["divergence"]["same_top"], json!(1.0));
    assert_eq!(report["divergence"]["ppl"], report["divergence"]["ppl_original"]);
}

#[test]
fn limits_decide_the_exit_code() {
    let scratch = scratch("--bits 3");
    for (limit, code) in [
        ("--max-kld 10", 0),
        ("--max-kld 0.0001", 1),
        ("--max-kld-p99 0.0001", 1),
        ("--min-same-top 0.1", 0),
        ("--min-same-top 0.999", 1),
        ("--max-ppl-ratio 3", 0),
        ("--max-ppl-ratio 0.5", 1),
    ] {
        let ran = scratch.run(&format!("verify out {TEXT} {limit} --quiet"));
        assert_eq!(ran.code, Some(code), "{limit}: {ran:?}");
        assert_eq!(
            ran.stdout.contains("====== Findings ======"),
            code == 1,
            "{limit}: {}",
            ran.stdout
        );
    }
    assert_eq!(scratch.run("verify out --max-bpw 3 --quiet").code, Some(1));
    assert_eq!(scratch.run("verify out --max-bpw 4 --quiet").code, Some(0));
    assert_eq!(
        scratch
            .run("verify out --against ckpt --max-rmse 0.001 --quiet")
            .code,
        Some(1)
    );
}

#[test]
fn a_verdict_survives_a_reader_that_goes_away() {
    let scratch = scratch("--bits 4");
    let ran = scratch.shell("shardwright verify out --max-bpw 1 | true; exit ${PIPESTATUS[0]}");
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn what_cannot_be_verified() {
    let scratch = scratch("--bits 4");
    fs::write(scratch.path("short.txt"), "too short").unwrap();
    scratch.refused(
        "verify out --against ckpt --text nowhere.txt",
        "error: nowhere.txt: No such file or directory (os error 2)",
    );
    scratch.refused(
        "verify out --against ckpt --text short.txt",
        "error: text: expected at least 256 tokens, one window, found 4",
    );
    scratch.refused("verify ckpt", "error: ckpt: is not a bundle: it has no manifest.json");
    scratch
        .refused("verify out --against out", "error: out: expected a checkpoint, found a bundle");
    fs::remove_file(scratch.path("out/tokenizer.json")).unwrap();
    let ran = scratch.run(&format!("verify out {TEXT} --quiet"));
    assert_eq!(ran.code, Some(1), "a missing file is a finding: {ran:?}");
}

#[test]
fn an_exported_bundle_is_a_checkpoint() {
    let scratch = scratch("--bits 4");
    scratch.ok("export out --to hf -o back");
    let (one, two) = (scratch.json("inspect ckpt"), scratch.json("inspect back"));
    assert_eq!(one["parameters"], two["parameters"]);
    // The exported values are the bundle's own: both give the same logits.
    let run = |model: &str| -> Value { scratch.json(&format!("run {model} --prompt This -n 8")) };
    assert_eq!(run("out")["tokens"], run("back")["tokens"]);
    scratch.ok("export out --to hf -o narrow --dtype source");
    assert_eq!(scratch.json("inspect narrow")["tensor_bytes"], one["tensor_bytes"]);
}

/// Says in the manifest what the bundle was calibrated with, the manifest's own hash made right.
fn calibrate(scratch: &Scratch, text: &str) {
    let path = scratch.path("out/manifest.json");
    let mut manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    manifest.calibration = Some(Calibration {
        text_blake3: Some(blake3::hash(text.as_bytes()).into()),
        tokens: 2048,
        window: 256,
        statistics_blake3: None,
        line_hashes: LineHashes::of(text),
    });
    fs::write(&path, manifest.to_bytes()).unwrap();
}

#[test]
fn the_calibration_text_is_refused_and_its_lines_are_a_warning() {
    let scratch = scratch("--bits 4");
    let text = fs::read_to_string(scratch.path("text.txt")).unwrap();
    calibrate(&scratch, &text);
    scratch.refused(
        &format!("verify out {TEXT}"),
        "error: text.txt: expected a text that the bundle was not calibrated with, found its \
         calibration text: it would be judged on what it was fitted to",
    );
    fs::write(scratch.path("text.txt"), format!("{text}\nand one more line than that")).unwrap();
    let report = scratch.json(&format!("verify out {TEXT} --html page.html"));
    assert_eq!(report["verdict"], json!("holds"));
    let shared = &report["calibration"]["shared_lines"];
    assert_eq!(shared["shared"].as_u64().unwrap() + 1, shared["compared"].as_u64().unwrap());
    assert_eq!(report["warnings"][0]["kind"], json!("overlap"));
    assert!(
        report["divergence"]["noise_floor"]["kld_mean"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(page.contains("lines of the calibration text in this one"));
}
