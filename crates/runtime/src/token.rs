//! Token-major execution: one token through all layers, within a memory budget.

use std::sync::Arc;

use shardwright_format::UnitLayout;
use shardwright_format::io::AlignedBuf;
use shardwright_format::model::{Ffn, ModelSpec, MoeSpec};
use shardwright_format::weights::Weights;
use shardwright_quant::Activation;

use crate::block::delta_net::State as DeltaState;
use crate::block::moe::{self, Routes};
use crate::block::ops::{add_scaled, rms_norm, scale};
use crate::block::{Batch, Layer, MixerState, Work, check_finite, mix, mlp};
use crate::error::{Result, RuntimeError};
use crate::fetch::Request;
use crate::linear::{Product, matvecs};
use crate::plan::{HEAD_BUFFERS, MemoryPlan, Options, head_chunk};
use crate::store::Store;
use crate::table::{Table, check_token, final_norm, thread_pool};
use crate::view::UnitView;

/// What a runtime has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Tokens computed.
    pub tokens: u64,
    /// Bytes read from files for them; what was read once at the start not included.
    pub bytes_read: u64,
    /// Reads.
    pub reads: u64,
    /// Experts found in memory.
    pub cache_hits: u64,
    /// Experts that had to be read.
    pub cache_misses: u64,
    /// Bytes of weights in memory.
    pub bytes_resident: u64,
}

/// A model that computes one token after the other.
#[derive(Debug)]
pub struct Runtime {
    weights: Arc<Weights>,
    plan: MemoryPlan,
    context: usize,
    pool: rayon::ThreadPool,
    model: Model,
}

/// Everything that a token changes.
#[derive(Debug)]
struct Model {
    spec: Arc<ModelSpec>,
    weights: Arc<Weights>,
    store: Store,
    embedding: Table,
    head: Table,
    norm: Vec<f32>,
    state: Vec<MixerState>,
    position: usize,
    tokens: u64,
    failed: bool,
    work: Work,
    /// Residual stream, `[hidden]`.
    x: Vec<f32>,
    /// Sum of a layer's experts, `[hidden]`.
    sum: Vec<f32>,
    routes: Vec<Routes>,
    rows: AlignedBuf,
    pieces: Vec<AlignedBuf>,
    activation: Activation,
    logits: Vec<f32>,
}

impl Runtime {
    /// Plans the memory and reads what stays in it.
    ///
    /// # Errors
    /// A budget below the floor, with the floor; weights that cannot be read.
    pub fn open(weights: Weights, options: &Options) -> Result<Self> {
        let plan = MemoryPlan::new(&weights, options)?;
        let (weights, pool) = (Arc::new(weights), thread_pool(options.threads)?);
        let model = Model::new(&weights, &plan, options.context)?;
        Ok(Self { weights, plan, context: options.context, pool, model })
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
    pub fn forward_observed(
        &mut self,
        token: u32,
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<&[f32]> {
        self.accept(token)?;
        let model = &mut self.model;
        self.pool.install(|| {
            model.guarded(|model| {
                model.hidden(token, observe)?;
                model.compute_logits()?;
                model.check_logits()
            })
        })?;
        Ok(&self.model.logits)
    }

    /// Computes `token` for what later tokens need of it, without logits.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn advance(&mut self, token: u32) -> Result<()> {
        self.accept(token)?;
        let model = &mut self.model;
        self.pool
            .install(|| model.guarded(|model| model.hidden(token, &mut |_, _| {})))
    }

    fn accept(&self, token: u32) -> Result<()> {
        check_token(&self.model.spec, token)?;
        if self.model.failed {
            return Err(RuntimeError::Stopped);
        }
        if self.model.position >= self.context {
            return Err(RuntimeError::Context { context: self.context });
        }
        Ok(())
    }

    /// Forgets all positions. The weights in memory stay.
    pub const fn reset(&mut self) {
        self.model.position = 0;
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

    /// The source of the weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What a layer's delta net remembers of the tokens so far; none for other layers.
    pub fn delta_state(&self, layer: usize) -> Option<&DeltaState> {
        match self.model.state.get(layer)? {
            MixerState::DeltaNet(state) => Some(state),
            MixerState::Attention(_) | MixerState::Latent(_) => None,
        }
    }

    /// The last token's picks per layer; empty for layers without experts.
    pub fn last_routes(&self) -> &[Routes] {
        &self.model.routes
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let Model { store, embedding, head, tokens, .. } = &self.model;
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
            bytes_resident: store.byte_len() + tables,
        }
    }
}

impl Model {
    fn new(weights: &Arc<Weights>, plan: &MemoryPlan, context: usize) -> Result<Self> {
        let spec = Arc::new(weights.spec().clone());
        let embedding = Table::embedding(weights, plan.embedding_resident)?;
        let state = spec
            .layers
            .iter()
            .map(|l| MixerState::for_tokens(&l.mixer, context));
        Ok(Self {
            head: Table::head(weights, plan.head_resident, &embedding)?,
            norm: final_norm(weights)?,
            store: Store::new(weights, plan)?,
            state: state.collect(),
            position: 0,
            tokens: 0,
            failed: false,
            work: Work::new(),
            x: vec![0.0; spec.hidden_size as usize],
            sum: Vec::new(),
            routes: vec![Routes::default(); spec.layers.len()],
            rows: AlignedBuf::default(),
            pieces: Vec::new(),
            activation: Activation::new(),
            logits: vec![0.0; spec.vocab_size as usize],
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

    /// The residual stream after the last layer, into `self.x`.
    fn hidden(
        &mut self,
        token: u32,
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()> {
        self.store.begin_token();
        self.embed(token)?;
        observe(0, &self.x);
        for index in 0..self.spec.layers.len() {
            let dense = self.store.take_dense(index)?;
            self.layer(index, dense.view())?;
            self.store.return_dense(index, dense)?;
            check_finite(index as u32, self.position, self.x.len(), &self.x)?;
            observe(index + 1, &self.x);
        }
        self.position += 1;
        self.tokens += 1;
        Ok(())
    }

    /// The token's row, scaled where the model does so.
    fn embed(&mut self, token: u32) -> Result<()> {
        self.embed_row(token)?;
        if let Some(factor) = self.spec.embedding_multiplier {
            scale(&mut self.x, factor);
        }
        Ok(())
    }

    fn embed_row(&mut self, token: u32) -> Result<()> {
        let (role, hidden) = (self.embedding.entry.role, self.x.len());
        let backend = self.work.linear.backend;
        let row = token as usize;
        if let Some(loaded) = &self.embedding.loaded {
            let rows = self.spec.vocab_size as usize;
            let matrix = loaded.view().matrix(role, rows, hidden)?;
            matrix.dequantize(backend, row..row + 1, &mut self.x);
            return Ok(());
        }
        let rows = self.embedding.entry.readable(&(row as u64..row as u64 + 1));
        let (first, count) = (rows.start as usize, (rows.end - rows.start) as usize);
        let loaded =
            self.embedding
                .read_rows(&self.weights, rows, std::mem::take(&mut self.rows))?;
        loaded.view().matrix(role, count, hidden)?.dequantize(
            backend,
            row - first..row - first + 1,
            &mut self.x,
        );
        self.store.counts.reads += 1;
        self.store.counts.bytes_read += loaded.layout.len;
        self.rows = loaded.bytes;
        Ok(())
    }

    fn layer(&mut self, index: usize, unit: UnitView<'_>) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let layer = Layer::new(&spec, index as u32, unit);
        let batch = Batch { rows: 1, length: 1, first: self.position };
        mix(&layer, batch, &mut self.state[index], &mut self.x, &mut self.work)?;
        match &layer.spec.ffn {
            Ffn::Dense(dense) => mlp::forward(&layer, dense, &mut self.x, &mut self.work),
            Ffn::Moe(moe) => self.moe(&layer, moe),
        }
    }

    /// Computes the experts that are in memory while the others are read. Each has its own output;
    /// the sum is taken in the order of the picks, so that what was in memory makes no difference.
    fn moe(&mut self, layer: &Layer<'_>, spec: &MoeSpec) -> Result<()> {
        let Self { work, routes, store, x, sum, .. } = self;
        let routes = &mut routes[layer.index as usize];
        routes.clear(spec.num_experts_per_tok as usize);
        moe::route(layer, spec, x, work, routes)?;
        let places = store.request_experts(layer.index, &routes.experts)?;
        sum.clear();
        sum.resize(layer.hidden, 0.0);
        if let Some(shared) = &spec.shared_expert {
            moe::shared(layer, shared, sum, work)?;
        }
        let mut waiting: Vec<usize> = (0..places.len()).collect();
        loop {
            let here = |pick: &usize| Some((*pick, store.expert(places[*pick])?));
            let ready: Vec<_> = waiting.iter().filter_map(here).collect();
            moe::experts(spec, layer.hidden, &routes.weights, &ready, work)?;
            waiting.retain(|pick| store.expert(places[*pick]).is_none());
            if waiting.is_empty() {
                break;
            }
            store.wait()?;
        }
        moe::combine(spec, layer.hidden, &routes.weights, sum, work);
        add_scaled(x, layer.residual_multiplier, sum);
        Ok(())
    }

    fn check_logits(&self) -> Result<()> {
        match self.logits.iter().position(|logit| !logit.is_finite()) {
            Some(token) => Err(RuntimeError::HeadNotFinite { position: self.position - 1, token }),
            None => Ok(()),
        }
    }

    fn compute_logits(&mut self) -> Result<()> {
        let backend = self.work.linear.backend;
        rms_norm(backend, &self.x, &self.norm, self.spec.rms_norm_eps, &mut self.work.normed);
        self.activation.set(backend, &self.work.normed);
        let (rows, hidden) = (self.logits.len(), self.x.len());
        let Some(loaded) = &self.head.loaded else { return self.stream_logits() };
        let matrix = loaded.view().matrix(self.head.entry.role, rows, hidden)?;
        let (x, out) = (&self.activation, &mut self.logits[..]);
        matvecs(backend, [Product { matrix, x, out }]);
        Ok(())
    }

    /// The head in pieces, the next one read while one is used.
    fn stream_logits(&mut self) -> Result<()> {
        let (unit, entry) = (self.head.unit, self.head.entry.clone());
        let layout = UnitLayout { tensors: [entry.clone()].into(), len: 0 };
        let (chunk, _) = head_chunk(&layout, entry.role)?;
        let (backend, hidden, end) = (self.work.linear.backend, self.x.len(), entry.rows);
        self.pieces.resize_with(HEAD_BUFFERS, AlignedBuf::default);
        let request =
            |first: u64| Request::Rows(unit, entry.clone(), first..end.min(first + chunk));
        let mut next = 0;
        for out in self.logits.chunks_mut(chunk as usize).enumerate() {
            while next < end
                && let Some(buf) = self.pieces.pop()
            {
                self.store.request_piece(request(next), buf)?;
                next += chunk;
            }
            let (i, out) = out;
            let piece = self.store.take_piece(i as u64 * chunk)?;
            let matrix = piece.view().matrix(entry.role, out.len(), hidden)?;
            matvecs(backend, [Product { matrix, x: &self.activation, out }]);
            self.pieces.push(piece.bytes);
        }
        Ok(())
    }
}
