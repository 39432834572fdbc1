//! JSON of configurations as Python's `json` writes and transformers reads it.

use serde::de::Error;
use serde_json::Value;

use crate::prose::{UTF_8, utf16};
use crate::refusal::mismatch;

/// The value of a text. Numbers that JSON does not have are null, which no number of a model's can be, and
/// a byte order mark before it is none of it.
///
/// # Errors
/// What is no JSON for another reason, as it stands; a text in UTF-16 by its name.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    // A text that is JSON is never looked at twice.
    let parsed = serde_json::from_slice(text).or_else(|e| without_literals(text).ok_or(e));
    parsed.map_err(|e| {
        let found = utf16(text).map(|found| mismatch(UTF_8, found));
        found.map_or(e, serde_json::Error::custom)
    })
}

/// Numbers that Python writes and JSON does not have.
const LITERALS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The text with null for [`LITERALS`] outside of strings; nothing where that is no JSON either.
fn without_literals(text: &[u8]) -> Option<Value> {
    let mut rest = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let (mut out, mut quoted) = (Vec::with_capacity(rest.len()), false);
    while let Some(byte) = rest.first() {
        let literal = LITERALS
            .iter()
            .find(|word| !quoted && rest.starts_with(word));
        let (taken, put): (usize, &[u8]) = match (literal, byte) {
            (Some(word), _) => (word.len(), b"null"),
            // What follows a backslash ends no string.
            (None, b'\\') if quoted => (2.min(rest.len()), &rest[..2.min(rest.len())]),
            (None, byte) => {
                quoted ^= *byte == b'"';
                (1, &rest[..1])
            }
        };
        out.extend_from_slice(put);
        rest = &rest[taken..];
    }
    serde_json::from_slice(&out).ok()
}
