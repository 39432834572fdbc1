//! A layer of the model's own that predicts the token after next: what drafts come from without a second model.

use shardwright_format::arch::{Piece, Prediction};
use shardwright_format::io::AlignedBuf;
use shardwright_format::layout::place_dense;
use shardwright_format::model::{Ffn, LayerSpec, ModelSpec, MoeSpec};
use shardwright_format::weights::Weights;
use shardwright_format::{Role, TensorEntry, Unit, UnitLayout};
use shardwright_quant::EncodingError;

use crate::block::kv::CacheTypes;
use crate::block::moe::{ExpertBatches, Experts};
use crate::block::ops::{complete_norm, rms_norm};
use crate::block::{self, Layer, MixerState};
use crate::error::Result;
use crate::linear::Product;
use crate::options::Options;
use crate::pass::{PassState, Sequences};
use crate::plan::buffer;
use crate::view::{Loaded, UnitView};

/// Positions that it takes in together, at most.
pub const ROWS: usize = 32;

/// The layer, in memory, and how far it is behind the model.
///
/// Position `i` pairs what the model gives there after its final norm with the token behind it; from both the
/// layer says what follows that token.
#[derive(Debug)]
pub struct Predictor {
    spec: ModelSpec,
    dense: Loaded,
    experts: Vec<Loaded>,
    projection: Loaded,
    embedding_norm: Vec<f32>,
    hidden_norm: Vec<f32>,
    norm: Vec<f32>,
    mixer: MixerState,
    state: PassState,
    /// Both parts of each pair, normed, `[n, 2 * hidden]`.
    joined: Vec<f32>,
    /// What the layer gave for the last pairs, normed, `[n, hidden]`.
    given: Vec<f32>,
    /// Positions that it has taken in.
    done: usize,
    /// What the model gave at those that follow, `[n, hidden]`.
    waiting: Vec<f32>,
    /// The tokens behind them: as many, or one fewer.
    tokens: Vec<u32>,
}

impl Predictor {
    /// Bytes of memory that it takes beside a runtime with these options.
    ///
    /// # Errors
    /// An encoding that cannot hold a shape.
    pub fn byte_len(layer: &Prediction, options: &Options) -> Result<u64> {
        let (spec, hidden) = (&layer.spec, layer.spec.hidden_size as usize);
        let units = layer.experts.iter().chain([&layer.dense]);
        let units = units.map(|pieces| Ok(buffer(placed(pieces)?.len)));
        let units = units.sum::<Result<u64, EncodingError>>()?;
        let projection = buffer(layer.projection.byte_len()?);
        let state = |layer: &LayerSpec| {
            MixerState::byte_len(&layer.mixer, hidden, options.context, ROWS, options.cache)
                + options.threads as u64 * MixerState::decoded_byte_len(&layer.mixer, options.cache)
        };
        let state: u64 = spec.layers.iter().map(state).sum();
        // Copies of pairs that go into the projection, beside what any layer's rows take.
        let rows = block::buffer_len(spec, ROWS as u64) + 12 * (ROWS * hidden) as u64;
        let logits = 2 * u64::from(spec.vocab_size);
        Ok(units + projection + state + 4 * (rows + logits))
    }

    /// Reads the layer.
    ///
    /// # Errors
    /// A model without it; weights that cannot be read.
    pub fn open(weights: &Weights, context: usize, cache: CacheTypes) -> Result<Self> {
        let Prediction { spec, embedding_norm, hidden_norm, projection, norm, dense, experts } =
            weights.prediction()?;
        let hidden = spec.hidden_size as usize;
        let vector = |tensor: &TensorEntry| -> Result<Vec<f32>> {
            let loaded = read(weights, &[whole(tensor)])?;
            let mut values = loaded.view().vector(Role::Mtp, hidden)?;
            complete_norm(spec.norm_plus_one, &mut values);
            Ok(values)
        };
        if weights.checked().is_some() {
            // Hashes are of whole units, and rows are read below.
            weights.read(Unit::Mtp, &mut AlignedBuf::default())?;
        }
        let mixer = &spec.layers[0].mixer;
        Ok(Self {
            mixer: MixerState::for_tokens(mixer, hidden, context, ROWS, cache),
            embedding_norm: vector(&embedding_norm)?,
            hidden_norm: vector(&hidden_norm)?,
            norm: vector(&norm)?,
            projection: read(weights, &[whole(&projection)])?,
            dense: read(weights, &dense)?,
            experts: experts
                .iter()
                .map(|pieces| read(weights, pieces))
                .collect::<Result<_>>()?,
            state: PassState::new(Vec::new()),
            joined: Vec::new(),
            given: Vec::new(),
            done: 0,
            waiting: Vec::new(),
            tokens: Vec::new(),
            spec,
        })
    }

    /// Pairs that were not taken in yet.
    pub const fn pairs(&self) -> &[u32] {
        self.tokens.as_slice()
    }

    /// The model computed `token` at `position`, and gave `row` after its final norm.
    pub fn push(&mut self, position: usize, token: u32, row: &[f32]) {
        self.follow(position, token);
        self.waiting.extend_from_slice(row);
    }

    /// The token at `position` is `token`, which the model may not have computed yet. Whether the layer waits for
    /// it: not at the first position, and not twice.
    pub fn follow(&mut self, position: usize, token: u32) -> bool {
        let waits = position == self.done + self.tokens.len() + 1
            && self.waiting.len() > self.tokens.len() * self.norm.len();
        if waits {
            self.tokens.push(token);
        }
        waits
    }

    /// The model went back to its first `position` positions. What it gave at the last of them may be gone: then a
    /// row of zeros stands for it, which makes one guess worse.
    pub fn go_back(&mut self, position: usize) {
        let hidden = self.norm.len();
        self.tokens.truncate(position.saturating_sub(self.done + 1));
        let known = self.done + self.waiting.len() / hidden;
        if position == 0 || (self.done < position && position <= known) {
            self.done = self.done.min(position);
            self.waiting.truncate((position - self.done) * hidden);
            return;
        }
        self.done = position - 1;
        self.tokens.clear();
        self.waiting.clear();
        self.waiting.resize(hidden, 0.0);
    }

    /// Takes in the first pairs, with the tokens' `embeddings`, `[n, hidden]`. Gives what comes out for the last of
    /// them, `[hidden]`.
    ///
    /// # Errors
    /// Weights that are not what the spec says.
    pub fn take_in(&mut self, embeddings: &[f32]) -> Result<&[f32]> {
        let (len, first) = (embeddings.len(), self.done);
        let mut waiting = std::mem::take(&mut self.waiting);
        let taken = self.forward(embeddings, &waiting[..len], first);
        waiting.drain(..len);
        self.waiting = waiting;
        let rows = len / self.norm.len();
        self.tokens.drain(..rows);
        self.done += rows;
        taken?;
        Ok(&self.given[len - self.norm.len()..])
    }

    /// Goes on from its own last guess, with the `embedding` of that token at `position`; it is taken in for good
    /// when the model has come by.
    ///
    /// # Errors
    /// As [`Self::take_in`].
    pub fn go_on(&mut self, embedding: &[f32], position: usize) -> Result<&[f32]> {
        let before = self.given[self.given.len() - embedding.len()..].to_vec();
        self.forward(embedding, &before, position)?;
        Ok(&self.given)
    }

    /// Takes pairs at positions from `first` on through the layer.
    fn forward(&mut self, embeddings: &[f32], hidden: &[f32], first: usize) -> Result<()> {
        let Self { spec, dense, experts, mixer, state, .. } = self;
        let (width, backend, eps) = (self.norm.len(), state.work.linear.backend, spec.rms_norm_eps);
        let length = embeddings.len() / width;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        rms_norm(backend, embeddings, &self.embedding_norm, eps, &mut a);
        rms_norm(backend, hidden, &self.hidden_norm, eps, &mut b);
        self.joined.clear();
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            self.joined.extend_from_slice(a);
            self.joined.extend_from_slice(b);
        }
        let matrix = self.projection.view().matrix(Role::Mtp, width, 2 * width)?;
        state.x.resize(embeddings.len(), 0.0);
        let (x, out) = (&self.joined[..], &mut state.x[..]);
        state.work.linear.compute(vec![Product { matrix, x, out }]);
        let layer = Layer::new(spec, 0, dense.view());
        state.mix(&layer, Sequences { length, first }, mixer, &mut None)?;
        match &layer.spec.ffn {
            Ffn::Dense(dense) => state.dense(&layer, dense, &mut None)?,
            Ffn::Moe(moe) => routed(&layer, moe, experts, state)?,
        }
        rms_norm(backend, &state.x, &self.norm, eps, &mut self.given);
        Ok(())
    }
}

/// The feed-forward of a layer whose experts are all in memory.
fn routed(
    layer: &Layer<'_>,
    moe: &MoeSpec,
    loaded: &[Loaded],
    state: &mut PassState,
) -> Result<()> {
    state.route(layer, moe, &mut None)?;
    state.shared(layer, moe, &mut None)?;
    let experts = Experts::new(layer, moe)?;
    let batches = ExpertBatches::new(&state.routes, experts.count());
    for batch in batches.iter() {
        let unit: UnitView<'_> = loaded[batch.expert as usize].view();
        state.expert(&experts, unit, batch, &mut None)?;
    }
    state.join(layer.residual_multiplier);
    Ok(())
}

/// All of a tensor.
fn whole(tensor: &TensorEntry) -> Piece {
    Piece { role: tensor.role, tensor: tensor.clone(), rows: 0..tensor.rows }
}

/// Rows of tensors as a unit of their own.
fn placed(pieces: &[Piece]) -> Result<UnitLayout, EncodingError> {
    let entry = |piece: &Piece| TensorEntry {
        role: piece.role,
        rows: piece.rows.end - piece.rows.start,
        ..piece.tensor.clone()
    };
    place_dense(pieces.iter().map(entry).collect())
}

/// Reads them.
fn read(weights: &Weights, pieces: &[Piece]) -> Result<Loaded> {
    let layout = placed(pieces)?;
    let (mut bytes, mut rows) = (AlignedBuf::new(layout.len as usize), AlignedBuf::default());
    for (piece, entry) in pieces.iter().zip(layout.tensors.iter()) {
        weights.read_rows(Unit::Mtp, &piece.tensor, piece.rows.clone(), &mut rows)?;
        let place = &mut bytes.as_mut_slice()[entry.offset as usize..][..rows.len()];
        place.copy_from_slice(rows.as_slice());
    }
    Ok(Loaded::new(Unit::Mtp, layout, bytes))
}
