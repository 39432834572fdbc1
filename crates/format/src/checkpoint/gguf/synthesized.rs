//! Files of a checkpoint that others describe and none holds: a GGUF file its metadata, a vocabulary in a form of
//! its own the tokenizer.

use std::sync::OnceLock;

use super::header::Header;
use super::{read_header, same_pieces, tokenizer};
use crate::checkpoint::file_names::{
    CHAT_TEMPLATE_NAME, CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
use crate::checkpoint::tokenizer::Beside;
use crate::error::{FormatError, Result};
use crate::io::ReadFile;
use crate::refusal::Refusal;

/// What is made, the files of the tokenizer when they are first asked for.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Synthesized {
    config: Option<Vec<u8>>,
    /// The file with the vocabulary, and which files it stands for.
    vocabulary: Option<(ReadFile, Vec<&'static str>)>,
    tokenizer: OnceLock<Vec<u8>>,
    tokenizer_config: OnceLock<Vec<u8>>,
    beside: Option<Beside>,
}

impl Synthesized {
    /// What the GGUF file `file` describes and its directory lacks.
    ///
    /// # Errors
    /// A `tokenizer.json` beside it with other pieces.
    pub(super) fn from_gguf(
        file: &ReadFile,
        header: &Header<'_>,
        config: Option<Vec<u8>>,
    ) -> Result<Self> {
        let lacks = |name: &&str| !file.path().with_file_name(name).is_file();
        let names = [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME];
        // Beside another tokenizer the configuration is made for its template alone.
        let template = tokenizer::has_template(&header.metadata) && lacks(&CHAT_TEMPLATE_NAME);
        let needed = tokenizer::is_there(&header.metadata)
            && (lacks(&TOKENIZER_NAME) || template && lacks(&TOKENIZER_CONFIG_NAME));
        if tokenizer::is_there(&header.metadata) {
            same_pieces::check(file.path(), header)?;
        }
        let stood_for = || Ok((file.reopen()?, names.into_iter().filter(lacks).collect()));
        let vocabulary = needed.then(stood_for).transpose()?;
        Ok(Self { config, vocabulary, ..Self::default() })
    }

    /// What a vocabulary makes that lies in a directory without `tokenizer.json`.
    pub(in crate::checkpoint) fn from_vocabulary(beside: Option<Beside>) -> Self {
        Self { beside, ..Self::default() }
    }

    /// The vocabulary that stands for a `tokenizer.json`, or should.
    pub(in crate::checkpoint) const fn beside(&self) -> Option<&Beside> {
        self.beside.as_ref()
    }

    pub(in crate::checkpoint) fn names(&self) -> Vec<&'static str> {
        let of_tokenizer = self.vocabulary.iter().flat_map(|(_, names)| names.clone());
        let config = self.config.iter().map(|_| CONFIG_NAME);
        let beside = self.beside.iter().filter(|beside| beside.made().is_ok());
        let beside = beside.map(|_| TOKENIZER_NAME);
        config.chain(of_tokenizer).chain(beside).collect()
    }

    /// The bytes of one of [`Self::names`].
    pub(in crate::checkpoint) fn get(&self, name: &str) -> Result<Option<&[u8]>> {
        if name == CONFIG_NAME {
            return Ok(self.config.as_deref());
        }
        if let Some(beside) = self.beside.as_ref().filter(|_| name == TOKENIZER_NAME) {
            return Ok(beside.made().ok());
        }
        let Some((file, names)) = &self.vocabulary else { return Ok(None) };
        if !names.contains(&name) {
            return Ok(None);
        }
        let of_config = name == TOKENIZER_CONFIG_NAME;
        let made = if of_config { &self.tokenizer_config } else { &self.tokenizer };
        if made.get().is_none() {
            let bytes = document(file, of_config)?;
            made.get_or_init(|| bytes);
        }
        Ok(made.get().map(Vec::as_slice))
    }
}

/// Reads the metadata again: a vocabulary is too large to be kept for those who ask for none.
fn document(file: &ReadFile, of_config: bool) -> Result<Vec<u8>> {
    let bytes = read_header(file)?;
    let refused = |detail: Refusal| FormatError::file(file.path(), detail);
    let header = Header::parse(&bytes, file.len() - bytes.len() as u64);
    let header = header.map_err(|e| refused(e.to_string().into()))?;
    let make = if of_config { tokenizer::config } else { tokenizer::tokenizer };
    make(&header.metadata).map_err(refused)
}
