//! The experts of a layer for all rows of a chunk: each is read at most once, in the order in which a
//! bundle's file has them, and computed for all of its rows while others are read.

use std::time::Instant;

use shardwright_format::Unit;
use shardwright_format::model::{Ffn, ModelSpec, MoeSpec};

use crate::block::Layer;
use crate::block::mlp::Job;
use crate::block::moe::{ExpertBatch, ExpertBatches, Experts, rows_together};
use crate::error::{Result, RuntimeError};
use crate::pass::PassState;
use crate::store::Store;
use crate::trace::Visit;

/// Of the experts that are guessed the first are read: one part in this many.
const RANKS: usize = 2;

/// What a layer's experts are computed with.
pub struct Means<'a> {
    /// The rows on their way.
    pub state: &'a mut PassState,
    /// Where experts are.
    pub store: &'a mut Store,
    /// What experts give, `[rows of all experts, hidden]`, until it can be summed: in the order of the experts,
    /// so that what was in memory makes no difference.
    pub outputs: &'a mut Vec<f32>,
    /// The model, where experts of the next layer are to be read ahead.
    pub ahead: Option<&'a ModelSpec>,
}

/// The feed-forward of a layer with experts. Says what was picked and read.
///
/// # Errors
/// Weights that are not what the spec says, or cannot be read.
pub fn forward(layer: &Layer<'_>, spec: &MoeSpec, means: Means<'_>) -> Result<Visit> {
    let Means { state, store, outputs, ahead } = means;
    let (started, before) = (Instant::now(), store.counts.expert_bytes);
    state.route(layer, spec, &mut None)?;
    let experts = Experts::new(layer, spec)?;
    let batches = ExpertBatches::new(&state.routes, experts.count());
    let batches: Vec<ExpertBatch<'_>> = batches.iter().collect();
    let guessed = store.begin_experts()?;
    let mut union = Union::new((layer.index, state.routes.k), &batches, store);
    let hits = union.held();
    let late = union.coming(&guessed, store);
    store.end_guesses();
    union.ask(store)?;
    if let Some(model) = ahead {
        look_ahead(model, layer.index + 1, state, store)?;
    }
    // While the first experts are read.
    state.shared(layer, spec, &mut None)?;
    let hidden = experts.hidden();
    let len = state.routes.experts.len() * hidden;
    // Old values stay until every expert has written over its own. No more memory than the plan counts.
    outputs.reserve_exact(len.saturating_sub(outputs.len()));
    outputs.resize(len, 0.0);
    while let Some(ready) = union.ready(store)? {
        union.compute(&experts, &ready, (state, store), outputs)?;
        union.ask(store)?;
    }
    let (backend, mut rest) = (state.work.linear.backend, &outputs[..]);
    for batch in &batches {
        let (own, after) = rest.split_at(batch.rows.len() * hidden);
        experts.add(backend, batch.rows, own, &mut state.sum);
        rest = after;
    }
    state.join(layer.residual_multiplier);
    Ok(Visit {
        pass: 0,
        layer: layer.index,
        k: state.routes.k,
        picks: state.routes.experts.clone(),
        hits,
        reads: union.reads,
        guessed,
        late,
        bytes: store.counts.expert_bytes - before,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Guesses at the experts of layer `index`: those that its router, if it is in memory, would pick for the rows
/// as they are before this layer's experts; the likeliest of them are read.
fn look_ahead(
    model: &ModelSpec,
    index: u32,
    state: &mut PassState,
    store: &mut Store,
) -> Result<()> {
    let next = model.layers.get(index as usize).map(|layer| &layer.ffn);
    let Some(Ffn::Moe(spec)) = next else { return Ok(()) };
    let Some(dense) = store.dense(index as usize) else { return Ok(()) };
    let picks = state.guess(&Layer::new(model, index, dense.view()), spec)?;
    let unit = |expert: &u32| Unit::Expert { layer: index, expert: *expert };
    let likely: Vec<Unit> = picks.iter().map(unit).collect();
    // Whatever is being read for a guess leaves a token room for its picks.
    let most = store.expert_slots().saturating_sub(likely.len());
    let ranks = likely.len().div_ceil(RANKS);
    store.guess_experts(&likely, ranks, most.min(ranks))
}

/// How far an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Not in memory, and not asked for.
    Absent,
    /// In a place of the cache, or on its way there.
    At(usize),
    /// Computed: its place is free.
    Done,
}

/// The experts that some row picked, ascending, and how far they are.
struct Union<'a> {
    layer: u32,
    /// Of one row.
    picks: usize,
    batches: &'a [ExpertBatch<'a>],
    /// For each the first row of what it gives.
    starts: Vec<usize>,
    steps: Vec<Step>,
    /// Those before are in memory, on their way or done.
    asked: usize,
    /// What was read, in this order.
    reads: Vec<u32>,
}

impl<'a> Union<'a> {
    /// Those that are in memory stay there until they are computed.
    fn new(
        (layer, picks): (u32, usize),
        batches: &'a [ExpertBatch<'a>],
        store: &mut Store,
    ) -> Self {
        let mut hold = |batch: &ExpertBatch<'_>| {
            let place = store.hold_expert(Unit::Expert { layer, expert: batch.expert });
            place.map_or(Step::Absent, Step::At)
        };
        let steps = batches.iter().map(&mut hold).collect();
        let mut next = 0;
        let starts = batches.iter().map(|batch| {
            next += batch.rows.len();
            next - batch.rows.len()
        });
        let starts = starts.collect();
        Self { layer, picks, batches, starts, steps, asked: 0, reads: Vec::new() }
    }

    /// Experts that have a place.
    fn held(&self) -> Vec<u32> {
        let all = self.batches.iter().zip(&self.steps);
        let held = all.filter(|(_, step)| matches!(step, Step::At(_)));
        held.map(|(batch, _)| batch.expert).collect()
    }

    /// Those of `guessed` that have a place and are not here yet.
    fn coming(&self, guessed: &[u32], store: &Store) -> Vec<u32> {
        let all = self.batches.iter().zip(&self.steps);
        let coming = all.filter(|(batch, step)| match step {
            Step::At(place) => guessed.contains(&batch.expert) && store.expert(*place).is_none(),
            Step::Absent | Step::Done => false,
        });
        coming.map(|(batch, _)| batch.expert).collect()
    }

    /// Has the next ones read, as far as there is room for them.
    fn ask(&mut self, store: &mut Store) -> Result<()> {
        while let Some(batch) = self.batches.get(self.asked) {
            if self.steps[self.asked] == Step::Absent {
                let unit = Unit::Expert { layer: self.layer, expert: batch.expert };
                let Some(place) = store.request_expert(unit)? else { return Ok(()) };
                self.steps[self.asked] = Step::At(place);
                self.reads.push(batch.expert);
            }
            self.asked += 1;
        }
        Ok(())
    }

    /// Some experts that can be computed, ascending; waits until there is one. Nothing after the last.
    fn ready(&self, store: &mut Store) -> Result<Option<Vec<usize>>> {
        loop {
            let here = |i: &usize| match self.steps[*i] {
                Step::At(place) => store.expert(place).is_some(),
                Step::Absent | Step::Done => false,
            };
            let here: Vec<usize> = (0..self.steps.len()).filter(here).collect();
            if !here.is_empty() {
                return Ok(Some(self.share(here, store.expert_slots())));
            }
            if self.steps.iter().all(|step| *step == Step::Done) {
                return Ok(None);
            }
            if !self.steps.iter().any(|step| matches!(step, Step::At(_))) {
                return Err(RuntimeError::CacheFull { slots: store.expert_slots() });
            }
            store.wait()?;
        }
    }

    /// As many of the experts that are here as go together: few rows, or one expert. While there are more
    /// to read no more than half of the places, for the others to be read into while these are computed.
    fn share(&self, mut here: Vec<usize>, slots: usize) -> Vec<usize> {
        let most = if self.asked < self.batches.len() { slots.div_ceil(2) } else { usize::MAX };
        let (mut rows, room) = (0, rows_together(self.picks));
        let fits = here.iter().take(most).take_while(|i| {
            rows += self.batches[**i].rows.len();
            rows <= room
        });
        let together = fits.count().max(1);
        here.truncate(together);
        here
    }

    /// Computes some experts and gives up their places.
    fn compute(
        &mut self,
        experts: &Experts<'_>,
        ready: &[usize],
        (state, store): (&mut PassState, &mut Store),
        outputs: &mut [f32],
    ) -> Result<()> {
        let place = |i: &usize| match self.steps[*i] {
            Step::At(place) => Some(place),
            Step::Absent | Step::Done => None,
        };
        let places: Vec<usize> = ready.iter().filter_map(place).collect();
        let job = |(i, place): (&usize, &usize)| {
            Some(Job { unit: store.expert(*place)?, rows: self.batches[*i].rows.len() })
        };
        let jobs: Vec<Job<'_>> = ready.iter().zip(&places).filter_map(job).collect();
        let assigned: Vec<_> = ready
            .iter()
            .flat_map(|i| self.batches[*i].rows)
            .copied()
            .collect();
        experts.forward(&jobs, &assigned, &state.x, &mut state.work)?;
        let (hidden, mut rest) = (experts.hidden(), &state.work.mlp.out[..]);
        for (i, place) in ready.iter().zip(places) {
            let (own, after) = rest.split_at(self.batches[*i].rows.len() * hidden);
            outputs[self.starts[*i] * hidden..][..own.len()].copy_from_slice(own);
            rest = after;
            store.release_expert(place);
            self.steps[*i] = Step::Done;
        }
        Ok(())
    }
}
