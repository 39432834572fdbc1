//! Bundles made from bundles.

use shardwright_testing::{RawTensors, digest};

use crate::harness::Scratch;

/// `FIXTURE` in 8 bits as `a`, and from that as `b` with `options`.
fn twice(name: &str, options: &str) -> Scratch {
    let scratch = Scratch::with(name);
    scratch.ok("convert ckpt -o a --bits 8");
    scratch.ok(&format!("convert a -o b {options}"));
    scratch
}

/// Experts that are tensors of their own, fused for all experts, transposed; parts besides the text
/// model; a head of its own.
#[test]
fn a_bundle_of_a_bundle_holds_against_it_and_exports_under_the_first_names() {
    for case in ["deepseek_v3-fp8", "qwen3_moe-fused-t", "gpt_oss", "llama4", "qwen3-head"] {
        let scratch = twice(&format!("golden/{case}"), "--bits 4");
        scratch.ok("verify b --against a");
        for bundle in ["a", "b"] {
            scratch.ok(&format!("export {bundle} --to hf -o {bundle}.hf"));
        }
        let names = |bundle: &str| {
            RawTensors::read(&scratch.path(&format!("{bundle}.hf/model.safetensors"))).header
        };
        assert_eq!(names("a"), names("b"), "{case}");
        scratch.ok("convert b -o c --bits 3");
        scratch.ok("verify c --against b");
        scratch.ok("export c --to hf -o c.hf");
        assert_eq!(names("a"), names("c"), "{case}");
    }
}

#[test]
fn codes_of_the_same_bits_are_taken_over() {
    let scratch = Scratch::with("golden/qwen3_moe");
    for recipe in ["t3", "q4"] {
        scratch.ok(&format!("convert ckpt -o {recipe} --recipe {recipe}"));
        scratch.ok(&format!("convert {recipe} -o {recipe}.again --recipe {recipe}"));
        let shards = |bundle: &str| {
            let mut files = digest(&scratch.path(bundle));
            files.retain(|(name, _)| name.contains(".bin"));
            files
        };
        assert_eq!(shards(recipe), shards(&format!("{recipe}.again")), "{recipe}");
    }
}

#[test]
fn a_bundle_of_another_bundle_is_told_apart() {
    let scratch = twice("fixture-2m", "--bits 4");
    scratch.ok("convert ckpt -o other --bits 6");
    let ran = scratch.run("verify b --against other");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains("found another bundle, original"), "{}", ran.stdout);
    scratch.ok("verify b --against ckpt --other-source");
    let itself = scratch.json("verify b --against b");
    assert_eq!(
        itself["notes"][0],
        serde_json::json!("the original is the same bundle"),
        "{itself}"
    );
    let report = scratch.json("verify b --against a");
    let fidelity = &report["fidelity"];
    assert_eq!(fidelity["checkpoint_tensors"], fidelity["tensors"], "{report}");
    assert_eq!(fidelity["checkpoint_hashed"], true);
    let again = scratch.json("verify b --against a --reproduce all");
    assert_eq!(again["reproduction"]["differing"], serde_json::json!([]), "{again}");
}

#[test]
fn a_packed_bundle_has_to_be_unpacked() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.ok("convert ckpt -o a --bits 8");
    scratch.ok("pack a -o a.swp");
    for command in ["convert a.swp -o b", "plan a.swp", "run a.swp -p x", "inspect a.swp"] {
        scratch.refused(
            command,
            "error: a.swp: is a packed bundle\nhelp: `shardwright unpack FILE -o BUNDLE` makes it a bundle",
        );
    }
}

#[test]
fn a_damaged_bundle_gives_no_other() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o a --bits 8");
    scratch.edit_bytes("a/dense-000.bin", |bytes| bytes[5000] ^= 1);
    let ran = scratch.run("convert a -o b --bits 4");
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr
            .contains("a/dense-000.bin: damaged: expected hash"),
        "{}",
        ran.stderr
    );
    assert!(!scratch.path("b").exists());
}
