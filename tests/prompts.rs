//! Prompts of strangers: what may surprise in them is said.

use std::fs;

use serde_json::json;

use crate::harness::Scratch;

#[test]
fn prompts_that_may_surprise() {
    let scratch = Scratch::with("fixture-2m");
    let note = |args: &str| {
        let report = scratch.json(&format!("run ckpt --ignore-eos {args}"));
        report["notes"].to_string()
    };
    scratch.edit_json("ckpt/config.json", |config| {
        config.insert("max_position_embeddings".to_owned(), json!(4));
    });
    assert!(note("--prompt This -n 5").contains("the model knows 4"));
    // The tokenizer begins every text with a token that config.json does not name.
    let mut token = String::new();
    scratch.edit_json("ckpt/tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"][0].clone();
        token = added["content"].as_str().unwrap().to_owned();
        let single = json!([{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let special = json!({token.as_str(): {"id": token, "ids": [added["id"]], "tokens": [token]}});
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special});
        tokenizer.insert("post_processor".to_owned(), template);
    });
    scratch.edit_json("ckpt/config.json", |config| drop(config.remove("bos_token_id")));
    assert!(note(&format!("--prompt {token}This -n 1")).contains("two BOS tokens"));
    assert!(!note("--prompt This -n 1").contains("two BOS tokens"));
    fs::write(scratch.path("crlf.txt"), "a\r\nb\r\n").unwrap();
    assert!(note("--prompt-file crlf.txt -n 1").contains("CRLF"));
    let none = scratch.json("run ckpt --prompt This -n 0");
    assert_eq!((&none["tokens"], &none["stopped"]), (&json!([]), &json!("tokens")));
    let full = scratch.json("run ckpt --prompt This -n 9 --context 2 --ignore-eos");
    assert_eq!(full["stopped"], json!("context"), "{full}");
    fs::write(scratch.path("wide.txt"), [0xff, 0xfe, b'a', 0]).unwrap();
    scratch.refused(
        "run ckpt --prompt-file wide.txt",
        "error: wide.txt: expected text in UTF-8, found UTF-16: `iconv -f UTF-16LE -t UTF-8` changes it",
    );
}

#[test]
fn a_prompt_beyond_the_original_context_of_longrope_is_told() {
    let scratch = Scratch::with("fixture-2m");
    scratch.edit_json("ckpt/config.json", |config| {
        config.remove("rope_parameters");
        let factors = |factor: f64| json!(vec![factor; 16]);
        let scaling =
            json!({"type": "longrope", "short_factor": factors(1.0), "long_factor": factors(2.0)});
        config.insert("rope_scaling".to_owned(), scaling);
        config.insert("original_max_position_embeddings".to_owned(), json!(3));
    });
    let notes = |prompt: &str| {
        let report = scratch.json(&format!("run ckpt --ignore-eos -n 9 --prompt {prompt}"));
        report["notes"].to_string()
    };
    assert!(notes("0123").contains("the original context 3 (longrope): positions from 3 on"));
    assert!(!notes("0").contains("longrope"));
}

#[test]
fn a_rotation_that_grows_with_the_text_is_plain_up_to_there() {
    let scratch = Scratch::with("fixture-2m");
    let tokens = |args: &str| {
        scratch.json(&format!("run {args} --prompt This -n 8 --ignore-eos"))["tokens"].clone()
    };
    let plain = tokens("ckpt");
    scratch.edit_json("ckpt/config.json", |config| {
        config.remove("rope_parameters");
        config.insert("max_position_embeddings".to_owned(), json!(9));
        config.insert("rope_scaling".to_owned(), json!({"type": "dynamic", "factor": 2.0}));
    });
    assert_eq!(tokens("ckpt"), plain);
    scratch.ok("convert ckpt -o out --bits 8 --group-size 32");
    scratch.ok("verify out --against ckpt");
    let ran = scratch.run("run out --prompt This -n 20 --ignore-eos --quiet");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr
            .contains("position 9: expected at most 9 positions"),
        "{ran:?}"
    );
}
