//! A text through the original alone, for its statistics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use shardwright_format::report::LayerCoverage;
use shardwright_format::weights::Weights;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, RuntimeError, thread_pool};

use super::Corpus;
use super::collect::{Collected, collect, head};
use super::spares::Spares;
use super::statistics::InputStats;
use super::streams::coverage;
use crate::error::{ConvertError, Result};

/// Rows that go through the final norm together.
const ROWS: usize = 512;

/// What of the inputs is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The products of all pairs: what `gptq` and trellis codes use.
    Full,
    /// Each input's own second moment: what `importance` uses, far smaller.
    Diagonal,
}

/// Runs the text through the original and hands on the inputs of every group of matrices, a layer at a time: how often
/// experts were picked, per layer that has some. `progress` is told the layers done.
///
/// # Errors
/// Weights that cannot be read, values that are not finite, a stop by the caller, what `take` says.
pub fn observe(
    corpus: &Corpus,
    threads: usize,
    cancel: &AtomicBool,
    progress: &dyn Fn(u32),
    take: &mut dyn FnMut(InputStats) -> Result<()>,
) -> Result<Vec<LayerCoverage>> {
    let original = &corpus.original;
    let mut pass = LayerPass::new(original, &corpus.tokens, corpus.window, threads)?;
    let mut seen = Vec::new();
    for layer in 0..original.spec().layers.len() as u32 {
        if cancel.load(Ordering::Relaxed) {
            return Err(ConvertError::Stopped);
        }
        take(layer_inputs(&mut pass, original, layer, usize::MAX)?)?;
        pass.step()?;
        seen.extend(coverage(layer, original.spec(), pass.routes()));
        progress(layer + 1);
    }
    take(head_inputs(original, pass.hidden(), threads)?)?;
    Ok(seen)
}

/// What the next layer's matrices are given, of at most `most_experts` experts, all of it at once; the stream stays
/// where it was.
pub fn layer_inputs(
    pass: &mut LayerPass<'_>,
    original: &Weights,
    layer: u32,
    most_experts: usize,
) -> Result<InputStats> {
    let collected = Collected { layer, most_experts, batch_bytes: usize::MAX };
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(0);
        let watching =
            scope.spawn(move || collect(pass, original, collected, &sender, &Spares::default()));
        let inputs = batches.iter().flat_map(|batch| batch.inputs).collect();
        watching.join().map_err(|_| RuntimeError::Panicked)??;
        Ok(inputs)
    })
}

/// What the head is multiplied with, of a residual stream after the last layer.
pub fn head_inputs(original: &Weights, stream: &[f32], threads: usize) -> Result<InputStats> {
    let cols = original.spec().hidden_size as usize;
    let norm = Head::new(original, threads)?;
    let rows = stream.chunks(ROWS * cols).map(|rows| norm.normed(rows));
    Ok(thread_pool(threads)?.install(|| head(rows, cols)))
}
