//! The file of `--session`.

use std::path::{Path, PathBuf};

use shardwright_format::weights::Weights;
use shardwright_runtime::draft::common;
use shardwright_runtime::saved::{SavedPrompt, save};
use shardwright_runtime::{CacheTypes, Runtime};

use super::report::Used;
use crate::failure::Failure;
use crate::inputs;

/// A prompt's cache from run to run.
pub(super) struct Stored {
    path: PathBuf,
    /// What tells the model from others.
    model: String,
    /// What the file holds, until it was looked at.
    saved: Option<SavedPrompt>,
    /// The tokens that it holds.
    tokens: Vec<u32>,
    used: Used,
}

impl Stored {
    /// Opens the file, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or of another model or type of cache; one that could not be written.
    pub(super) fn open(path: &Path, weights: &Weights, cache: CacheTypes) -> Result<Self, Failure> {
        inputs::check_parent(path)?;
        let model = String::from(weights.identity()?);
        let saved = SavedPrompt::open(path, &model, cache)?;
        let tokens = saved
            .as_ref()
            .map_or(Vec::new(), |saved| saved.tokens().to_vec());
        let used = Used { file: path.display().to_string(), ..Used::default() };
        Ok(Self { path: path.to_owned(), model, saved, tokens, used })
    }

    /// Takes up what `prompt` has in common with the file, the first time: into `runtime` and `computed`.
    /// All of it only where the file has no more, for the logits are those after its last token; `true` then.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn load(
        &mut self,
        runtime: &mut Runtime,
        prompt: &[u32],
        computed: &mut Vec<u32>,
    ) -> Result<bool, Failure> {
        let Some(saved) = self.saved.take() else { return Ok(false) };
        let same = common(saved.tokens(), prompt);
        let whole = prompt.len() == same && saved.tokens().len() == same;
        let kept = if whole { same } else { same.min(prompt.len() - 1) };
        if kept == 0 || !saved.load(runtime, kept)? {
            return Ok(false);
        }
        computed.extend_from_slice(&prompt[..kept]);
        self.used.reused = kept;
        Ok(whole)
    }

    /// Writes the state after `tokens`, unless the file holds it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(super) fn store(&mut self, runtime: &Runtime, tokens: &[u32]) -> Result<(), Failure> {
        if self.tokens != tokens {
            save(&self.path, runtime, &self.model, tokens)?;
            self.tokens = tokens.to_vec();
            self.used.written = true;
        }
        Ok(())
    }

    /// What it did.
    pub(super) fn used(self) -> Used {
        self.used
    }
}
