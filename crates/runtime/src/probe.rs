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

impl<'w> LayerPass<'w> {
    /// A text that starts before layer `next` with the residual stream `x: [tokens, hidden]`, in
    /// windows of `window` tokens.
    ///
    /// # Errors
    /// When the operating system has no more threads.
    pub fn resume(
        weights: &'w Weights,
        (x, window): (Vec<f32>, usize),
        next: u32,
        threads: usize,
    ) -> Result<Self> {
        Self::at(weights, (x, 0), window, next, threads)
    }

    /// Where the next layer, as `weights` have it, would take the stream, `[tokens, hidden]`; the
    /// stream stays where it was.
    ///
    /// # Errors
    /// As [`LayerPass::step`].
    pub fn look_ahead(&mut self, weights: &Weights) -> Result<Vec<f32>> {
        let before = self.hidden().to_vec();
        // With a probe, even a deaf one, nothing is read ahead that other weights would need.
        let probe = Probe { least_rows: 0, sink: &mut |_| Ok(()) };
        let done = self.through(weights, Some(probe));
        let after = self.hidden().to_vec();
        self.restore(before);
        done.map(|()| after)
    }

    /// Adds whole windows that stand before the same layer.
    pub fn append(&mut self, x: &[f32]) {
        self.extend(x);
    }

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
