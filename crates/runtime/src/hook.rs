//! What goes into a layer's matrices, shown to whoever asks for it.

use crate::block::capture::{Captures, InputSite};
use crate::error::Result;

/// Rows that matrices of a layer are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// Which matrices.
    pub site: InputSite,
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

/// Who is shown a layer's activations.
pub struct Hook<'a> {
    /// Rows that each expert is given at least: after those that picked it, those whose router
    /// score for it is highest.
    pub least_rows: usize,
    /// Experts that are shown at most, those that the tokens use most; others are not even read.
    pub most_experts: usize,
    /// Called with a layer's inputs in the order of their use: experts ascending, each one's
    /// inputs of gate and up before those of down.
    pub show: &'a mut (dyn FnMut(Activations<'_>) -> Result<()> + Send),
}

impl Hook<'_> {
    /// Shows what `captures` kept. `weights` are those of the rows, for experts.
    pub(crate) fn pass_on(
        &mut self,
        captures: &mut Captures,
        expert: Option<u32>,
        weights: &[f32],
    ) -> Result<()> {
        for input in captures.take() {
            let (site, cols, rows) = (input.site, input.cols, &input.rows);
            (self.show)(Activations { site, expert, cols, rows, weights })?;
            captures.reuse(input);
        }
        Ok(())
    }
}
