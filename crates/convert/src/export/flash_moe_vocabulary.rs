//! `vocab.bin`, the text of each token, and `tokenizer.bin`, what makes tokens of text: both of `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use shardwright_format::checkpoint::TOKENIZER_NAME;
use shardwright_format::checkpoint::flash_moe::VOCABULARY_NAMES;
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Refusal, mismatch};

use crate::error::Result;

/// What `tokenizer.bin` begins with, and its version.
const MAGIC: &[u8] = b"BPET\x01\0\0\0";

#[derive(Deserialize)]
struct Document {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

/// A pair, or in older files a line with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Line(String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Writes both files into `dir`; `false` where the model has no `tokenizer.json`.
///
/// # Errors
/// One that merges no pairs, or that the files cannot hold; what the operating system refuses.
pub(super) fn write(weights: &Weights, dir: &Path) -> Result<bool> {
    let path = weights.root().join(TOKENIZER_NAME);
    let Some(text) = weights.companion(TOKENIZER_NAME, TOKENIZER_LIMIT)? else {
        return Ok(false);
    };
    let refused = |why: Refusal| FormatError::file(&path, why.at("flash-moe"));
    let document = serde_json::from_slice::<Document>(&text);
    let document = document.map_err(|e| {
        refused(mismatch("a vocabulary with merges of pairs", format_args!("none ({e})")))
    })?;
    let known = weights.spec().vocab_size;
    let made = [document.texts(known), document.tokenizer()];
    for (name, bytes) in VOCABULARY_NAMES.into_iter().zip(made) {
        let to = dir.join(name);
        std::fs::write(&to, bytes.map_err(refused)?).map_err(|e| FormatError::io(&to, e))?;
    }
    Ok(true)
}

impl Document {
    /// The number of tokens, the largest of their numbers, and the text of each in order, empty where there
    /// is none. `known` bounds them, so that a number alone takes no memory.
    fn texts(&self, known: u32) -> Result<Vec<u8>, Refusal> {
        let pieces = self.model.vocab.iter().map(|(piece, id)| (*id, piece));
        let added = self
            .added_tokens
            .iter()
            .map(|added| (added.id, &added.content));
        let all: BTreeMap<u32, &String> = pieces.chain(added).collect();
        let Some((&largest, _)) = all.last_key_value() else {
            return Err(mismatch("tokens", "none"));
        };
        if largest >= known {
            return Err(format!("token {largest}: expected one of the model's {known}").into());
        }
        let mut bytes = [largest + 1, largest].map(u32::to_le_bytes).concat();
        for id in 0..=largest {
            push_text(&mut bytes, all.get(&id).map_or("", |text| text.as_str()))?;
        }
        Ok(bytes)
    }

    /// Pieces by their numbers, pairs by their ranks, added tokens as listed.
    fn tokenizer(&self) -> Result<Vec<u8>, Refusal> {
        let Self { model: Model { vocab, merges }, added_tokens } = self;
        let mut bytes = MAGIC.to_vec();
        for count in [vocab.len(), merges.len(), added_tokens.len()] {
            bytes.extend(
                u32::try_from(count)
                    .map_err(|e| e.to_string())?
                    .to_le_bytes(),
            );
        }
        let mut pieces: Vec<_> = vocab.iter().collect();
        pieces.sort_by_key(|(_, id)| **id);
        for (piece, id) in pieces {
            bytes.extend(id.to_le_bytes());
            push_text(&mut bytes, piece)?;
        }
        for merge in merges {
            let (a, b) = match merge {
                Merge::Pair([a, b]) => (a.as_str(), b.as_str()),
                Merge::Line(line) => line
                    .split_once(' ')
                    .ok_or_else(|| mismatch("a pair", format_args!("`{line}`")))?,
            };
            push_text(&mut bytes, a)?;
            push_text(&mut bytes, b)?;
        }
        for Added { id, content } in added_tokens {
            bytes.extend(id.to_le_bytes());
            push_text(&mut bytes, content)?;
        }
        Ok(bytes)
    }
}

/// Length and bytes of a text.
fn push_text(bytes: &mut Vec<u8>, text: &str) -> Result<(), Refusal> {
    let len = u16::try_from(text.len());
    let len = len.map_err(|_| mismatch("texts below 64 KiB", text.len()))?;
    bytes.extend(len.to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(vocab: &str, merges: &str) -> Document {
        let text = format!(r#"{{"model": {{"vocab": {vocab}, "merges": {merges}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    /// Numbers that nobody has leave gaps; pairs are written alike from lists and from lines.
    #[test]
    fn gaps_are_empty_and_pairs_may_be_lines() {
        let vocab = r#"{"b": 2, "a": 0}"#;
        let lines = document(vocab, r#"["a b"]"#);
        assert_eq!(lines.texts(3).unwrap(), b"\x03\0\0\0\x02\0\0\0\x01\0a\0\0\x01\0b");
        let pairs = document(vocab, r#"[["a", "b"]]"#).tokenizer().unwrap();
        assert_eq!(pairs, lines.tokenizer().unwrap());
        assert!(pairs.ends_with(b"\x01\0a\x01\0b"));
    }

    #[test]
    fn what_the_files_cannot_hold_is_refused() {
        let far = document(r#"{"a": 4000000000}"#, "[]").texts(3).unwrap_err();
        assert_eq!(far, "token 4000000000: expected one of the model's 3".into());
        assert_eq!(document("{}", "[]").texts(3).unwrap_err(), mismatch("tokens", "none"));
        let long = format!(r#"{{"{}": 0}}"#, "a".repeat(1 << 16));
        let long = document(&long, "[]").tokenizer().unwrap_err();
        assert_eq!(long, mismatch("texts below 64 KiB", 65536));
        let one = document("{}", r#"["ab"]"#).tokenizer().unwrap_err();
        assert_eq!(one, mismatch("a pair", "`ab`"));
    }
}
