//! Bundles for vLLM, through the binary, and their directories as somebody reads them who knows compressed-tensors'
//! layout and nothing of ours.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{RawTensors, fixture};

use crate::harness::Scratch;

/// A calibration short enough for a test.
const TEXT: &str = "--calibrate text.txt --calibration-window 64 --calibration-tokens 256";

/// Numbers of `bits` bits, the first in the lowest bits of the first word.
fn unpacked(bytes: &[u8], bits: usize) -> Vec<u32> {
    let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
    let number = |at: usize| (0..bits).map(|i| bit(at * bits + i) << i).sum();
    (0..bytes.len() * 8 / bits).map(number).collect()
}

/// Numbers of half precision, taken apart by hand: scales are neither infinite nor NaN.
fn halves(bytes: &[u8]) -> Vec<f32> {
    let half = |bytes: &[u8; 2]| {
        let bits = i32::from(u16::from_le_bytes(*bytes));
        let (exponent, fraction) = (bits >> 10 & 31, (bits & 1023) as f32 / 1024.0);
        let magnitude = match exponent {
            0 => fraction * 2f32.powi(-14),
            _ => (1.0 + fraction) * 2f32.powi(exponent - 15),
        };
        if bits >> 15 == 0 { magnitude } else { -magnitude }
    };
    bytes.as_chunks().0.iter().map(half).collect()
}

/// `weight_packed`, `weight_scale` and, where there are some, `weight_zero_point` of a module: its values, and the
/// bits of a code.
fn values(file: &RawTensors, module: &str) -> (Vec<f32>, usize) {
    let part = |part: &str| {
        let name = format!("{module}.weight_{part}");
        let held = file.header.contains_key(&name);
        held.then(|| &file.data[file.range(&name)])
    };
    let sizes = |name: &str| -> Vec<usize> {
        let shape = &file.header[&format!("{module}.weight_{name}")]["shape"];
        serde_json::from_value(shape.clone()).unwrap()
    };
    let shape = part("shape").unwrap().as_chunks().0.iter();
    let shape: Vec<_> = shape
        .map(|bytes| i64::from_le_bytes(*bytes) as usize)
        .collect();
    let (rows, cols) = (shape[0], shape[1]);
    let (words, groups) = (sizes("packed")[1], sizes("scale")[1]);
    let bits = words * 32 / cols;
    let (codes, scales) = (unpacked(part("packed").unwrap(), bits), halves(part("scale").unwrap()));
    // Zeros are packed along the rows: a word has those of as many rows as fit.
    let zero = |row: usize, group: usize| match part("zero_point") {
        None => 1 << (bits - 1),
        Some(bytes) => {
            let per_word = 32 / bits;
            let at = row / per_word * groups + group;
            let word = u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
            word >> (row % per_word * bits) & ((1 << bits) - 1)
        }
    };
    let value = |at: usize| {
        let (row, group) = (at / cols, at % cols / (cols / groups));
        let code = codes[at].cast_signed() - zero(row, group).cast_signed();
        scales[row * groups + group] * code as f32
    };
    ((0..rows * cols).map(value).collect(), bits)
}

/// Holds every packed module of `ct` against the floats of `hf`, bit for bit; gives the bits of their codes.
fn read_by_hand(scratch: &Scratch) -> Vec<usize> {
    let [packed, floats] =
        ["ct", "hf"].map(|dir| RawTensors::read(&scratch.path(dir).join("model.safetensors")));
    let modules = packed.header.keys();
    let modules: Vec<_> = modules
        .filter_map(|name| name.strip_suffix(".weight_packed"))
        .collect();
    let mut widths = Vec::new();
    for module in &modules {
        let (found, bits) = values(&packed, module);
        let bytes = &floats.data[floats.range(&format!("{module}.weight"))];
        let float = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
        let expected: Vec<_> = bytes.as_chunks().0.iter().map(float).collect();
        assert_eq!(found, expected, "{module}");
        widths.push(bits);
    }
    widths
}

/// Exports `out` to both forms and holds them against each other and against the checkpoint.
fn judged(scratch: &Scratch) -> Vec<usize> {
    let told = scratch.json("export out --to compressed-tensors -o ct");
    for file in told["files"].as_array().unwrap() {
        let bytes = fs::read(scratch.path("ct").join(file["path"].as_str().unwrap())).unwrap();
        assert_eq!(file["blake3"], json!(blake3::hash(&bytes).to_hex().as_str()));
    }
    scratch.ok("export out --to hf -o hf");
    let held = scratch.json("verify ct --against out");
    assert_eq!(held["fidelity"]["exact"], held["fidelity"]["tensors"], "{held}");
    let judged = scratch.json("verify ct --against ckpt");
    assert_eq!(judged["verdict"], json!("holds"), "{judged}");
    read_by_hand(scratch)
}

fn scratch() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    scratch
}

#[test]
fn a_bundle_for_vllm_goes_there_value_for_value() {
    for (set, bits) in [
        ("--bits 4 --group-size 32 --set attention.*=q8g64", vec![4, 8]),
        ("--bits 3 --group-size 64 --set expert.down_proj=q2g32", vec![2, 3]),
        ("--bits 6 --group-size 128 --method search", vec![6]),
    ] {
        let scratch = Scratch::with("fixture-2m");
        let said = scratch
            .ok(&format!("convert ckpt -o out {set} --for compressed-tensors"))
            .stdout;
        assert!(said.contains("note: for compressed-tensors: embed_tokens as floats"), "{said}");
        let mut found = judged(&scratch);
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, bits, "{set}");
    }
}

/// What a bundle has in each of its tensors, by role and layer.
fn encodings(scratch: &Scratch, bundle: &str) -> Vec<(String, u64, Value)> {
    let manifest = fs::read(scratch.path(bundle).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut found = Vec::new();
    let dense = manifest["dense"].as_array().unwrap().iter();
    let dense = dense.map(|shard| (shard["unit"]["layer"].as_u64().unwrap_or(u64::MAX), shard));
    let experts = manifest["experts"].as_array().unwrap().iter();
    let experts = experts.map(|shard| (shard["layer"].as_u64().unwrap(), shard));
    for (layer, shard) in dense.chain(experts) {
        for tensor in shard["tensors"].as_array().unwrap() {
            let role = tensor["role"].as_str().unwrap().to_owned();
            found.push((role, layer, tensor["encoding"].clone()));
        }
    }
    found
}

/// A total is met by what the engine holds: zeros that are codes, one encoding for what it fuses, floats where it
/// has no codes.
#[test]
fn a_total_for_vllm_is_met_by_what_it_holds() {
    let scratch = scratch();
    let total = "--target-bpw 4.6 --probe-tokens 64 --for compressed-tensors";
    scratch.ok(&format!("convert ckpt -o out {TEXT} {total}"));
    let widths = judged(&scratch);
    assert!(widths.iter().any(|bits| *bits != widths[0]), "one width is no allocation");
    let found = encodings(&scratch, "out");
    let of = |role: &str, layer: u64| {
        let mut all = found
            .iter()
            .filter(|(r, l, _)| (r.as_str(), *l) == (role, layer));
        all.next().unwrap().2.clone()
    };
    for layer in 0..4 {
        for alike in [
            ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            ["expert.gate_proj", "expert.up_proj", "expert.down_proj"],
        ] {
            let each = alike.map(|role| of(role, layer));
            assert_eq!([&each[1], &each[2]], [&each[0]; 2], "{alike:?} of layer {layer}");
        }
        assert_ne!(of("router", layer)["kind"], json!("affine"));
    }
}

#[test]
fn a_total_for_mlx_is_met_by_what_it_holds() {
    let scratch = scratch();
    let total = "--target-bpw 3.5 --probe-tokens 64 --for mlx";
    scratch.ok(&format!("convert ckpt -o out {TEXT} {total}"));
    let kinds = encodings(&scratch, "out");
    assert!(
        kinds
            .iter()
            .all(|(_, _, encoding)| encoding["kind"] != json!("trellis"))
    );
    let mut bits: Vec<_> = kinds.iter().filter_map(|k| k.2["bits"].as_u64()).collect();
    bits.sort_unstable();
    bits.dedup();
    assert!(bits.len() > 1, "one width is no allocation: {bits:?}");
    let inspect = scratch.json("inspect out");
    let bits = inspect["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 3.3 && bits <= 3.5, "{bits}");
    scratch.ok("export out --to mlx -o mlx");
    let held = scratch.json("verify mlx --against out");
    assert_eq!(held["fidelity"]["exact"], held["fidelity"]["tensors"], "{held}");
}

/// The first tensor that a form does not hold is named, with what avoids it; `--requantize` stores it anew and says
/// what that cost, which `verify` finds as well.
#[test]
fn what_would_be_stored_anew_is_refused_and_measured_where_it_is_wanted() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o out --recipe q4 --set expert.*=t3");
    for (form, tensor, help) in [
        ("mlx", "layer 0 expert 0 expert.gate_proj: expected ", "--requantize"),
        ("compressed-tensors", "embedding embed_tokens: expected ", "--for compressed-tensors"),
    ] {
        let ran = scratch.run(&format!("export out --to {form} -o away"));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        let (error, helped) = ran.stderr.trim_end().split_once("\nhelp: ").unwrap();
        assert!(error.contains(tensor) && helped.contains(help), "{ran:?}");
        assert!(!scratch.path("away").exists() && !scratch.path("away.partial").exists());
    }
    let told = scratch.json("export out --to mlx -o mlx --requantize");
    let anew = &told["requantized"];
    assert_eq!(anew["tensors"], json!(4 * 8 * 3));
    assert_eq!(anew["weights"], json!(4 * 8 * 3 * 128 * 128));
    let (all, worst) = (&anew["relative_rmse"], &anew["worst_relative_rmse"]);
    assert!(worst.as_f64() >= all.as_f64() && all.as_f64() > Some(0.05), "{told}");
    let held = scratch.json("verify mlx --against out --max-rmse 1");
    let roles = held["fidelity"]["roles"].as_array().unwrap().iter();
    let found = roles.map(|role| role["worst_rmse"].as_f64().unwrap());
    let found = found.fold(0.0, f64::max);
    assert!((found - worst.as_f64().unwrap()).abs() < 1e-4, "{found} {told}");
}
