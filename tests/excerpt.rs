//! Some layers of a checkpoint as a bundle to measure on.

use serde_json::json;
use shardwright_testing::digest;

use crate::harness::Scratch;

#[test]
fn an_excerpt_of_every_kind_of_layer_runs_and_holds() {
    for case in ["qwen3_5_moe", "deepseek_v3-fp8", "llama4", "gpt_oss", "qwen3-head"] {
        let scratch = Scratch::with(&format!("golden/{case}"));
        scratch.ok("convert ckpt -o out --recipe q4 --layers 1..3");
        let inspected = scratch.json("inspect out");
        assert_eq!(inspected["model"]["layers"].as_array().unwrap().len(), 2, "{case}");
        assert_eq!(inspected["bundle"]["excerpt"]["first"], json!(1), "{case}");
        let report = scratch.json("verify out --against ckpt");
        assert_eq!(report["verdict"], json!("holds"), "{case}: {report}");
        let notes = report["notes"].to_string();
        assert!(notes.contains("an excerpt: layers 1..3 of "), "{case}: {notes}");
        scratch.ok("convert ckpt -o again --recipe q4 --layers 1..3 --threads 1");
        assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("again")), "{case}");
    }
}

#[test]
fn an_excerpt_is_run_and_not_exported() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o out --bits 4 --layers 0..1");
    scratch.ok("run out --prompt Once -n 3");
    let ran = scratch.run("export out --to hf -o back");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("an excerpt: layers 0..1 of "), "{}", ran.stderr);
}

#[test]
fn layers_that_are_not_there_are_refused() {
    let scratch = Scratch::with("golden/llama2");
    scratch.refused(
        "plan ckpt --layers 2..5",
        "error: ckpt: layers: expected some of 0..3, found 2..5",
    );
    let ran = scratch.run("plan ckpt --layers 2..2");
    assert!(ran.stderr.contains("expected FROM..TO, such as 0..2"), "{}", ran.stderr);
}
