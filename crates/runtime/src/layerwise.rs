//! Layer-major execution: all tokens through one layer before the next, so that every weight is read
//! once and memory is that of one dense layer and a few experts, besides the hidden states.

use std::collections::VecDeque;

use shardwright_format::Unit;
use shardwright_format::io::AlignedBuf;
use shardwright_format::model::Ffn;
use shardwright_format::weights::Weights;

use crate::block::kv::CacheTypes;
use crate::block::moe::{ExpertBatches, Experts};
use crate::block::router::Routes;
use crate::block::{Layer, MixerState, check_finite};
use crate::error::{Result, RuntimeError};
use crate::fetch::{Arrival, ReadQueue, Request, read, read_queue};
use crate::hook::Hook;
use crate::pass::{PassState, Sequences};
use crate::threads::thread_pool;
use crate::view::Loaded;
use crate::vocab::VocabMatrix;

/// Units read ahead.
const AHEAD: usize = 2;

/// Rows of the embedding read at a time.
const EMBEDDING_ROWS: u64 = 1024;

/// A text on its way through the layers, as windows of equal length that do not see each other.
#[derive(Debug)]
pub struct LayerPass<'w> {
    weights: &'w Weights,
    window: usize,
    pool: rayon::ThreadPool,
    state: PassState,
    /// The dense part of the next layer, when it was read ahead.
    dense: Option<Loaded>,
    spare: AlignedBuf,
    /// Whether the next layer may be read before its turn.
    reads_ahead: bool,
    /// How keys and values are kept.
    cache: CacheTypes,
    next: u32,
    bytes_read: u64,
}

impl<'w> LayerPass<'w> {
    /// Embeds `tokens`: whole windows of `window` tokens, each from an empty context.
    ///
    /// # Errors
    /// Tokens that are not whole windows or outside the vocabulary; an embedding that cannot be read.
    pub fn new(
        weights: &'w Weights,
        tokens: &[u32],
        window: usize,
        threads: usize,
    ) -> Result<Self> {
        if window == 0 || !tokens.len().is_multiple_of(window) {
            return Err(RuntimeError::Windows { tokens: tokens.len(), window });
        }
        let embedding = VocabMatrix::embedding(weights, false)?;
        let embedded = embedding.embed(weights, tokens, EMBEDDING_ROWS, AlignedBuf::default())?;
        let pass = Self::resume(weights, embedded.x, window, 0, threads)?;
        Ok(Self { bytes_read: embedded.bytes_read, ..pass })
    }

    /// A text that starts before layer `next` with the residual stream `x: [tokens, hidden]`, in
    /// windows of `window` tokens.
    ///
    /// # Errors
    /// When the operating system has no more threads.
    pub fn resume(
        weights: &'w Weights,
        x: Vec<f32>,
        window: usize,
        next: u32,
        threads: usize,
    ) -> Result<Self> {
        Ok(Self {
            weights,
            window,
            pool: thread_pool(threads)?,
            state: PassState::new(x),
            dense: None,
            spare: AlignedBuf::default(),
            reads_ahead: true,
            cache: CacheTypes::default(),
            next,
            bytes_read: 0,
        })
    }

    /// Reads no layer before its turn: what a later one holds may not have been written yet.
    #[must_use]
    pub fn reading_in_turn(self) -> Self {
        Self { reads_ahead: false, ..self }
    }

    /// Keeps keys and values as `types` say.
    #[must_use]
    pub fn keeping(self, types: CacheTypes) -> Self {
        Self { cache: types, ..self }
    }

    /// Adds whole windows that stand before the same layer, `[tokens, hidden]`.
    pub fn append(&mut self, x: &[f32]) {
        self.state.x.extend_from_slice(x);
    }

    /// Takes all tokens through the next layer and gives its number; nothing after the last.
    ///
    /// # Errors
    /// Weights that cannot be read, values that are not finite.
    pub fn step(&mut self) -> Result<Option<u32>> {
        let (index, weights) = (self.next, self.weights);
        if index as usize == weights.spec().layers.len() {
            return Ok(None);
        }
        self.layer(weights, self.reads_ahead, &mut None)?;
        let hidden = weights.spec().hidden_size as usize;
        check_finite(index, 0, hidden, &self.state.x)?;
        self.next += 1;
        Ok(Some(index))
    }

    /// Where the next layer, as `weights` have it, would take the stream, `[tokens, hidden]`; the
    /// stream stays where it was.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn look_ahead(&mut self, weights: &Weights) -> Result<Vec<f32>> {
        self.try_layer(weights, None)
    }

    /// Takes the stream through the next layer as `weights` have it and leaves it as it was: only
    /// `hook` learns of it.
    ///
    /// # Errors
    /// As [`Self::step`], and what the hook refuses.
    pub fn observe(&mut self, weights: &Weights, hook: Hook<'_>) -> Result<()> {
        self.try_layer(weights, Some(hook)).map(drop)
    }

    /// The next layer's output; the stream stays where it was.
    fn try_layer(&mut self, weights: &Weights, mut hook: Option<Hook<'_>>) -> Result<Vec<f32>> {
        let before = self.state.x.clone();
        // A layer read ahead is that of the pass's own weights, which these may not be.
        let ahead = self.dense.take();
        let done = self.layer(weights, false, &mut hook);
        self.dense = ahead;
        let after = std::mem::replace(&mut self.state.x, before);
        done.map(|()| after)
    }

    /// The next layer as `weights` have it; reads the one after it ahead if `ahead`.
    fn layer(&mut self, weights: &Weights, ahead: bool, hook: &mut Option<Hook<'_>>) -> Result<()> {
        let (spec, index) = (weights.spec(), self.next);
        let dense = match self.dense.take() {
            Some(dense) => dense,
            None => self.read(weights, Unit::Layer(index))?,
        };
        let Self { pool, state, window, cache, .. } = self;
        state.routes.clear(0);
        state.work.linear.captures.start(hook.is_some());
        let layer = Layer::new(spec, index, dense.view());
        let sequences = Sequences { length: *window, first: 0 };
        pool.install(|| {
            let mut mixer =
                MixerState::for_sequences(&layer.spec.mixer, layer.hidden, *window, *cache);
            state.mix(&layer, sequences, &mut mixer, hook)?;
            match &layer.spec.ffn {
                Ffn::Dense(spec) => state.dense(&layer, spec, hook),
                Ffn::Moe(spec) => {
                    state.route(&layer, spec, hook)?;
                    state.shared(&layer, spec, hook)
                }
            }
        })?;
        match &spec.layers[index as usize].ffn {
            Ffn::Dense(_) => self.spare = dense.bytes,
            Ffn::Moe(moe) => {
                let experts = Experts::new(&layer, moe)?;
                let more = ahead && index as usize + 1 < spec.layers.len();
                let following = more.then_some((Unit::Layer(index + 1), dense.bytes));
                self.experts(weights, &experts, following, hook)?;
                self.state.join(spec.residual_multiplier);
            }
        }
        self.state.work.linear.captures.start(false);
        Ok(())
    }

    fn read(&mut self, weights: &Weights, unit: Unit) -> Result<Loaded> {
        let loaded = read(weights, Request::Unit(unit), std::mem::take(&mut self.spare))?;
        self.bytes_read += loaded.layout.len;
        Ok(loaded)
    }

    /// Every expert that a token picked, read once in ascending order while the one before
    /// computes. `following`, with the buffer to read it into, comes last, when no expert waits for
    /// the disk.
    fn experts(
        &mut self,
        weights: &Weights,
        experts: &Experts<'_>,
        following: Option<(Unit, AlignedBuf)>,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        let layer = self.next;
        let mut batches = ExpertBatches::new(&self.state.routes, experts.count());
        if let Some(hook) = hook {
            batches.fill_up(hook.least_rows, self.state.work.linear.captures.scores());
            let count = experts.count() as u32;
            batches.retain(&self.state.routes.most_used(count, hook.most_experts));
        }
        let unit = |expert| Unit::Expert { layer, expert };
        let wanted: VecDeque<Unit> = batches.iter().map(|batch| unit(batch.expert)).collect();
        let Self { pool, state, .. } = self;
        let (following, bytes) = std::thread::scope(|scope| {
            let (queue, server) = read_queue();
            let reader = scope.spawn(move || server.serve(weights));
            // Takes the queue: when it ends, however it ends, the reader ends too.
            let computed = pool.install(move || {
                let mut ahead = ReadAhead::new(queue, wanted, following);
                (0..=AHEAD).for_each(|_| ahead.ask(AlignedBuf::default()));
                for batch in batches.iter() {
                    let loaded = ahead.take()?;
                    state.expert(experts, loaded.view(), batch, hook)?;
                    ahead.ask(loaded.bytes);
                }
                ahead.finish()
            });
            reader.join().map_err(|_| RuntimeError::ReaderGone)?;
            computed
        })?;
        self.bytes_read += bytes;
        self.dense = following;
        Ok(())
    }

    /// Runs `op`, whose parallel work is shared out to the threads of this pass.
    pub fn install<R: Send>(&self, op: impl FnOnce() -> R + Send) -> R {
        self.pool.install(op)
    }

    /// The residual stream `[tokens, hidden_size]`: the embedding, or the last layer's output.
    pub fn hidden(&self) -> &[f32] {
        &self.state.x
    }

    /// The residual stream, for what the caller does to it between layers, such as rounding.
    pub fn hidden_mut(&mut self) -> &mut [f32] {
        &mut self.state.x
    }

    /// The residual stream alone, once no layer is left to come.
    pub fn into_hidden(self) -> Vec<f32> {
        self.state.x
    }

    /// The last layer's picks; none when it has no experts.
    pub const fn routes(&self) -> &Routes {
        &self.state.routes
    }

    /// Bytes read so far.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

/// Units read in order while others compute, a few at a time.
struct ReadAhead {
    queue: ReadQueue,
    wanted: VecDeque<Unit>,
    /// What is read after them, into a buffer of its own.
    following: Option<(Unit, AlignedBuf)>,
    /// Whether that was asked for.
    asked: bool,
    /// Bytes that have arrived.
    bytes: u64,
}

impl ReadAhead {
    const fn new(
        queue: ReadQueue,
        wanted: VecDeque<Unit>,
        following: Option<(Unit, AlignedBuf)>,
    ) -> Self {
        Self { queue, wanted, following, asked: false, bytes: 0 }
    }

    /// Has the next unit read into `buf`, or what follows when there is none.
    fn ask(&mut self, buf: AlignedBuf) {
        if let Some(unit) = self.wanted.pop_front() {
            self.queue.request(Request::Unit(unit), buf);
        } else if let Some((unit, buf)) = self.following.take() {
            self.asked = true;
            self.queue.request(Request::Unit(unit), buf);
        }
    }

    /// The next unit, once it is there.
    fn take(&mut self) -> Result<Loaded> {
        // Nothing here is a guess.
        let Arrival::Read(loaded) = self.queue.wait()? else {
            return Err(RuntimeError::ReaderGone);
        };
        self.bytes += loaded.layout.len;
        Ok(loaded)
    }

    /// What follows, if anything does, and the bytes of all that arrived.
    fn finish(mut self) -> Result<(Option<Loaded>, u64)> {
        let following = if self.asked { Some(self.take()?) } else { None };
        Ok((following, self.bytes))
    }
}
