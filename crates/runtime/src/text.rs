//! Text to tokens and back.

use std::path::{Path, PathBuf};

use crate::error::{Result, RuntimeError};

/// The tokenizer of a checkpoint or bundle.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing or no tokenizer, and what to do about it.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            let detail = "no such file; copy the tokenizer.json of the original model there";
            return Err(RuntimeError::tokenizer(path, detail));
        }
        let inner = tokenizers::Tokenizer::from_file(path).map_err(|e| {
            let help = "copy the tokenizer.json of the original model there again";
            RuntimeError::tokenizer(path, format!("is not a tokenizer ({e}); {help}"))
        })?;
        Ok(Self { path: path.to_owned(), inner })
    }

    /// The tokens of `text`; with `special`, those that the tokenizer puts around a text too.
    ///
    /// # Errors
    /// Text that the tokenizer refuses.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, special);
        let encoding = encoding.map_err(|e| {
            RuntimeError::tokenizer(&self.path, format!("cannot encode the text: {e}"))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, true)
            .map_err(|e| self.undecodable(&e))
    }

    /// Tokens that it knows, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Decodes token after token.
    pub const fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, tokens: Vec::new(), shown: 0, start: 0 }
    }

    fn undecodable(&self, e: &tokenizers::Error) -> RuntimeError {
        RuntimeError::tokenizer(&self.path, format!("cannot decode: {e}"))
    }
}

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

impl TextStream<'_> {
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
