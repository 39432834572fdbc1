//! Prompts from files, read no further than a context could hold.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use shardwright_format::prose::{self, Reader};
use shardwright_runtime::text::Tokenizer;

use crate::failure::Failure;

/// Most tokens of a prompt where `--context` does not say how many there is room for.
const MOST_TOKENS: usize = 1 << 20;
/// Most bytes of a message of a conversation, which its template needs whole.
const MESSAGE_LIMIT: usize = 4 << 20;
/// Bytes of a message read at a time.
const BLOCK: usize = 64 << 10;

/// A text and why it may surprise.
type Noted<T> = (T, Option<&'static str>);

/// The tokens of the prompt in a file, with those around it.
///
/// # Errors
/// A file that cannot be read or is no text; more tokens than there is room for.
pub(super) fn tokens(
    tokenizer: &Tokenizer,
    path: &Path,
    context: Option<usize>,
) -> Result<Noted<Vec<u32>>, Failure> {
    let most = context.unwrap_or(MOST_TOKENS);
    let mut reader = open(path)?;
    let mut more = |text: &mut String, bytes| reader.read(text, bytes);
    // One more than fits shows that there are too many.
    let tokens = tokenizer.read(&mut more, most.saturating_add(1), true)?;
    if tokens.len() > most {
        let says = if context.is_some() { "as --context says" } else { "more with --context" };
        let path = path.display();
        let message = format!(
            "{path}: the prompt has more than {most} tokens: expected at most {most}, {says}"
        );
        return Err(Failure::new(message));
    }
    Ok((tokens, reader.note()))
}

/// The message that the options give.
///
/// # Errors
/// As [`tokens`]; a longer text than a conversation takes.
pub(super) fn message(text: Option<&str>, file: Option<&Path>) -> Result<Noted<String>, Failure> {
    let Some(path) = file else {
        let text = text.unwrap_or_default();
        return Ok((text.to_owned(), prose::note(text)));
    };
    let (mut reader, mut text) = (open(path)?, String::new());
    while reader.read(&mut text, BLOCK)? {
        if text.len() > MESSAGE_LIMIT {
            let path = path.display();
            let message =
                format!("{path}: expected a message of at most {MESSAGE_LIMIT} bytes, found more");
            return Err(Failure::new(message));
        }
    }
    Ok((text, reader.note()))
}

/// A file, a pipe or standard input.
fn open(path: &Path) -> Result<Reader<Box<dyn Read>>, Failure> {
    if path == Path::new("-") {
        return Ok(Reader::new(path, Box::new(stdin().lock())));
    }
    let named = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(named)?;
    Ok(Reader::new(path, Box::new(file)))
}
