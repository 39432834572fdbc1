//! Rows on their way through the layers: one row that is decoded, some of a prompt, or a whole text.

use shardwright_format::Role;
use shardwright_format::model::{DenseSpec, MoeSpec};

use crate::block::mlp::{self, Job};
use crate::block::moe::{self, ExpertBatch, Experts};
use crate::block::ops::{add_scaled, rms_norm};
use crate::block::router::{Routes, route};
use crate::block::{Batch, Layer, MixerState, Work, mix};
use crate::error::Result;
use crate::hook::Hook;
use crate::view::UnitView;

/// Rows that go through a matrix together: enough to hide its dequantization.
pub const ROWS: usize = 512;

/// What the layers change, and the buffers that they share.
#[derive(Debug)]
pub struct PassState {
    /// Residual stream, `[rows, hidden]`.
    pub x: Vec<f32>,
    /// Picks of the last layer with experts.
    pub routes: Routes,
    /// Sums of the experts' outputs, `[rows, hidden]`.
    pub sum: Vec<f32>,
    /// Buffers.
    pub work: Work,
}

/// Where sequences of rows stand.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// Rows of each.
    pub length: usize,
    /// Position of each one's first row.
    pub first: usize,
}

impl PassState {
    /// Before the first layer.
    pub fn new(x: Vec<f32>) -> Self {
        Self { x, routes: Routes::default(), sum: Vec::new(), work: Work::new() }
    }

    /// The mixer.
    ///
    /// # Errors
    /// Weights that are not what the spec says; what the hook refuses.
    pub fn mix(
        &mut self,
        layer: &Layer<'_>,
        sequences: Sequences,
        state: &mut MixerState,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        let Sequences { length, first } = sequences;
        let rows = (ROWS / length).max(1) * length;
        for x in self.x.chunks_mut(rows * layer.hidden) {
            mix(layer, &mut Batch { x, length, first }, state, &mut self.work)?;
            show(&mut self.work, hook)?;
        }
        Ok(())
    }

    /// The feed-forward of a layer without experts.
    ///
    /// # Errors
    /// As [`Self::mix`].
    pub fn dense(
        &mut self,
        layer: &Layer<'_>,
        spec: &DenseSpec,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        for x in self.x.chunks_mut(ROWS * layer.hidden) {
            mlp::forward(layer, spec, x, &mut self.work)?;
            show(&mut self.work, hook)?;
        }
        Ok(())
    }

    /// Picks every row's experts. The rows stay as they are until [`Self::join`].
    ///
    /// # Errors
    /// As [`Self::mix`].
    pub fn route(
        &mut self,
        layer: &Layer<'_>,
        spec: &MoeSpec,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        self.routes.clear(spec.num_experts_per_tok as usize);
        for x in self.x.chunks(ROWS * layer.hidden) {
            route(layer, spec, x, &mut self.work, &mut self.routes)?;
            show(&mut self.work, hook)?;
        }
        Ok(())
    }

    /// What a layer that comes later would pick if the rows stayed as they are, the likeliest first.
    ///
    /// # Errors
    /// As [`Self::mix`].
    pub fn guess(&mut self, layer: &Layer<'_>, spec: &MoeSpec) -> Result<Vec<u32>> {
        let mut routes = Routes::default();
        routes.clear(spec.num_experts_per_tok as usize);
        route(layer, spec, &self.x, &mut self.work, &mut routes)?;
        Ok(routes.experts)
    }

    /// Begins the sum of what the experts give, with the shared expert where there is one.
    ///
    /// # Errors
    /// As [`Self::mix`].
    pub fn shared(
        &mut self,
        layer: &Layer<'_>,
        spec: &MoeSpec,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        self.sum.clear();
        self.sum.resize(self.x.len(), 0.0);
        let Some(shared) = &spec.shared_expert else { return Ok(()) };
        let norm = layer.norm(Role::PostAttentionNorm, layer.hidden)?;
        let rows = ROWS * layer.hidden;
        for (x, sum) in self.x.chunks(rows).zip(self.sum.chunks_mut(rows)) {
            let backend = self.work.linear.backend;
            rms_norm(backend, x, &norm, layer.eps, &mut self.work.normed);
            moe::shared(layer, shared, sum, &mut self.work)?;
            show(&mut self.work, hook)?;
        }
        Ok(())
    }

    /// Takes one expert's rows through it and adds what comes out to their sums. Experts must come
    /// in ascending order.
    ///
    /// # Errors
    /// As [`Self::mix`].
    pub fn expert(
        &mut self,
        experts: &Experts<'_>,
        unit: UnitView<'_>,
        batch: ExpertBatch<'_>,
        hook: &mut Option<Hook<'_>>,
    ) -> Result<()> {
        for rows in batch.rows.chunks(ROWS) {
            experts.forward(&[Job { unit, rows: rows.len() }], rows, &self.x, &mut self.work)?;
            let Work { linear, mlp, .. } = &mut self.work;
            experts.add(linear.backend, rows, &mlp.out, &mut self.sum);
            if let Some(hook) = hook {
                let weights: Vec<f32> = rows.iter().map(|assigned| assigned.weight).collect();
                hook.pass_on(&mut linear.captures, Some(batch.expert), &weights)?;
            }
        }
        Ok(())
    }

    /// Adds what the experts gave to the residual stream.
    pub fn join(&mut self, residual_multiplier: Option<f32>) {
        add_scaled(&mut self.x, residual_multiplier, &self.sum);
    }
}

/// Shows what the layer just computed, if someone asked for it.
fn show(work: &mut Work, hook: &mut Option<Hook<'_>>) -> Result<()> {
    match hook {
        Some(hook) => hook.pass_on(&mut work.linear.captures, None, &[]),
        None => Ok(()),
    }
}
