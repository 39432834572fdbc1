//! Parts against the whole, which the tokenizers library reads at once.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::weights::Weights;
use shardwright_testing::fixture;

use super::*;

/// Tokenizers of the published kinds that GGUF files describe, and the trained one.
const FILES: [&str; 10] = [
    "deepseek-v3",
    "glm4",
    "gpt-2",
    "gpt-4o",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "smollm",
    "spm-space",
    "spm",
];

fn described(name: &str) -> Vec<u8> {
    let path = fixture("tokenizers").join(format!("{name}.gguf"));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    let weights = Weights::from_checkpoint(checkpoint, inventory);
    weights
        .companion("tokenizer.json", TOKENIZER_LIMIT)
        .unwrap()
        .unwrap()
}

/// The trained tokenizer with other members, and one more added token of each kind.
fn altered(members: &[(&str, Value)]) -> Vec<u8> {
    let json = std::fs::read(fixture("fixture-2m/tokenizer.json")).unwrap();
    let mut document: Value = serde_json::from_slice(&json).unwrap();
    for (name, value) in members {
        document[*name] = value.clone();
    }
    let vocab = &document["model"]["vocab"];
    let size = vocab
        .as_object()
        .map_or_else(|| vocab.as_array().unwrap().len(), serde_json::Map::len);
    let added = document["added_tokens"].as_array_mut().unwrap();
    for (i, kind) in ["lstrip", "rstrip", "single_word", "normalized", "special"]
        .iter()
        .enumerate()
    {
        let mut token = json!({"id": size + i, "content": format!("<{kind}>"), "single_word": false,
                               "lstrip": false, "rstrip": false, "normalized": false, "special": false});
        token[*kind] = true.into();
        added.push(token);
    }
    document.to_string().into_bytes()
}

fn split(regex: &str, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": false})
}

/// Kinds that no fixture has, and whether they can be cut.
fn others() -> Vec<(String, Vec<u8>, bool)> {
    let bytes = |space: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex});
    let sequence = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
    let digits = |each| json!({"type": "Digits", "individual_digits": each});
    let nfc = || json!({"type": "NFC"});
    let metaspace = |scheme: &str, split| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
    let lone = |pre: Value| altered(&[("pre_tokenizer", pre)]);
    vec![
        ("a space before".into(), lone(bytes(true, true)), true),
        ("digits".into(), lone(sequence(&[digits(true), bytes(false, true)])), true),
        ("runs of digits".into(), lone(sequence(&[digits(false), bytes(false, true)])), true),
        (
            "NFC".into(),
            altered(&[("normalizer", nfc()), ("pre_tokenizer", bytes(false, true))]),
            true,
        ),
        ("lower case".into(), altered(&[("normalizer", json!({"type": "Lowercase"}))]), true),
        ("first".into(), lone(metaspace("first", true)), true),
        ("always".into(), lone(metaspace("always", true)), true),
        ("never".into(), lone(metaspace("never", false)), false),
        ("before".into(), lone(split(r"[a-z]+ ", "MergedWithPrevious")), false),
        ("next".into(), lone(split(r"[0-9]+", "MergedWithNext")), true),
        ("removed".into(), lone(split(r"\s+", "Removed")), true),
        ("looks back".into(), lone(split(r"(?<=a) ", "Isolated")), false),
        ("repeats words".into(), lone(split(r"(?:[a-z]+ )+", "Isolated")), false),
        ("anything".into(), lone(split(r"(?s).+", "Isolated")), true),
        (
            "strips".into(),
            altered(&[(
                "normalizer",
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            )]),
            false,
        ),
    ]
}

fn tokenizer(json: &[u8]) -> Tokenizer {
    Tokenizer::parse(Path::new("tokenizer.json"), json).unwrap()
}

/// In parts of `least` bytes and more.
fn in_parts(tokenizer: &Tokenizer, text: &str, least: usize) -> Vec<u32> {
    let mut left = text;
    let mut more = |window: &mut String, bytes: usize| {
        let (now, then) = left.split_at(left.ceil_char_boundary(bytes.min(left.len())));
        window.push_str(now);
        left = then;
        Ok(!left.is_empty())
    };
    tokenizer
        .read_in(&mut more, usize::MAX, false, least..=usize::MAX)
        .unwrap()
}

/// A tokenizer as we read it and as the library does.
struct Both {
    name: String,
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

fn check(both: &Both, text: &str, least: usize) {
    let name = &both.name;
    let whole = both.theirs.encode(text, false).unwrap();
    let ours = both.ours.encoding(text).unwrap();
    assert!(ours == whole, "{name}: another encoding");
    let found = in_parts(&both.ours, text, least);
    if found != whole.get_ids() {
        let at = found.iter().zip(whole.get_ids()).position(|(a, b)| a != b);
        let at = at.unwrap_or(found.len().min(whole.len()));
        let from = text.floor_char_boundary(
            whole.get_offsets()[at.min(whole.len() - 1)]
                .0
                .saturating_sub(40),
        );
        let near: String = text[from..].chars().take(80).collect();
        panic!("{name}, {least}: other tokens from {at} on, near {near:?}");
    }
}

fn all() -> Vec<Both> {
    let mut all: Vec<_> = FILES
        .iter()
        .map(|name| ((*name).to_owned(), described(name)))
        .collect();
    all.push(("fixture-2m".to_owned(), altered(&[])));
    all.extend(others().into_iter().map(|(name, json, _)| (name, json)));
    all.extend(models());
    let both = |(name, json): (String, Vec<u8>)| {
        let mut theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        theirs.with_truncation(None).unwrap().with_padding(None);
        Both { name, ours: tokenizer(&json), theirs }
    };
    all.into_iter().map(both).collect()
}

/// Models that no fixture has.
fn models() -> Vec<(String, Vec<u8>)> {
    let json = std::fs::read(fixture("fixture-2m/tokenizer.json")).unwrap();
    let document: Value = serde_json::from_slice(&json).unwrap();
    let with = |name: &str, members: Value| {
        let mut model = document["model"].clone();
        for (member, value) in members.as_object().unwrap() {
            model[member] = value.clone();
        }
        (name.to_owned(), altered(&[("model", model), ("pre_tokenizer", Value::Null)]))
    };
    let lines: Vec<_> = document["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())))
        .chain([json!("#version: 0.2")])
        .collect();
    let few = |model: &str, vocab: Value, more: Value| {
        let mut model = json!({"type": model, "vocab": vocab});
        model
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        altered(&[("model", model), ("pre_tokenizer", json!({"type": "Whitespace"}))])
    };
    let pieces = json!({"a": 0, "b": 1, "##b": 2, "##a": 3, "ab": 4, "aba": 5, "b</w>": 6, "##b</w>": 7, "[x]": 8,
                        "<0x0A>": 9, "##aba": 10, "abb</w>": 11});
    let scores = json!([
        ["<unk>", 0.0],
        ["a", -1.5],
        ["aa", -1.75],
        ["th", -2.0],
        ["the", -2.5],
        ["e", -3.0],
        ["\n", -4.0]
    ]);
    vec![
        with("unknown", json!({"unk_token": "!"})),
        with("unknown, fused", json!({"unk_token": "!", "fuse_unk": true})),
        with("whole words", json!({"unk_token": "!", "ignore_merges": true})),
        with("lines", json!({"merges": lines})),
        (
            "ends".to_owned(),
            few(
                "BPE",
                pieces,
                json!({"unk_token": "[x]", "continuing_subword_prefix": "##",
            "end_of_word_suffix": "</w>", "byte_fallback": true, "merges": [["a", "##b"], ["ab", "##a"], ["ab", "##b</w>"]]}),
            ),
        ),
        ("scores".to_owned(), few("Unigram", scores, json!({"unk_id": 0}))),
        (
            "words".to_owned(),
            few("WordLevel", json!({"the": 0, "a": 1, "?": 2}), json!({"unk_token": "?"})),
        ),
    ]
}

/// Words that tokenizers treat unlike one another.
const WORDS: &[&str] = &[
    "the",
    "don't",
    "it's",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "1",
    "23",
    "4567",
    "word",
    "Word",
    "naïve",
    "e\u{301}",
    "日本",
    "日本語",
    "。",
    "，",
    "が",
    "か\u{3099}",
    "🙂",
    "👩\u{200d}🔬",
    ".",
    ",",
    "!?",
    "...",
    "(x)",
    "_a",
    "\u{2581}",
    "\u{a0}",
    "ﬁ",
    "한국",
    "\u{1112}\u{1161}",
    "नमस्ते",
    "слово",
    "İ",
    "\0",
    "<lstrip>",
    "<rstrip>",
    "<single_word>",
    "<normalized>",
    "<special>",
    "<|endoftext|>",
    "</s>",
    "''",
    "'S",
    "    ",
    "----------",
    "aaaa",
];

#[test]
fn long_texts_have_the_tokens_of_the_whole() {
    let text = std::fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    let text = &text[..text.floor_char_boundary(20_000)];
    let texts = [
        text.to_owned(),
        text.replace('\n', " "),
        text.replace('\n', "\r\n"),
        text.replace([' ', '\n'], ""),
        "日本語の文章です。句読点，そして改行\n".repeat(200),
        "QmFzZTY0IGlzIG5vdCB0ZXh0Cg0".repeat(300),
    ];
    for both in all() {
        for text in &texts {
            check(&both, text, 700);
        }
    }
}

/// Published kinds are cut in what people write, with what they may leave out.
#[test]
fn ordinary_text_is_cut() {
    let text = std::fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    let text = &text[..text.floor_char_boundary(20_000)];
    let can = FILES
        .iter()
        .map(|name| ((*name).to_owned(), described(name), true));
    for (name, json, can) in can.chain(others()) {
        let tokenizer = tokenizer(&json);
        let mut window = 0;
        for text in [text.to_owned(), text.replace('\n', " ")] {
            let cut = tokenizer.part(&text).unwrap();
            window += usize::from(cut.is_some_and(|(_, next)| next > text.len() - 8000));
        }
        // `.` matches everything: such an expression has no places, though nothing forbids them.
        let can = can && name != "anything";
        assert_eq!(window, if can { 2 } else { 0 }, "{name}");
    }
}

#[test]
fn no_more_is_read_than_the_tokens_take() {
    let tokenizer = tokenizer(&described("qwen2"));
    let mut given = 0;
    let mut more = |text: &mut String, bytes: usize| {
        given += bytes;
        text.extend("some words of a text ".chars().cycle().take(bytes));
        Ok(true)
    };
    assert_eq!(tokenizer.read(&mut more, 3000, false).unwrap().len(), 3000);
    assert!(given < 3 * WINDOW, "{given}");
    // A text that cannot be cut is refused when a bound is reached, not read on.
    let mut given = 0;
    let mut endless = |text: &mut String, bytes: usize| {
        given += bytes;
        text.extend(std::iter::repeat_n('a', bytes));
        Ok(true)
    };
    let error = tokenizer
        .read(&mut endless, 10, false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("1024 KiB of it have no place"), "{error}");
    assert_eq!(given, LARGEST_WINDOW);
}

#[test]
fn special_tokens_are_put_around_all_parts() {
    let json = described("llama-bpe");
    let tokenizer = tokenizer(&json);
    let text = "some words ".repeat(5000);
    let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    let whole = theirs.encode(text.as_str(), true).unwrap();
    assert_eq!(tokenizer.encode(&text, true).unwrap(), whole.get_ids());
    assert!(whole.get_ids().len() > tokenizer.encode(&text, false).unwrap().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_has_the_tokens_of_the_whole(
        words in prop::collection::vec((prop::sample::select(WORDS), prop::sample::select(&["", " ", " ", "\n"])), 200..700),
        least in 300..1200usize,
    ) {
        thread_local! {
            static ALL: Vec<Both> = all();
        }
        let text: String = words.iter().flat_map(|(word, space)| [*word, *space]).collect();
        ALL.with(|all| {
            for both in all {
                check(both, &text, least);
            }
        });
    }
}
