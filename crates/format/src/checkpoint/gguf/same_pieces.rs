//! Whether a `tokenizer.json` beside a GGUF file has the pieces of its vocabulary.
//!
//! Files of several models lie in one directory, and a `tokenizer.json` of another model gives other tokens
//! without a word: it is used in place of the file's own vocabulary only where both say the same.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use super::header::Header;
use super::tokenizer::{kinds, texts};
use crate::checkpoint::file_names::TOKENIZER_NAME;
use crate::checkpoint::tokenizer::{Kind, SPACE};
use crate::error::{FormatError, Result};
use crate::io::{TOKENIZER_LIMIT, read_limited};
use crate::refusal::mismatch;

/// What to do about another model's.
const NEXT: &str =
    "take the tokenizer.json of its model, or remove this one: the GGUF file has a vocabulary";

/// Of a `tokenizer.json` what has numbers: no merges, which take longest to read.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Vocab,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
}

/// Pieces and their numbers, of a map from one to the other or of a list in their order.
#[derive(Default)]
struct Vocab(Vec<(String, usize)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Pieces)
    }
}

struct Pieces;

impl<'de> Visitor<'de> for Pieces {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pieces by number")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut pieces = Vec::new();
        while let Some(piece) = map.next_entry()? {
            pieces.push(piece);
        }
        Ok(Vocab(pieces))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
        let mut pieces = Vec::new();
        while let Some((piece, _)) = list.next_element::<(String, f64)>()? {
            pieces.push((piece, pieces.len()));
        }
        Ok(Vocab(pieces))
    }
}

/// Refuses a `tokenizer.json` beside the GGUF file `path` whose pieces are others than the file's. One that is
/// none, or has no pieces, is refused where text is read.
///
/// # Errors
/// The first token that differs.
pub(super) fn check(path: &Path, header: &Header<'_>) -> Result<()> {
    let beside = path.with_file_name(TOKENIZER_NAME);
    let Some(text) = read_limited(&beside, TOKENIZER_LIMIT)? else { return Ok(()) };
    let Ok(document) = serde_json::from_slice::<Document>(&text) else { return Ok(()) };
    let Ok(tokens) = texts(&header.metadata, "tokens") else { return Ok(()) };
    let kinds = kinds(&header.metadata);
    let Some((id, expected, found)) = first_unlike(&document, &tokens, &kinds) else {
        return Ok(());
    };
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let shown = |piece: Option<&str>| piece.map_or_else(|| "none".to_owned(), |p| format!("{p:?}"));
    let expected = format!("{} as in {file}", shown(expected));
    let detail = mismatch(expected, format_args!("{}; {NEXT}", shown(found)));
    Err(FormatError::file(&beside, detail.at(format_args!("token {id}"))))
}

/// The first token that is not the same: its number, the file's text of it and the document's. The document may
/// have more added tokens, of which the file's converter may not have known.
fn first_unlike<'a>(
    document: &'a Document,
    tokens: &[&'a str],
    kinds: &[Kind],
) -> Option<(usize, Option<&'a str>, Option<&'a str>)> {
    let Vocab(pieces) = &document.model.vocab;
    if pieces.is_empty() {
        return None;
    }
    let mut found = vec![None; tokens.len()];
    let mut beyond = None;
    for (piece, id) in pieces {
        match found.get_mut(*id) {
            Some(place) => *place = Some(piece.as_str()),
            None if beyond.is_none_or(|(first, _)| *id < first) => beyond = Some((*id, piece)),
            None => {}
        }
    }
    for added in &document.added_tokens {
        if let Some(place) = found.get_mut(added.id) {
            *place = Some(&added.content);
        }
    }
    let unlike = |id: &usize| !alike(tokens[*id], kinds.get(*id).copied(), found[*id]);
    let within = (0..tokens.len()).find(unlike);
    within
        .map(|id| (id, Some(tokens[id]), found[id]))
        .or_else(|| beyond.map(|(id, piece)| (id, None, Some(piece.as_str()))))
}

/// Whether a token of the file, of a kind if it says so, is what the document has at its number.
fn alike(token: &str, kind: Option<Kind>, found: Option<&str>) -> bool {
    let bare = |text: &str| text.replace(SPACE, " ").trim().to_owned();
    match (kind, found) {
        // Numbers that a converter filled up.
        (Some(Kind::Unused), _) => true,
        (Some(Kind::Normal | Kind::Byte), found) => found == Some(token),
        // Converters write spaces of added tokens their own way, and whoever has no such token cannot say it.
        (_, Some(found)) => found == token || bare(found) == bare(token),
        (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlike(json: &str, kinds: &[Kind]) -> Option<(usize, Option<String>, Option<String>)> {
        let document: Document = serde_json::from_str(json).unwrap();
        let tokens = ["<s>", "a", "\u{2581}b", "  ", "[PAD4]"];
        let found = first_unlike(&document, &tokens, kinds);
        found.map(|(id, a, b)| (id, a.map(str::to_owned), b.map(str::to_owned)))
    }

    /// Spaces of an added token, numbers without use and further added tokens are no other model's.
    #[test]
    fn pieces_are_compared_by_number() {
        use Kind::{Control, Normal, Unused, UserDefined};
        let kinds = [Control, Normal, Normal, UserDefined, Unused];
        let added = r#""added_tokens": [{"id": 0, "content": "<s>"}, {"id": 3, "content": "▁▁"}, {"id": 9, "content": "x"}]"#;
        let same = format!(r#"{{"model": {{"vocab": {{"▁b": 2, "a": 1}}}}, {added}}}"#);
        assert_eq!(unlike(&same, &kinds), None);
        let list = r#"{"model": {"vocab": [["<s>", 0.0], ["a", -1.5], ["▁b", -2]]}}"#;
        assert_eq!(unlike(list, &kinds), None);
        let some = |text: &str| Some(text.to_owned());
        let turned = r#"{"model": {"vocab": {"<s>": 0, "▁b": 1, "a": 2}}}"#;
        assert_eq!(unlike(turned, &kinds), Some((1, some("a"), some("▁b"))));
        let fewer = r#"{"model": {"vocab": {"<s>": 0, "a": 1}}}"#;
        assert_eq!(unlike(fewer, &kinds), Some((2, some("▁b"), None)));
        let more = r#"{"model": {"vocab": {"<s>": 0, "a": 1, "▁b": 2, "z": 7, "y": 6}}}"#;
        assert_eq!(unlike(more, &kinds), Some((6, None, some("y"))));
        let renamed = r#"{"model": {"vocab": {"<x>": 0, "a": 1, "▁b": 2}}}"#;
        assert_eq!(unlike(renamed, &kinds), Some((0, some("<s>"), some("<x>"))));
        // Files of before kinds say nothing of what is missing.
        assert_eq!(unlike(fewer, &[]), None);
        assert_eq!(unlike("{}", &kinds), None);
    }
}
