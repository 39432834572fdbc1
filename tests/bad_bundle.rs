//! Bundles that are damaged or that lie: what `verify` finds (exit code 1), and what every other
//! command refuses (exit code 2).

use std::fs;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use shardwright_testing::copy_dir;

use crate::harness::Scratch;

const MANIFEST: &str = "out/manifest.json";
const EXPERTS: &str = "out/experts/layer-001.bin";

/// A copy of one bundle of the trained fixture, as `out`.
fn bundle() -> Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        scratch.ok("convert ckpt -o out --bits 4");
        scratch
    });
    let scratch = Scratch::new();
    copy_dir(&made.path("out"), &scratch.path("out"));
    scratch
}

/// The findings that `verify` prints about the damaged bundle, hashes masked.
#[track_caller]
fn found(scratch: &Scratch, expected: &[&str]) {
    found_by(scratch, "verify out", expected);
}

#[track_caller]
fn found_by(scratch: &Scratch, command: &str, expected: &[&str]) {
    let ran = scratch.run(&format!("{command} --json --quiet"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["verdict"], json!("found"));
    let ran = scratch.run(&format!("{command} --quiet"));
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    let findings: Vec<String> = ran
        .stdout
        .lines()
        .skip_while(|line| *line != "====== Findings ======")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(masked)
        .collect();
    assert_eq!(findings, expected, "{}", ran.stdout);
}

/// Text with every hash replaced by `#`.
fn masked(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_end_matches([',', '.']);
        let hash = core.len() == 64 && core.bytes().all(|b| b.is_ascii_hexdigit());
        if hash { word.replace(core, "#") } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Changes the manifest and makes its own hash right again, so that the validator has to judge.
fn forge(scratch: &Scratch, edit: impl FnOnce(&mut Map<String, Value>)) {
    scratch.edit_json(MANIFEST, |manifest| {
        edit(manifest);
        manifest["blake3"] = json!("0".repeat(64));
    });
    scratch.edit_bytes(MANIFEST, |bytes| {
        bytes.push(b'\n');
        let hash = blake3::hash(bytes).to_hex();
        let zeros = "0".repeat(64);
        let at = bytes
            .windows(64)
            .position(|w| w == zeros.as_bytes())
            .unwrap();
        bytes[at..at + 64].copy_from_slice(hash.as_bytes());
    });
}

/// A manifest that its validator refuses, wherever it is read.
#[track_caller]
fn hostile(edit: impl FnOnce(&mut Map<String, Value>), expected: &str) {
    let scratch = bundle();
    forge(&scratch, edit);
    found(&scratch, &[&format!("manifest.json: {expected}")]);
    let refused = format!("error: out/manifest.json: {expected}");
    scratch.refused("inspect out", &refused);
    scratch.refused("run out --prompt x", &refused);
    scratch.refused("export out --to hf -o back", &refused);
    assert!(!scratch.path("back").exists());
}

#[test]
fn a_forged_manifest_without_a_lie_holds() {
    let scratch = bundle();
    forge(&scratch, |_| ());
    scratch.ok("verify out");
}

#[test]
fn a_flipped_bit() {
    let scratch = bundle();
    scratch.edit_bytes(EXPERTS, |bytes| bytes[5] ^= 1);
    let told = "experts/layer-001.bin: layer 1 expert 0: BLAKE3: expected #, found #";
    found(&scratch, &[told]);
    let ran = scratch.run("export out --to hf -o back");
    assert_eq!((ran.code, scratch.path("back").exists()), (Some(2), false));
    let error = masked(ran.stderr.lines().next().unwrap());
    assert_eq!(error, format!("error: the bundle is damaged: {told}"));
    let scratch = bundle();
    scratch.edit_bytes("out/config.json", |bytes| bytes[5] ^= 1);
    found(&scratch, &["config.json: BLAKE3: expected #, found #"]);
    let scratch = bundle();
    scratch.edit_bytes(EXPERTS, |bytes| *bytes.last_mut().unwrap() ^= 1);
    found(
        &scratch,
        &[
            "experts/layer-001.bin: layer 1 expert 7: padding after the shard: expected zeros, found 1 at byte 262143",
        ],
    );
}

#[test]
fn a_flipped_bit_in_the_manifest() {
    let scratch = bundle();
    scratch.edit_bytes(MANIFEST, |bytes| {
        let at = bytes.windows(9).position(|w| w == b"\"version\"").unwrap();
        bytes[at - 1] ^= b' ' ^ b'\t';
    });
    found(&scratch, &["manifest.json: manifest hash: expected #, found #"]);
    let ran = scratch.run("run out --prompt x");
    assert_eq!(ran.code, Some(2));
    let message = "error: out/manifest.json: manifest hash: expected #, found #";
    assert_eq!(masked(ran.stderr.trim_end()), message);
}

#[test]
fn a_missing_an_extra_and_a_swapped_file() {
    let scratch = bundle();
    fs::remove_file(scratch.path("out/tokenizer.json")).unwrap();
    found(&scratch, &["tokenizer.json: missing: expected a file of 54305 bytes, found none"]);
    let scratch = bundle();
    fs::write(scratch.path("out/experts/extra.bin"), "x").unwrap();
    found(
        &scratch,
        &[
            "experts/extra.bin: directory entry: expected nothing by that name in the manifest, found a file",
        ],
    );
    let scratch = bundle();
    let (one, two) = (scratch.path("out/experts/layer-000.bin"), scratch.path(EXPERTS));
    fs::rename(&one, scratch.path("aside")).unwrap();
    fs::rename(&two, &one).unwrap();
    fs::rename(scratch.path("aside"), &two).unwrap();
    found(
        &scratch,
        &[
            "experts/layer-000.bin: bytes: expected its own, found those of experts/layer-001.bin",
            "experts/layer-001.bin: bytes: expected its own, found those of experts/layer-000.bin",
        ],
    );
}

#[test]
fn a_truncated_file() {
    let scratch = bundle();
    scratch.edit_bytes(EXPERTS, |bytes| bytes.truncate(100_000));
    let ran = scratch.run("verify out --quiet");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    scratch.refused(
        "run out --prompt x",
        "error: out/experts/layer-001.bin: size: expected 262144 bytes, found 100000",
    );
}

#[test]
fn no_manifest() {
    let scratch = bundle();
    fs::remove_file(scratch.path(MANIFEST)).unwrap();
    scratch.refused("verify out", "error: out: is not a bundle: it has no manifest.json");
    scratch
        .refused("export out --to hf -o x", "error: out: is not a bundle: it has no manifest.json");
}

#[test]
fn a_manifest_of_another_kind_or_version() {
    hostile(|m| m["version"] = json!(2), "version: expected 1, found 2");
    hostile(
        |m| m["format"] = json!("gguf"),
        "format: expected \"shardwright-bundle\", found \"gguf\"",
    );
    hostile(
        |m| drop(m.insert("surprise".to_owned(), json!(1))),
        "unknown field `surprise`, expected one of `blake3`, `format`, `version`, `generator`, `alignment`, `model`, `recipe`, `checkpoint`, `calibration`, `files`, `dense`, `experts` at line 1432 column 12",
    );
}

#[test]
fn huge_counts() {
    hostile(
        |m| m["model"]["vocab_size"] = json!(u32::MAX),
        "vocab_size: expected 1 to 16777216, found 4294967295",
    );
    hostile(
        |m| m["experts"][0]["stride"] = json!(u64::MAX / 2),
        "layer 0 expert 2: range too large",
    );
    hostile(
        |m| m["dense"][0]["tensors"][0]["rows"] = json!(u64::MAX),
        "embedding embed_tokens: shape: expected [1024, 128], found [18446744073709551615, 128]",
    );
    hostile(
        |m| {
            m["experts"][0]["blake3"]
                .as_array_mut()
                .unwrap()
                .truncate(3);
        },
        "layer 0 experts: hashes: expected 8, found 3",
    );
    hostile(
        |m| m["dense"][1]["len"] = json!(u64::MAX),
        "layer 0: length: expected 30336, found 18446744073709551615",
    );
}

#[test]
fn ranges_that_overlap_or_leave_the_file() {
    hostile(
        |m| m["dense"][1]["offset"] = json!(0),
        "embedding: offset 0 overlaps the shard that ends at 30336",
    );
    hostile(
        |m| m["dense"][1]["offset"] = json!(16_385),
        "layer 0: offset 16385 is not a multiple of 16384",
    );
    hostile(
        |m| m["dense"][1]["offset"] = json!(1_u64 << 40),
        "`dense-000.bin`: size: expected 1099511658112 rounded up to 16384, found 229376",
    );
    hostile(
        |m| m["experts"][0]["stride"] = json!(16_384),
        "layer 0 experts: 27648 bytes in a stride of 16384",
    );
    hostile(
        |m| m["experts"][1]["file"] = m["experts"][0]["file"].clone(),
        "layer 1 expert 0: offset 0 overlaps the shard that ends at 27648",
    );
}

#[test]
fn names_that_leave_the_bundle() {
    for name in ["../config.json", "/etc/passwd", "a/../../b", "..", "C:\\x", "a//b"] {
        hostile(
            |m| {
                m["files"][0]["path"] = json!(name);
            },
            &format!("files: `{name}` is not a path inside the bundle"),
        );
    }
    hostile(
        |m| m["dense"][0]["file"] = json!("../../weights.bin"),
        "`../../weights.bin` is not a shard file of the bundle",
    );
}

#[test]
fn shapes_that_are_not_the_models() {
    hostile(
        |m| m["dense"][1]["tensors"][0]["cols"] = json!(64),
        "layer 0 norm.input: shape: expected [1, 128], found [1, 64]",
    );
    hostile(
        |m| m["dense"][1]["tensors"][0]["role"] = json!("router"),
        "layer 0: expected [\"norm.input\", \"attention.q_proj\", \"attention.k_proj\", \"attention.v_proj\", \"norm.q\", \"norm.k\", \"attention.o_proj\", \"norm.post_attention\", \"router\"], found [\"router\", \"attention.q_proj\", \"attention.k_proj\", \"attention.v_proj\", \"norm.q\", \"norm.k\", \"attention.o_proj\", \"norm.post_attention\", \"router\"]",
    );
    hostile(
        |m| m["dense"][1]["tensors"][1]["offset"] = json!(0),
        "layer 0 attention.q_proj: offset: expected 256, found 0",
    );
    hostile(
        |m| m["dense"][1]["tensors"][0]["role"] = json!("unheard_of"),
        "unknown variant `unheard_of`, expected one of `embed_tokens`, `norm.input`, `attention.q_a_proj`, `attention.q_a_bias`, `norm.q_a`, `attention.q_b_proj`, `attention.kv_a_proj`, `attention.kv_a_bias`, `norm.kv_a`, `attention.kv_b_proj`, `attention.q_proj`, `attention.q_bias`, `attention.k_proj`, `attention.k_bias`, `attention.v_proj`, `attention.v_bias`, `norm.q`, `norm.k`, `attention.sinks`, `norm.mixer_inner`, `attention.o_proj`, `attention.o_bias`, `delta_net.in_proj_qkvz`, `delta_net.in_proj_ba`, `delta_net.in_proj_qkv`, `delta_net.in_proj_z`, `delta_net.in_proj_b`, `delta_net.in_proj_a`, `delta_net.conv1d`, `delta_net.a_log`, `delta_net.dt_bias`, `norm.delta_net`, `delta_net.out_proj`, `short_conv.in_proj`, `short_conv.conv`, `short_conv.out_proj`, `norm.mixer_out`, `norm.post_attention`, `mlp.gate_proj`, `mlp.gate_bias`, `mlp.up_proj`, `mlp.up_bias`, `norm.ffn_inner`, `mlp.down_proj`, `mlp.down_bias`, `norm.ffn_out`, `router`, `router.bias`, `router.correction_bias`, `expert.gate_proj`, `expert.gate_bias`, `expert.up_proj`, `expert.up_bias`, `expert.down_proj`, `expert.down_bias`, `shared_expert_gate`, `shared_expert.gate_proj`, `shared_expert.up_proj`, `shared_expert.down_proj`, `norm.final`, `lm_head`, `vision`, `mtp`, `indexer` at line 267 column 30",
    );
}

/// A bundle that keeps a vision tower and leaves out what predicts further tokens.
fn bundle_with_parts() -> Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let scratch = Scratch::with("golden/qwen3_5_moe");
        scratch.ok("convert ckpt -o out --recipe q4 --set vision=q4g32");
        scratch
    });
    let scratch = Scratch::new();
    copy_dir(&made.path("out"), &scratch.path("out"));
    copy_dir(&made.path("ckpt"), &scratch.path("ckpt"));
    scratch
}

/// The shard of the vision tower, and its first tensor.
fn vision(manifest: &mut Map<String, Value>) -> &mut Value {
    manifest["dense"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap()
}

#[test]
fn parts_besides_the_text_model_that_lie() {
    let lie = |edit: &dyn Fn(&mut Map<String, Value>), expected: &str| {
        let scratch = bundle_with_parts();
        forge(&scratch, edit);
        found(&scratch, &[&format!("manifest.json: {expected}")]);
        scratch.refused("inspect out", &format!("error: out/manifest.json: {expected}"));
    };
    let first = |m: &mut Map<String, Value>, key: &str, value: Value| {
        vision(m)["tensors"][0][key] = value;
    };
    let name = "model.visual.blocks.0.attn.proj.bias";
    lie(
        &|m| first(m, "role", json!("mtp")),
        &format!("vision `{name}`: role: expected \"vision\", found \"mtp\""),
    );
    lie(
        &|m| vision(m)["unit"] = json!("mtp"),
        &format!("mtp `{name}`: role: expected \"mtp\", found \"vision\""),
    );
    lie(
        &|m| {
            let again = vision(m).clone();
            m["dense"].as_array_mut().unwrap().push(again);
        },
        "dense: expected vision, mtp and indexer after the head, each at most once and in this order, found vision",
    );
    lie(
        &|m| first(m, "cols", json!(u64::MAX)),
        &format!(
            "vision `{name}`: shape: expected Some([1, 32]), found Some([1, 18446744073709551615])"
        ),
    );
    lie(
        &|m| vision(m)["tensors"][0]["source"]["shape"] = json!([1, 2, 3, u64::MAX, u64::MAX]),
        &format!("vision `{name}`: shape: expected None, found Some([1, 32])"),
    );
    lie(
        &|m| vision(m)["tensors"][0]["source"]["start"] = json!(1),
        &format!("vision `{name}`: start and strides: expected [0, 32, 1, 0], found [1, 32, 1, 0]"),
    );
    lie(
        &|m| vision(m)["tensors"].as_array_mut().unwrap().swap(0, 2),
        &format!("vision `{name}`: is repeated or out of order")
            .replace("proj.bias", "proj.weight"),
    );
    lie(&|m| vision(m)["tensors"] = json!([]), "vision: expected tensors, found none");
    lie(&|m| first(m, "offset", json!(64)), "vision vision: offset: expected 0, found 64");
    lie(
        &|m| m["checkpoint"]["ignored"][0]["role"] = json!("router"),
        "checkpoint: ignored: `mtp.fc.weight`: expected role vision, mtp or indexer, found router",
    );
    lie(
        &|m| m["checkpoint"]["ignored"][0]["tensor"] = json!(name),
        &format!("checkpoint: ignored: `{name}`: expected a tensor that no shard holds"),
    );
}

#[test]
fn parts_besides_the_text_model_that_are_not_the_checkpoints() {
    let against = |edit: &dyn Fn(&mut Map<String, Value>), expected: &[&str]| {
        let scratch = bundle_with_parts();
        forge(&scratch, edit);
        found_by(&scratch, "verify out --against ckpt", expected);
    };
    against(
        &|m| m["checkpoint"]["ignored"][0]["role"] = json!("vision"),
        &["mtp.fc.weight: left out of the bundle: expected mtp, found vision"],
    );
    against(
        &|m| drop(m["checkpoint"]["ignored"].as_array_mut().unwrap().remove(0)),
        &["mtp.fc.weight: use: expected once, or left out with a reason, found none"],
    );
    let swapped = |m: &mut Map<String, Value>| {
        let tensors = vision(m)["tensors"].as_array_mut().unwrap();
        let name = tensors[0]["source"]["tensor"].clone();
        tensors[0]["source"]["tensor"] = json!(format!("{}.", name.as_str().unwrap()));
    };
    let name = "model.visual.blocks.0.attn.proj.bias";
    against(
        &swapped,
        &[
            &format!("dense-000.bin: vision: vision: source: expected none, found {name}."),
            &format!("{name}: use: expected once, or left out with a reason, found none"),
            &format!(
                "dense-000.bin: vision: vision: source {name}.: expected a tensor of the checkpoint, \
                 found none by that name"
            ),
        ],
    );
}

#[test]
fn a_bundle_made_from_something_else() {
    let scratch = bundle();
    copy_dir(&shardwright_testing::fixture("fixture-2m"), &scratch.path("ckpt"));
    scratch.ok("verify out --against ckpt");
    // A weight far from what the bundle holds.
    scratch.edit_tensors("ckpt/model.safetensors", |t| {
        let range = t.range("model.layers.0.mlp.experts.0.up_proj.weight");
        t.data[range].fill(0x3c);
    });
    let far = "experts/layer-000.bin: layer 0 expert 0: expert.up_proj: relative RMSE: expected at \
               most 0.2667, found 1.0022";
    found_by(&scratch, "verify out --against ckpt --skip-checkpoint-hashes", &[far]);
    let hashed = "model.safetensors: checkpoint file: BLAKE3: expected #, found #";
    found_by(&scratch, "verify out --against ckpt", &[hashed, far]);
    // Another model altogether.
    copy_dir(&shardwright_testing::fixture("golden/llama2"), &scratch.path("other"));
    fs::remove_file(scratch.path("other/golden.safetensors")).unwrap();
    let ran = scratch.run("verify out --against other --quiet");
    assert_eq!(ran.code, Some(1), "{ran:?}");
}
