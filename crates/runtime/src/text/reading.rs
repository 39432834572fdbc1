//! The tokens of a text, read a part at a time.

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use shardwright_format::FormatError;
use tokenizers::{Encoding, Token};

use super::cut::{Cut, Cuts};
use super::guard::guarded;
use super::tokenizer::{Tokenizer, unusable};
use crate::error::{Result, RuntimeError};

/// Bytes of a text that are tokenized together: each takes some 140 in memory meanwhile.
const WINDOW: usize = 16 << 10;
/// The same where no place in them is safe to cut, at most.
pub const LARGEST_WINDOW: usize = 1 << 20;
/// Stands for a text where special tokens are put around it.
const TEXT: u32 = u32::MAX;

/// Whatever a text comes from: appends about so many bytes of it to a string; `false` once it has ended.
pub type More<'a> = dyn FnMut(&mut String, usize) -> Result<bool, FormatError> + 'a;

impl Tokenizer {
    /// The tokens of `text`; with `special`, those that the tokenizer puts around a text too.
    ///
    /// # Errors
    /// Text that the tokenizer refuses.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut left = text;
        let mut more = |window: &mut String, bytes: usize| {
            let whole = (bytes..left.len()).find(|end| left.is_char_boundary(*end));
            let (now, then) = left.split_at(whole.unwrap_or(left.len()));
            window.push_str(now);
            left = then;
            Ok(!left.is_empty())
        };
        self.read_in(&mut more, usize::MAX, special, WINDOW..=usize::MAX)
    }

    /// The first `limit` tokens of a text, exactly those of the whole, and with `special` those around it.
    /// No more of the text is read than that takes, and none of it kept.
    ///
    /// # Errors
    /// A text that cannot be read or that the tokenizer refuses; one of which [`LARGEST_WINDOW`] bytes cannot be
    /// cut without changing their tokens.
    pub fn read(&self, more: &mut More<'_>, limit: usize, special: bool) -> Result<Vec<u32>> {
        self.read_in(more, limit, special, WINDOW..=LARGEST_WINDOW)
    }

    fn read_in(
        &self,
        more: &mut More<'_>,
        limit: usize,
        special: bool,
        windows: RangeInclusive<usize>,
    ) -> Result<Vec<u32>> {
        let (least, largest) = windows.into_inner();
        let (mut ids, mut text, mut window) = (Vec::new(), String::new(), least);
        let mut ended = false;
        while !ended && ids.len() < limit {
            while !ended && text.len() < window {
                let wanted = window - text.len();
                ended = !more(&mut text, wanted)?;
            }
            if ended {
                ids.extend_from_slice(self.encoding(&text)?.get_ids());
                break;
            }
            match self.part(&text)? {
                Some((part, next)) => {
                    ids.extend(part);
                    text.drain(..next);
                    window = least;
                }
                None if window >= largest => return Err(self.uncut(largest)),
                None => window *= 2,
            }
        }
        ids.truncate(limit);
        if special { self.around(&ids) } else { Ok(ids) }
    }

    /// The tokens of the text up to its last safe place, and where the rest begins; none where there is
    /// no such place.
    fn part(&self, text: &str) -> Result<Option<(Vec<u32>, usize)>> {
        let cuts = self
            .safe
            .get_or_init(|| guarded(|| Cuts::new(&self.inner)).flatten());
        let cut = cuts
            .as_ref()
            .and_then(|cuts| guarded(|| cuts.last(&self.inner, text)).flatten());
        let Some(Cut { at, next }) = cut else { return Ok(None) };
        let encoding = self.encoding(text)?;
        let count = encoding
            .get_offsets()
            .partition_point(|(start, _)| *start < at);
        // A token across the place would contradict what is known of the tokenizer.
        let across = encoding.get_offsets()[..count]
            .iter()
            .any(|(_, end)| *end > at);
        Ok((!across).then(|| (encoding.get_ids()[..count].to_vec(), next)))
    }

    /// The tokens of a text that is in memory.
    fn encoding(&self, text: &str) -> Result<Encoding> {
        let encode = || self.inner.encode(text, false).map_err(|e| e.to_string());
        guarded(encode).unwrap_or_else(unusable).map_err(|e| {
            RuntimeError::tokenizer(&self.path, format!("cannot encode the text: {e}"))
        })
    }

    /// Tokens of a text with those that the tokenizer puts around it: none of them depends on the text, so one
    /// token that stands for it shows where they go.
    fn around(&self, ids: &[u32]) -> Result<Vec<u32>> {
        let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".to_owned(), (0, 1))], 0);
        let process = || {
            self.inner
                .post_process(text, None, true)
                .map_err(|e| e.to_string())
        };
        let around = guarded(process).unwrap_or_else(unusable).map_err(|e| {
            RuntimeError::tokenizer(&self.path, format!("cannot encode the text: {e}"))
        })?;
        let mut all = Vec::with_capacity(ids.len() + around.len());
        for id in around.get_ids() {
            if *id == TEXT { all.extend_from_slice(ids) } else { all.push(*id) }
        }
        Ok(all)
    }

    fn uncut(&self, largest: usize) -> RuntimeError {
        let detail = format!(
            "cannot read the text in parts: {} KiB of it have no place where this tokenizer would surely split; \
             a shorter text works",
            largest >> 10
        );
        RuntimeError::tokenizer(&self.path, detail)
    }
}
