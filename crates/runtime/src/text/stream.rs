//! Text as it grows token by token.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Text as it grows. A character that takes several tokens comes with the last of them.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Tokens whose text was given out.
    shown: usize,
    /// From here on tokens are decoded: those before `shown` are context for the ones after.
    start: usize,
}

impl<'a> TextStream<'a> {
    /// Nothing yet.
    pub const fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), shown: 0, start: 0 }
    }

    /// The text that `token` completes, possibly none.
    ///
    /// # Errors
    /// A token that the tokenizer refuses.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let (before, all) = self.decoded()?;
        let complete = !all.ends_with(char::REPLACEMENT_CHARACTER);
        match all.get(before.len()..) {
            Some(new) if complete && !new.is_empty() => {
                self.start = self.shown;
                self.shown = self.tokens.len();
                Ok(new.to_owned())
            }
            _ => Ok(String::new()),
        }
    }

    /// What is left: a character that was never completed.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self) -> Result<String> {
        let (before, all) = self.decoded()?;
        self.start = self.tokens.len();
        self.shown = self.start;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// Text of the context, and of the context with what follows.
    fn decoded(&self) -> Result<(String, String)> {
        let before = self
            .tokenizer
            .decode(&self.tokens[self.start..self.shown])?;
        Ok((before, self.tokenizer.decode(&self.tokens[self.start..])?))
    }
}
