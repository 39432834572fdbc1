//! Tokenizers that llama.cpp wrote are written again as they were.

use shardwright_testing::fixture;

use super::header;
use super::vocabulary::{Ends, Tokenizer};
use crate::checkpoint::gguf::{Header, Value, read_header, tokenizer};
use crate::io::ReadFile;

#[test]
fn tokenizers_are_read_back_document_for_document() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixture("tokenizers")).unwrap() {
        let path = entry.unwrap().path();
        // What is no byte-pair encoding is read alone.
        let read_alone = path.file_stem().is_some_and(|name| name == "unigram");
        if read_alone || path.extension().is_none_or(|end| end != "gguf") {
            continue;
        }
        let file = ReadFile::open(&path).unwrap();
        let bytes = read_header(&file).unwrap();
        let theirs = Header::parse(&bytes, file.len() - bytes.len() as u64).unwrap();
        let document = tokenizer::tokenizer(&theirs.metadata).unwrap();
        let config = tokenizer::config(&theirs.metadata).unwrap();
        let read = Tokenizer::parse(&document, Some(&config), None).unwrap();
        let Value::Array(tokens) = theirs.metadata["tokenizer.ggml.tokens"] else { panic!() };
        let metadata = read.metadata(tokens.count as u32, Ends::default()).unwrap();
        let written = header::encode(&metadata, &[]);
        let ours = Header::parse(&written, 0).unwrap();
        let found = tokenizer::tokenizer(&ours.metadata).unwrap();
        let same = found == document;
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        assert!(same, "{}\n{}\n{}", path.display(), text(&document), text(&found));
        assert_eq!(tokenizer::config(&ours.metadata).unwrap(), config, "{}", path.display());
        let pre = "tokenizer.ggml.pre";
        assert_eq!(
            ours.metadata.get(pre),
            theirs
                .metadata
                .get(pre)
                .filter(|_| !path.to_string_lossy().contains("spm")),
            "{}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen > 9);
}

#[test]
fn what_is_no_tokenizer_of_llama_cpp_is_refused() {
    let document = |pre: &str, post: &str| {
        format!(
            r#"{{"added_tokens":[],"pre_tokenizer":{pre},"post_processor":{post},
               "model":{{"type":"BPE","vocab":{{"a":0,"b":1}},"merges":[]}}}}"#
        )
    };
    let gpt2 = r#"{"type":"ByteLevel","add_prefix_space":false}"#;
    let two = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a"}},
                 {"SpecialToken":{"id":"b"}},{"Sequence":{"id":"A"}}]}"#;
    for (pre, post, rows, expected) in [
        (r#"{"type":"Whitespace"}"#, "null", 2, "pre_tokenizer: expected expressions"),
        (
            r#"{"type":"Split","pattern":{"Regex":"x"},"behavior":"Isolated"}"#,
            "null",
            2,
            "found [\"x\"]",
        ),
        (gpt2, two, 2, "expected one token before or after a text, found 2"),
        (gpt2, "null", 1, "expected tokens below 1, found 1: `b`"),
    ] {
        let read = Tokenizer::parse(document(pre, post).as_bytes(), None, None).unwrap();
        let refused = read
            .metadata(rows, Ends::default())
            .unwrap_err()
            .to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    let unigram = br#"{"model":{"type":"Unigram","vocab":[["a",-1.5]],"unk_id":0}}"#;
    let refused = Tokenizer::parse(unigram, None, None)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("expected a model of type BPE, found Unigram"), "{refused}");
}
