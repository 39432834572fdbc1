//! Layer-major execution: all tokens through one layer before the next, so that every weight is read
//! once and memory is that of one dense layer and a few experts, besides the hidden states.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use shardwright_format::io::AlignedBuf;
use shardwright_format::model::{Ffn, MoeSpec};
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role, Unit};
use shardwright_quant::{Backend, axpy};

use crate::block::mlp::{self, gated};
use crate::block::moe::{self, Routes};
use crate::block::ops::{add_scaled, rms_norm_in_place, scale};
use crate::block::record::Site;
use crate::block::{Batch, Layer, MixerState, Work, check_finite, mix};
use crate::error::{Result, RuntimeError};
use crate::fetch::{Request, read};
use crate::plan::is_compressed;
use crate::probe::Probe;
use crate::table::{Table, check_token, thread_pool};
use crate::view::Loaded;

/// Rows that go through a matrix together: enough to hide its dequantization.
const ROWS: usize = 512;

/// Experts read ahead.
const AHEAD: usize = 2;

/// Rows of the embedding read at a time.
const EMBEDDING_ROWS: u64 = 1024;

/// A text on its way through the layers, as windows of equal length that do not see each other.
#[derive(Debug)]
pub struct LayerPass<'w> {
    weights: &'w Weights,
    window: usize,
    pool: rayon::ThreadPool,
    flow: Flow,
    /// The dense part of the next layer, when it was read ahead.
    dense: Option<Loaded>,
    spare: AlignedBuf,
    /// Whether the next layer may be read before its turn.
    reads_ahead: bool,
    next: u32,
    bytes_read: u64,
}

/// What the layers change.
#[derive(Debug)]
struct Flow {
    /// Residual stream, `[tokens, hidden]`.
    x: Vec<f32>,
    /// Sums of the experts' outputs, `[tokens, hidden]`.
    sum: Vec<f32>,
    /// Rows of one expert, `[≤ ROWS, hidden]`.
    gathered: Vec<f32>,
    routes: Routes,
    /// Of the layer's feed-forward, `[hidden]`.
    norm: Vec<f32>,
    eps: f32,
    work: Work,
}

impl Flow {
    fn new(x: Vec<f32>, eps: f32) -> Self {
        let (sum, gathered, norm) = (Vec::new(), Vec::new(), Vec::new());
        Self { x, sum, gathered, routes: Routes::default(), norm, eps, work: Work::new() }
    }
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
        Self::at(weights, embed(weights, tokens)?, window, 0, threads)
    }

    /// Before layer `next`, with the residual stream `x` and the bytes read for it.
    pub(crate) fn at(
        weights: &'w Weights,
        (x, bytes_read): (Vec<f32>, u64),
        window: usize,
        next: u32,
        threads: usize,
    ) -> Result<Self> {
        Ok(Self {
            weights,
            window,
            pool: thread_pool(threads)?,
            flow: Flow::new(x, weights.spec().rms_norm_eps),
            dense: None,
            spare: AlignedBuf::default(),
            reads_ahead: true,
            next,
            bytes_read,
        })
    }

    /// Reads no layer before its turn: what a later one holds may not have been written yet.
    #[must_use]
    pub fn reading_in_turn(self) -> Self {
        Self { reads_ahead: false, ..self }
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
        self.through(weights, None)?;
        let hidden = weights.spec().hidden_size as usize;
        check_finite(index, 0, hidden, &self.flow.x)?;
        self.next += 1;
        Ok(Some(index))
    }

    /// The next layer as `weights` have it. With a probe nothing is read ahead for the layer after.
    pub(crate) fn through(&mut self, weights: &Weights, probe: Option<Probe<'_>>) -> Result<()> {
        let (spec, index) = (weights.spec(), self.next);
        let unit = Unit::Layer(index);
        let dense = match self.dense.take_if(|_| probe.is_none()) {
            Some(dense) => dense,
            None => read(weights, Request::Unit(unit), std::mem::take(&mut self.spare))?,
        };
        self.bytes_read += weights.stored_len(unit)?;
        self.flow.routes.clear(0);
        self.flow.work.record.start(probe.is_some());
        let Self { pool, flow, window, .. } = self;
        let layer = Layer::new(spec, index, dense.view());
        let mut probe = probe;
        pool.install(|| flow.dense(&layer, *window, probe.as_mut()))?;
        match &spec.layers[index as usize].ffn {
            Ffn::Moe(moe) => self.experts(weights, moe, index, dense, probe)?,
            Ffn::Dense(_) => self.spare = dense.bytes,
        }
        self.flow.work.record.start(false);
        Ok(())
    }

    /// Adds rows to the residual stream.
    pub(crate) fn extend(&mut self, x: &[f32]) {
        self.flow.x.extend_from_slice(x);
    }

    /// Puts the residual stream back.
    pub(crate) fn restore(&mut self, x: Vec<f32>) {
        self.flow.x = x;
    }

    /// The residual stream `[tokens, hidden_size]`: the embedding, or the last layer's output.
    pub fn hidden(&self) -> &[f32] {
        &self.flow.x
    }

    /// The residual stream, for what the caller does to it between layers, such as rounding.
    pub fn hidden_mut(&mut self) -> &mut [f32] {
        &mut self.flow.x
    }

    /// The residual stream alone, once no layer is left to come.
    pub fn into_hidden(self) -> Vec<f32> {
        self.flow.x
    }

    /// The last layer's picks; none when it has no experts.
    pub const fn routes(&self) -> &Routes {
        &self.flow.routes
    }

    /// Bytes read so far.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Every expert that a token picked, read once in ascending order while the one before computes.
    /// `dense` is done with: its buffer takes the next layer.
    fn experts(
        &mut self,
        weights: &Weights,
        spec: &MoeSpec,
        layer: u32,
        dense: Loaded,
        mut probe: Option<Probe<'_>>,
    ) -> Result<()> {
        let experts = spec.num_experts as usize;
        let mut visits = Visits::new(&self.flow.routes, experts);
        if let Some(probe) = &probe {
            visits.fill_up(probe.least_rows, self.flow.work.record.scores(), experts);
        }
        let wanted = visits
            .experts()
            .map(|expert| Unit::Expert { layer, expert });
        for unit in wanted.clone() {
            self.bytes_read += weights.stored_len(unit)?;
        }
        let ahead = self.reads_ahead && probe.is_none();
        let more = ahead && layer as usize + 1 < weights.spec().layers.len();
        let following = more.then_some((Unit::Layer(layer + 1), dense.bytes));
        let Self { pool, flow, .. } = self;
        let following = std::thread::scope(|scope| {
            let (sender, arrivals) = sync_channel(AHEAD);
            let (recycle, spares) = sync_channel(AHEAD + 2);
            let wanted: Vec<Unit> = wanted.collect();
            let reader = scope.spawn(move || {
                read_ahead(weights, &wanted, &sender, &spares);
                // The next dense layer comes last, when nothing waits for the disk.
                following.map(|(unit, buf)| read(weights, Request::Unit(unit), buf))
            });
            let visits = &visits;
            // Takes the channels: when it ends, however it ends, the reader ends too.
            let computed = pool.install(move || {
                let (arrivals, recycle) = (arrivals, recycle);
                flow.experts(spec, visits, &arrivals, &recycle, probe.as_mut())
            });
            let following = reader.join().map_err(|_| RuntimeError::Stopped)?;
            computed?;
            Ok::<_, RuntimeError>(following.transpose()?)
        })?;
        self.dense = self.dense.take().or(following);
        let factor = weights.spec().residual_multiplier;
        add_scaled(&mut self.flow.x, factor, &self.flow.sum);
        Ok(())
    }
}

impl Flow {
    /// The mixer, and of the feed-forward all but routed experts.
    fn dense(
        &mut self,
        layer: &Layer<'_>,
        window: usize,
        mut probe: Option<&mut Probe<'_>>,
    ) -> Result<()> {
        let hidden = layer.hidden;
        let mut state = MixerState::for_sequences(&layer.spec.mixer, window);
        let chunk = (ROWS / window).max(1) * window;
        for x in self.x.chunks_mut(chunk * hidden) {
            let batch = Batch { rows: x.len() / hidden, length: window, first: 0 };
            mix(layer, batch, &mut state, x, &mut self.work)?;
            listen(&mut self.work, batch.rows, probe.as_deref_mut())?;
        }
        let Ffn::Dense(spec) = &layer.spec.ffn else {
            return self.route(layer, probe);
        };
        for x in self.x.chunks_mut(ROWS * hidden) {
            mlp::forward(layer, spec, x, &mut self.work)?;
            listen(&mut self.work, x.len() / hidden, probe.as_deref_mut())?;
        }
        Ok(())
    }

    /// Picks every token's experts, begins `self.sum` with the shared expert and leaves the rows in
    /// `self.x` as they are.
    fn route(&mut self, layer: &Layer<'_>, mut probe: Option<&mut Probe<'_>>) -> Result<()> {
        let Ffn::Moe(spec) = &layer.spec.ffn else { return Ok(()) };
        self.norm = layer.norm(Role::PostAttentionNorm, layer.hidden)?;
        self.sum.clear();
        self.sum.resize(self.x.len(), 0.0);
        self.routes.clear(spec.num_experts_per_tok as usize);
        let rows = ROWS * layer.hidden;
        for (x, sum) in self.x.chunks(rows).zip(self.sum.chunks_mut(rows)) {
            moe::route(layer, spec, x, &mut self.work, &mut self.routes)?;
            if let Some(shared) = &spec.shared_expert {
                moe::shared(layer, shared, sum, &mut self.work)?;
            }
            listen(&mut self.work, x.len() / layer.hidden, probe.as_deref_mut())?;
        }
        Ok(())
    }
}

impl Flow {
    /// Adds every routed expert's output to `self.sum`, expert after expert.
    fn experts(
        &mut self,
        spec: &MoeSpec,
        visits: &Visits,
        arrivals: &Receiver<Result<Loaded, FormatError>>,
        recycle: &SyncSender<AlignedBuf>,
        mut probe: Option<&mut Probe<'_>>,
    ) -> Result<()> {
        for expert in visits.experts() {
            let loaded = arrivals.recv().map_err(|_| RuntimeError::Stopped)??;
            for rows in visits.of(expert).chunks(ROWS) {
                self.expert(spec, rows, &loaded)?;
                if let Some(probe) = probe.as_deref_mut() {
                    let weights: Vec<_> = rows.iter().map(|visit| visit.weight).collect();
                    let record = &mut self.work.record;
                    probe.pass_on(record, Some(expert), (rows.len(), &weights))?;
                }
            }
            // A full queue means that the reader has buffers enough.
            drop(recycle.try_send(loaded.bytes));
        }
        Ok(())
    }

    fn expert(&mut self, spec: &MoeSpec, rows: &[Visit], loaded: &Loaded) -> Result<()> {
        let Self { x, sum, gathered, norm, eps, work, .. } = self;
        let hidden = norm.len();
        gathered.clear();
        for visit in rows {
            gathered.extend_from_slice(&x[visit.token * hidden..][..hidden]);
        }
        let backend = work.linear.backend;
        rms_norm_in_place(backend, gathered, norm, *eps);
        if spec.weights_on_input {
            for (visit, x) in rows.iter().zip(gathered.chunks_exact_mut(hidden)) {
                scale(x, visit.on_input());
            }
        }
        let shape = (spec.moe_intermediate_size as usize, hidden);
        let view = loaded.view();
        work.record.note(Site::Expert, gathered);
        let buffers = (&mut work.linear, &mut work.mlp, &mut work.record);
        gated(&view, mlp::expert(spec), shape, gathered, buffers)?;
        for (visit, out) in rows.iter().zip(work.mlp.out.chunks_exact(hidden)) {
            let weight = if spec.weights_on_input { visit.picked() } else { visit.weight };
            axpy(backend, weight, out, &mut sum[visit.token * hidden..][..hidden]);
        }
        Ok(())
    }
}

/// Hands what the layer just computed to the probe, if there is one.
fn listen(work: &mut Work, rows: usize, probe: Option<&mut Probe<'_>>) -> Result<()> {
    probe.map_or(Ok(()), |probe| probe.pass_on(&mut work.record, None, (rows, &[])))
}

/// A token that an expert was picked for.
#[derive(Clone, Copy, Debug, Default)]
struct Visit {
    token: usize,
    weight: f32,
}

impl Visit {
    /// 1 for a token that the router sent here, 0 for one that only makes up the number.
    fn picked(&self) -> f32 {
        if self.weight > 0.0 { 1.0 } else { 0.0 }
    }

    /// What its input is scaled by where weights are for inputs.
    fn on_input(&self) -> f32 {
        if self.weight > 0.0 { self.weight } else { 1.0 }
    }
}

/// Who visits which expert.
#[derive(Debug)]
struct Visits {
    /// Per expert, its first visit; one more at the end.
    starts: Vec<usize>,
    /// By expert, then by token.
    all: Vec<Visit>,
}

impl Visits {
    fn new(routes: &Routes, experts: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for &expert in &routes.experts {
            starts[expert as usize + 1] += 1;
        }
        for i in 0..experts {
            starts[i + 1] += starts[i];
        }
        let (mut next, mut all) = (starts.clone(), vec![Visit::default(); routes.experts.len()]);
        for (i, (&expert, &weight)) in routes.experts.iter().zip(&routes.weights).enumerate() {
            let place = &mut next[expert as usize];
            all[*place] = Visit { token: i / routes.k, weight };
            *place += 1;
        }
        Self { starts, all }
    }

    /// Gives every expert at least `least` visits, as far as there are tokens: those with its
    /// highest `scores: [tokens, experts]`, the lower token of equal ones, with weight 0.
    fn fill_up(&mut self, least: usize, scores: &[f32], experts: usize) {
        let (mut all, mut starts) = (Vec::with_capacity(self.all.len()), vec![0]);
        for expert in 0..experts {
            let mut visits = self.of(expert as u32).to_vec();
            if visits.len() < least {
                let picked: BTreeSet<_> = visits.iter().map(|visit| visit.token).collect();
                let score = |token: &usize| scores[token * experts + expert];
                let mut others: Vec<usize> = (0..scores.len() / experts).collect();
                others.retain(|token| !picked.contains(token));
                others.sort_by(|a, b| score(b).total_cmp(&score(a)));
                let missing = least - visits.len();
                let others = others.into_iter().take(missing);
                visits.extend(others.map(|token| Visit { token, weight: 0.0 }));
                visits.sort_by_key(|visit| visit.token);
            }
            all.extend(visits);
            starts.push(all.len());
        }
        *self = Self { starts, all };
    }

    fn of(&self, expert: u32) -> &[Visit] {
        &self.all[self.starts[expert as usize]..self.starts[expert as usize + 1]]
    }

    /// Experts that have visitors, ascending.
    fn experts(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        (0..self.starts.len() as u32 - 1).filter(|expert| !self.of(*expert).is_empty())
    }
}

/// Reads `wanted` in order until the other side is gone, into spare buffers where there are any.
fn read_ahead(
    weights: &Weights,
    wanted: &[Unit],
    sender: &SyncSender<Result<Loaded, FormatError>>,
    spares: &Receiver<AlignedBuf>,
) {
    for unit in wanted {
        let buf = spares.try_recv().unwrap_or_default();
        if sender
            .send(read(weights, Request::Unit(*unit), buf))
            .is_err()
        {
            return;
        }
    }
}

/// The embedding's rows of `tokens`, `[tokens, hidden]`, each piece of it read once; and the bytes
/// read.
fn embed(weights: &Weights, tokens: &[u32]) -> Result<(Vec<f32>, u64)> {
    let spec = weights.spec();
    tokens
        .iter()
        .try_for_each(|token| check_token(spec, *token))?;
    let table = Table::embedding(weights, is_compressed(weights))?;
    let hidden = spec.hidden_size as usize;
    let mut x = vec![0.0; tokens.len() * hidden];
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_unstable_by_key(|i| tokens[*i]);
    let (mut rest, mut bytes_read) = (&order[..], table.byte_len());
    let mut buf = AlignedBuf::default();
    while let Some(&first) = rest.first() {
        let start = u64::from(tokens[first]);
        let rows = start..table.entry.rows.min(start + EMBEDDING_ROWS);
        let rows = table.entry.readable(&rows);
        let end = rest.partition_point(|i| u64::from(tokens[*i]) < rows.end);
        buf = embed_rows(weights, &table, rows, (tokens, &rest[..end]), &mut x, buf)?;
        bytes_read += if table.loaded.is_some() { 0 } else { buf.len() as u64 };
        rest = &rest[end..];
    }
    if let Some(factor) = spec.embedding_multiplier {
        scale(&mut x, factor);
    }
    Ok((x, bytes_read))
}

/// Fills the rows of `x` whose tokens lie in `rows`.
fn embed_rows(
    weights: &Weights,
    table: &Table,
    rows: Range<u64>,
    (tokens, places): (&[u32], &[usize]),
    x: &mut [f32],
    buf: AlignedBuf,
) -> Result<AlignedBuf> {
    let (role, hidden) = (table.entry.role, table.entry.cols as usize);
    let piece = match &table.loaded {
        Some(_) => None,
        None => Some(table.read_rows(weights, rows.clone(), buf)?),
    };
    let (view, first, count) = match (&piece, &table.loaded) {
        (Some(piece), _) => (piece.view(), rows.start as usize, (rows.end - rows.start) as usize),
        (None, Some(loaded)) => (loaded.view(), 0, table.entry.rows as usize),
        (None, None) => return Err(RuntimeError::Stopped),
    };
    let matrix = view.matrix(role, count, hidden)?;
    for &place in places {
        let row = tokens[place] as usize - first;
        let out = &mut x[place * hidden..(place + 1) * hidden];
        matrix.dequantize(Backend::detect(), row..row + 1, out);
    }
    Ok(piece.map(|piece| piece.bytes).unwrap_or_default())
}
