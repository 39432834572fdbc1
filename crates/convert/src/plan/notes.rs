//! What a user should know of a checkpoint before and after its conversion.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use shardwright_format::checkpoint::{Checkpoint, TOKENIZER_NAME, TokensBeside};
use shardwright_format::manifest::FileEntry;
use shardwright_runtime::RuntimeError;
use shardwright_runtime::options::TokenizerMemory;
use shardwright_runtime::text::{MAKE_TOKENIZER, Tokenizer, other_form};

use super::Plan;
use crate::companions;
use crate::error::Result;

/// A line for each thing that is known without reading the vocabulary.
pub(super) fn notes(checkpoint: &Checkpoint, copies: &[FileEntry]) -> Vec<String> {
    let mut notes = checkpoint.notes().to_vec();
    let copied = |name: &str| copies.iter().any(|copy| copy.path == name);
    if copied("tokenizer.json") {
        let of = checkpoint.vocabulary();
        notes.extend(of.map(|(name, _)| format!("tokenizer.json is made from {name}")));
    } else {
        let unread = checkpoint.vocabulary();
        let unread = unread.and_then(|(name, why)| Some((format!("{name} ({})", why?), "")));
        let other = unread.or_else(|| other_form(copied));
        let (what, needs) = other.map_or(("no tokenizer.json".to_owned(), ""), |(name, needs)| {
            (format!("no tokenizer.json, only {name}"), needs)
        });
        notes.push(format!(
            "{what}: the bundle runs no text until it has one; make it before with {MAKE_TOKENIZER}{needs}"
        ));
    }
    notes
}

impl Plan {
    /// Adds to the notes whether the vocabulary goes beyond the embedding, or cannot be read. Reads all of
    /// `tokenizer.json`: call it for the plan that is carried out, not for each of those that a search for a
    /// recipe makes. Gives what a program takes with the tokenizer, if it can be read.
    ///
    /// # Errors
    /// A file beside the weights that is parsed later and is no JSON.
    pub fn note_vocabulary(&mut self, checkpoint: &Checkpoint) -> Result<Option<TokenizerMemory>> {
        let copied = |name: &str| self.manifest.files.iter().any(|file| file.path == name);
        let read = |name: &str, limit| {
            if copied(name) { checkpoint.companion(name, limit) } else { Ok(None) }
        };
        let json = companions::check(checkpoint.root(), read)?;
        if json.is_some() {
            // One that was made of something else is held to the end.
            let made = checkpoint.synthesized(TOKENIZER_NAME)?;
            self.cost.peak_memory += made.map_or(0, |made| made.len() as u64);
        }
        let Some(json) = json else { return Ok(None) };
        let opened = match beyond(&json, self.manifest.model.vocab_size) {
            Err(unknown) => Err(unknown),
            Ok(note) => {
                let opened = self.open(checkpoint, &json);
                self.notes.extend(note.filter(|_| opened.is_ok()));
                opened
            }
        };
        self.notes.extend(opened.as_ref().err().cloned());
        Ok(opened.ok())
    }

    /// What a program takes with a tokenizer. Opening it takes memory before the conversion does.
    ///
    /// # Errors
    /// What is said of a `tokenizer.json` that makes none.
    fn open(&mut self, checkpoint: &Checkpoint, json: &[u8]) -> Result<TokenizerMemory, String> {
        let read = |name: &str, limit| checkpoint.companion(name, limit);
        let beside = TokensBeside::new(&read, checkpoint.root());
        let opened = beside
            .map_err(RuntimeError::from)
            .and_then(|beside| Tokenizer::with(Path::new(TOKENIZER_NAME), json, &beside));
        let opened = opened.map_err(|e| format!("{e}; until then the bundle runs no text"));
        let memory = TokenizerMemory::new(&opened?);
        let before = memory.loading + checkpoint.reading_memory();
        self.cost.peak_memory = self.cost.peak_memory.max(before);
        Ok(memory)
    }
}

/// What is said of a `tokenizer.json` that has a token for which an embedding of `rows` rows has none.
///
/// # Errors
/// What is said of one without a vocabulary.
fn beyond(json: &[u8], rows: u32) -> Result<Option<String>, String> {
    let document = serde_json::from_slice(json).map_err(|e| {
        format!(
            "{TOKENIZER_NAME} has no vocabulary that is known here ({e}): the bundle runs no text until it has another"
        )
    });
    let Document { added_tokens, model } = document?;
    let added = added_tokens
        .into_iter()
        .map(|token| (token.id, token.content));
    let last = added.chain(model.vocab.last).max();
    let beyond = last.filter(|(last, _)| *last >= u64::from(rows));
    Ok(beyond.map(|(last, text)| {
        format!(
            "{TOKENIZER_NAME} has token {last}, {text:?}, but the embedding has {rows} rows: a text with a \
             token beyond them is refused"
        )
    }))
}

/// A `tokenizer.json`, as far as its numbers go.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
}

/// The last token of a vocabulary: of pieces with numbers, or of a list.
struct Vocab {
    last: Option<(u64, String)>,
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut last = None;
        while let Some((piece, id)) = map.next_entry::<String, u64>()? {
            last = last.max(Some((id, piece)));
        }
        Ok(Vocab { last })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
        let (mut last, mut count) = (None, 0);
        while let Some((piece, _)) = list.next_element::<(String, IgnoredAny)>()? {
            last = Some((count, piece));
            count += 1;
        }
        Ok(Vocab { last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_is_found_in_every_form() {
        let pieces = br#"{"model": {"vocab": {"a": 0, "c": 7, "b": 1}}}"#;
        assert!(
            beyond(pieces, 7)
                .unwrap()
                .unwrap()
                .starts_with("tokenizer.json has token 7, \"c\", but")
        );
        assert_eq!(beyond(pieces, 8), Ok(None));
        let list = br#"{"model": {"vocab": [["a", 0.5], ["b", -1]]}}"#;
        assert!(beyond(list, 1).unwrap().unwrap().contains("token 1, \"b\""));
        assert_eq!(beyond(list, 2), Ok(None));
        let added =
            br#"{"added_tokens": [{"id": 9, "content": "<x>"}], "model": {"vocab": {"a": 0}}}"#;
        assert!(
            beyond(added, 9)
                .unwrap()
                .unwrap()
                .contains("token 9, \"<x>\"")
        );
        let none = beyond(b"{}", 0).unwrap_err();
        assert!(none.contains("no vocabulary that is known here (missing field `model`"), "{none}");
    }
}
