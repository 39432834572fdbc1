//! One text as the tokens that all models of a comparison predict.

use shardwright_format::checkpoint::TOKENIZER_NAME;
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::prose::Reader;
use shardwright_runtime::text::Tokenizer;

use crate::check::divergence::{EvalWindows, Party};
use crate::check::overlap::Text;
use crate::error::{Result, VerifyError};

/// The text's tokens, without any that a tokenizer puts around a text; and, of each candidate, whether it
/// has no tokenizer of its own.
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<u32>,
    pub(crate) without: Vec<bool>,
}

/// Reads the text with the original's tokenizer, or the first candidate's that has one.
///
/// # Errors
/// Tokenizers that differ in a piece or in what they make of the text that is used; none at all.
pub(crate) fn read(
    text: &Text<'_>,
    original: &Party<'_>,
    candidates: &[Party<'_>],
    windows: EvalWindows,
) -> Result<Tokens> {
    let of_original = json(original)?;
    let files: Vec<_> = candidates.iter().map(json).collect::<Result<_>>()?;
    let first = candidates
        .iter()
        .zip(&files)
        .find(|(_, file)| file.is_some());
    let (reference, own) = match first {
        Some((candidate, file)) if of_original.is_none() => (candidate, file),
        _ => (original, &of_original),
    };
    let tokenizer = open(reference)?;
    let encode = |tokenizer: &Tokenizer, party: &Party<'_>| {
        let mut reader = Reader::open(text.path)?;
        let mut more = |text: &mut String, bytes| reader.read(text, bytes);
        let most = windows
            .limit
            .map_or(usize::MAX, |limit| limit.saturating_mul(windows.window));
        let tokens = tokenizer.read(&mut more, most, false);
        tokens.map_err(VerifyError::of_model(party.name))
    };
    let tokens = encode(&tokenizer, reference)?;
    let used = windows.count(tokens.len())? * windows.window;
    for (party, file) in candidates.iter().zip(&files) {
        if file.is_none() || file == own {
            continue;
        }
        let other = open(party)?;
        if let Some(what) = tokenizer.difference(reference.name, &other, party.name) {
            return Err(VerifyError::TokenizersDiffer(what));
        }
        let found = encode(&other, party)?;
        same_tokens(&tokens[..used], reference.name, &found, party.name)?;
    }
    let without = files.iter().map(Option::is_none).collect();
    Ok(Tokens { tokens, without })
}

/// The bytes of a model's tokenizer, if it has one.
fn json(party: &Party<'_>) -> Result<Option<Vec<u8>>> {
    let found = party.weights.companion(TOKENIZER_NAME, TOKENIZER_LIMIT);
    found.map_err(|e| VerifyError::of_model(party.name)(e.into()))
}

fn open(party: &Party<'_>) -> Result<Tokenizer> {
    Tokenizer::open(party.weights).map_err(VerifyError::of_model(party.name))
}

/// # Errors
/// Names the first position at which the two make other tokens of the text.
fn same_tokens(used: &[u32], a: &str, found: &[u32], b: &str) -> Result<()> {
    let at = used
        .iter()
        .zip(found)
        .position(|(x, y)| x != y)
        .or_else(|| (found.len() < used.len()).then_some(found.len()));
    let Some(at) = at else { return Ok(()) };
    let theirs = found
        .get(at)
        .map_or("the end".to_owned(), ToString::to_string);
    let what = format!("at position {at} of the text {a} has token {}, {b} {theirs}", used[at]);
    Err(VerifyError::TokenizersDiffer(what))
}
