//! Files beside the weights that whoever has the result parses: held against JSON before anything is
//! written, since a conversion takes hours.

use std::path::Path;

use serde::de::IgnoredAny;
use shardwright_format::checkpoint::{TOKENIZER_CONFIG_NAME, TOKENIZER_NAME};
use shardwright_format::io::{CONFIG_LIMIT, TOKENIZER_LIMIT};
use shardwright_format::{FormatError, mismatch, written_json};

/// As Python writes it: read with numbers that JSON does not have.
const WRITTEN: [&str; 2] = [TOKENIZER_CONFIG_NAME, "generation_config.json"];

/// The `tokenizer.json` that `read` gives for its name and a most of bytes, if there is one.
///
/// # Errors
/// One of these files that is no JSON, and what `read` says.
pub(crate) fn check(
    root: &Path,
    read: impl Fn(&str, u64) -> Result<Option<Vec<u8>>, FormatError>,
) -> Result<Option<Vec<u8>>, FormatError> {
    let refused = |name: &str, e: serde_json::Error| {
        let found = mismatch("JSON", format_args!("a text that is none ({e})"));
        let next = "put the original model's file there, or remove it";
        FormatError::file(&root.join(name), format!("{found}; {next}"))
    };
    for name in WRITTEN {
        if let Some(text) = read(name, CONFIG_LIMIT)? {
            written_json::parse(&text).map_err(|e| refused(name, e))?;
        }
    }
    let tokenizer = read(TOKENIZER_NAME, TOKENIZER_LIMIT)?;
    if let Some(text) = &tokenizer {
        serde_json::from_slice::<IgnoredAny>(text).map_err(|e| refused(TOKENIZER_NAME, e))?;
    }
    Ok(tokenizer)
}
