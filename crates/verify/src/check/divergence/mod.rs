//! How far do models' predictions over a text drift from an original's, and where?

mod drift;
mod floor;
mod measured;
mod panel;
mod price;
mod score;
mod statistics;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use shardwright_format::ModelSpec;
use shardwright_format::weights::Weights;
use shardwright_runtime::{CacheTypes, RuntimeError};

use crate::check::hashing::pool;
use crate::error::{Result, VerifyError};
use crate::monitor::Monitor;
pub use drift::LayerDrift;
pub use floor::NoiseFloor;
pub(crate) use measured::Measured;
use panel::Panel;
pub(crate) use price::CacheBytes;
pub use price::{CacheCost, CachePrice};
pub use statistics::{Bin, Bucket, DP_FRACTIONS, Divergence};

/// Which tokens of a text predict which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalWindows {
    /// Tokens of a window; each starts from an empty context. A rest that fills none is left out.
    pub window: usize,
    /// Position in a window of the first token that predicts the next: 0 scores all but the
    /// first token of a window, half a window is llama.cpp's way.
    pub first: usize,
    /// Windows at most; all of the text when absent.
    pub limit: Option<usize>,
}

impl EvalWindows {
    /// Windows of `window` tokens, all of which predict.
    pub const fn new(window: usize) -> Self {
        Self { window, first: 0, limit: None }
    }

    /// Windows in a text of so many tokens.
    ///
    /// # Errors
    /// A text shorter than one window, windows in which nothing predicts.
    pub(crate) fn count(&self, tokens: usize) -> Result<usize> {
        if self.window < 2 || self.first > self.window - 2 {
            let Self { window, first, .. } = self;
            let message =
                format!("windows of {window} tokens scored from {first}: nothing to predict");
            return Err(VerifyError::Invalid(message));
        }
        let count = (tokens / self.window).min(self.limit.unwrap_or(usize::MAX));
        if count == 0 {
            let window = self.window;
            let message =
                format!("text: expected at least {window} tokens, one window, found {tokens}");
            return Err(VerifyError::Invalid(message));
        }
        Ok(count)
    }

    /// Tokens of a window that are scored.
    pub(crate) const fn per_window(&self) -> usize {
        self.window - 1 - self.first
    }

    /// Which of so many tokens predict the next one of their window.
    fn scored(&self, tokens: usize) -> Vec<usize> {
        let inside = self.first..self.window - 1;
        (0..tokens)
            .filter(|at| inside.contains(&(at % self.window)))
            .collect()
    }
}

/// A model that takes part, and what to call it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its weights.
    pub weights: &'a Weights,
}

impl Party<'_> {
    fn failed(&self) -> impl Fn(RuntimeError) -> VerifyError {
        VerifyError::of_model(self.name)
    }
}

/// What all models read, and how.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The text.
    pub tokens: &'a [u32],
    /// How it is cut.
    pub windows: EvalWindows,
    /// How candidates keep keys and values; the original keeps them as computed.
    pub cache: CacheTypes,
    /// Threads.
    pub threads: usize,
}

/// Runs all models over the same windows of `tokens`, layer by layer side by side, and compares the
/// candidates' predictions with the original's. Each weight is read once; memory is that of a layer, a
/// head and a residual stream of each model. The first windows are run a second time for the noise
/// floor. A candidate's figures do not depend on which others there are.
///
/// One result per candidate, in their order: an error there is a candidate whose values are not finite.
///
/// # Errors
/// Models of different shape, a text shorter than a window, weights that cannot be read, and an
/// original whose values are not finite.
pub fn divergences(
    original: Party<'_>,
    candidates: &[Party<'_>],
    reading: &Reading<'_>,
    monitor: &Monitor<'_>,
) -> Result<Vec<Result<Divergence>>> {
    let count = reading.windows.count(reading.tokens.len())?;
    let measured = measure(original, candidates, reading, 0..count, monitor)?;
    let found = measured.divergences(reading.windows, count);
    let named = found.zip(candidates);
    Ok(named
        .map(|(found, party)| found.map_err(|at| at.error(party.name)))
        .collect())
}

/// What [`divergences`] is summed up from, of some of the windows.
///
/// # Errors
/// As there.
pub(crate) fn measure(
    original: Party<'_>,
    candidates: &[Party<'_>],
    reading: &Reading<'_>,
    some: Range<usize>,
    monitor: &Monitor<'_>,
) -> Result<Measured> {
    let Reading { tokens, windows, cache, threads } = *reading;
    for candidate in candidates {
        same_shape(original.weights.spec(), candidate)?;
    }
    let count = windows.count(tokens.len())?;
    let (pool, window) = (pool(threads)?, windows.window);
    let panel = Panel {
        original,
        candidates,
        tokens: &tokens[some.start * window..some.end * window],
        before: some.start * window,
        echo: floor::inside(some.start, some.end, count) * window,
        after: (count - some.end) * window,
        windows,
        cache,
        threads,
        pool: &pool,
    };
    let streams = panel.layers(monitor)?;
    panel.heads(streams, monitor)
}

fn same_shape(original: &ModelSpec, candidate: &Party<'_>) -> Result<()> {
    let shape = |s: &ModelSpec| [s.vocab_size as usize, s.hidden_size as usize, s.layers.len()];
    let fields = ["vocab_size", "hidden_size", "layers"];
    let (name, found) = (candidate.name, shape(candidate.weights.spec()));
    for ((field, a), b) in fields.iter().zip(shape(original)).zip(found) {
        if a != b {
            let message =
                format!("{field}: the original has {a}, {name} has {b}: not the same model");
            return Err(VerifyError::Invalid(message));
        }
    }
    Ok(())
}
