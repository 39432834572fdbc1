//! What a run records of its experts, what is made of that, and strangers' files.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{copy_dir, golden};

use crate::harness::Scratch;

const RUN: &str = "run out --prompt This -n 20 --ignore-eos";

/// A converted model, and the trace of a run with room for some of its experts.
fn traced() -> (Scratch, Value) {
    let scratch = Scratch::with("fixture-2m");
    // Of 8 bits, so that the half-way is farther from both ends than runs of one program differ.
    scratch.ok("convert ckpt -o out --bits 8");
    let plain = scratch.json(RUN);
    let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
    let budget = bytes("floor_bytes").midpoint(bytes("resident_bytes"));
    let ran = scratch.json(&format!("{RUN} --memory {budget} --look-ahead on --trace trace"));
    for field in ["text", "logits_blake3"] {
        assert_eq!(ran[field], plain[field], "{field}");
    }
    (scratch, ran)
}

#[test]
fn a_trace_says_what_the_run_says_and_what_other_room_would_bring() {
    let (scratch, ran) = traced();
    assert!(!scratch.path("trace.partial").exists());
    let found = scratch.json("inspect --trace trace");
    let count = |name: &str| {
        let of = |phase: &str| ran[phase][name].as_u64().unwrap();
        of("prompt") + of("decode")
    };
    assert_eq!(found["recorded"]["hits"], json!(count("cache_hits")));
    assert_eq!(found["recorded"]["reads"], json!(count("cache_misses")));
    assert_eq!(found["recorded"]["tokens"], json!(count("tokens")));
    assert_eq!(found["trace"]["experts"], json!(8));
    // What was read ahead, line by line, is what the run says of it.
    let ahead = &found["recorded"]["ahead"];
    for name in ["issued", "used", "late", "wasted"] {
        assert_eq!(ahead[name], ran["look_ahead"][name], "{name}");
    }
    assert!(ahead["issued"].as_u64().unwrap() > 0, "{ahead}");
    // 4 layers, a line each for every pass.
    let passes = found["recorded"]["passes"].as_u64().unwrap();
    let bought = &found["bought"];
    assert_eq!(ran["trace"], json!({"file": "trace", "lines": 4 * passes, "bought": bought}));
    let rates = found["rates"].as_array().unwrap();
    let number = |rates: &Value, name: &str| rates[name].as_f64().unwrap();
    for rates in rates {
        let best = number(rates, "best");
        assert!(
            ["in_use", "lru", "lfu"]
                .iter()
                .all(|name| number(rates, name) <= best),
            "{rates}"
        );
    }
    for two in rates.windows(2) {
        let [less, more] = two else { unreachable!() };
        assert!(number(less, "best") <= number(more, "best"), "{less} {more}");
        assert!(less["memory_bytes"].as_u64() < more["memory_bytes"].as_u64());
    }
    let room = |name: &str| bought[name].as_u64().unwrap();
    assert!(room("floor") <= room("knee") && room("knee") <= room("ceiling"), "{bought}");
    assert_eq!((room("floor"), rates[0]["slots"].as_u64()), (2, Some(2)));
    // With room for all each is read once.
    assert_eq!(rates.last().unwrap()["in_use"], rates.last().unwrap()["best"]);
    let text = scratch.ok("inspect --trace trace").stdout;
    assert!(text.contains(" experts read ahead: "), "{text}");
    assert!(text.contains("best possible") && text.contains("on this trace: floor "), "{text}");
    // Another bundle of the model has other sizes, and the same experts.
    let planned = scratch.ok("plan ckpt --bits 8 --trace trace").stdout;
    assert!(planned.contains("on this trace: floor "), "{planned}");
    let planned = scratch.json("plan ckpt --bits 8 --trace trace");
    assert_eq!(&planned["runtime"]["trace"], bought);
}

#[test]
fn strangers_traces_are_refused_in_a_line() {
    let (scratch, _) = traced();
    let whole = fs::read_to_string(scratch.path("trace")).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let second: Value = serde_json::from_str(lines[1]).unwrap();
    let no_trace = "expected a trace that `run --trace` wrote";
    let refused = |text: String, expected: &str| {
        fs::write(scratch.path("bad"), text).unwrap();
        scratch.refused("inspect --trace bad", &format!("error: bad: {expected}"));
    };
    for text in ["", "{}\n", "[]\n", "\u{0}\n", lines[1]] {
        let expected = if text == lines[1] {
            "line 1: expected a line of at most 4194304 bytes and its end, found none"
        } else {
            no_trace
        };
        refused(text.to_owned(), expected);
    }
    let first = |from: &str, to: &str| format!("{}\n", lines[0].replacen(from, to, 1));
    let version = first("\"shardwright_trace\":1", "\"shardwright_trace\":2");
    refused(version, "line 1: expected version 1, found 2");
    refused(
        first("\"experts\":8", "\"experts\":99999999"),
        "line 1: experts: expected 1 to 65536, found 99999999",
    );
    refused(first("\"picks\":2", "\"picks\":9"), "line 1: picks: expected 1 to 8, found 9");
    let edit = |name: &str, value: Value| {
        let mut line = second.clone();
        line[name] = value;
        format!("{}\n{line}\n", lines[0])
    };
    let layer = "line 2: layer: expected layers of the model in order, pass after pass";
    refused(edit("layer", json!(4)), layer);
    refused(edit("k", json!(3)), "line 2: picks: expected the picks of whole tokens");
    refused(edit("picks", json!([])), "line 2: picks: expected the picks of whole tokens");
    refused(edit("picks", json!([0, 8])), "line 2: picks: expected experts of the model");
    let once = "line 2: hits and reads: expected every expert that was picked once, ascending";
    refused(edit("hits", json!([7, 7])), once);
    refused(edit("reads", json!([])), once);
    let ahead = "line 2: guessed and late: expected experts of the model, ascending, late ones among the hits";
    refused(edit("guessed", json!([8])), ahead);
    refused(edit("guessed", json!([2, 1])), ahead);
    refused(edit("late", json!([7])), ahead);
    refused(edit("seconds", json!(-1.0)), "line 2: seconds: expected no less than 0");
    refused(format!("{}\n{}\n{}\n", lines[0], lines[1], lines[1]), &layer.replace('2', "3"));
    // What JSON itself refuses is told by the parser.
    for (name, value) in [("layer", json!(-1)), ("picks", json!("x")), ("more", json!(1))] {
        fs::write(scratch.path("bad"), edit(name, value)).unwrap();
        let ran = scratch.run("inspect --trace bad");
        let start =
            "error: bad: line 2: expected a layer's experts as `run --trace` writes them, found ";
        assert!(ran.code == Some(2) && ran.stderr.starts_with(start), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let endless = scratch.run("inspect --trace /dev/zero");
    let expected =
        "error: /dev/zero: expected a trace that `run --trace` wrote, of at most 268435456 bytes\n";
    assert_eq!((endless.code, &*endless.stderr), (Some(2), expected));
    // The open of a pipe would wait for a writer.
    scratch.shell("mkfifo pipe");
    scratch.refused(
        "inspect --trace pipe",
        &expected[..expected.len() - 1].replace("/dev/zero", "pipe"),
    );
    // A trace of another model.
    let other = whole.replacen("\"layers\":4", "\"layers\":5", 1);
    fs::write(scratch.path("bad"), other).unwrap();
    scratch.refused(
        "plan ckpt --trace bad",
        "error: bad: expected a trace of 4 layers of 8 experts and 2 picks, found a trace of 5 layers of 8 experts and 2 picks",
    );
}

#[test]
fn a_trace_says_nothing_about_a_model_without_experts() {
    let (scratch, _) = traced();
    copy_dir(&golden("llama2"), &scratch.path("dense"));
    let none = "is about experts, of which this model has none";
    scratch.refused("plan dense --trace trace", &format!("error: trace: {none}"));
}

#[test]
fn nothing_half_made_is_left_of_a_trace() {
    let scratch = Scratch::with("fixture-2m");
    let ran = scratch.run("run ckpt --prompt This -n 4 --trace nowhere/trace");
    assert_eq!((ran.code, &*ran.stderr), (Some(2), "error: nowhere: there is no such directory\n"));
    let file = scratch.path("ckpt/model.safetensors");
    let weights = fs::File::options().write(true).open(&file).unwrap();
    let len = weights.metadata().unwrap().len();
    weights.set_len(len - 1).unwrap();
    let ran = scratch.run("run ckpt --prompt This -n 4 --trace trace");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(!scratch.path("trace").exists() && !scratch.path("trace.partial").exists());
}
