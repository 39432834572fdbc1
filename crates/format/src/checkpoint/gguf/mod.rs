//! GGUF files: what llama.cpp keeps models and importance matrices in.

mod config;
mod facts;
mod grouped;
mod header;
mod open;
pub(crate) mod rope;
mod same_pieces;
mod synthesized;
pub(crate) mod table;
pub(crate) mod tokenizer;

pub(super) use open::{find, open};
pub(super) use synthesized::Synthesized;

pub use super::file_names::MAGIC;
pub use header::{Array, Header, Tensor, Value};
pub use open::SUFFIX;

use super::header::refuse_pointer;
use super::wrong::cut;
use crate::bytes::Fault;
use crate::error::{FormatError, Result};
use crate::io::ReadFile;
use crate::refusal::mismatch;

/// Bytes read of a file at first: more than most headers without a vocabulary.
const FIRST_READ: u64 = 1 << 20;
/// Longer headers are refused: the largest vocabularies take a third.
const HEADER_LIMIT: u64 = 64 << 20;

/// The first bytes of a file, with its whole header.
///
/// # Errors
/// A header that contradicts the layout or is too long, and what the operating system refuses.
pub fn read_header(file: &ReadFile) -> Result<Vec<u8>> {
    refuse_pointer(file)?;
    if file.len() < MAGIC.len() as u64 {
        let detail = mismatch(format_args!("at least {} bytes", MAGIC.len()), cut(file.len()));
        return Err(FormatError::file(file.path(), detail));
    }
    let limit = file.len().min(HEADER_LIMIT);
    let mut len = file.len().min(FIRST_READ);
    loop {
        let mut first = vec![0; len as usize];
        file.read_at(0, &mut first)?;
        match Header::parse(&first, file.len() - len) {
            Ok(_) => return Ok(first),
            Err(Fault::Unread) if len < limit => len = limit.min(len * 4),
            Err(Fault::Unread) => {
                let detail = format!("expected a header of at most {HEADER_LIMIT} bytes");
                return Err(FormatError::file(file.path(), detail));
            }
            Err(Fault::Wrong(detail)) => return Err(FormatError::file(file.path(), detail)),
        }
    }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
