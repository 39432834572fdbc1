//! Vocabularies in forms of their own make tokenizers that say what transformers, sentencepiece and tiktoken
//! say: `fixtures/vocabularies`, which `make_vocabularies.py` writes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_runtime::text::Tokenizer;
use shardwright_testing::fixture;
use tempfile::TempDir;

fn cases() -> Value {
    serde_json::from_slice(&fs::read(fixture("vocabularies/cases.json")).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A checkpoint of one value with the files of a folder.
fn folder(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("vocabularies").join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend([0; 4]);
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn tokenizer(dir: &Path) -> Tokenizer {
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert_eq!(checkpoint.vocabulary().unwrap().1, None, "{}", dir.display());
    let made = checkpoint.companion("tokenizer.json", TOKENIZER_LIMIT);
    Tokenizer::parse(dir, &made.unwrap().unwrap()).unwrap()
}

/// Why nothing is made of a folder's vocabulary once `change` is through with it.
fn refused(name: &str, change: impl FnOnce(&Path)) -> String {
    let dir = folder(name);
    change(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(
        !checkpoint
            .copies()
            .unwrap()
            .contains(&"tokenizer.json".to_owned())
    );
    let (_, why) = checkpoint.vocabulary().unwrap();
    why.unwrap().to_owned()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn tokens_are_those_of_other_libraries() {
    let cases = cases();
    let texts: Vec<&str> = list(&cases["texts"])
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let mut compared = 0;
    for case in list(&cases["cases"]) {
        let name = case["folder"].as_str().unwrap();
        let dir = folder(name);
        let tokenizer = tokenizer(dir.path());
        for (text, expected) in texts.iter().zip(list(&case["ids"])) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(expected), "{name} {text:?}");
            compared += 1;
        }
        assert_eq!(tokenizer.encode(texts[2], true).unwrap(), ids(&case["with_special"]), "{name}");
    }
    assert_eq!(compared, 690);
}

#[test]
fn text_comes_back() {
    for name in
        ["llama", "llama-legacy", "renamed", "gemma", "unigram", "unigram-first", "kimi", "llama3"]
    {
        let dir = folder(name);
        let tokenizer = tokenizer(dir.path());
        let text = "def f(x):\n    return  x + 1 — 日本 🙂";
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{name}");
    }
}

#[test]
fn long_texts_are_read_in_windows() {
    let line = fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    for name in ["llama", "llama-legacy", "gemma", "unigram", "kimi", "llama3"] {
        let dir = folder(name);
        let tokenizer = tokenizer(dir.path());
        let mut left = (5 << 18) / line.len();
        let mut more = |window: &mut String, _: usize| {
            window.push_str(&line);
            left -= 1;
            Ok(left > 0)
        };
        let read = tokenizer.read(&mut more, usize::MAX, false);
        let read = read.unwrap_or_else(|e| panic!("{name}: {e}"));
        let once = tokenizer.encode(&line, false).unwrap();
        assert!(read.len() > once.len() * 10, "{name}");
        // The first window is as if alone, up to its end.
        assert_eq!(read[..once.len() - 8], once[..once.len() - 8], "{name}");
    }
}

#[test]
fn what_no_document_says_is_refused() {
    // `trainer_spec.model_type`, field 3 of message 2: WORD.
    let word = |dir: &Path| {
        let path = dir.join("tokenizer.model");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([0x12, 2, 0x18, 3]);
        fs::write(path, bytes).unwrap();
    };
    assert_eq!(refused("llama", word), "model_type: expected UNIGRAM or BPE, found WORD");
    let text = |dir: &Path| fs::write(dir.join("tokenizer.model"), "{}").unwrap();
    let found = refused("llama", text);
    assert!(found.starts_with("expected a model of SentencePiece, found none ("), "{found}");
    let pointer = |dir: &Path| {
        let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
        fs::write(dir.join("tokenizer.model"), text).unwrap();
    };
    let dir = folder("llama");
    pointer(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(
        checkpoint
            .vocabulary()
            .unwrap()
            .1
            .unwrap()
            .contains("a Git LFS pointer")
    );
}

#[test]
fn ranks_of_a_class_that_is_not_known_are_refused() {
    let class = |dir: &Path| {
        edit(&dir.join("tokenizer_config.json"), |c| c["tokenizer_class"] = json!("OwnTokenizer"));
    };
    let expected = "tokenizer_class: expected one of PreTrainedTokenizer, TikTokenTokenizer, found OwnTokenizer";
    assert_eq!(refused("kimi", class), expected);
    let lines = |change: fn(&mut Vec<String>)| {
        move |dir: &Path| {
            let path = dir.join("tiktoken.model");
            let text = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            change(&mut lines);
            fs::write(path, lines.join("\n")).unwrap();
        }
    };
    let found = refused("kimi", lines(|all| drop(all.remove(300))));
    assert_eq!(found, "the next rank: expected 300, found 301");
    let found = refused("kimi", lines(|all| all.truncate(200)));
    assert!(found.starts_with("expected a token for each byte, found none for 0x"), "{found}");
    let found = refused("kimi", lines(|all| all[7] = "!!! 7".to_owned()));
    assert_eq!(found, "line 8: expected a token in base64 and its rank, found another text");
    let far = |dir: &Path| {
        edit(&dir.join("tokenizer_config.json"), |c| {
            c["added_tokens_decoder"]["4000000000"] = json!({"content": "<far>"});
        });
    };
    let expected = "added_tokens_decoder: expected numbers below 66136, found 4000000000";
    assert_eq!(refused("kimi", far), expected);
}

#[test]
fn numbers_behind_a_list_of_scores_have_no_gap() {
    let gap = |dir: &Path| {
        edit(&dir.join("tokenizer_config.json"), |c| {
            c["added_tokens_decoder"] = json!({"502": {"content": "<far>"}});
        });
    };
    let expected = "number of the next added token: expected 500, found 502 for `<far>`";
    assert_eq!(refused("unigram", gap), expected);
}

#[test]
fn damaged_vocabularies_end_in_a_message() {
    for name in ["llama", "unigram", "rules"] {
        let dir = folder(name);
        let path = dir.path().join("tokenizer.model");
        let whole = fs::read(&path).unwrap();
        let mut seed = 1u64;
        for round in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..=round % 3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 25) as u8;
            }
            bytes.truncate(if round % 2 == 0 {
                whole.len()
            } else {
                (seed >> 33) as usize % whole.len()
            });
            fs::write(&path, bytes).unwrap();
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            if let Ok(Some(made)) = checkpoint.companion("tokenizer.json", TOKENIZER_LIMIT) {
                // A tokenizer, or no usable one: never a panic.
                let _ = Tokenizer::parse(&path, &made).map(|t| t.encode("a <s> 日本", true));
            }
        }
    }
}
