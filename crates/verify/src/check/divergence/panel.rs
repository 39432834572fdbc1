//! Models side by side: an original and its candidates, layer by layer, then head by head.

use rayon::prelude::*;
use shardwright_runtime::CacheTypes;
use shardwright_runtime::Head;
use shardwright_runtime::layerwise::LayerPass;

use super::score::Score;
use super::{EvalWindows, LayerDrift, Party, floor};
use crate::error::{Result, VerifyError};
use crate::monitor::{Meter, Monitor, Stage};

/// Logits held at once, per model: 64 MiB of them.
const LOGITS: usize = 16 << 20;

/// What is run: the original and its candidates over one text.
pub(super) struct Panel<'a> {
    pub(super) original: Party<'a>,
    pub(super) candidates: &'a [Party<'a>],
    /// Whole windows.
    pub(super) tokens: &'a [u32],
    /// How many of them are run a second time.
    pub(super) echo: usize,
    pub(super) windows: EvalWindows,
    pub(super) cache: CacheTypes,
    pub(super) threads: usize,
    pub(super) pool: &'a rayon::ThreadPool,
}

/// What the models made of the text.
pub(super) struct Streams {
    /// The original's residual stream `[tokens, hidden]` after the last layer.
    original: Vec<f32>,
    /// That of the first tokens `[echo, hidden]`, rounded after every layer.
    rounded: Vec<f32>,
    /// One per candidate; an error is values that are not finite.
    pub(super) candidates: Vec<Result<Ended>>,
}

/// A candidate's scores; an error is values that are not finite.
pub(super) type Scores = Result<Vec<Score>>;

/// A candidate after its last layer.
pub(super) struct Ended {
    /// Residual stream `[tokens, hidden]`.
    stream: Vec<f32>,
    pub(super) layers: Vec<LayerDrift>,
}

/// A candidate between two layers.
struct Walk<'a> {
    party: Party<'a>,
    /// Why it could not go on, once it could not.
    pass: Result<LayerPass<'a>>,
    layers: Vec<LayerDrift>,
}

impl Walk<'_> {
    /// Rounds the second run of the first tokens and measures the drift of the first.
    fn measure(&mut self, layer: Option<u32>, original: &[f32], hidden: usize) {
        let Ok(pass) = &mut self.pass else { return };
        floor::round(&mut pass.hidden_mut()[original.len()..]);
        let before = self.layers.last().map_or(0.0, |d| d.rmse);
        let stream = &pass.hidden()[..original.len()];
        self.layers
            .push(LayerDrift::new(layer, original, stream, hidden, before));
    }

    /// Values that are not finite end this candidate's part alone, all else the comparison.
    fn step(&mut self) -> Result<()> {
        let Ok(pass) = &mut self.pass else { return Ok(()) };
        match pass.step().map_err(self.party.failed()) {
            Err(e) if e.is_not_finite() => self.pass = Err(e),
            other => drop(other?),
        }
        Ok(())
    }

    fn end(self, len: usize) -> Result<Ended> {
        let mut stream = self.pass?.into_hidden();
        stream.truncate(len);
        Ok(Ended { stream, layers: self.layers })
    }
}

/// A model and its residual stream `[n, hidden]` after the last layer; none of one that did not end.
struct Side<'a> {
    party: Party<'a>,
    stream: Option<&'a [f32]>,
}

impl Panel<'_> {
    /// Takes all models through all layers. They see the same batches, so that equal weights give equal
    /// bits.
    pub(super) fn layers(&self, monitor: &Monitor<'_>) -> Result<Streams> {
        let spec = self.original.weights.spec();
        let meter = Meter::new(monitor, Stage::Layers, spec.layers.len() as u64);
        let hidden = spec.hidden_size as usize;
        let main = self.tokens.len() * hidden;
        let mut original = self.start(self.original, CacheTypes::default())?;
        let walks = self.candidates.iter().map(|&party| {
            Ok(Walk { party, pass: Ok(self.start(party, self.cache)?), layers: Vec::new() })
        });
        let mut walks: Vec<_> = walks.collect::<Result<_>>()?;
        let mut layer = None;
        // All models stand after the same layer at the top: the original's stream is there to be compared with,
        // and no more than one layer of each is in memory.
        loop {
            floor::round(&mut original.hidden_mut()[main..]);
            let stream = &original.hidden()[..main];
            self.pool.install(|| {
                for walk in &mut walks {
                    walk.measure(layer, stream, hidden);
                }
            });
            layer = original.step().map_err(self.original.failed())?;
            if layer.is_none() {
                break;
            }
            walks.iter_mut().try_for_each(Walk::step)?;
            meter.add(1)?;
        }
        // The rows after the text's own are the echo: the first tokens again, rounded after every layer.
        let mut original = original.into_hidden();
        let rounded = original.split_off(main);
        let candidates = walks.into_iter().map(|walk| walk.end(main)).collect();
        Ok(Streams { original, rounded, candidates })
    }

    fn start<'w>(&self, party: Party<'w>, cache: CacheTypes) -> Result<LayerPass<'w>> {
        let tokens = [self.tokens, &self.tokens[..self.echo]].concat();
        LayerPass::new(party.weights, &tokens, self.windows.window, self.threads)
            .map(|pass| pass.keeping(cache))
            .map_err(party.failed())
    }

    /// Scores of the candidates, and of the rounded original.
    pub(super) fn heads(
        &self,
        streams: &Streams,
        monitor: &Monitor<'_>,
    ) -> Result<(Vec<Scores>, Vec<Score>)> {
        let scored = |tokens| self.windows.scored(tokens).len() as u64;
        let total = scored(self.tokens.len()) + scored(self.echo);
        let meter = Meter::new(monitor, Stage::Heads, total);
        let original = |stream| Side { party: self.original, stream: Some(stream) };
        let candidates = self.candidates.iter().zip(&streams.candidates);
        let candidates = candidates.map(|(party, ended)| {
            let stream = ended.as_ref().ok().map(|ended| ended.stream.as_slice());
            Side { party: *party, stream }
        });
        let candidates: Vec<_> = candidates.collect();
        let scores = self.compare(&original(&streams.original), &candidates, &meter)?;
        let start = original(&streams.original[..streams.rounded.len()]);
        let floor = self.compare(&start, &[original(&streams.rounded)], &meter)?;
        let floor = floor.into_iter().next().unwrap_or_else(|| Ok(Vec::new()))?;
        Ok((scores, floor))
    }

    /// Scores of every other side, no scores of those without a stream. The original's logits are
    /// computed once for all of them, some positions at a time.
    fn compare(
        &self,
        original: &Side<'_>,
        others: &[Side<'_>],
        meter: &Meter<'_>,
    ) -> Result<Vec<Scores>> {
        let mut first = self.head(original)?;
        let mut heads = others
            .iter()
            .map(|side| self.head(side))
            .collect::<Result<Vec<_>>>()?;
        let vocab = first.vocab_size();
        let tokens = original.stream.map_or(0, <[f32]>::len) / first.hidden_size();
        let mut scores: Vec<Scores> = others.iter().map(|_| Ok(Vec::new())).collect();
        let (mut za, mut zb) = (Vec::new(), Vec::new());
        for positions in self.windows.scored(tokens).chunks((LOGITS / vocab).max(1)) {
            logits(&mut first, original, positions, &mut za)?;
            if !za.par_iter().all(|z| z.is_finite()) {
                return Err(not_finite(original, positions, self.windows));
            }
            // The original's logits of these positions serve every candidate before the next positions come.
            for ((head, side), scores) in heads.iter_mut().zip(others).zip(&mut scores) {
                let (Some(_), Ok(found)) = (side.stream, &mut *scores) else { continue };
                logits(head, side, positions, &mut zb)?;
                match self.scores((&za, &zb), vocab, positions) {
                    Some(more) => found.extend(more),
                    None => *scores = Err(not_finite(side, positions, self.windows)),
                }
            }
            meter.add(positions.len() as u64)?;
        }
        Ok(scores)
    }

    fn head(&self, side: &Side<'_>) -> Result<Head> {
        Head::new(side.party.weights, self.threads).map_err(side.party.failed())
    }

    /// Scores at `positions` of logits `[positions, vocab]`; none when some are not finite.
    fn scores(
        &self,
        (za, zb): (&[f32], &[f32]),
        vocab: usize,
        positions: &[usize],
    ) -> Option<Vec<Score>> {
        let rows = za
            .par_chunks(vocab)
            .zip(zb.par_chunks(vocab))
            .zip(positions);
        let score = |((za, zb), &at): ((&[f32], &[f32]), &usize)| {
            Score::new(za, zb, self.tokens[at + 1] as usize)
        };
        self.pool.install(|| rows.map(score).collect())
    }
}

/// Makes `out` a side's logits `[positions, vocab]`.
fn logits(head: &mut Head, side: &Side<'_>, positions: &[usize], out: &mut Vec<f32>) -> Result<()> {
    let (hidden, stream) = (head.hidden_size(), side.stream.unwrap_or_default());
    let rows: Vec<f32> = positions
        .iter()
        .flat_map(|at| &stream[at * hidden..][..hidden])
        .copied()
        .collect();
    out.resize(positions.len() * head.vocab_size(), 0.0);
    head.logits(&rows, positions.len(), out)
        .map_err(side.party.failed())
}

/// Says near which position logits overflowed.
fn not_finite(side: &Side<'_>, positions: &[usize], windows: EvalWindows) -> VerifyError {
    let window = positions.first().unwrap_or(&0) / windows.window;
    VerifyError::NotFinite(format!("{}: logits from window {window} on", side.party.name))
}
