//! What probing a model takes of memory, from what its code holds at once.

use std::collections::BTreeMap;

use shardwright_format::Unit;
use shardwright_format::weights::Weights;
use shardwright_runtime::PassRoom;

use super::probe::{is_coded, tried};
use super::usage::TRIED_EXPERTS;
use crate::calibrate::collect::HessianSum;
use crate::calibrate::statistics::InputKey;
use crate::calibrate::streams::LOGITS;
use crate::error::Result;
use crate::plan::PROGRAM;

/// Bytes that a tensor takes for each of its values while it goes through codes and back: floats twice as the
/// checkpoint has them, once wide, once rounded, and codes.
const ROUNDED: u64 = 9;

/// What a layer takes while its roles are tried.
#[derive(Clone, Copy, Default)]
struct LayerRoom {
    /// Roles that are tried.
    roles: u64,
    /// Sums of products of inputs, and the factors made of them, in either basis.
    sums: u64,
    /// What is read of it at a time: its dense part, and an expert.
    weights: u64,
    /// Values of the role that has most.
    values: u64,
}

/// Bytes that probing `original` with `tokens` in windows of `window` holds at most: the text goes through once for
/// each role of the layers from which errors are taken to the end.
///
/// # Errors
/// Units without a layout.
pub fn peak(original: &Weights, tokens: u64, window: u64, threads: u64) -> Result<u64> {
    let spec = original.spec();
    let layers = (0..spec.layers.len() as u32).map(|layer| room(original, layer));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let tables = if spec.tie_word_embeddings { 1 } else { 2 };
    let ends = tried(original)?.values().map(Vec::len).sum::<usize>();
    let variants = tables + ends as u64;
    let pass = |tokens| PassRoom::new(spec, tokens, window, threads);
    let (base, others) = (pass(tokens), pass(variants * tokens));
    let stream = 4 * tokens * u64::from(spec.hidden_size);
    let rounded = layers.iter().map(|layer| {
        let after = layer.roles * stream;
        after + base.tried + others.shown + layer.sums + 2 * layer.weights + ROUNDED * layer.values
    });
    let vocab = u64::from(spec.vocab_size);
    let table = vocab * u64::from(spec.hidden_size);
    let rows = (LOGITS as u64 / vocab.max(1)).max(1).min(tokens);
    let scored = 2 * 4 * (rows * (vocab + 3 * u64::from(spec.hidden_size)) + table);
    let both = base.stream + base.buffers + others.stream + others.buffers;
    let all = PROGRAM + both + rounded.max().unwrap_or(0).max(scored);
    Ok(all + all / 32)
}

fn room(original: &Weights, layer: u32) -> Result<LayerRoom> {
    let experts = u64::from(original.spec().layers[layer as usize].num_experts());
    let units = [(Unit::Layer(layer), 1), (Unit::Expert { layer, expert: 0 }, experts)];
    let mut room = LayerRoom::default();
    for (unit, count) in units.into_iter().filter(|(_, count)| *count > 0) {
        let mut sites = BTreeMap::new();
        for entry in original.layout(unit)?.tensors.iter() {
            let values = entry.rows * entry.cols;
            room.weights += values * entry.source.dtype.size() as u64;
            let tried = count.min(TRIED_EXPERTS as u64);
            if let Some(key) = InputKey::for_tensor(unit, entry.role) {
                sites.insert(key, 3 * tried * HessianSum::byte_len(entry.cols as usize) as u64);
            }
            if is_coded(entry.role) {
                room.roles += 1;
                room.values = room.values.max(tried * values);
            }
        }
        room.sums += sites.values().sum::<u64>();
    }
    Ok(room)
}
