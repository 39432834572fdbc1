//! Exports for other engines, through the binary.

use serde_json::json;

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
            let hash = blake3::hash(&std::fs::read(path).unwrap()).to_hex();
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
        let hash = blake3::hash(&std::fs::read(scratch.path("model.gguf")).unwrap()).to_hex();
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
