//! Converts layer by layer, a text going through the original and through what is made of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, Unit};
use shardwright_runtime::RuntimeError;
use shardwright_runtime::layerwise::LayerPass;

use super::Conversion;
use crate::calibrate::Corpus;
use crate::calibrate::collect::{Collected, InputBatch, collect};
use crate::calibrate::objectives::Objectives;
use crate::calibrate::observe::head_inputs;
use crate::calibrate::spares::Spares;
use crate::calibrate::statistics::InputStats;
use crate::calibrate::streams::{Streamed, Streams, through_original};
use crate::error::Result;

/// Makes every unit; gives what was seen of the text.
pub fn convert(conversion: &mut Conversion<'_>, corpus: &Corpus) -> Result<Streamed> {
    let threads = conversion.options.threads;
    let original = &corpus.original;
    let through = through_tied(conversion, corpus)?;
    if !conversion.keep(&[Unit::Embedding])? {
        let inputs = match &through {
            Some(through) => head_inputs(original, through, threads)?,
            None => InputStats::new(),
        };
        conversion.make(&[Unit::Embedding], &Objectives::new(inputs))?;
    }
    let bundle = Bundle::unfinished(conversion.writer.dir(), conversion.plan.manifest.clone())?;
    let weights = Weights::from(bundle);
    let mut streams = Streams::new(corpus, &weights, through, threads)?;
    let mut seen = Streamed::default();
    for layer in 0..original.spec().layers.len() as u32 {
        if conversion.options.cancel.load(Ordering::Relaxed) {
            return Err(conversion.cancelled());
        }
        streams.step_original()?;
        make_layer(conversion, &mut streams.quantized, original, layer)?;
        seen.coverage.extend(streams.step_quantized()?);
        seen.layers.push(streams.output(layer));
    }
    if !conversion.keep(&[Unit::Head])? {
        let inputs = head_inputs(original, streams.quantized.hidden(), threads)?;
        conversion.make(&[Unit::Head], &Objectives::new(inputs))?;
    }
    seen.divergence = streams.divergence(&weights, threads)?;
    // No text goes through what is not the text model.
    let extras = conversion.plan.manifest.extras().iter();
    let extras: Vec<_> = extras.map(|shard| shard.unit).collect();
    if !conversion.keep(&extras)? {
        conversion.make(&extras, &Objectives::default())?;
    }
    Ok(seen)
}

/// Takes the text's beginning through the original where its embedding is its head too, `[tokens, hidden]`: it is made by
/// what the head is multiplied with, before the bundle has a stream.
fn through_tied(conversion: &Conversion<'_>, corpus: &Corpus) -> Result<Option<Vec<f32>>> {
    let (original, threads) = (&corpus.original, conversion.options.threads);
    if !original.spec().tie_word_embeddings {
        return Ok(None);
    }
    let (tokens, window) = (&corpus.tokens, corpus.window);
    let beginning = through_original(original.spec(), tokens.len() as u64, window as u64);
    let mut pass = LayerPass::new(original, &tokens[..beginning as usize], window, threads)?;
    while pass.step()?.is_some() {
        if conversion.options.cancel.load(Ordering::Relaxed) {
            return Err(conversion.cancelled());
        }
    }
    Ok(Some(pass.into_hidden()))
}

/// Makes the units of a layer from what the bundle's own stream brings to them.
fn make_layer(
    conversion: &mut Conversion<'_>,
    stream: &mut LayerPass<'_>,
    original: &Weights,
    layer: u32,
) -> Result<()> {
    let units: Vec<Unit> = conversion
        .plan
        .units()
        .filter(|unit| unit.layer() == Some(layer))
        .collect();
    if conversion.keep(&units)? {
        return Ok(());
    }
    let spares = Arc::new(Spares::default());
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(0);
        let batch_bytes = conversion.options.buffers.hessians;
        let all = Collected { layer, most_experts: usize::MAX, batch_bytes };
        let left = Arc::clone(&spares);
        let watching = scope.spawn(move || collect(stream, original, all, &sender, &left));
        let mut made = Ok(());
        for InputBatch { mut units, inputs } in &batches {
            units.retain(|unit| !conversion.finished.contains_key(unit));
            let objectives = Objectives::new(inputs).within(&spares);
            made = conversion.make(&units, &objectives);
            if made.is_err() {
                break;
            }
            objectives.reuse();
        }
        // Whoever watches is told, by a closed channel, that it was enough.
        drop(batches);
        let watched = watching.join().map_err(|_| RuntimeError::Panicked)?;
        made?;
        Ok(watched?)
    })
}
