//! The tokenizer of the trained fixture.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Checkpoint, TokensBeside};
use shardwright_format::weights::Weights;
use shardwright_runtime::Result;
use shardwright_runtime::text::{TextStream, Tokenizer};
use shardwright_testing::fixture;

fn tokenizer() -> Tokenizer {
    let path = fixture("fixture-2m/tokenizer.json");
    Tokenizer::parse(&path, &std::fs::read(&path).unwrap()).unwrap()
}

#[test]
fn text_survives_the_round_trip() {
    let tokenizer = tokenizer();
    let text = "def f(x):\n    return x + 1  # naïve — 日本 🙂\n";
    let tokens = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    assert!(
        tokens
            .iter()
            .all(|t| (*t as usize) < tokenizer.vocab_size())
    );
}

#[test]
fn a_stream_gives_whole_characters_and_all_of_the_text() {
    let tokenizer = tokenizer();
    let text = "Ein Stück — 日本 🙂🙂 end";
    let tokens = tokenizer.encode(text, false).unwrap();
    let mut stream = TextStream::new(&tokenizer);
    let mut pieces: Vec<String> = tokens.iter().map(|t| stream.push(*t).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    assert!(
        pieces
            .iter()
            .all(|p| !p.contains(char::REPLACEMENT_CHARACTER)),
        "{pieces:?}"
    );
    assert_eq!(pieces.concat(), text);
}

#[test]
fn an_unfinished_character_comes_at_the_end() {
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode("🙂", false).unwrap();
    assert!(tokens.len() > 1, "the fixture's vocabulary has this character");
    let mut stream = TextStream::new(&tokenizer);
    assert_eq!(stream.push(tokens[0]).unwrap(), "");
    assert!(
        stream
            .finish()
            .unwrap()
            .contains(char::REPLACEMENT_CHARACTER)
    );
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn a_missing_or_damaged_tokenizer_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("fixture-2m").join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    let weights = Weights::from_checkpoint(checkpoint, inventory);
    let refused = Tokenizer::open(&weights).unwrap_err().to_string();
    let help = "no such file; copy the tokenizer.json of the original model there";
    assert_eq!(refused, format!("{}: {help}", path.display()));
    let tekken = dir.path().join("tekken.json");
    std::fs::write(&tekken, "{}").unwrap();
    let refused = Tokenizer::open(&weights).unwrap_err().to_string();
    assert!(refused.contains("only tekken.json: make it with python -c "), "{refused}");
    assert!(refused.ends_with("where mistral-common is not installed)"), "{refused}");
    let other = dir.path().join("tiktoken.model");
    std::fs::write(&other, "IQ== 0\n").unwrap();
    let refused = Tokenizer::open(&weights).unwrap_err().to_string();
    assert!(refused.contains("only tiktoken.model: make it with python -c "), "{refused}");
    std::fs::write(&path, "{\"version\": 1").unwrap();
    let refused = Tokenizer::open(&weights).unwrap_err().to_string();
    let expected = format!("{}: is not a usable tokenizer (", path.display());
    assert!(refused.starts_with(&expected), "{refused}");
    assert!(refused.ends_with("copy the tokenizer.json of the original model there again"));
}

/// Each makes the tokenizers library panic, or ask for 8 GB first.
#[test]
fn tokenizers_that_contradict_themselves_are_refused() {
    let path = fixture("fixture-2m/tokenizer.json");
    let json = std::fs::read(&path).unwrap();
    let of = |member: &str, value: Value| {
        let mut document: Value = serde_json::from_slice(&json).unwrap();
        document[member] = value;
        Tokenizer::parse(&path, document.to_string().as_bytes())
    };
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                          "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}]});
    let refused = |tokenizer: Result<Tokenizer>| {
        let used = tokenizer.and_then(|t| t.encode("text", true).map(drop));
        used.unwrap_err().to_string()
    };
    let error = refused(of("post_processor", template));
    assert!(error.ends_with("the tokenizer contradicts itself"), "{error}");
    for (table, expected) in [
        ("", "precompiled_charsmap: expected base64 of a table"),
        ("/////w==", "precompiled_charsmap: expected at most 6 bytes, found 4294967295"),
    ] {
        let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": table});
        let nested = json!({"type": "Sequence", "normalizers": [&normalizer]});
        for normalizer in [nested, normalizer] {
            let error = refused(of("normalizer", normalizer));
            assert!(error.contains(&format!("is not a usable tokenizer ({expected})")), "{error}");
        }
    }
}

/// For some classes transformers puts spaces before a text where they are used to, not where `tokenizer.json` has
/// them.
#[test]
fn spaces_are_where_the_class_puts_them() {
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(fixture("beside").join(name)).unwrap()).unwrap()
    };
    let (cases, llama2) = (read("spaces.json"), read("llama2.json"));
    let texts: Vec<String> = serde_json::from_value(cases["texts"].clone()).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &Value| {
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        };
        let model_type = case.get("model_type").cloned();
        write("config.json", &json!({"model_type": model_type.unwrap_or(json!("llama"))}));
        write("tokenizer_config.json", &case["settings"]);
        let mut tokenizer = llama2.clone();
        if case["file"] == "today" {
            tokenizer["normalizer"] = Value::Null;
            tokenizer["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁",
                "prepend_scheme": "first", "split": false});
        }
        let beside =
            TokensBeside::new(&|name, _| Ok(std::fs::read(dir.path().join(name)).ok()), dir.path());
        let json = tokenizer.to_string();
        let tokenizer = Tokenizer::with(dir.path(), json.as_bytes(), &beside.unwrap()).unwrap();
        for (text, expected) in texts.iter().zip(case["tokens"].as_array().unwrap()) {
            let tokens = tokenizer.encode(text, false).unwrap();
            assert_eq!(json!(tokens), *expected, "{case} {text:?}");
        }
        let text = "one  two\nthree";
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{case}");
    }
}

/// transformers adds the tokens that files beside a tokenizer name, and takes some flags from there.
#[test]
fn tokens_that_files_beside_a_tokenizer_name_are_added() {
    let cases: Value =
        serde_json::from_slice(&std::fs::read(fixture("beside/cases.json")).unwrap()).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixture("fixture-2m").join(name), dir.path().join(name)).unwrap();
        }
        for (name, content) in case["files"].as_object().unwrap() {
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::open(&Weights::open(dir.path()).unwrap()).unwrap();
        let tokens = tokenizer
            .encode(cases["text"].as_str().unwrap(), true)
            .unwrap();
        assert_eq!(json!(tokens), case["tokens"], "{}", case["case"]);
    }
}
