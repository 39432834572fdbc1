//! Files of a checkpoint that a GGUF file describes and no file beside it holds.

use std::sync::OnceLock;

use super::header::Header;
use super::read_header;
use super::tokenizer;
use crate::checkpoint::file_names::{
    CHAT_TEMPLATE_NAME, CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
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
}

impl Synthesized {
    /// What `file` describes and its directory lacks.
    pub(super) fn new(
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
        let stood_for = || Ok((file.reopen()?, names.into_iter().filter(lacks).collect()));
        let vocabulary = needed.then(stood_for).transpose()?;
        Ok(Self { config, vocabulary, ..Self::default() })
    }

    pub(in crate::checkpoint) fn names(&self) -> Vec<&'static str> {
        let of_tokenizer = self.vocabulary.iter().flat_map(|(_, names)| names.clone());
        let config = self.config.iter().map(|_| CONFIG_NAME);
        config.chain(of_tokenizer).collect()
    }

    /// The bytes of one of [`Self::names`].
    pub(in crate::checkpoint) fn get(&self, name: &str) -> Result<Option<&[u8]>> {
        if name == CONFIG_NAME {
            return Ok(self.config.as_deref());
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
