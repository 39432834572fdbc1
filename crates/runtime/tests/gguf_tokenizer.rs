//! Tokenizers made from the metadata of GGUF files say what those say that the metadata were made
//! of: `fixtures/tokenizers`, which `make_tokenizers.py` writes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::Value;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::weights::Weights;
use shardwright_runtime::text::Tokenizer;
use shardwright_testing::fixture;

fn cases() -> Value {
    let json = std::fs::read(fixture("tokenizers/cases.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn weights(path: &Path) -> Weights {
    let checkpoint = Checkpoint::open(path).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    Weights::from_checkpoint(checkpoint, inventory)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn tokens_are_those_of_the_original_tokenizer() {
    let cases = cases();
    let texts: Vec<&str> = cases["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let mut compared = 0;
    for case in cases["cases"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        let tokenizer = Tokenizer::open(&weights(&fixture("tokenizers").join(file))).unwrap();
        for (text, expected) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            if expected.is_null() {
                continue;
            }
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, ids(expected), "{file} {text:?}");
            compared += 1;
        }
        assert_eq!(tokenizer.encode(texts[2], true).unwrap(), ids(&case["with_special"]), "{file}");
    }
    assert_eq!(compared, 271);
}

#[test]
fn text_comes_back() {
    for case in cases()["cases"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        // Its table and its spaces leave a text another one.
        if file == "unigram.gguf" {
            continue;
        }
        let tokenizer = Tokenizer::open(&weights(&fixture("tokenizers").join(file))).unwrap();
        let text = "def f(x):\n    return  x + 1 — 日本 🙂";
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{file}");
    }
}

/// The metadatum `key`, whose value begins `after` bytes later, with another value.
fn altered(file: &str, from: &str, to: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(fixture("tokenizers").join(file)).unwrap();
    let at = bytes
        .windows(from.len())
        .position(|w| w == from.as_bytes())
        .unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = Tokenizer::open(&weights(&path)).unwrap_err().to_string();
    error.replace(&path.display().to_string(), "m.gguf")
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let error = altered("qwen2.gguf", "\x05\0\0\0\0\0\0\0qwen2", "\x05\0\0\0\0\0\0\0qwen9");
    assert!(
        error.starts_with("m.gguf: metadatum `tokenizer.ggml.pre`: expected one of "),
        "{error}"
    );
    let end = ", found qwen9; put the model's tokenizer.json beside the file";
    assert!(error.ends_with(end), "{error}");
    let error = altered("qwen2.gguf", "\x04\0\0\0\0\0\0\0gpt2", "\x04\0\0\0\0\0\0\0bert");
    let expected = "m.gguf: metadatum `tokenizer.ggml.model`: expected gpt2, llama or t5, found bert; \
                    put the model's tokenizer.json beside the file";
    assert_eq!(error, expected);
}

#[test]
fn a_tokenizer_beside_the_file_goes_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::copy(fixture("tokenizers/qwen2.gguf"), &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(checkpoint.copies().unwrap(), names);
    let config = checkpoint
        .synthesized("tokenizer_config.json")
        .unwrap()
        .unwrap();
    let config: Value = serde_json::from_slice(config).unwrap();
    assert_eq!((&config["bos_token"], &config["add_bos_token"]), (&"<s>".into(), &false.into()));
    assert!(
        config["chat_template"]
            .as_str()
            .unwrap()
            .starts_with("{{ bos_token }}")
    );
    let made = checkpoint.synthesized("tokenizer.json").unwrap().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), made).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    // The tokenizer is that of the file beside; the chat template is still the metadata's.
    assert_eq!(checkpoint.copies().unwrap(), names);
    assert_eq!(checkpoint.synthesized("tokenizer.json").unwrap(), None);
    let config = checkpoint
        .synthesized("tokenizer_config.json")
        .unwrap()
        .unwrap();
    let config: Value = serde_json::from_slice(config).unwrap();
    assert!(config["chat_template"].is_string());
}
