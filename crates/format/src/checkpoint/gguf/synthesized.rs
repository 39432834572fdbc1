//! Files of a checkpoint that a GGUF file describes and no file beside it holds.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::header::Header;
use super::read_header;
use super::tokenizer::{self, Documents};
use crate::checkpoint::file_names::{CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME};
use crate::error::{FormatError, Result};
use crate::io::ReadFile;

/// What is made, the tokenizer when it is first asked for.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Synthesized {
    config: Option<Vec<u8>>,
    /// The file with the vocabulary, and which files it stands for.
    vocabulary: Option<(PathBuf, Vec<&'static str>)>,
    documents: OnceLock<Documents>,
}

impl Synthesized {
    /// What `file` describes and its directory lacks.
    pub(super) fn new(file: &Path, header: &Header<'_>, config: Option<Vec<u8>>) -> Self {
        let lacks = |name: &&str| !file.with_file_name(name).is_file();
        let names = [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME];
        let needed = tokenizer::is_there(&header.metadata) && lacks(&TOKENIZER_NAME);
        let vocabulary =
            needed.then(|| (file.to_owned(), names.into_iter().filter(lacks).collect()));
        Self { config, vocabulary, documents: OnceLock::new() }
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
        let documents = if let Some(made) = self.documents.get() {
            made
        } else {
            let made = documents(file)?;
            self.documents.get_or_init(|| made)
        };
        let of_config = name == TOKENIZER_CONFIG_NAME;
        Ok(Some(if of_config { &documents.config } else { &documents.tokenizer }))
    }
}

/// Reads the metadata again: a vocabulary is too large to be kept for those who ask for none.
fn documents(path: &Path) -> Result<Documents> {
    let file = ReadFile::open(path)?;
    let bytes = read_header(&file)?;
    let refused = |detail: String| FormatError::file(path, detail);
    let header = Header::parse(&bytes, file.len() - bytes.len() as u64);
    let header = header.map_err(|e| refused(e.to_string()))?;
    tokenizer::make(&header.metadata).map_err(refused)
}
