//! Vocabularies in forms of their own, and those that do not fit the model, through the binary.

use std::fs;

use serde_json::json;
use shardwright_testing::fixture;

use crate::harness::Scratch;

fn trained() -> Scratch {
    Scratch::with("fixture-2m")
}

#[test]
fn vocabularies_of_other_libraries_become_a_tokenizer() {
    let kinds = [
        ("llama", "tokenizer.model"),
        ("unigram", "tokenizer.model"),
        ("kimi", "tiktoken.model"),
        ("kimi", "own.tiktoken"),
    ];
    for (folder, name) in kinds {
        let scratch = trained();
        fs::remove_file(scratch.path("ckpt/tokenizer.json")).unwrap();
        let from = fixture("vocabularies").join(folder);
        let file = if folder == "kimi" { "tiktoken.model" } else { "tokenizer.model" };
        fs::copy(from.join(file), scratch.path("ckpt").join(name)).unwrap();
        let settings = "tokenizer_config.json";
        fs::copy(from.join(settings), scratch.path("ckpt").join(settings)).unwrap();
        let ran = scratch.ok("convert ckpt -o out --bits 8");
        let note = format!("note: tokenizer.json is made from {name}");
        assert!(ran.stdout.contains(&note), "{ran:?}");
        assert!(scratch.path("out/tokenizer.json").is_file());
        scratch.ok("inspect ckpt");
        fs::write(scratch.path("text"), "This is a text, with  some words in it.\n".repeat(20))
            .unwrap();
        let report = scratch.json("verify out --against ckpt --text text --window 32");
        assert_eq!(report["verdict"], json!("holds"), "{report}");
        scratch.ok("run ckpt --prompt This -n 4");
        scratch.ok("run out --prompt This -n 4");
    }
}

#[test]
fn a_token_beyond_the_embedding_is_named() {
    let scratch = trained();
    scratch.edit_json("ckpt/tokenizer.json", |tokenizer| {
        let mut token = tokenizer["added_tokens"][0].clone();
        token["id"] = json!(1024);
        token["content"] = json!("<|extra|>");
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(token);
    });
    scratch.refused(
        "run ckpt --prompt <|extra|> -n 1",
        "error: token 1024 is outside the vocabulary of 1024",
    );
    scratch.ok("run ckpt --prompt This -n 1");
    let ran = scratch.ok("convert ckpt -o out --bits 8");
    let note =
        "note: tokenizer.json has token 1024, \"<|extra|>\", but the embedding has 1024 rows";
    assert!(ran.stdout.contains(note), "{ran:?}");
    fs::write(scratch.path("text"), "This is <|extra|> a text. ".repeat(40)).unwrap();
    for command in ["run out --prompt <|extra|> -n 1", "verify out --against ckpt --text text"] {
        let ran = scratch.run(command);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr
                .contains("token 1024 is outside the vocabulary of 1024"),
            "{ran:?}"
        );
    }
    let scratch = trained();
    let ran = scratch.ok("convert ckpt -o out --bits 8");
    assert!(!ran.stdout.contains("but the embedding has"), "{ran:?}");
}
