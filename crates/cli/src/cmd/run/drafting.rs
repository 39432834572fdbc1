//! What `--draft` asks for.

use std::path::Path;

use shardwright_format::Unit;
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
    /// Where they come from, if not from a layer of the model itself.
    source: Option<Source>,
    pub(super) drafter: Drafter,
    /// Whether memory holds the experts of several tokens beside what drafts take. Where it does not, nothing is
    /// opened for them.
    fits: bool,
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
        let (source, fits) = match name {
            DraftSource::Ngram => (Some(Source::Ngram), reserve(0, weights, options)?),
            DraftSource::Mtp => {
                let held = Runtime::predictor_bytes(&weights.prediction()?, options)?;
                // Hashes are of whole parts.
                let whole = weights.checked().map(|_| weights.layout(Unit::Mtp));
                let whole = whole.transpose()?.map_or(0, |part| part.len);
                (None, reserve(held.saturating_add(whole), weights, options)?)
            }
            DraftSource::Model(path) => {
                let small = inputs::runnable(path, &ArchArgs { arch: None })?;
                same_tokens((ours, weights), (path, &small))?;
                let own = alone(options);
                let fits = reserve(MemoryPlan::new(&small, &own)?.total, weights, options)?;
                let open = || small_model(small, &own, weights.spec().vocab_size);
                (fits.then(open).transpose()?, fits)
            }
        };
        Ok(Self { name: name.clone(), source, drafter: Drafter::default(), fits })
    }

    /// Has `runtime`, the model that drafts are for, read what they need of it.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub(super) fn join(&self, runtime: &mut Runtime) -> Result<(), Failure> {
        match self.source {
            None if self.fits => Ok(runtime.open_predictor()?),
            _ => Ok(()),
        }
    }

    /// Reads `text` as far as it is known beforehand.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub(super) fn prepare(&mut self, text: &[u32]) -> Result<(), Failure> {
        let source = self.source.as_mut();
        Ok(source.map_or(Ok(()), |source| source.prepare(text))?)
    }

    /// What may follow `text`, of which `runtime` has computed all but the last token: at most `most` tokens;
    /// nothing where drafts do not pay.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub(super) fn propose(
        &mut self,
        runtime: &mut Runtime,
        text: &[u32],
        most: usize,
    ) -> Result<Vec<u32>, Failure> {
        let length = self.drafter.length(most);
        let (Some(last), true) = (text.last(), length > 0) else { return Ok(Vec::new()) };
        Ok(match &mut self.source {
            Some(source) => source.draft(text, length)?,
            None => runtime.predict(*last, length, &mut |_| {})?,
        })
    }

    pub(super) fn report(self) -> Draft {
        Draft { source: self.name, fits: self.fits, drafted: self.drafter.drafted() }
    }
}

/// Opens a model that drafts tokens of a vocabulary of `words`.
fn small_model(small: Weights, own: &Options, words: u32) -> Result<Source, Failure> {
    Ok(Source::Model(Box::new(DraftModel::new(Runtime::open(small, own)?, words))))
}

/// How a model that drafts is run beside one that is run with `options`.
fn alone(options: &Options) -> Options {
    Options { memory: None, reserved: 0, loading: 0, draft: 0, chunk: CHUNK, ..*options }
}

/// Sets `bytes` aside for drafts in how `weights` are run; whether there is then room to try any. Where there is
/// none, nothing is set aside: drafts would take from the model and give nothing.
///
/// # Errors
/// A budget in which both do not fit: said before any of it is read.
fn reserve(bytes: u64, weights: &Weights, options: &mut Options) -> Result<bool, Failure> {
    let reserved = options.reserved.saturating_add(bytes);
    let with = Options { reserved, ..*options };
    let plan = MemoryPlan::new(weights, &with).map_err(|e| engine::explain(&e))?;
    let fits = plan.draft > 0;
    *options = if fits { with } else { Options { draft: 0, ..*options } };
    Ok(fits)
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
