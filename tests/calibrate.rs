//! `calibrate`, and conversions with a text, statistics or a total.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{RawTensors, contents, copy_dir, digest, fixture};

use crate::harness::{Ran, Scratch};

/// Options that keep a text small.
const AMOUNT: &str = "--calibration-window 64 --calibration-tokens 512";
const TEXT: &str = "--calibrate text.txt --calibration-window 64 --calibration-tokens 512";

/// The trained fixture, a text to calibrate with and another to judge by.
fn scratch() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    let text = fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    let mut ends = text.match_indices('\n').map(|(at, _)| at);
    let half = ends.find(|at| *at >= text.len() / 2).unwrap();
    fs::write(scratch.path("text.txt"), &text[..half]).unwrap();
    fs::write(scratch.path("eval.txt"), &text[half..]).unwrap();
    scratch
}

/// Mean divergence of a bundle on the other text.
fn divergence(scratch: &Scratch, bundle: &str) -> f64 {
    let options = "--against ckpt --text eval.txt --window 64 --windows 32 --quiet";
    let report = scratch.json(&format!("verify {bundle} {options}"));
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    report["divergence"]["kld_mean"].as_f64().unwrap()
}

fn report(scratch: &Scratch, bundle: &str) -> Value {
    let bytes = fs::read(scratch.path(bundle).join("report.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn sizes(scratch: &Scratch, bundle: &str) -> Vec<(String, u64)> {
    let files = contents(&scratch.path(bundle)).into_iter();
    files
        .map(|(name, bytes)| (name, bytes.len() as u64))
        .collect()
}

/// The shards alone, without what says how they were made.
fn shards(scratch: &Scratch, bundle: &str) -> Vec<(String, String)> {
    let mut files = digest(&scratch.path(bundle));
    files.retain(|(name, _)| name.starts_with("dense-") || name.starts_with("experts/"));
    files
}

#[test]
fn a_calibrated_bundle_is_as_planned_and_diverges_less() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o blind --recipe moe-q2 --method search");
    let options = TEXT.replace("512", "4096");
    scratch.ok(&format!("convert ckpt -o out --recipe moe-q2 {options}"));
    let plan = scratch.json(&format!("plan ckpt --recipe moe-q2 {options}"));
    let mut planned: Vec<(String, u64)> = plan["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap().to_owned(), f["size"].as_u64().unwrap()))
        .collect();
    planned.sort();
    assert_eq!(planned, sizes(&scratch, "out"));
    let [blind, calibrated] = ["blind", "out"].map(|bundle| divergence(&scratch, bundle));
    assert!(calibrated < 0.85 * blind, "{calibrated} against {blind}");
    let report = report(&scratch, "out");
    for tensor in report["experts"].as_array().unwrap() {
        let error = tensor["relative_output_error"].as_f64();
        assert!(error.is_some_and(|e| e > 0.0 && e < 1.0), "{tensor}");
    }
    assert_eq!(report["calibration"]["tokens"], json!(4096));
}

#[test]
fn experts_that_no_token_reaches_are_no_worse_for_it() {
    let scratch = scratch();
    let options = "--calibrate text.txt --calibration-window 16 --calibration-tokens 16";
    scratch.ok("convert ckpt -o blind --recipe moe-q2 --method search");
    scratch.ok(&format!("convert ckpt -o out --recipe moe-q2 {options}"));
    let report = report(&scratch, "out");
    let coverage = report["calibration"]["coverage"].as_array().unwrap();
    let (mut empty, mut listed) = (0, 0);
    for layer in coverage {
        let tokens = layer["tokens"].as_array().unwrap();
        empty += tokens.iter().filter(|n| **n == json!(0)).count();
        listed += layer["starved"].as_array().unwrap().len();
    }
    assert!(empty > 0, "every expert was reached: {coverage:?}");
    assert_eq!(listed, 32);
    let [blind, calibrated] = ["blind", "out"].map(|bundle| divergence(&scratch, bundle));
    assert!(calibrated <= blind, "{calibrated} against {blind}");
}

#[test]
fn statistics_are_made_once_and_used_often() {
    let scratch = scratch();
    let made = scratch.json(&format!("calibrate ckpt text.txt -o s {AMOUNT} --threads 1"));
    assert_eq!((&made["tokens"], &made["window"]), (&json!(512), &json!(64)));
    scratch.ok(&format!("calibrate ckpt text.txt -o t {AMOUNT} --threads 2"));
    assert!(fs::read(scratch.path("s")).unwrap() == fs::read(scratch.path("t")).unwrap());
    for threads in [1, 2] {
        let options = format!("--bits 3 --statistics s --threads {threads}");
        scratch.ok(&format!("convert ckpt -o o{threads} {options}"));
    }
    assert_eq!(digest(&scratch.path("o1")), digest(&scratch.path("o2")));
    scratch.ok("convert ckpt -o blind --bits 3");
    assert_ne!(shards(&scratch, "o1"), shards(&scratch, "blind"));
    scratch.refused(
        "calibrate ckpt text.txt -o s",
        "error: s: already exists; remove it or choose another name",
    );
}

#[test]
fn a_calibrated_bundle_is_the_same_on_every_cpu() {
    let scratch = scratch();
    let few =
        "--calibrate text.txt --calibration-window 16 --calibration-tokens 48 --recipe moe-q2";
    let mut made = Vec::new();
    for (backend, threads) in [("scalar", 1), ("avx2", 1), ("avx512", 2), ("neon", 2)] {
        let mut command =
            scratch.command(&format!("convert ckpt -o {backend} --threads {threads} {few}"));
        let ran = Ran::from(
            command
                .env("SHARDWRIGHT_BACKEND", backend)
                .output()
                .unwrap(),
        );
        if ran.code == Some(2) {
            let expected = "error: SHARDWRIGHT_BACKEND: expected one of scalar";
            assert!(ran.stderr.starts_with(expected), "{ran:?}");
            continue;
        }
        assert_eq!(ran.code, Some(0), "{ran:?}");
        made.push((backend, digest(&scratch.path(backend))));
    }
    assert!(made.len() > 1, "one backend alone: {made:?}");
    for (backend, bundle) in &made {
        assert_eq!(*bundle, made[0].1, "{backend}");
    }
}

#[test]
fn files_that_are_no_statistics_of_this_model() {
    let scratch = scratch();
    scratch.ok(&format!("calibrate ckpt text.txt -o s {AMOUNT} --importance-only"));
    let sound = fs::read(scratch.path("s")).unwrap();
    let refused = |expected: &str| {
        let ran = scratch.run("convert ckpt -o out --bits 4 --statistics s --quiet");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{expected}: {ran:?}");
        let lines: Vec<_> = ran.stderr.lines().collect();
        assert!(
            matches!(lines[..], [line] if line.starts_with("error: s: ") && line.contains(expected)),
            "{expected}: {ran:?}"
        );
        assert!(!scratch.path("out").exists() && !scratch.path("out.partial").exists());
        fs::write(scratch.path("s"), &sound).unwrap();
    };
    scratch.edit_bytes("s", |bytes| bytes.truncate(bytes.len() / 2));
    refused("");
    fs::write(scratch.path("s"), "no statistics").unwrap();
    refused("expected statistics of `shardwright calibrate`");
    scratch.edit_tensors("s", |t| {
        t.header.remove("__metadata__");
    });
    refused("shardwright.calibration");
    scratch.edit_tensors("s", |t| {
        let at = t.range("layers.1.ffn").start;
        t.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused("tensor `layers.1.ffn`: expected finite values of F32");
    scratch.edit_tensors("s", |t| {
        let range = t.range("layers.1.ffn");
        t.header["layers.1.ffn"]["shape"] = json!([64]);
        t.data.drain(range.start..range.end - 256);
        for (_, entry) in t
            .header
            .iter_mut()
            .filter(|(name, _)| *name != "__metadata__")
        {
            for offset in entry["data_offsets"].as_array_mut().unwrap() {
                let at = offset.as_u64().unwrap() as usize;
                if at >= range.end {
                    *offset = json!(at - (range.len() - 256));
                }
            }
        }
    });
    refused("`layers.1.ffn`: expected 128 inputs, found 64: these are statistics of another model");
    copy_dir(&fixture("golden/qwen3_moe"), &scratch.path("other"));
    let ran = scratch.run("convert other -o out --bits 4 --group-size 32 --statistics s --quiet");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("the model has no such layer"), "{ran:?}");
    assert!(!scratch.path("out.partial").exists());
}

#[test]
fn totals() {
    let scratch = scratch();
    let probe = "--probe-tokens 64 --encodings affine";
    let wanted = format!("--target-bpw 3.3 {probe} --save-recipe r.json");
    scratch.ok(&format!("convert ckpt -o out {TEXT} {wanted}"));
    let inspect = scratch.json("inspect out");
    let bits = inspect["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 3.2 && bits <= 3.3, "{bits}");
    let recipe = fs::read_to_string(scratch.path("r.json")).unwrap();
    assert!(!recipe.contains("state_bits"), "{recipe}");
    scratch.ok(&format!("convert ckpt -o again {TEXT} --recipe r.json"));
    assert_eq!(shards(&scratch, "out"), shards(&scratch, "again"));
    // Whatever the threads.
    let found = "--target-bpw 3.3 --threads 1 --save-recipe one.json";
    scratch.ok(&format!("plan ckpt {TEXT} {found} {probe}"));
    assert_eq!(fs::read_to_string(scratch.path("one.json")).unwrap(), recipe);
    let options = format!("{TEXT} --target-size 1200KB {probe}");
    let plan = scratch.json(&format!("plan ckpt {options}"));
    let bytes = plan["summary"]["bundle_bytes"].as_u64().unwrap();
    assert!(bytes > 1_150_000 && bytes <= 1_200_000, "{bytes}");
    scratch
        .ok(&format!("plan ckpt {TEXT} --target-bpw 2.5 --probe-tokens 64 --save-recipe t.json"));
    assert!(
        fs::read_to_string(scratch.path("t.json"))
            .unwrap()
            .contains("state_bits")
    );
}

#[test]
fn totals_that_cannot_be() {
    let scratch = scratch();
    for (target, expected, found) in [
        ("--target-bpw 1", "expected at least 2.", "found 1"),
        ("--target-size 100KB", "expected at least ", "found 100000"),
    ] {
        let ran = scratch.run(&format!("convert ckpt -o out {TEXT} --probe-tokens 64 {target} -q"));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let (stderr, help) = ran.stderr.trim_end().split_once('\n').unwrap();
        assert_eq!(help, "help: give --target-bpw or --target-size no less than that");
        assert!(stderr.starts_with(&format!("error: {expected}")), "{stderr}");
        assert!(
            stderr.ends_with(&format!("what the smallest encodings take, {found}")),
            "{stderr}"
        );
        let ran = scratch.run(&format!("convert ckpt -o out {target}"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains("--calibrate <TEXT>"), "{ran:?}");
    }
    assert!(!scratch.path("out.partial").exists());
}

#[test]
fn texts_that_cannot_be_used() {
    let scratch = scratch();
    fs::write(scratch.path("short.txt"), "too short").unwrap();
    fs::write(scratch.path("bytes.txt"), b"\xff\xfe").unwrap();
    for command in ["convert ckpt -o out --calibrate", "calibrate ckpt -o out"] {
        scratch.refused(
            &format!("{command} short.txt"),
            "error: short.txt: expected at least 512 tokens, one window, found 4",
        );
        scratch.refused(
            &format!("{command} bytes.txt"),
            "error: bytes.txt: expected text in UTF-8, found UTF-16: `iconv -f UTF-16LE -t UTF-8` \
             changes it",
        );
        scratch.refused(
            &format!("{command} text.txt --calibration-tokens 100"),
            "error: --calibration-tokens: expected at least 512, one window, found 100",
        );
        fs::rename(scratch.path("ckpt/tokenizer.json"), scratch.path("t")).unwrap();
        scratch.refused(
            &format!("{command} text.txt"),
            "error: ckpt/tokenizer.json: no such file; copy the tokenizer.json of the original \
             model there",
        );
        fs::rename(scratch.path("t"), scratch.path("ckpt/tokenizer.json")).unwrap();
    }
    scratch.refused(
        "calibrate ckpt text.txt -o nowhere/s",
        "error: nowhere: there is no such directory",
    );
    scratch.refused(
        "convert ckpt -o out --bits 4 --method gptq",
        "error: recipe `uniform q4g64`: rule 2 (everything) asks for gptq, which needs \
         calibration\nhelp: add --calibrate TEXT or --statistics FILE",
    );
    assert!(!scratch.path("out").exists() && !scratch.path("out.partial").exists());
}

#[test]
fn a_calibrated_conversion_that_is_stopped_goes_on() {
    let scratch = scratch();
    let args = format!("convert ckpt -o out --bits 3 {TEXT} --quiet");
    let ran = scratch.stopped(&args, "12");
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(
        ran.stderr
            .ends_with(", which out.partial keeps\nhelp: --resume continues it\n"),
        "{ran:?}"
    );
    let begun = scratch.run("convert ckpt -o out --bits 3 --resume --quiet");
    assert_eq!(begun.code, Some(2), "{begun:?}");
    assert!(
        begun
            .stderr
            .contains("it was begun with another calibration"),
        "{begun:?}"
    );
    scratch.ok(&format!("{args} --resume"));
    scratch.ok(&args.replace("-o out", "-o whole"));
    assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("whole")));
}

#[test]
fn a_calibrated_conversion_goes_on_with_the_same_weights_alone() {
    let scratch = scratch();
    let args = format!("convert ckpt -o out --bits 3 {TEXT} --quiet");
    // Stopped in the first layers; a weight of the last one, on which the codes of the embedding
    // depend, changes.
    let ran = scratch.stopped(&args, "8");
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let tensor = "model.layers.3.self_attn.v_proj.weight";
    let flip = |tensors: &mut RawTensors| {
        let at = tensors.range(tensor).start;
        tensors.data[at] ^= 1;
    };
    scratch.edit_tensors("ckpt/model.safetensors", flip);
    scratch.refused(
        &format!("{args} --resume"),
        "error: out.partial: cannot resume: it was begun with another checkpoint: \
         `model.safetensors` differs",
    );
    scratch.edit_tensors("ckpt/model.safetensors", flip);
    scratch.ok(&format!("{args} --resume"));
}

#[test]
fn shards_made_with_statistics_are_made_again_with_them() {
    let scratch = scratch();
    scratch.ok(&format!("calibrate ckpt text.txt -o s {AMOUNT}"));
    scratch.ok(&format!("calibrate ckpt eval.txt -o other {AMOUNT}"));
    scratch.ok("convert ckpt -o out --bits 3 --method gptq --statistics s");
    let verify = "verify out --against ckpt --reproduce 4";
    let report = scratch.json(&format!("{verify} --statistics s"));
    let found = &report["reproduction"];
    assert_eq!(found["units"].as_array().unwrap().len(), 4, "{found}");
    assert_eq!((&found["differing"], &report["verdict"]), (&json!([]), &json!("holds")));
    let ran = scratch.run(verify);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr
            .contains("was converted with statistics of hash "),
        "{ran:?}"
    );
    let ran = scratch.run(&format!("{verify} --statistics other"));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains(", this is another file"), "{ran:?}");
}

/// Only asked for, a time is said: a plan's text is the same everywhere without it.
#[test]
fn a_plan_says_how_long_converting_takes_where_that_is_asked() {
    let scratch = scratch();
    let plan = "plan ckpt --bits 4 --group-size 32";
    assert!(!scratch.ok(plan).stdout.contains("on this machine"));
    let said = scratch.ok(&format!("{plan} --time --threads 2")).stdout;
    assert!(said.contains("on this machine with 2 threads"), "{said}");
    let time = &scratch.json(&format!("{plan} {TEXT} --time"))["time"];
    for part in ["seconds", "text_seconds", "factor_seconds", "rounding_seconds"] {
        assert!(time[part].as_f64().unwrap() > 0.0, "{part}: {time}");
    }
}
