//! How far do two models' predictions over a text drift apart, and where?

mod drift;
mod floor;
mod score;
mod statistics;
#[cfg(test)]
mod tests;

use rayon::prelude::*;
use shardwright_format::ModelSpec;
use shardwright_format::weights::Weights;
use shardwright_runtime::Head;
use shardwright_runtime::layerwise::LayerPass;

use crate::error::{Model, Result, VerifyError};
use crate::hashing::pool;
use crate::monitor::{Meter, Monitor, Stage};
pub use drift::LayerDrift;
pub use floor::NoiseFloor;
use score::Score;
pub use statistics::{Bin, Bucket, DP_FRACTIONS, Divergence};

/// Logits held at once, per model: 64 MiB of them.
const LOGITS: usize = 16 << 20;

/// Which tokens of a text predict which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window; each starts from an empty context. A rest that fills none is left out.
    pub window: usize,
    /// Position in a window of the first token that predicts the next: 0 scores all but the
    /// first token of a window, half a window is llama.cpp's way.
    pub first: usize,
    /// Windows at most; all of the text when absent.
    pub limit: Option<usize>,
}

impl Windows {
    /// Windows of `window` tokens, all of which predict.
    pub const fn of(window: usize) -> Self {
        Self { window, first: 0, limit: None }
    }

    /// Windows in a text.
    fn count(&self, tokens: usize) -> Result<usize> {
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
}

/// Runs both models over the same windows of `tokens`, layer by layer side by side, and compares
/// their predictions. Each weight is read once; memory is that of a layer of each and the two
/// residual streams. The first windows are run a second time for the noise floor.
///
/// # Errors
/// Models of different shape, a text shorter than a window, weights that cannot be read, and
/// values that are not finite.
pub fn divergence(
    original: &Weights,
    candidate: &Weights,
    tokens: &[u32],
    windows: Windows,
    threads: usize,
    monitor: &Monitor<'_>,
) -> Result<Divergence> {
    same_shape(original.spec(), candidate.spec())?;
    let count = windows.count(tokens.len())?;
    let tokens = &tokens[..count * windows.window];
    let pool = pool(threads)?;
    let echo = floor::windows(count) * windows.window;
    let pair = Pair { original, candidate, tokens, echo, windows, threads, pool: &pool };
    let streams = pair.layers(monitor)?;
    let (scores, floor) = pair.heads(&streams, monitor)?;
    let mut result = pool.install(|| Divergence::of(&scores));
    result.windows = count as u64;
    (result.window, result.first) = (windows.window as u64, windows.first as u64);
    result.layers = streams.layers;
    let floor = pool.install(|| Divergence::of(&floor));
    result.noise_floor = Some(NoiseFloor::new(floor::windows(count), &floor));
    Ok(result)
}

fn same_shape(original: &ModelSpec, candidate: &ModelSpec) -> Result<()> {
    let shape = |s: &ModelSpec| [s.vocab_size as usize, s.hidden_size as usize, s.layers.len()];
    let names = ["vocab_size", "hidden_size", "layers"];
    for ((name, a), b) in names.iter().zip(shape(original)).zip(shape(candidate)) {
        if a != b {
            let message =
                format!("{name}: the original has {a}, the bundle {b}: not the same model");
            return Err(VerifyError::Invalid(message));
        }
    }
    Ok(())
}

struct Pair<'a> {
    original: &'a Weights,
    candidate: &'a Weights,
    /// Whole windows.
    tokens: &'a [u32],
    /// How many of them are run a second time.
    echo: usize,
    windows: Windows,
    threads: usize,
    pool: &'a rayon::ThreadPool,
}

/// What both models made of the text.
struct Streams {
    /// Residual streams `[tokens, hidden]` after the last layer.
    original: Vec<f32>,
    candidate: Vec<f32>,
    /// The original's of the first tokens `[echo, hidden]`, rounded after every layer.
    rounded: Vec<f32>,
    layers: Vec<LayerDrift>,
}

/// A model and its residual stream `[n, hidden]` after the last layer.
struct Side<'a> {
    model: Model,
    weights: &'a Weights,
    stream: &'a [f32],
}

impl Pair<'_> {
    /// Both models see the same batches, so that equal weights give equal bits.
    fn layers(&self, monitor: &Monitor<'_>) -> Result<Streams> {
        let spec = self.original.spec();
        let meter = Meter::new(monitor, Stage::Layers, spec.layers.len() as u64);
        let hidden = spec.hidden_size as usize;
        let main = self.tokens.len() * hidden;
        let tokens = [self.tokens, &self.tokens[..self.echo]].concat();
        let start = |weights| LayerPass::new(weights, &tokens, self.windows.window, self.threads);
        let mut a = start(self.original).map_err(Model::Original.failed())?;
        let mut b = start(self.candidate).map_err(Model::Candidate.failed())?;
        let mut layers: Vec<LayerDrift> = Vec::with_capacity(spec.layers.len() + 1);
        let mut layer = None;
        loop {
            floor::round(&mut a.hidden_mut()[main..]);
            floor::round(&mut b.hidden_mut()[main..]);
            let before = layers.last().map_or(0.0, |d| d.rmse);
            let (x, y) = (&a.hidden()[..main], &b.hidden()[..main]);
            let drift = || LayerDrift::new(layer, x, y, hidden, before);
            layers.push(self.pool.install(drift));
            layer = a.step().map_err(Model::Original.failed())?;
            if layer.is_none() {
                break;
            }
            b.step().map_err(Model::Candidate.failed())?;
            meter.add(1)?;
        }
        let (mut original, mut candidate) = (a.into_hidden(), b.into_hidden());
        candidate.truncate(main);
        let rounded = original.split_off(main);
        Ok(Streams { original, candidate, rounded, layers })
    }

    /// Scores of the candidate, and of the rounded original.
    fn heads(&self, streams: &Streams, monitor: &Monitor<'_>) -> Result<(Vec<Score>, Vec<Score>)> {
        let scored = |tokens| self.scored(tokens).len() as u64;
        let total = scored(self.tokens.len()) + scored(self.echo);
        let meter = Meter::new(monitor, Stage::Heads, total);
        let side = |model, weights, stream| Side { model, weights, stream };
        let original = |stream| side(Model::Original, self.original, stream);
        let candidate = side(Model::Candidate, self.candidate, &streams.candidate);
        let scores = self.compare(&original(&streams.original), &candidate, &meter)?;
        let start = original(&streams.original[..streams.rounded.len()]);
        let floor = self.compare(&start, &original(&streams.rounded), &meter)?;
        Ok((scores, floor))
    }

    fn compare(&self, a: &Side<'_>, b: &Side<'_>, meter: &Meter<'_>) -> Result<Vec<Score>> {
        let head =
            |side: &Side<'_>| Head::new(side.weights, self.threads).map_err(side.model.failed());
        let (mut head_a, mut head_b) = (head(a)?, head(b)?);
        let (hidden, vocab) = (self.original.spec().hidden_size as usize, head_a.vocab_size());
        let scored = self.scored(a.stream.len() / hidden);
        let mut scores = Vec::with_capacity(scored.len());
        let (mut rows, mut za, mut zb) = (Vec::new(), Vec::new(), Vec::new());
        for positions in scored.chunks((LOGITS / vocab).max(1)) {
            let n = positions.len();
            for (head, side, z) in [(&mut head_a, a, &mut za), (&mut head_b, b, &mut zb)] {
                gather(side.stream, positions, hidden, &mut rows);
                z.resize(n * vocab, 0.0);
                head.logits(&rows, n, z).map_err(side.model.failed())?;
            }
            let rows = za
                .par_chunks(vocab)
                .zip(zb.par_chunks(vocab))
                .zip(positions);
            let score = |((za, zb), &at): ((&[f32], &[f32]), &usize)| {
                Score::new(za, zb, self.tokens[at + 1] as usize)
                    .ok_or_else(|| not_finite(at, self.windows))
            };
            scores.extend(
                self.pool
                    .install(|| rows.map(score).collect::<Result<Vec<_>>>())?,
            );
            meter.add(n as u64)?;
        }
        Ok(scores)
    }

    /// The tokens that predict the next one of their window.
    fn scored(&self, tokens: usize) -> Vec<usize> {
        let Windows { window, first, .. } = self.windows;
        (0..tokens)
            .filter(|at| (first..window - 1).contains(&(at % window)))
            .collect()
    }
}

/// Rows of `stream: [tokens, hidden]`.
fn gather(stream: &[f32], positions: &[usize], hidden: usize, rows: &mut Vec<f32>) {
    rows.clear();
    for at in positions {
        rows.extend(&stream[at * hidden..][..hidden]);
    }
}

fn not_finite(at: usize, windows: Windows) -> VerifyError {
    let (window, position) = (at / windows.window, at % windows.window);
    VerifyError::NotFinite(format!("window {window}, position {position}: logits"))
}
