//! Token-major execution: one token through all layers, within a memory budget.

mod drafts;
mod logits;
mod memory;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use shardwright_format::arch::Prediction;
use shardwright_format::io::AlignedBuf;
use shardwright_format::model::{Ffn, LayerSpec, ModelSpec};
use shardwright_format::weights::Weights;

use crate::ahead::{Judge, LookedAhead};
use crate::block::delta_net::State as DeltaState;
use crate::block::kv::CacheTypes;
use crate::block::ops::cap;
use crate::block::router::Routes;
use crate::block::saved::{can_keep, saved_len};
use crate::block::{self, Layer, MixerState, check_finite};
use crate::error::{Result, RuntimeError};
use crate::experts::{self, Means};
use crate::head::final_norm;
use crate::options::Options;
use crate::pass::{PassState, Sequences};
use crate::plan::{ChunkRoom, MemoryPlan};
use crate::prediction::Predictor;
use crate::store::Store;
use crate::threads::{stay_awake, thread_pool};
use crate::trace::Visit;
use crate::view::UnitView;
use crate::vocab::{VocabMatrix, check_token};

/// What a runtime has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Tokens computed; those that were tried and did not follow are not counted.
    pub tokens: u64,
    /// Bytes read from files for them; what was read once at the start not included.
    pub bytes_read: u64,
    /// Reads.
    pub reads: u64,
    /// Experts found in memory, or on their way there.
    pub cache_hits: u64,
    /// Experts that had to be read when they were picked.
    pub cache_misses: u64,
    /// What was read before it was picked.
    pub ahead: LookedAhead,
    /// Bytes of weights in memory.
    pub bytes_resident: u64,
}

/// Who is shown the residual stream.
pub type Observer<'a> = &'a mut (dyn FnMut(usize, &[f32]) + Send);

/// Who is shown the logits of guesses.
pub type Guesses<'a> = &'a mut (dyn FnMut(&[f32]) + Send);

/// A model that computes a text from its beginning: a prompt in chunks, then token after token.
#[derive(Debug)]
pub struct Runtime {
    weights: Arc<Weights>,
    plan: MemoryPlan,
    /// The plan that it began with.
    opened: MemoryPlan,
    context: usize,
    cache: CacheTypes,
    pool: rayon::ThreadPool,
    model: Model,
}

/// Everything that a token changes.
#[derive(Debug)]
struct Model {
    spec: Arc<ModelSpec>,
    weights: Arc<Weights>,
    store: Store,
    embedding: VocabMatrix,
    head: VocabMatrix,
    /// The final norm, `[hidden]`.
    norm: Vec<f32>,
    mixers: Vec<MixerState>,
    position: usize,
    /// Positions that the model sees without choosing among them or stretching its rotation.
    reach: usize,
    tokens: u64,
    failed: bool,
    /// Experts that there is room for beside the buffers of some tokens.
    rooms: Vec<ChunkRoom>,
    state: PassState,
    routes: Vec<Routes>,
    /// Chunks computed so far.
    passes: u64,
    /// Whether experts are read ahead.
    judge: Judge,
    /// The layer that predicts the token after next, where drafts come from it, and what it gave last, `[hidden]`.
    predictor: Option<Predictor>,
    last_guess: Vec<f32>,
    /// What became of experts since it was last asked for, where someone asks.
    visits: Option<Vec<Visit>>,
    /// What a layer's experts gave, until it can be summed.
    outputs: Vec<f32>,
    /// Rows of an embedding that is not in memory.
    rows: AlignedBuf,
    /// Pieces of a head that is not in memory.
    pieces: Vec<AlignedBuf>,
    /// Of the last position, `[vocab]`; while tokens are tried, of each, `[n, vocab]`.
    logits: Vec<f32>,
    /// Logits of a piece of the head for several rows.
    piece: Vec<f32>,
}

impl Runtime {
    /// Plans the memory and reads what stays in it.
    ///
    /// # Errors
    /// A budget below the least that works; weights that cannot be read.
    pub fn open(weights: Weights, options: &Options) -> Result<Self> {
        let weights = weights.in_codes()?;
        let plan = MemoryPlan::new(&weights, options)?;
        let (weights, pool) = (Arc::new(weights), thread_pool(options.threads)?);
        let model = Model::new(&weights, &plan, options)?;
        let Options { context, cache, .. } = *options;
        let opened = plan.clone();
        Ok(Self { weights, plan, opened, context, cache, pool, model })
    }

    /// Logits `[vocab_size]` after `token` at the next position.
    ///
    /// # Errors
    /// A token outside the vocabulary, a full context, weights that cannot be read, values that are
    /// not finite.
    pub fn forward(&mut self, token: u32) -> Result<&[f32]> {
        self.forward_observed(token, &mut |_, _| {})
    }

    /// As [`Self::forward`], showing the residual stream `[hidden_size]` to `observe`: with 0 the
    /// embedding, with `i` the output of layer `i - 1`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_observed(&mut self, token: u32, observe: Observer<'_>) -> Result<&[f32]> {
        self.run(&[token], observe, 1)?;
        Ok(&self.model.logits)
    }

    /// Logits `[vocab_size]` after the last of `tokens`, which are computed together, as many at a
    /// time as [`MemoryPlan::chunk`] says. They are those of one token after the other, to the bit.
    ///
    /// # Errors
    /// As [`Self::forward`]; no tokens.
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.run(tokens, &mut |_, _| {}, 1)?;
        Ok(&self.model.logits)
    }

    /// Computes `tokens` for what later ones need of them, without logits; together, as
    /// [`Self::forward_all`] does.
    ///
    /// # Errors
    /// As [`Self::forward_all`].
    pub fn advance(&mut self, tokens: &[u32]) -> Result<()> {
        self.run(tokens, &mut |_, _| {}, 0)
    }

    /// Computes `tokens` together, of which all but the first are a guess at what follows, and shows
    /// the logits `[vocab_size]` after each in turn to `follows`, which says whether the next one of
    /// `tokens` does follow. Those behind one that does not go again, as if they had never been
    /// computed; gives how many stay. At most [`Self::draft_room`] tokens are tried behind the first.
    ///
    /// # Errors
    /// As [`Self::forward_all`].
    pub fn forward_while(
        &mut self,
        tokens: &[u32],
        mut follows: impl FnMut(usize, &[f32]) -> bool,
    ) -> Result<usize> {
        let rows = tokens.len().min(self.draft_room() + 1);
        let trial = rows > 1;
        if trial {
            self.model
                .mixers
                .iter_mut()
                .for_each(MixerState::begin_trial);
        }
        self.run(&tokens[..rows], &mut |_, _| {}, rows)?;
        let logits = self.model.logits.chunks_exact(self.model.vocab());
        let followed = logits
            .enumerate()
            .take_while(|(row, logits)| follows(*row, logits));
        let kept = rows.min(1 + followed.count());
        if trial {
            self.pool.install(|| self.model.keep(rows, kept));
        }
        Ok(kept)
    }

    /// Bytes that [`Self::open_predictor`] takes beside a runtime with these options.
    ///
    /// # Errors
    /// An encoding that cannot hold a shape.
    pub fn predictor_bytes(layer: &Prediction, options: &Options) -> Result<u64> {
        Predictor::byte_len(layer, options)
    }

    /// Reads the model's layer that predicts the token after next: from here on it follows what is computed.
    ///
    /// # Errors
    /// A model without it; weights that cannot be read.
    pub fn open_predictor(&mut self) -> Result<()> {
        self.model.predictor = Some(Predictor::open(&self.weights, self.context, self.cache)?);
        Ok(())
    }

    /// What the layer of [`Self::open_predictor`] finds likeliest behind `last`, the token at the next position: a
    /// guess for [`Self::forward_while`] of at most `most` tokens. Shows the logits `[vocab_size]` of each to
    /// `observe`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn predict(&mut self, last: u32, most: usize, observe: Guesses<'_>) -> Result<Vec<u32>> {
        check_token(&self.model.spec, last)?;
        let most = most.min(self.positions().saturating_sub(self.model.position));
        if self.model.failed || most == 0 {
            return Ok(Vec::new());
        }
        let (model, mut draft) = (&mut self.model, Vec::new());
        self.pool.install(|| {
            model.guarded(|model| {
                draft = model.predict(last, most, observe)?;
                Ok(())
            })
        })?;
        Ok(draft)
    }

    /// Positions that there is room for and that the model sees without choosing among them.
    pub fn positions(&self) -> usize {
        self.context.min(self.model.reach)
    }

    /// Tokens that can be tried behind the next one, as the plan, the context and the model allow.
    pub fn draft_room(&self) -> usize {
        let left = self.positions().saturating_sub(self.model.position + 1);
        self.plan.draft.min(left)
    }

    /// Leaves the logits after the last `rows` of `tokens`.
    fn run(&mut self, tokens: &[u32], observe: Observer<'_>, rows: usize) -> Result<()> {
        self.accept(tokens)?;
        let (chunk, model) = (self.plan.chunk, &mut self.model);
        self.pool.install(|| {
            model.guarded(|model| {
                for tokens in tokens.chunks(chunk) {
                    model.hidden(tokens, observe)?;
                }
                if rows == 0 {
                    return Ok(());
                }
                model.compute_logits(rows)?;
                cap(&mut model.logits, model.spec.logits_cap);
                model.check_logits()
            })
        })
    }

    /// Refuses what would fail later, before anything is computed.
    fn accept(&self, tokens: &[u32]) -> Result<()> {
        for token in tokens {
            check_token(&self.model.spec, *token)?;
        }
        if self.model.failed {
            return Err(RuntimeError::Failed);
        }
        if tokens.is_empty() {
            return Err(RuntimeError::NoTokens);
        }
        if self.context - self.model.position < tokens.len() {
            return Err(RuntimeError::Context { context: self.context });
        }
        Ok(())
    }

    /// Goes back to the first `position` positions, as if the others had never been; to none where the
    /// layers do not remember enough for that. Gives how many are left.
    pub fn rewind(&mut self, position: usize) -> usize {
        let Model { spec, mixers, position: now, .. } = &mut self.model;
        let mut layers = spec.layers.iter().zip(mixers.iter());
        let can = |(layer, state): (&LayerSpec, &MixerState)| {
            state.can_return(&layer.mixer, *now, position)
        };
        *now = if position <= *now && layers.all(can) { position } else { 0 };
        let now = *now;
        self.model.go_back();
        now
    }

    /// Whether of a state that was saved after `saved` positions the first `kept` can be taken up.
    pub(crate) fn can_take_up(&self, saved: usize, kept: usize) -> bool {
        let mut layers = self.model.spec.layers.iter();
        kept <= self.context && layers.all(|layer| can_keep(&layer.mixer, saved, kept))
    }

    /// Bytes that [`Self::save`] writes after `position` positions.
    pub(crate) fn saved_len(&self, position: usize) -> u64 {
        let Model { spec, logits, .. } = &self.model;
        let (hidden, layers) = (spec.hidden_size as usize, spec.layers.iter());
        let layer = |layer: &LayerSpec| saved_len(&layer.mixer, hidden, position, self.cache);
        layers.map(layer).sum::<u64>() + 4 * logits.len() as u64
    }

    /// Writes what the layers remember, and the logits after the last position.
    pub(crate) fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        let Model { spec, mixers, position, logits, .. } = &self.model;
        for (layer, state) in spec.layers.iter().zip(mixers) {
            state.save(&layer.mixer, *position, out)?;
        }
        let mut logits = logits.iter();
        logits.try_for_each(|logit| out.write_all(&logit.to_le_bytes()))
    }

    /// Takes up the first `kept` positions of what [`Self::save`] wrote after `saved`.
    pub(crate) fn take_up(
        &mut self,
        saved: usize,
        kept: usize,
        input: &mut dyn Read,
    ) -> io::Result<()> {
        let Model { spec, mixers, position, logits, .. } = &mut self.model;
        for (layer, state) in spec.layers.iter().zip(mixers) {
            state.load(&layer.mixer, (saved, kept), input)?;
        }
        let mut bytes = [0; 4];
        for logit in logits {
            input.read_exact(&mut bytes)?;
            *logit = f32::from_le_bytes(bytes);
        }
        *position = kept;
        self.model.go_back();
        Ok(())
    }

    /// Logits `[vocab_size]` after the last position, if they were computed for it.
    pub fn last_logits(&self) -> &[f32] {
        &self.model.logits
    }

    /// How keys and values are kept.
    pub const fn cache(&self) -> CacheTypes {
        self.cache
    }

    /// Forgets all positions. The weights in memory stay.
    pub fn reset(&mut self) {
        self.model.position = 0;
        self.model.go_back();
    }

    /// Positions computed since the last reset.
    pub const fn position(&self) -> usize {
        self.model.position
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    /// What is kept in memory.
    pub const fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Keeps to another budget from here on: with less, experts leave memory at once, those used least first;
    /// with more, there is room for more of them. The text stays the same. Gives the plan, which takes more
    /// than the budget where that is below what is held besides experts and the picks of one token.
    ///
    /// # Errors
    /// What the disk refuses of reads that were under way.
    pub fn set_memory(&mut self, budget: u64) -> Result<&MemoryPlan> {
        if self.model.failed {
            return Err(RuntimeError::Failed);
        }
        self.plan = self.opened.resized(&self.model.spec, budget);
        self.model.rooms.clone_from(&self.plan.rooms);
        self.model.guarded(Model::give_back)?;
        Ok(&self.plan)
    }

    /// The source of the weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What a layer's delta net remembers of the tokens so far; none for other layers.
    pub fn delta_state(&self, layer: usize) -> Option<&DeltaState> {
        match self.model.mixers.get(layer)? {
            MixerState::DeltaNet(state) => Some(state),
            MixerState::Attention(_) | MixerState::Latent(_) | MixerState::ShortConv(_) => None,
        }
    }

    /// The picks of the last tokens that were computed together, per layer; empty for layers
    /// without experts.
    pub fn last_routes(&self) -> &[Routes] {
        &self.model.routes
    }

    /// Keeps what becomes of experts from here on: [`Self::take_visits`] gives it.
    pub fn watch_experts(&mut self) {
        self.model.visits.get_or_insert_default();
    }

    /// What became of experts since this was last asked, layer by layer and pass by pass; nothing without
    /// [`Self::watch_experts`].
    pub fn take_visits(&mut self) -> Vec<Visit> {
        self.model
            .visits
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let Model { store, embedding, head, tokens, judge, .. } = &self.model;
        let counts = store.counts;
        let tables = match (&embedding.loaded, &head.loaded) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => embedding.byte_len(),
            _ => embedding.byte_len() + head.byte_len(),
        };
        Stats {
            tokens: *tokens,
            bytes_read: counts.bytes_read,
            reads: counts.reads,
            cache_hits: counts.cache_hits,
            cache_misses: counts.cache_misses,
            ahead: LookedAhead { guesses: counts.ahead, ..judge.did },
            bytes_resident: store.byte_len() + tables,
        }
    }
}

impl Model {
    fn new(weights: &Arc<Weights>, plan: &MemoryPlan, options: &Options) -> Result<Self> {
        let spec = Arc::new(weights.spec().clone());
        let embedding = VocabMatrix::embedding(weights, plan.embedding_resident)?;
        let hidden = spec.hidden_size as usize;
        let mixers = spec.layers.iter().map(|l| {
            let (context, types) = (options.context, options.cache);
            MixerState::for_tokens(&l.mixer, hidden, context, plan.chunk, types)
        });
        let state = PassState::new(vec![0.0; hidden]);
        Ok(Self {
            head: VocabMatrix::head(weights, plan.head_resident, &embedding)?,
            norm: final_norm(weights)?,
            store: Store::new(weights, plan)?,
            mixers: mixers.collect(),
            position: 0,
            reach: spec
                .layers
                .iter()
                .map(|l| block::reach(&l.mixer))
                .min()
                .unwrap_or(usize::MAX),
            tokens: 0,
            failed: false,
            rooms: plan.rooms.clone(),
            state,
            routes: vec![Routes::default(); spec.layers.len()],
            passes: 0,
            judge: Judge::new(options.look_ahead),
            predictor: None,
            last_guess: Vec::new(),
            visits: None,
            outputs: Vec::new(),
            rows: AlignedBuf::default(),
            pieces: Vec::new(),
            logits: vec![0.0; spec.vocab_size as usize],
            piece: Vec::new(),
            weights: Arc::clone(weights),
            embedding,
            spec,
        })
    }

    /// Remembers a failure: reads that were under way are lost with it.
    fn guarded(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let result = run(self);
        self.failed = result.is_err();
        result
    }

    /// The residual stream of `tokens` after the last layer, into `self.state.x`.
    fn hidden(&mut self, tokens: &[u32], observe: Observer<'_>) -> Result<()> {
        self.make_room(tokens.len())?;
        let started = Instant::now();
        // Chunks know the experts of all their tokens at once: they have reads enough.
        let alone = tokens.len() == 1 && self.streams_experts();
        let ahead = alone && self.judge.looks();
        for _ in tokens {
            self.store.begin_token();
        }
        self.embed(tokens)?;
        observe(0, &self.state.x);
        for index in 0..self.spec.layers.len() {
            let dense = self.store.take_dense(index)?;
            stay_awake();
            self.layer(index, dense.view(), tokens.len(), ahead)?;
            self.store.return_dense(index, dense);
            let x = &self.state.x;
            check_finite(index as u32, self.position, self.norm.len(), x)?;
            observe(index + 1, x);
        }
        self.show_predictor(tokens, self.position)?;
        self.position += tokens.len();
        self.tokens += tokens.len() as u64;
        self.passes += 1;
        if alone {
            let seconds = started.elapsed().as_secs_f64();
            self.judge.learn(seconds, self.store.counts.ahead);
        }
        Ok(())
    }

    fn embed(&mut self, tokens: &[u32]) -> Result<()> {
        self.state.x = self.embedded(tokens)?;
        Ok(())
    }

    /// Rows of the embedding, `[n, hidden]`.
    fn embedded(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let buf = std::mem::take(&mut self.rows);
        let embedded = self.embedding.embed(&self.weights, tokens, 1, buf)?;
        self.store.counts.reads += embedded.reads;
        self.store.counts.bytes_read += embedded.bytes_read;
        self.rows = embedded.buf;
        Ok(embedded.x)
    }

    fn layer(
        &mut self,
        index: usize,
        unit: UnitView<'_>,
        length: usize,
        ahead: bool,
    ) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let layer = Layer::new(&spec, index as u32, unit);
        let sequences = Sequences { length, first: self.position };
        self.state
            .mix(&layer, sequences, &mut self.mixers[index], &mut None)?;
        match &layer.spec.ffn {
            Ffn::Dense(dense) => self.state.dense(&layer, dense, &mut None),
            Ffn::Moe(moe) => {
                let Self { state, store, outputs, .. } = self;
                let ahead = ahead.then_some(&*spec);
                let visit = experts::forward(&layer, moe, Means { state, store, outputs, ahead })?;
                self.routes[index].clone_from(&state.routes);
                if let Some(visits) = &mut self.visits {
                    visits.push(Visit { pass: self.passes, ..visit });
                }
                Ok(())
            }
        }
    }

    /// Ends a trial of `rows` rows after the first `kept`.
    fn keep(&mut self, rows: usize, kept: usize) {
        let vocab = self.vocab();
        self.mixers.iter_mut().for_each(|mixer| mixer.keep(kept));
        self.position -= rows - kept;
        self.go_back();
        self.tokens -= (rows - kept) as u64;
        self.logits.copy_within((kept - 1) * vocab..kept * vocab, 0);
        self.logits.truncate(vocab);
    }

    fn vocab(&self) -> usize {
        self.spec.vocab_size as usize
    }

    fn check_logits(&self) -> Result<()> {
        let first = self.position - self.logits.len() / self.vocab();
        match self.logits.iter().position(|logit| !logit.is_finite()) {
            Some(at) => {
                let (row, token) = (at / self.vocab(), at % self.vocab());
                Err(RuntimeError::HeadNotFinite { position: first + row, token })
            }
            None => Ok(()),
        }
    }
}
