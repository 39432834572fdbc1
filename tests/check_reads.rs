//! `run --check-reads`: a flipped bit is an error that names where it is, never another text.

use std::fs;

use serde_json::{Value, json};

use crate::harness::Scratch;

fn model() -> (Scratch, Value) {
    let scratch = Scratch::with("fixture-2m");
    // Of 8 bits, so that the half-way is farther from both ends than runs of one program differ.
    scratch.ok("convert ckpt -o out --bits 8");
    let manifest = serde_json::from_slice(&fs::read(scratch.path("out/manifest.json")).unwrap());
    (scratch, manifest.unwrap())
}

fn flip(scratch: &Scratch, file: &str, at: u64) {
    scratch.edit_bytes(&format!("out/{file}"), |bytes| bytes[at as usize] ^= 4);
}

#[test]
fn sound_reads_are_counted_and_change_nothing() {
    let (scratch, manifest) = model();
    let args = "run out --prompt This -n 12 --ignore-eos";
    let plain = scratch.json(args);
    let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
    let budget = bytes("floor_bytes").midpoint(bytes("resident_bytes"));
    let experts = manifest["experts"].as_array().unwrap();
    let most = manifest["dense"].as_array().unwrap().len() as u64
        + experts
            .iter()
            .map(|e| e["blake3"].as_array().unwrap().len() as u64)
            .sum::<u64>();
    assert!(plain.get("checked").is_none());
    for more in ["", &format!("--memory {budget} --threads 1"), "--draft ngram --session s"] {
        let checked = scratch.json(&format!("{args} --check-reads {more}"));
        for field in ["text", "logits_blake3"] {
            assert_eq!(checked[field], plain[field], "{more}: {field}");
        }
        // However often it is read, a shard is hashed once.
        let shards = checked["checked"]["shards"].as_u64().unwrap();
        assert!(shards > 0 && shards <= most, "{shards} of {most}");
        assert!(checked["checked"]["bytes"].as_u64().unwrap() > 0);
    }
    let said = scratch.ok(&format!("{args} --check-reads")).stderr;
    assert!(said.lines().any(|line| line.starts_with("checked  ")), "{said}");
}

#[test]
fn a_flipped_bit_in_an_expert_is_named() {
    let (scratch, manifest) = model();
    let layer = &manifest["experts"][1];
    let number = |name: &str| layer[name].as_u64().unwrap();
    let file = layer["file"].as_str().unwrap();
    let at = 2 * number("stride") + number("len") / 2;
    let before = scratch.json("run out --prompt This -n 4 --ignore-eos");
    flip(&scratch, file, at);
    // All experts are read where there is room for them.
    let ran = scratch.run("run out --prompt This -n 4 --check-reads");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    let line = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap();
    let named = format!("error: out/{file}: layer {} expert 2: BLAKE3: expected ", layer["layer"]);
    assert!(line.starts_with(&named), "{line}");
    assert!(line.contains(layer["blake3"][2].as_str().unwrap()), "{line}");
    // Without the check nobody notices.
    assert_eq!(scratch.run("run out --prompt This -n 4").code, Some(0));
    flip(&scratch, file, at);
    let again = scratch.json("run out --prompt This -n 4 --ignore-eos --check-reads");
    assert_eq!(again["logits_blake3"], before["logits_blake3"]);
}

#[test]
fn a_flipped_bit_in_a_dense_layer_is_named() {
    let (scratch, manifest) = model();
    let shards = manifest["dense"].as_array().unwrap();
    let shard = shards
        .iter()
        .find(|s| s["unit"] == json!({ "layer": 1 }))
        .unwrap();
    let number = |name: &str| shard[name].as_u64().unwrap();
    let file = shard["file"].as_str().unwrap();
    flip(&scratch, file, number("offset") + number("len") / 3);
    let ran = scratch.run("run out --prompt This -n 4 --check-reads --memory 1GiB");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("error: out/{file}: layer 1: BLAKE3: ")),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_has_no_hashes_cannot_be_checked() {
    let scratch = Scratch::with("fixture-2m");
    scratch.refused(
        "run ckpt --prompt This --check-reads",
        "error: ckpt: is no bundle: it has no hashes, which --check-reads needs\n\
         help: leave out --check-reads, or convert the model",
    );
}
