//! Text to tokens and back, as a `tokenizer.json` says.

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
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(|e| {
            let help = "copy the tokenizer.json of the original model there again";
            RuntimeError::tokenizer(path, format!("is not a tokenizer ({e}); {help}"))
        })?;
        // What a file says of cutting or filling up texts is left from training: no token of a text may be
        // lost to it, and none added.
        let kept = inner
            .with_truncation(None)
            .map(|inner| inner.with_padding(None));
        kept.map_err(|e| RuntimeError::tokenizer(path, e.to_string()))?;
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

    /// What a token stands for, as the vocabulary writes it; none for one that it does not have.
    pub fn piece(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    fn undecodable(&self, e: &tokenizers::Error) -> RuntimeError {
        RuntimeError::tokenizer(&self.path, format!("cannot decode: {e}"))
    }
}
