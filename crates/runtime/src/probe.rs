//! A layer computed to see what goes into its matrices.

use shardwright_format::weights::Weights;

use crate::block::record::{Record, Site};
use crate::error::Result;
use crate::layerwise::LayerPass;

/// Rows that matrices of a layer are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Tap<'a> {
    /// Which matrices.
    pub site: Site,
    /// Of which routed expert.
    pub expert: Option<u32>,
    /// Length of a row.
    pub cols: usize,
    /// `[n, cols]`.
    pub rows: &'a [f32],
    /// What the outputs of an expert are multiplied with, per row; 0 for rows that the router did
    /// not send there. Empty for other matrices.
    pub weights: &'a [f32],
}

/// Where rows go.
pub type Sink<'a> = &'a mut (dyn FnMut(Tap<'_>) -> Result<()> + Send);

/// Who listens to a layer.
pub struct Probe<'a> {
    /// Rows that each expert is given at least: after those that picked it, those whose router
    /// score for it is highest.
    pub least_rows: usize,
    /// Called with a layer's inputs in the order of their use: experts ascending, each one's
    /// inputs of gate and up before those of down.
    pub sink: Sink<'a>,
}

impl Probe<'_> {
    /// Hands on what `record` kept. `weights` are those of the rows, for experts.
    pub(crate) fn pass_on(
        &mut self,
        record: &mut Record,
        expert: Option<u32>,
        (count, weights): (usize, &[f32]),
    ) -> Result<()> {
        for (site, rows) in record.take() {
            let cols = rows.len() / count.max(1);
            (self.sink)(Tap { site, expert, cols, rows: &rows, weights })?;
        }
        Ok(())
    }
}

impl LayerPass<'_> {
    /// Takes the stream through the next layer as `weights` have it and leaves it as it was: only
    /// `probe` learns of it.
    ///
    /// # Errors
    /// As [`LayerPass::step`], and what the probe refuses.
    pub fn probe(&mut self, weights: &Weights, probe: Probe<'_>) -> Result<()> {
        let before = self.hidden().to_vec();
        let result = self.through(weights, Some(probe));
        self.restore(before);
        result
    }
}
