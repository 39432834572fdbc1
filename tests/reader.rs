//! `reader.py`, which knows FORMAT.md and nothing of our code, reads what we write and agrees with
//! our own dequantization to the bit.

use std::fs;
use std::path::Path;
use std::process::Output;

use shardwright_format::Role;
use shardwright_quant::{Encoding, Trellis};
use shardwright_testing::models::TestBundle;
use shardwright_testing::{fixture, root};

use crate::harness::{Scratch, python};

fn reader(dir: &Path, args: &[&str]) -> Output {
    python("tests/reader.py", args, dir)
}

#[track_caller]
fn holds(scratch: &Scratch, args: &[&str]) {
    let ran = reader(&scratch.path(""), args);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!((ran.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    assert!(ran.stdout.split(|b| *b == b'\n').count() > 10, "a line per tensor");
}

#[track_caller]
fn refuses(scratch: &Scratch, args: &[&str], expected: &str) {
    let ran = reader(&scratch.path(""), args);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(stderr.contains(expected), "expected {expected}, found {stderr}");
}

/// A checkpoint of each kind, each in other bits and groups.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_agrees_on_every_encoding() {
    for (case, args) in [
        ("llama2", "--align 4KiB --bits 2 --group-size 32"),
        ("llama3", "--align 4KiB --bits 3 --group-size 32 --scale-dtype f16"),
        ("llama-bias", "--align 4KiB --bits 8 --group-size 32 --scale-dtype bf16"),
        ("qwen2_moe", "--align 4KiB --bits 6 --group-size 32"),
        ("olmoe", "--align 4KiB --bits 4 --group-size 32 --set router=f32"),
        ("gemma3-mlx-mxfp4", "--align 4KiB --bits 4"),
        ("deepseek_v3-fp8", "--align 4KiB --bits 8 --group-size 32"),
        ("qwen3_5_moe", "--align 4KiB --recipe q4 --set vision=keep --set mtp=q3g32"),
        ("qwen3", "--align 4KiB --bits 4 --set mlp.*=q5_1 --set attention.*=q4_k"),
        ("llama3-old", "--align 4KiB --bits 4 --set mlp.*=iq4_xs --set attention.*=iq4_nl"),
        (
            "qwen3_moe-fused-t",
            "--align 64KiB --bits 4 --group-size 32 --set attention.q_proj=q3g64 \
             --set attention.o_proj=q2g128",
        ),
    ] {
        let scratch = Scratch::with(&format!("golden/{case}"));
        scratch.ok(&format!("convert ckpt -o made.bundle {args}"));
        scratch.ok("export made.bundle --to hf -o exported");
        holds(&scratch, &["made.bundle", "--equals", "exported"]);
    }
}

/// Trellis codes of every width, random as any stream is one: a table of four tiles, a last tile of
/// fewer rows, rotations of 32, 64 and 128 columns, experts.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_agrees_on_trellis_codes() {
    for (case, bits, state_bits) in [
        ("golden/llama3", 2, 16),
        ("golden/qwen3_moe-fused-t", 3, 14),
        ("golden/olmoe", 4, 10),
        ("fixture-2m", 3, 12),
    ] {
        let scratch = Scratch::new();
        let trellis = Encoding::Trellis(Trellis::new(bits, state_bits).unwrap());
        // The fixture is here for its table: the rest of it would take the reader minutes.
        let encoding = move |role| match role {
            role if case != "fixture-2m" || role == Role::EmbedTokens => trellis,
            _ => Encoding::F16,
        };
        let made = TestBundle::random(&fixture(case), &encoding).root.keep();
        fs::rename(made, scratch.path("made.bundle")).unwrap();
        scratch.ok("export made.bundle --to hf -o exported");
        holds(&scratch, &["made.bundle", "--equals", "exported"]);
        scratch.ok("verify made.bundle");
    }
}

/// Experts of a layer in several entries.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_agrees_on_experts_in_several_entries() {
    let scratch = Scratch::with("golden/qwen3_moe-fused-t");
    let recipe = r#"{"name": "mixed", "rules": [
        {"match": {"role": "expert.*", "expert": ["1", "last 1"]}, "encoding": "q8g32"},
        {"match": {"role": "expert.up_proj", "expert": "0"}, "encoding": "keep"},
        {"encoding": "q4g32"}]}"#;
    fs::write(scratch.path("mixed.json"), recipe).unwrap();
    scratch.ok("convert ckpt -o made.bundle --align 4KiB --recipe mixed.json");
    scratch.ok("export made.bundle --to hf -o exported");
    holds(&scratch, &["made.bundle", "--equals", "exported"]);
}

/// Unquantized, a bundle holds the checkpoint's own values, transposed and ignored ones among them.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_finds_the_source_in_an_unquantized_bundle() {
    for case in ["llama2-inv-freq", "qwen2-old", "mixtral-fused", "qwen3_moe-fused-t"] {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let recipe = r#"{"name": "keep", "rules": [{"encoding": "keep"}]}"#;
        fs::write(scratch.path("keep.json"), recipe).unwrap();
        scratch.ok("convert ckpt -o made.bundle --align 4KiB --recipe keep.json");
        holds(&scratch, &["made.bundle", "--equals", "ckpt"]);
    }
}

/// It can fail: each of its checks sees the damage meant for it.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_refuses_damage() {
    let scratch = Scratch::with("golden/llama2");
    scratch.ok("convert ckpt -o made.bundle --align 4KiB --bits 4 --group-size 32");
    scratch.ok("export made.bundle --to hf -o exported");
    let exported = "exported/model.safetensors";
    scratch.edit_bytes(exported, |bytes| *bytes.last_mut().unwrap() ^= 1);
    refuses(&scratch, &["made.bundle", "--equals", "exported"], "differs in row");
    scratch.edit_bytes("made.bundle/dense-000.bin", |bytes| bytes[100] ^= 1);
    refuses(&scratch, &["made.bundle"], "dense-000.bin has hash");
    scratch.edit_bytes("made.bundle/manifest.json", |bytes| bytes[200] ^= 1);
    refuses(&scratch, &["made.bundle"], "manifest.json has hash");
}

/// The document's blocks, decoded by the document's own words.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_agrees_on_the_blocks() {
    let scratch = Scratch::new();
    let ran = reader(&scratch.path(""), &["--blocks"]);
    let text = fs::read_to_string(root().join("docs/FORMAT.md")).unwrap();
    let blocks = text
        .split("<!-- blocks: remade by tests/format_doc.rs -->\n```\n")
        .nth(1);
    let blocks = blocks.unwrap().split("```").next().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), blocks);
}

/// The document's larger trellis codes, decoded by the document's own words.
#[test]
#[ignore = "needs python3"]
fn an_independent_reader_agrees_on_the_vectors() {
    let scratch = Scratch::new();
    let ran = reader(&scratch.path(""), &["--vectors"]);
    let text = fs::read_to_string(root().join("docs/FORMAT.md")).unwrap();
    let vectors = text
        .split("<!-- vectors: remade by tests/format_doc.rs -->\n```\n")
        .nth(1);
    let vectors = vectors.unwrap().split("```").next().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), vectors);
}
