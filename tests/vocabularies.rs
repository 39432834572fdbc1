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
