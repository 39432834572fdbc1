//! What `--draft` asks for.

use std::path::Path;

use shardwright_format::checkpoint::TOKENIZER_NAME;
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::weights::Weights;
use shardwright_runtime::draft::{DraftModel, Drafter, Source};
use shardwright_runtime::text::Tokenizer;
use shardwright_runtime::{MemoryPlan, Options, Runtime};

use super::report::Draft;
use crate::args::{ArchArgs, DraftSource};
use crate::engine;
use crate::failure::Failure;
use crate::inputs;

/// Tokens of a prompt that a model for drafts computes together: its buffers are taken from the other's experts.
const CHUNK: usize = 32;

/// Guesses, and whether they pay.
pub(super) struct Drafting {
    name: DraftSource,
    pub(super) source: Source,
    pub(super) drafter: Drafter,
}

impl Drafting {
    /// Opens what `name` names, for drafts of `weights`, the model `ours`; what that takes of memory is reserved
    /// in `options`, how that model is run.
    ///
    /// # Errors
    /// A model that cannot be used, or whose tokens are others.
    pub(super) fn open(
        name: &DraftSource,
        ours: &Path,
        weights: &Weights,
        options: &mut Options,
    ) -> Result<Self, Failure> {
        let source = match name {
            DraftSource::Ngram => Source::Ngram,
            DraftSource::Model(path) => {
                let small = inputs::model(path, &ArchArgs { arch: None })?;
                same_tokens((ours, weights), (path, &small))?;
                let own = Options {
                    memory: None,
                    reserved: 0,
                    loading: 0,
                    draft: 0,
                    chunk: CHUNK,
                    ..*options
                };
                let plan = MemoryPlan::new(&small, &own)?;
                options.reserved = options.reserved.saturating_add(plan.total);
                // Before any of it is read: whether both fit.
                MemoryPlan::new(weights, options).map_err(|e| engine::explain(&e))?;
                let runtime = Runtime::open(small, &own)?;
                Source::Model(Box::new(DraftModel::new(runtime, weights.spec().vocab_size)))
            }
        };
        Ok(Self { name: name.clone(), source, drafter: Drafter::default() })
    }

    /// What may follow `text`, at most `most` tokens; nothing where drafts do not pay.
    pub(super) fn propose(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>, Failure> {
        match self.drafter.length(most) {
            0 => Ok(Vec::new()),
            length => Ok(self.source.draft(text, length)?),
        }
    }

    pub(super) fn report(self) -> Draft {
        Draft { source: self.name, drafted: self.drafter.drafted() }
    }
}

/// # Errors
/// Tokenizers that differ, and in what.
fn same_tokens(
    (ours, weights): (&Path, &Weights),
    (theirs, small): (&Path, &Weights),
) -> Result<(), Failure> {
    let file = |weights: &Weights| weights.companion(TOKENIZER_NAME, TOKENIZER_LIMIT);
    if file(weights)? == file(small)? {
        return Ok(());
    }
    let (a, b) = (Tokenizer::open(weights)?, Tokenizer::open(small)?);
    let [ours, theirs] = [ours, theirs].map(|path| path.display().to_string());
    match a.difference(&ours, &b, &theirs) {
        None => Ok(()),
        Some(what) => Err(Failure::new(format!("--draft {theirs}: tokenizers differ: {what}"))),
    }
}
