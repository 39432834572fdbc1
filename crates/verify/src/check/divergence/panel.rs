//! Models side by side: an original and its candidates, layer by layer, then head by head.

use rayon::prelude::*;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{CacheTypes, Head, RuntimeError};

use super::drift::LayerSums;
use super::measured::{Break, Measured, Track};
use super::score::Score;
use super::{EvalWindows, Party, floor};
use crate::error::Result;
use crate::monitor::{Meter, Monitor, Stage};

/// Logits held at once, per model: 64 MiB of them.
const LOGITS: usize = 16 << 20;

/// What is run: the original and its candidates over one text.
pub(super) struct Panel<'a> {
    pub(super) original: Party<'a>,
    pub(super) candidates: &'a [Party<'a>],
    /// Whole windows that follow each other.
    pub(super) tokens: &'a [u32],
    /// Tokens of the text before them.
    pub(super) before: usize,
    /// How many of them are run a second time.
    pub(super) echo: usize,
    /// Tokens of the text after them.
    pub(super) after: usize,
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
    candidates: Vec<Result<Ended, Break>>,
}

/// A side's scores; an error is the first window whose logits are not finite.
type Scores = Result<Vec<Score>, Break>;

/// A candidate after its last layer.
struct Ended {
    /// Residual stream `[tokens, hidden]`.
    stream: Vec<f32>,
    drift: Vec<LayerSums>,
}

/// A candidate between two layers.
struct Walk<'a> {
    party: Party<'a>,
    /// Where it could not go on, once it could not.
    pass: Result<LayerPass<'a>, Break>,
    drift: Vec<LayerSums>,
}

impl Walk<'_> {
    /// Rounds the second run of the first tokens and measures the drift of the first.
    fn measure(&mut self, layer: Option<u32>, original: &[f32], (hidden, window): (usize, usize)) {
        let Ok(pass) = &mut self.pass else { return };
        floor::round(&mut pass.hidden_mut()[original.len()..]);
        let streams = (original, &pass.hidden()[..original.len()]);
        self.drift
            .push(LayerSums::new(layer, streams, hidden, window));
    }

    /// Values that are not finite end this candidate's part alone, all else the comparison. `place` says which
    /// token of the whole text a row is.
    fn step(&mut self, place: impl Fn(usize) -> usize) -> Result<()> {
        let Ok(pass) = &mut self.pass else { return Ok(()) };
        match pass.step() {
            Err(RuntimeError::NotFinite { layer, token, channel }) => {
                self.pass = Err(Break::Layer { layer, token: place(token), channel });
            }
            other => drop(other.map_err(self.party.failed())?),
        }
        Ok(())
    }

    fn end(self, len: usize) -> Result<Ended, Break> {
        let mut stream = self.pass?.into_hidden();
        stream.truncate(len);
        Ok(Ended { stream, drift: self.drift })
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
            Ok(Walk { party, pass: Ok(self.start(party, self.cache)?), drift: Vec::new() })
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
                    walk.measure(layer, stream, (hidden, self.windows.window));
                }
            });
            layer = original.step().map_err(self.original.failed())?;
            if layer.is_none() {
                break;
            }
            walks
                .iter_mut()
                .try_for_each(|walk| walk.step(|row| self.place(row)))?;
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

    /// Which token of the whole text a row is; a row of the second run comes behind all of them.
    const fn place(&self, row: usize) -> usize {
        let behind = if row < self.tokens.len() { 0 } else { self.after };
        self.before + row + behind
    }

    /// What all models predict: of the candidates, and of the rounded original.
    pub(super) fn heads(&self, streams: Streams, monitor: &Monitor<'_>) -> Result<Measured> {
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
        let floor = match self.echo {
            0 => None,
            _ => self
                .compare(&start, &[original(&streams.rounded)], &meter)?
                .pop(),
        };
        let failed = |at: Break| at.error(self.original.name);
        let floor = floor.unwrap_or_else(|| Ok(Vec::new())).map_err(failed)?;
        let tracks = scores.into_iter().zip(streams.candidates);
        let track = |(scores, ended): (Scores, Result<Ended, Break>)| {
            let whole = ended.and_then(|ended| Ok((scores?, ended.drift)));
            whole.map_or_else(Track::Broken, |(scores, drift)| Track::Whole { scores, drift })
        };
        Ok(Measured { floor, candidates: tracks.map(track).collect() })
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
            let broken = |row: &[f32]| !row.iter().all(|z| z.is_finite());
            if let Some(row) = za.par_chunks(vocab).position_first(broken) {
                return Err(self.break_at(positions[row]).error(original.party.name));
            }
            // The original's logits of these positions serve every candidate before the next positions come.
            for ((head, side), scores) in heads.iter_mut().zip(others).zip(&mut scores) {
                let (Some(_), Ok(found)) = (side.stream, &mut *scores) else { continue };
                logits(head, side, positions, &mut zb)?;
                match self.scores((&za, &zb), vocab, positions) {
                    Ok(more) => found.extend(more),
                    Err(at) => *scores = Err(at),
                }
            }
            meter.add(positions.len() as u64)?;
        }
        Ok(scores)
    }

    fn head(&self, side: &Side<'_>) -> Result<Head> {
        Head::new(side.party.weights, self.threads).map_err(side.party.failed())
    }

    /// Scores at `positions` of logits `[positions, vocab]`.
    fn scores(&self, (za, zb): (&[f32], &[f32]), vocab: usize, positions: &[usize]) -> Scores {
        let rows = za
            .par_chunks(vocab)
            .zip(zb.par_chunks(vocab))
            .zip(positions);
        let score = |((za, zb), &at): ((&[f32], &[f32]), &usize)| {
            Score::new(za, zb, self.tokens[at + 1] as usize)
        };
        let scores: Vec<_> = self.pool.install(|| rows.map(score).collect());
        let found = scores.into_iter().zip(positions);
        found
            .map(|(score, at)| score.ok_or_else(|| self.break_at(*at)))
            .collect()
    }

    /// That logits at a position are not finite.
    const fn break_at(&self, position: usize) -> Break {
        Break::Logits { window: (self.before + position) / self.windows.window }
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
