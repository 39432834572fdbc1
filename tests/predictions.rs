//! Drafts from a layer of the model's own: what a bundle keeps for them, and the same text with and without.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::fixture;

use crate::harness::Scratch;

/// A dense layer, and experts that the checkpoint has fused and apart; both ways to name the layer.
const CASES: [&str; 5] = ["qwen3_5", "qwen3_5_moe", "qwen3_next", "deepseek_v3", "glm4_moe"];

/// A model with the layer, and a tokenizer whose first tokens it knows.
fn model(case: &str) -> Scratch {
    let scratch = Scratch::with(&format!("golden/{case}"));
    fs::copy(fixture("fixture-2m/tokenizer.json"), scratch.path("ckpt/tokenizer.json")).unwrap();
    scratch
}

fn assert_same_text(drafted: &Value, plain: &Value, what: &str) {
    for field in ["text", "tokens", "stopped", "logits_blake3"] {
        assert_eq!(drafted[field], plain[field], "{what}: {field}");
    }
}

fn assert_same(drafted: &Value, plain: &Value, what: &str) {
    assert_same_text(drafted, plain, what);
    let draft = &drafted["draft"];
    assert_eq!(draft["source"], json!("mtp"), "{what}");
    assert!(draft["offered"].as_u64() > Some(0), "{what}: {draft}");
    assert!(draft["accepted"].as_u64() <= draft["offered"].as_u64(), "{what}: {draft}");
}

#[test]
fn drafts_of_its_own_do_not_change_a_text() {
    for case in CASES {
        let scratch = model(case);
        scratch.ok("convert ckpt -o out --bits 4 --group-size 32 --mtp keep");
        for model in ["ckpt", "out"] {
            for sampling in ["", "--temperature 1 --top-p 0.9 --seed 3"] {
                let args = format!("run {model} --prompt xyz -n 60 --ignore-eos {sampling}");
                let (plain, drafted) =
                    (scratch.json(&args), scratch.json(&format!("{args} --draft mtp")));
                assert_same(&drafted, &plain, &format!("{case}: {args}"));
            }
        }
    }
}

#[test]
fn drafts_of_its_own_do_not_change_a_text_that_streams() {
    for case in ["qwen3_5_moe", "deepseek_v3", "glm4_moe"] {
        let scratch = model(case);
        scratch.ok("convert ckpt -o out --bits 4 --group-size 32 --mtp keep");
        let args = "run out --prompt xyz -n 40 --ignore-eos";
        let plain = scratch.json(args);
        let all = scratch.json(&format!("{args} --draft mtp"));
        let bytes = |report: &Value, name: &str| report["memory"][name].as_u64().unwrap();
        let floor = bytes(&all, "floor_bytes");
        // Half of what is beyond the least, and room for what the process differs by from run to run.
        let budget = floor.midpoint(bytes(&all, "resident_bytes")) + (1 << 20);
        let streamed = scratch.json_within(&format!("{args} --draft mtp"), budget);
        // What is free for drafts on so small a model is less than what the process differs by from run to run.
        let fits = streamed["draft"]["fits"] == json!(true);
        let same = if fits { assert_same } else { assert_same_text };
        same(&streamed, &plain, case);
        assert!(bytes(&streamed, "peak_bytes") <= bytes(&streamed, "budget_bytes"));
        let refused = scratch.run(&format!("{args} --draft mtp --memory 1MiB"));
        assert_eq!(
            (refused.code, refused.stderr.lines().count()),
            (Some(2), 2),
            "{}",
            refused.stderr
        );
    }
}

/// Where a bundle keeps the layer, as its manifest says.
fn shard(scratch: &Scratch) -> Value {
    let manifest = fs::read(scratch.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut shards = manifest["dense"].as_array().unwrap().iter();
    shards.find(|shard| shard["unit"] == "mtp").unwrap().clone()
}

/// Names of what a bundle keeps of the layer, with their encodings.
fn kept(scratch: &Scratch) -> Vec<(String, String)> {
    let tensors = shard(scratch)["tensors"].clone();
    let kept = tensors.as_array().unwrap().iter().map(|tensor| {
        let name = tensor["source"]["tensor"].as_str().unwrap().to_owned();
        let encoding = &tensor["encoding"];
        let bits = encoding["bits"].as_u64().map(|bits| bits.to_string());
        (name, bits.unwrap_or_else(|| encoding["kind"].as_str().unwrap().to_owned()))
    });
    kept.collect()
}

#[test]
fn a_bundle_keeps_the_layer_where_it_is_told_to() {
    for case in CASES {
        let scratch = model(case);
        let planned = scratch.json("plan ckpt --mtp keep");
        let made = scratch.json("convert ckpt -o out --mtp keep");
        assert_eq!(planned["summary"], made["summary"], "{case}");
        // By what `run` reserves for as many positions.
        let floor = |more: &str| {
            let args = format!("run out --prompt xyz -n 1 --context 4096 --threads 1 {more}");
            scratch.json(&args)["memory"]["resident_bytes"]
                .as_u64()
                .unwrap()
        };
        let besides = planned["runtime"]["draft_bytes"].as_u64().unwrap();
        let taken = floor("--draft mtp").abs_diff(floor(""));
        assert!(besides > 0 && taken.abs_diff(besides) < 2 << 20, "{case}: {besides}, {taken}");
        assert!(
            scratch
                .ok("plan ckpt --mtp keep")
                .stdout
                .contains("drafts of its own layer take ")
        );
        scratch.ok("verify out --against ckpt");
        for (name, encoding) in kept(&scratch) {
            let repeats = name.contains("embed_tokens") || name.contains("shared_head.head");
            assert!(!repeats, "{case}: {name}");
            let expected = match name.as_str() {
                name if name.contains(".experts.") => &["4", "bf16"][..],
                name if name.ends_with("correction_bias") => &["f32"],
                name if name.contains("norm")
                    || name.contains("gate.weight")
                    || name.ends_with("bias") =>
                {
                    &["bf16"]
                }
                _ => &["8", "bf16"],
            };
            assert!(expected.contains(&encoding.as_str()), "{case}: {name} in {encoding}");
        }
        scratch.ok("convert ckpt -o plain");
        scratch.refused(
            "run plain --prompt xyz --draft mtp",
            "error: plain: expected layers that predict further tokens, found none: a bundle keeps them where its recipe says so",
        );
    }
}

#[test]
fn a_prompt_from_a_session_goes_on_the_same() {
    for case in ["qwen3_5", "glm4_moe"] {
        let scratch = model(case);
        scratch.ok("convert ckpt -o out --mtp keep");
        let args = "run out --prompt xyzxyz -n 40 --ignore-eos --context 64";
        let plain = scratch.json(args);
        for prompt in ["written", "read"] {
            let drafted = scratch.json(&format!("{args} --draft mtp --session file"));
            assert_same(&drafted, &plain, &format!("{case}: {prompt}"));
        }
    }
}

#[test]
fn a_damaged_layer_changes_no_text_and_is_named_where_reads_are_checked() {
    let scratch = model("glm4_moe");
    scratch.ok("convert ckpt -o out --mtp keep");
    let args = "run out --prompt xyz -n 20 --ignore-eos";
    let plain = scratch.json(args);
    let shard = shard(&scratch);
    let sound = scratch.json(&format!("{args} --check-reads --draft mtp"));
    assert_same(&sound, &plain, "sound");
    let file = format!("out/{}", shard["file"].as_str().unwrap());
    let at = shard["offset"].as_u64().unwrap() + shard["len"].as_u64().unwrap() / 2;
    scratch.edit_bytes(&file, |bytes| bytes[at as usize] ^= 4);
    assert_same(&scratch.json(&format!("{args} --draft mtp")), &plain, "damaged");
    let ran = scratch.run(&format!("{args} --check-reads --draft mtp"));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("error: {file}: mtp: BLAKE3: expected ")),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_layer_of_no_numbers_guesses_nothing() {
    for case in CASES {
        let scratch = model(case);
        // Bytes of floats can be no number or infinite, and all of a shard hostile.
        scratch.ok("convert ckpt -o out --set mtp=keep");
        let args = "run out --prompt xyz -n 20 --ignore-eos";
        let plain = scratch.json(args);
        let shard = shard(&scratch);
        let start = shard["offset"].as_u64().unwrap() as usize;
        let end = start + shard["len"].as_u64().unwrap() as usize;
        let file = format!("out/{}", shard["file"].as_str().unwrap());
        for value in [[0xff, 0xff], [0x80, 0x7f], [0x7f, 0x7f]] {
            scratch.edit_bytes(&file, |bytes| {
                bytes[start..end].as_chunks_mut().0.fill(value);
            });
            let drafted = scratch.json(&format!("{args} --draft mtp"));
            for field in ["text", "logits_blake3"] {
                assert_eq!(drafted[field], plain[field], "{case}: {value:?}: {field}");
            }
            assert_eq!(drafted["draft"]["offered"], json!(0), "{case}: {value:?}");
        }
    }
}

#[test]
fn what_set_says_goes_first() {
    let scratch = model("qwen3_next");
    scratch.ok("convert ckpt -o out --mtp keep --set mtp=keep");
    assert!(
        kept(&scratch)
            .iter()
            .all(|(_, encoding)| encoding == "bf16")
    );
    scratch.ok("run out --prompt xyz -n 8 --draft mtp --quiet");
}

#[test]
fn a_model_without_the_layer_has_nothing_to_keep() {
    let scratch = model("llama2");
    let ran = scratch.run("convert ckpt -o out --mtp keep");
    assert_eq!((ran.code, scratch.path("out").exists()), (Some(2), false), "{}", ran.stderr);
    assert!(ran.stderr.contains("mtp"), "{}", ran.stderr);
}
