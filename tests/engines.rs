//! Exports for other engines, through the binary.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_testing::fixture;
use shardwright_testing::models::flash_moe_checkpoint;

use crate::harness::Scratch;

#[test]
fn a_bundle_for_mlx_goes_to_mlx_and_holds_against_itself_and_its_source() {
    for (case, noted) in [("qwen3_next", false), ("deepseek_v3", true)] {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let set = "--align 4KiB --bits 4 --group-size 32 --set router=q8g32";
        let said = scratch
            .ok(&format!("convert ckpt -o out {set} --for mlx"))
            .stdout;
        let note = "note: for mlx: router as floats, since it has no codes there";
        assert_eq!(said.contains(note), noted, "{said}");
        let told = scratch.json("export out --to mlx -o mlx");
        for file in told["files"].as_array().unwrap() {
            let path = scratch.path("mlx").join(file["path"].as_str().unwrap());
            let hash = blake3::hash(&fs::read(path).unwrap()).to_hex();
            assert_eq!(file["blake3"], json!(hash.as_str()));
        }
        let hash = told["files"][0]["blake3"].as_str().unwrap();
        assert!(
            scratch
                .ok("export out --to mlx -o again")
                .stdout
                .contains(hash)
        );
        let held = scratch.json("verify mlx --against out");
        assert_eq!(held["fidelity"]["exact"], held["fidelity"]["tensors"]);
        scratch.ok("verify mlx --against ckpt");
    }
}

#[test]
fn an_export_for_mlx_says_what_the_bundle_says() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o out --bits 4 --group-size 32 --for mlx");
    scratch.ok("export out --to mlx -o mlx");
    let run = |model: &str| scratch.json(&format!("run {model} --prompt Once -n 12"));
    assert_eq!(run("out")["tokens"], run("mlx")["tokens"]);
}

/// The file holds every value of the bundle, and computes with its tokenizer as the bundle does.
#[test]
fn a_bundle_goes_to_gguf_and_holds_against_itself() {
    for set in [
        "--group-size 32 --zeros float",
        "--zeros symmetric",
        "--set attention.*=t3 --set expert.*=q5_k --for gguf",
        "--set attention.*=iq4_nl --set expert.*=iq4_xs --for gguf",
    ] {
        let scratch = Scratch::with("fixture-2m");
        scratch.ok(&format!("convert ckpt -o out --bits 4 {set}"));
        let told = scratch.json("export out --to gguf -o model.gguf");
        let hash = blake3::hash(&fs::read(scratch.path("model.gguf")).unwrap()).to_hex();
        assert_eq!(told["files"][0]["blake3"], json!(hash.as_str()));
        let held = scratch.json("verify model.gguf --against out");
        assert_eq!(held["verdict"], json!("holds"), "{held}");
        assert_eq!(held["fidelity"]["exact"], held["fidelity"]["tensors"]);
        let run = |model: &str| scratch.json(&format!("run {model} --prompt Once -n 12"));
        assert_eq!(run("out")["tokens"], run("model.gguf")["tokens"]);
    }
}

#[test]
fn what_an_engine_has_no_model_of_is_refused_by_name() {
    let scratch = Scratch::with("golden/arcee");
    let ran = scratch.run("convert ckpt -o out --bits 4 --for mlx");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("found `arcee`"), "{}", ran.stderr);
    scratch.ok("convert ckpt -o out --bits 4 --group-size 32 --align 4KiB");
    let ran = scratch.run("export out --to mlx -o mlx");
    assert!(ran.code == Some(2) && ran.stderr.contains("found `arcee`"), "{}", ran.stderr);
    assert!(!scratch.path("mlx").exists() && !scratch.path("mlx.partial").exists());
}

#[test]
fn what_a_form_does_not_hold_is_refused_with_the_option_that_helps() {
    let scratch = Scratch::with("fixture-2m");
    for (name, made, form, help) in [
        ("t", "--recipe t3", "mlx", "convert with --for mlx, or let the export store it anew with"),
        ("q", "--bits 8 --group-size 32", "gguf", "convert with --zeros symmetric"),
    ] {
        scratch.ok(&format!("convert ckpt -o {name} {made}"));
        let ran = scratch.run(&format!("export {name} --to {form} -o away.gguf"));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(&format!("\nhelp: {help}")), "{ran:?}");
        assert!(!scratch.path("away.gguf").exists());
    }
}

/// `--requantize` stores anew what the form does not hold exactly and nothing else, says what that adds in each role,
/// and `verify` finds the same beside the bundle.
#[test]
fn what_is_stored_anew_is_told_by_role_as_verify_finds_it() {
    let made = "--bits 4 --set expert.*=t3 --set attention.v_proj=q6 --set attention.o_proj=q8g32 --zeros float";
    for (form, out, exact, stored) in [
        // Of 4 bits in groups of 64 `q4_1` holds every value; 256 does not divide these rows.
        (
            "gguf",
            "anew.gguf",
            &["attention.q_proj", "embed_tokens", "router"][..],
            &[
                ("expert.down_proj", "t3 s12 as q5_1"),
                ("attention.v_proj", "q6 g64 f16 as q8_0"),
                ("attention.o_proj", "q8 g32 f16 as q8_0"),
            ][..],
        ),
        (
            "compressed-tensors",
            "anew",
            &["norm.input", "norm.final"],
            &[
                ("expert.down_proj", "t3 s12 as q4 g32 f16"),
                ("attention.v_proj", "q6 g64 f16 as q6 g64 f16"),
                ("attention.q_proj", "q4 g64 f16 as q4 g64 f16"),
                ("embed_tokens", "q4 g64 f16 as f32"),
            ],
        ),
    ] {
        let scratch = Scratch::with("fixture-2m");
        scratch.ok(&format!("convert ckpt -o out {made}"));
        let refused = scratch.run(&format!("export out --to {form} -o {out}"));
        assert!(refused.code == Some(2) && refused.stderr.contains("--requantize"), "{refused:?}");
        let told = scratch.json(&format!("export out --to {form} -o {out} --requantize"));
        let said = scratch.ok(&format!("export out --to {form} -o again-{out} --requantize"));
        let anew = told["requantized"]["roles"].as_array().unwrap();
        let held = scratch.json(&format!("verify {out} --against out --max-rmse 1"));
        let found = held["fidelity"]["roles"].as_array().unwrap();
        let named = |all: &[Value], name: &str| {
            all.iter().find(|role| role["role"] == json!(name)).cloned()
        };
        let mut weights = 0;
        for role in anew {
            let name = role["role"].as_str().unwrap();
            let error = role["relative_rmse"].as_f64().unwrap();
            let other = named(found, name).unwrap()["rmse"].as_f64().unwrap();
            assert!((error - other).abs() <= 1e-4 * other, "{form} {name}: {error} {other}");
            assert!(said.stdout.contains(&format!("{error:.4}\n")), "{}", said.stdout);
            weights += role["weights"].as_u64().unwrap();
        }
        assert_eq!(told["requantized"]["weights"], json!(weights));
        for (name, how) in stored {
            assert_eq!(named(anew, name).unwrap()["stored"], json!([how]), "{form}");
            assert!(said.stdout.contains(how), "{}", said.stdout);
        }
        for name in exact {
            assert_eq!(named(anew, name), None, "{form} {name}");
            assert_eq!(named(found, name).unwrap()["rmse"], json!(0.0), "{form} {name}");
        }
        assert!(said.stdout.contains("verify again-"), "{}", said.stdout);
        // Codes of more bits, or floats, take little away; those of as many about a zero in the middle more.
        let all = told["requantized"]["relative_rmse"].as_f64().unwrap();
        let (least, most) = if form == "gguf" { (0.005, 0.05) } else { (0.05, 0.15) };
        assert!(all > least && all < most, "{form}: {all}");
        scratch.ok(&format!("run {out} --prompt Once -n 4"));
    }
}

/// Parts of one tensor of a file get the widest type that one of them needs.
#[test]
fn parts_of_a_tensor_that_is_stored_anew_share_a_type() {
    let scratch = Scratch::new();
    fs::copy(fixture("gguf/phi3.gguf"), scratch.path("phi3.gguf")).unwrap();
    scratch.ok("convert phi3.gguf -o out --bits 4 --group-size 32 --set attention.k_proj=t3");
    let told = scratch.json("export out --to gguf -o anew.gguf --requantize");
    let roles = told["requantized"]["roles"].as_array().unwrap();
    let stored: Vec<_> = roles
        .iter()
        .map(|role| (&role["role"], role["stored"][0].as_str().unwrap()))
        .collect();
    let names = ["attention.k_proj", "attention.q_proj", "attention.v_proj"];
    assert!(stored.iter().map(|(role, _)| *role).eq(names), "{told}");
    assert!(stored.iter().all(|(_, how)| how.ends_with(" as q5_1")), "{told}");
    scratch.ok("verify anew.gguf --against out --max-rmse 1");
}

/// A bundle for flash-moe as `out`, and its folder as `packed`.
fn packed(options: &str) -> Scratch {
    let scratch = Scratch::new();
    flash_moe_checkpoint(&scratch.path("ckpt"));
    fs::write(scratch.path("ckpt").join("generation_config.json"), r#"{"eos_token_id": 2}"#)
        .unwrap();
    scratch.ok(&format!("convert ckpt -o out {options} --for flash-moe"));
    scratch.ok("export out --to flash-moe -o packed");
    assert!(scratch.path("packed/generation_config.json").is_file());
    scratch
}

/// A folder of flash-moe is a model like any other: its values are the bundle's, but for norms that were rounded,
/// and it says what the bundle says.
#[test]
fn a_bundle_goes_to_flash_moe_and_holds_against_itself_and_its_source() {
    for (options, directory) in
        [("--bits 4", "packed_experts"), ("--recipe moe-q2", "packed_experts_2bit")]
    {
        let scratch = packed(options);
        let shown = scratch.ok("inspect packed").stdout;
        let layer = format!("{directory}/layer_03.bin");
        assert!(shown.contains(&layer) && shown.contains("flash-moe"), "{shown}");
        let held = scratch.json("verify packed --against out");
        assert_eq!(held["verdict"], json!("holds"), "{held}");
        for role in held["fidelity"]["roles"].as_array().unwrap() {
            let (name, rmse) = (role["role"].as_str().unwrap(), role["rmse"].as_f64().unwrap());
            let rounded = name.starts_with("norm.") && name != "norm.delta_net";
            assert!(rmse == 0.0 || rounded && rmse < 0.01, "{name}: {rmse}");
        }
        fs::write(scratch.path("text"), "Once upon a time there was a fox. ".repeat(20)).unwrap();
        let beside = "--text text --window 64 --windows 2";
        let said = scratch.run(&format!("verify packed --against ckpt {beside} --json"));
        assert_eq!(said.code, Some(0), "{said:?}");
        let run = |model: &str| scratch.json(&format!("run {model} --prompt Once -n 12"));
        assert_eq!(run("out")["tokens"], run("packed")["tokens"]);
        scratch.ok("export packed --to hf -o plain");
        let plain = scratch.json("verify plain --against packed");
        assert_eq!(plain["fidelity"]["exact"], plain["fidelity"]["tensors"], "{plain}");
        scratch.ok("verify out --against packed --other-source");
        scratch.ok(&format!("convert packed -o again {options} --for flash-moe"));
        let names = shardwright_testing::contents(&scratch.path("again"));
        assert!(
            names
                .keys()
                .all(|name| !name.contains("layout") && !name.contains("weights"))
        );
        let again = scratch.json("verify again --against packed");
        assert_eq!(again["fidelity"]["exact"], again["fidelity"]["tensors"], "{again}");
    }
}

/// Damage to a folder: the file, what becomes of it, and what is said.
type Damage = (&'static str, fn(&Path), &'static str);

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut document);
    fs::write(path, document.to_string()).unwrap();
}

fn cut(path: &Path, len: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

#[test]
fn a_damaged_folder_of_flash_moe_is_refused_by_file() {
    let scratch = packed("--bits 4");
    let damages: [Damage; 7] = [
        (
            "packed_experts/layer_02.bin",
            |path| cut(path, 6912),
            "expected 3 experts of 6912 bytes, as config.json says, found 6912 bytes",
        ),
        ("packed_experts/layer_03.bin", |path| fs::remove_file(path).unwrap(), "No such file"),
        (
            "packed_experts/layout.json",
            |path| change(path, |layout| layout["num_experts"] = json!(u64::MAX)),
            "`num_experts`: expected 3, as config.json says, found 18446744073709551615",
        ),
        (
            "packed_experts/layout.json",
            |path| change(path, |layout| layout["components"][3]["offset"] = json!(-5)),
            "invalid value: integer `-5`",
        ),
        ("model_weights.json", |path| fs::write(path, "[1]").unwrap(), "expected a JSON object"),
        (
            "model_weights.json",
            |path| {
                change(path, |list| {
                    list["tensors"]["lm_head.weight"]["offset"] = json!(1_u64 << 62);
                });
            },
            "tensor `lm_head.weight`: expected 32768 bytes at 4611686018427387904 in one file",
        ),
        ("model_weights.bin", |path| cut(path, 1000), "in one file, found one that ends at 1000"),
    ];
    for (file, damage, expected) in damages {
        let path = scratch.path("packed").join(file);
        let whole = fs::read(&path).unwrap();
        damage(&path);
        // What is cut from the dense part is missed by the list.
        let named = if file.ends_with("weights.bin") { "model_weights.json" } else { file };
        for command in ["inspect packed", "verify packed --against out", "run packed --prompt a"] {
            let ran = scratch.run(command);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{command}: {ran:?}");
            let said = ran.stderr;
            let place = format!("error: packed/{named}: ");
            assert!(said.starts_with(&place) && said.contains(expected), "{command}: {said}");
        }
        fs::write(&path, whole).unwrap();
    }
    scratch.ok("inspect packed");
}
