//! Experts of a layer that are stored in several ways: everything that is done with a bundle works with them.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{RawTensors, contents, fixture};

use crate::harness::Scratch;

/// Two experts in 8 bits, one as it was, the others in 4 bits or, in some layers, a trellis.
const RECIPE: &str = r#"{"name": "mixed", "rules": [
    {"match": {"role": "expert.*", "expert": "last 1"}, "encoding": "keep"},
    {"match": {"role": "expert.*", "expert": ["1", "3"]}, "encoding": "q8g32"},
    {"match": {"role": "expert.down_proj", "layer": "first 2"}, "encoding": "t3"},
    {"encoding": "q4g32"}]}"#;

const RUN: &str = "--prompt This -n 16 --ignore-eos --cache-type-k f32 --cache-type-v f32";

/// A trained model and its bundle.
fn mixed() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::write(scratch.path("mixed.json"), RECIPE).unwrap();
    scratch.ok("convert ckpt -o out --recipe mixed.json");
    scratch
}

fn text(scratch: &Scratch, args: &str) -> Value {
    let ran = scratch.json(&format!("run {args} {RUN}"));
    json!([ran["text"], ran["logits_blake3"]])
}

#[test]
fn mixed_experts_run_as_their_values_do() {
    let scratch = mixed();
    let manifest: Value =
        serde_json::from_slice(&fs::read(scratch.path("out/manifest.json")).unwrap()).unwrap();
    let entries = manifest["experts"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[1]["experts"]), (12, &json!([1, 3])));
    assert_eq!(entries[1]["file"], json!("experts/layer-000-1.bin"));
    assert_eq!(
        scratch.json("verify out --against ckpt --reproduce all")["verdict"],
        json!("holds")
    );
    // Affine codes and floats are computed as the values that they stand for.
    let affine = RECIPE.replace("t3", "q3g32");
    fs::write(scratch.path("affine.json"), affine).unwrap();
    scratch.ok("convert ckpt -o affine --recipe affine.json");
    scratch.ok("export affine --to hf -o exported");
    let expected = text(&scratch, "exported");
    assert_eq!(text(&scratch, "affine"), expected);
    let ran = scratch.json(&format!("run affine {RUN}"));
    let bytes = |name: &str| ran["memory"][name].as_u64().unwrap();
    let half = bytes("floor_bytes").midpoint(bytes("resident_bytes"));
    assert_eq!(text(&scratch, &format!("affine --memory {half}")), expected, "streamed");
}

#[test]
fn mixed_experts_are_packed_parted_and_quantized_again() {
    let scratch = mixed();
    scratch.ok("pack out -o whole.pack");
    scratch.ok("unpack whole.pack -o unpacked");
    assert_eq!(contents(&scratch.path("unpacked")), contents(&scratch.path("out")));
    for part in 1..=3 {
        scratch.ok(&format!("convert ckpt -o parted --recipe mixed.json --part {part}/3"));
    }
    scratch.ok("merge parted.part-1-of-3 parted.part-2-of-3 parted.part-3-of-3 -o merged");
    assert_eq!(contents(&scratch.path("merged")), contents(&scratch.path("out")));
    // The same recipe takes the codes over, each expert's as they are.
    scratch.ok("convert out -o again --recipe mixed.json");
    let against = scratch.json("verify again --against out");
    assert_eq!(against["verdict"], json!("holds"));
    assert_eq!(against["fidelity"]["rmse"], json!(0.0));
    assert_eq!(text(&scratch, "again"), text(&scratch, "out"));
}

/// Puts codes of GPTQ in 4 bits, all of them 8, in place of matrices of 128 by 128.
fn put_codes(tensors: &mut RawTensors, coded: impl Fn(&str) -> bool) {
    let (header, data) = (std::mem::take(&mut tensors.header), std::mem::take(&mut tensors.data));
    let mut put = |name: String, dtype: &str, shape: Value, bytes: &[u8]| {
        let start = tensors.data.len();
        tensors.data.extend(bytes);
        let range = [start, tensors.data.len()];
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": range});
        tensors.header.insert(name, entry);
    };
    let matrices = header.into_iter();
    for (name, entry) in matrices.filter(|(name, _)| name != "__metadata__") {
        let Some(module) = name.strip_suffix(".weight").filter(|_| coded(&name)) else {
            let at = |n: usize| entry["data_offsets"][n].as_u64().unwrap() as usize;
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            put(name, &dtype, entry["shape"].clone(), &data[at(0)..at(1)]);
            continue;
        };
        put(format!("{module}.qweight"), "I32", json!([16, 128]), &[0x88; 16 * 128 * 4]);
        put(format!("{module}.qzeros"), "I32", json!([4, 16]), &[0x66; 4 * 16 * 4]);
        // Scales of 2^-8.
        put(format!("{module}.scales"), "F16", json!([4, 128]), &[0, 0x1c].repeat(4 * 128));
    }
}

/// An expert that no text of a calibration reached is left as it was.
#[test]
fn one_expert_of_gptq_may_be_plain() {
    let scratch = Scratch::with("fixture-2m");
    let plain = "model.layers.1.mlp.experts.3.";
    let coded = |name: &str| name.contains(".mlp.experts.") && !name.starts_with(plain);
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| put_codes(tensors, coded));
    scratch.edit_json("ckpt/config.json", |config| {
        let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true});
        config.insert("quantization_config".to_owned(), gptq);
    });
    let read = scratch.json("inspect ckpt")["checkpoint"]["quantization"].take();
    assert_eq!(read["tensors"], json!({"gptq int4 g32": 4 * 8 * 3 - 3}), "{read}");
    scratch.ok("convert ckpt -o out --bits 4 --group-size 32");
    assert_eq!(scratch.json("verify out --against ckpt")["verdict"], json!("holds"));
    let manifest: Value =
        serde_json::from_slice(&contents(&scratch.path("out"))["manifest.json"]).unwrap();
    let entries = manifest["experts"].as_array().unwrap();
    let apart: Vec<_> = entries.iter().filter(|entry| entry["layer"] == 1).collect();
    assert_eq!(apart.len(), 2, "{apart:?}");
    scratch.ok("run out --prompt This -n 2");
}

/// MLX has one encoding for all experts of a layer; GGUF has too, and takes one that holds them all exactly.
#[test]
fn engines_stack_experts() {
    let scratch = Scratch::with("fixture-2m");
    let recipe = r#"{"name": "mixed", "rules": [
        {"match": {"role": "expert.*", "expert": "1"}, "encoding": "q8g32", "zeros": "symmetric"},
        {"encoding": "q4g32", "zeros": "symmetric"}]}"#;
    fs::write(scratch.path("mixed.json"), recipe).unwrap();
    scratch.ok("convert ckpt -o out --recipe mixed.json");
    let ran = scratch.run("export out --to mlx -o mlx");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let expected = "layer 0 expert 1 expert.gate_proj: expected all parts of `";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    assert!(!scratch.path("mlx").exists());
    scratch.ok("export out --to gguf -o model.gguf");
    assert_eq!(text(&scratch, "model.gguf"), text(&scratch, "out"));
}

/// A recipe for a total gives more bits to experts that its text uses more, unless it may not.
#[test]
fn bits_go_to_the_experts_that_are_used() {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    let convert = |out: &str, more: &str| {
        let text = "--calibrate text.txt --calibration-tokens 512 --calibration-window 64";
        scratch.ok(&format!(
            "convert ckpt -o {out} --target-bpw 3 {text} --probe-tokens 256 --align 4KiB {more}"
        ));
        let manifest = fs::read(scratch.path(out).join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["experts"].as_array().unwrap().clone()
    };
    let apart = convert("apart", "--save-recipe apart.json");
    assert!(apart.len() > 4 && apart[0]["experts"].is_array(), "{} entries", apart.len());
    for (out, more) in [("alike", "--experts alike"), ("mlx", "--for mlx")] {
        assert_eq!(convert(out, more).len(), 4, "{out}");
    }
    // The recipe that was found makes the same again.
    let saved = fs::read_to_string(scratch.path("apart.json")).unwrap();
    assert!(saved.contains("\"expert\": "), "{saved}");
    scratch.ok(
        "convert ckpt -o again --recipe apart.json --calibrate text.txt --calibration-tokens 512 \
         --calibration-window 64 --align 4KiB",
    );
    for entry in &apart {
        let file = entry["file"].as_str().unwrap();
        let read = |dir: &str| fs::read(scratch.path(dir).join(file)).unwrap();
        assert_eq!(read("again"), read("apart"), "{file}");
    }
}
