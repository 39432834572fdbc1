//! Chat templates of published models render as transformers renders them: `fixtures/chat`, which
//! `make_chat.py` writes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use shardwright_runtime::text::{ChatTemplate, Message, Tokenizer};
use shardwright_testing::fixture;

fn messages(conversation: &Value) -> Vec<Message> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = conversation.as_array().unwrap().iter();
    messages
        .map(|message| Message::new(&text(&message["role"]), text(&message["content"])))
        .collect()
}

#[test]
fn templates_of_published_models_render_as_in_transformers() {
    let json = std::fs::read(fixture("chat/cases.json")).unwrap();
    let document: Value = serde_json::from_slice(&json).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(document["now"].as_u64().unwrap());
    let conversations = document["conversations"].as_array().unwrap();
    let (mut compared, mut refused) = (0, 0);
    for case in document["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let source = std::fs::read_to_string(fixture(&format!("chat/{name}.jinja"))).unwrap();
        let tokens = serde_json::from_value(case["tokens"].clone()).unwrap();
        let template = ChatTemplate::parse(Path::new(name), &source, tokens).unwrap();
        for (conversation, expected) in conversations
            .iter()
            .zip(case["rendered"].as_array().unwrap())
        {
            let rendered = template.render(&messages(conversation), now);
            match expected.as_str() {
                Some(expected) => assert_eq!(rendered.unwrap(), expected, "{name}"),
                None => assert!(rendered.is_err(), "{name}: {rendered:?}"),
            }
            compared += 1;
            refused += usize::from(expected.is_null());
        }
    }
    assert_eq!((compared, refused), (114, 3));
}

/// Line ends, methods of texts, `%`, JSON and dates.
#[test]
fn templates_may_use_what_python_has() {
    let json = std::fs::read(fixture("chat/python.json")).unwrap();
    let document: Value = serde_json::from_slice(&json).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(document["now"].as_u64().unwrap());
    let messages = messages(&document["conversation"]);
    let mut refused = 0;
    for case in document["small"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let template = ChatTemplate::parse(Path::new("t"), source, BTreeMap::new()).unwrap();
        let rendered = template.render(&messages, now);
        match case["rendered"].as_str() {
            Some(expected) => assert_eq!(rendered.unwrap(), expected, "{source}"),
            None => assert!(rendered.is_err(), "{source}: {rendered:?}"),
        }
        refused += usize::from(case["rendered"].is_null());
    }
    assert_eq!(refused, 6);
}

/// Special tokens of gpt-oss among those of another vocabulary.
fn tokenizer() -> Tokenizer {
    let path = fixture("fixture-2m/tokenizer.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = document["added_tokens"].as_array_mut().unwrap();
    for (id, text) in
        (1024..).zip(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"])
    {
        let mut token = added[0].clone();
        (token["id"], token["content"]) = (json!(id), json!(text));
        added.push(token);
    }
    Tokenizer::parse(&path, document.to_string().as_bytes()).unwrap()
}

/// gpt-oss answers in one of several channels; no other template here puts special tokens before an
/// answer.
#[test]
fn an_answer_begins_where_the_template_says() {
    let json = std::fs::read(fixture("chat/cases.json")).unwrap();
    let document: Value = serde_json::from_slice(&json).unwrap();
    let tokenizer = tokenizer();
    for case in document["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let source = std::fs::read_to_string(fixture(&format!("chat/{name}.jinja"))).unwrap();
        let tokens = serde_json::from_value(case["tokens"].clone()).unwrap();
        let template = ChatTemplate::parse(Path::new(name), &source, tokens).unwrap();
        let opening = template.answer_opening(&tokenizer, UNIX_EPOCH);
        let expected = if name.starts_with("gpt-oss") {
            tokenizer
                .encode("<|channel|>final<|message|>", false)
                .unwrap()
        } else {
            Vec::new()
        };
        assert_eq!(opening, expected, "{name}");
    }
}
