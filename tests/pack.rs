//! A bundle as one file: packed, checked and unpacked by the commands.

use std::fs;

use serde_json::json;
use shardwright_testing::digest;

use crate::harness::Scratch;

fn packed() -> Scratch {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.ok("convert ckpt -o bundle --bits 4 --group-size 32");
    scratch.ok("pack bundle -o whole.pack");
    scratch
}

#[test]
fn a_bundle_comes_back_from_its_packed_file() {
    let scratch = packed();
    let packed = scratch.json("verify whole.pack");
    let bundle = scratch.json("verify bundle");
    assert_eq!(packed["verdict"], json!("holds"));
    for part in ["integrity", "bits_per_weight", "allocation"] {
        assert_eq!(packed[part], bundle[part], "{part}");
    }
    let unpacked = scratch.json("unpack whole.pack -o again");
    assert_eq!(unpacked["kept_bytes"], json!(0));
    assert_eq!(digest(&scratch.path("again")), digest(&scratch.path("bundle")));
    let size = fs::metadata(scratch.path("whole.pack")).unwrap().len();
    assert_eq!(unpacked["packed_bytes"], json!(size));
}

#[test]
fn a_damaged_packed_file_is_refused_and_leaves_nothing() {
    let scratch = packed();
    scratch.edit_bytes("whole.pack", |bytes| {
        let last = bytes.len() - 40;
        bytes[last] ^= 4;
    });
    let refused = scratch.run("unpack whole.pack -o again");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.starts_with("error: whole.pack: `"), "{refused:?}");
    assert!(refused.stderr.contains(": piece at byte 0: "), "{refused:?}");
    assert!(!scratch.path("again").exists());
    let found = scratch.run("verify whole.pack");
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains(": piece at byte 0: "), "{found:?}");
    scratch.refused(
        "unpack bundle/config.json -o other",
        "error: bundle/config.json: is not a packed bundle",
    );
    scratch.refused("pack whole.pack -o other.pack", "error: whole.pack: is not a directory");
    scratch.refused(
        "verify whole.pack --against ckpt",
        "error: whole.pack: expected a bundle to compare, found a packed one: unpack it",
    );
}

/// A pipe in a signature's place was waited for.
#[test]
fn a_signature_is_a_file() {
    let scratch = packed();
    scratch.shell("mkfifo bundle/manifest.json.minisig whole.pack.minisig");
    for (command, at) in [
        ("pack bundle -o again.pack", "bundle/manifest.json.minisig"),
        ("unpack whole.pack -o again", "whole.pack.minisig"),
    ] {
        let ran = scratch.shell(&format!("timeout -s KILL 60 shardwright {command}"));
        let expected = format!("error: {at}: expected a regular file\n");
        assert_eq!((ran.code, ran.stderr), (Some(2), expected), "{command}");
        assert!(!scratch.path("again").exists() && !scratch.path("again.pack").exists());
    }
}
