//! The tokenizer of the trained fixture.
#![allow(clippy::unwrap_used)]

use shardwright_runtime::text::{TextStream, Tokenizer};
use shardwright_testing::fixture;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixture("fixture-2m/tokenizer.json")).unwrap()
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
    let path = dir.path().join("tokenizer.json");
    let refused = Tokenizer::open(&path).unwrap_err().to_string();
    let help = "no such file; copy the tokenizer.json of the original model there";
    assert_eq!(refused, format!("{}: {help}", path.display()));
    std::fs::write(&path, "{\"version\": 1").unwrap();
    let refused = Tokenizer::open(&path).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("{}: is not a tokenizer (", path.display())), "{refused}");
    assert!(refused.ends_with("copy the tokenizer.json of the original model there again"));
}
