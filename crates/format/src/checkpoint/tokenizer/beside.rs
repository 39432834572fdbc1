//! A vocabulary in a form of its own, in a directory without `tokenizer.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::settings::Settings;
use super::{sentencepiece, tiktoken};
use crate::checkpoint::file_names::TOKENIZER_NAME;
use crate::checkpoint::header::refuse_pointer;
use crate::error::Result;
use crate::io::{ReadFile, read_required};
use crate::refusal::Refusal;

/// Names of such files, the first of them first.
const NAMES: [&str; 3] = ["tokenizer.model", "tiktoken.model", "spiece.model"];
/// What the names of others end in.
const TIKTOKEN: &str = "tiktoken";
/// Larger files are refused unread: those of 262,144 tokens take 5 MB.
const LIMIT: u64 = 16 << 20;

/// A file with a vocabulary, and what is made of it when that is first asked for.
#[derive(Debug)]
pub(in crate::checkpoint) struct Beside {
    path: PathBuf,
    model_type: String,
    made: OnceLock<std::result::Result<Vec<u8>, String>>,
}

impl Beside {
    /// That of a model's directory, if it has one and no `tokenizer.json`.
    pub(in crate::checkpoint) fn find(root: &Path, model_type: &str) -> Option<Self> {
        if root.join(TOKENIZER_NAME).exists() {
            return None;
        }
        let named = NAMES.iter().map(|name| root.join(name));
        let path = named
            .into_iter()
            .find(|path| path.is_file())
            .or_else(|| other(root))?;
        Some(Self { path, model_type: model_type.to_owned(), made: OnceLock::new() })
    }

    /// The file's name.
    pub(in crate::checkpoint) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    /// The `tokenizer.json` that it makes, or why it makes none.
    pub(in crate::checkpoint) fn made(&self) -> std::result::Result<&[u8], &str> {
        let made = self.made.get_or_init(|| self.make());
        made.as_deref().map_err(String::as_str)
    }

    fn make(&self) -> std::result::Result<Vec<u8>, String> {
        let read = || -> Result<_> {
            refuse_pointer(&ReadFile::open(&self.path)?)?;
            let root = self.path.parent().unwrap_or_else(|| Path::new(""));
            Ok((read_required(&self.path, LIMIT)?, Settings::read(root)?))
        };
        let (bytes, settings) = read().map_err(|e| e.to_string())?;
        let made = if self.name().contains(TIKTOKEN) || tiktoken::is_one(&bytes) {
            tiktoken::make(&bytes, &settings)
        } else {
            sentencepiece::make(&bytes, &settings, &self.model_type)
        };
        made.map_err(|e: Refusal| e.to_string())
    }
}

/// The one file of ranks with a name of its model's.
fn other(root: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(root).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found =
        paths.filter(|path| path.extension().is_some_and(|end| end == TIKTOKEN) && path.is_file());
    let first = found.next()?;
    found.next().is_none().then_some(first)
}
