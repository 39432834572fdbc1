//! What a run takes besides weights: caches and states, activations, and both for tokens that are computed together.

use shardwright_format::model::{LayerSpec, ModelSpec};
use shardwright_quant::product_bytes;

use crate::block::kv::CacheTypes;
use crate::block::{self, MixerState};
use crate::options::Options;

/// More positions than any sliding window has.
const FAR: usize = 1 << 40;

/// Bytes that every buffer takes beyond its contents: alignment and the allocator's page.
const BUFFER_OVERHEAD: u64 = 2 * 4096;

/// How much of a prompt is computed together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) tokens: usize,
    /// Those of them that may be a guess at what follows the first.
    pub(super) draft: usize,
    /// State and scratch beyond those of one token.
    pub(super) bytes: u64,
    /// The state among them, which stays when the chunk is computed.
    pub(super) state: u64,
}

impl Chunk {
    /// One token.
    pub(super) const ONE: Self = Self { tokens: 1, draft: 0, bytes: 0, state: 0 };
}

/// Memory of a buffer of `len` bytes.
pub(crate) const fn buffer(len: u64) -> u64 {
    len.saturating_add(BUFFER_OVERHEAD + 4095) / 4096 * 4096
}

/// Bytes that each further position of a text adds to KV caches of certain types, once sliding windows are
/// full.
pub fn position_bytes(spec: &ModelSpec, types: CacheTypes) -> u64 {
    state(spec, types, FAR + 1, 1) - state(spec, types, FAR, 1)
}

/// Bytes that mixers keep of up to `context` positions, when `chunk` tokens are computed together.
pub(super) fn state(spec: &ModelSpec, types: CacheTypes, context: usize, chunk: usize) -> u64 {
    let (layers, hidden) = (spec.layers.iter(), spec.hidden_size as usize);
    let bytes =
        layers.map(|layer| MixerState::byte_len(&layer.mixer, hidden, context, chunk, types));
    bytes.fold(0, |sum, len| sum.saturating_add(len).saturating_add(BUFFER_OVERHEAD))
}

/// Activations: everything per token with copies of inputs, logits and their sorted copy.
pub(super) fn scratch(spec: &ModelSpec, chunk: usize) -> u64 {
    let vocab = u64::from(spec.vocab_size);
    let tokens = block::buffer_len(spec, chunk as u64);
    tokens.saturating_add(6 * vocab).saturating_mul(4)
}

/// Floats that threads make of keys and values in blocks, and of parts of a long context.
pub(super) fn decoded(spec: &ModelSpec, options: &Options) -> u64 {
    let layer = |layer: &LayerSpec| MixerState::decoded_byte_len(&layer.mixer, options.cache);
    options.threads as u64 * spec.layers.iter().map(layer).max().unwrap_or(0)
}

/// What computing more tokens than one together takes: as many as `options` allows, `times` over, then three
/// quarters of them, half of them, and so on.
pub(super) fn chunks(spec: &ModelSpec, options: &Options, times: usize) -> Vec<Chunk> {
    let state = |tokens| state(spec, options.cache, options.context, tokens);
    let most = if options.chunk > 1 { options.chunk.saturating_mul(times) } else { 1 };
    let most = most.min(options.context).max(1);
    let halves = std::iter::successors(Some(most), |tokens| Some(tokens / 2));
    halves
        .take_while(|tokens| *tokens > 1)
        .flat_map(|tokens| [tokens, tokens / 4 * 3])
        .filter(|tokens| *tokens > 1)
        .map(|tokens| {
            let draft = options.draft.min(tokens - 1);
            let state = state(tokens).saturating_sub(state(1));
            let scratch = scratch(spec, tokens) - scratch(spec, 1);
            // What threads decode for many rows.
            let panels = options.threads * product_bytes(block::widest_input(spec));
            let bytes = scratch
                .saturating_add(panels as u64)
                .saturating_add(state)
                .saturating_add(trial(spec, draft));
            Chunk { tokens, draft, bytes, state }
        })
        .collect()
}

/// What it takes to try `draft` tokens behind another: how to go back, and logits after each, with those
/// of a piece of the head.
fn trial(spec: &ModelSpec, draft: usize) -> u64 {
    if draft == 0 {
        return 0;
    }
    let hidden = spec.hidden_size as usize;
    let state = |layer: &LayerSpec| MixerState::trial_byte_len(&layer.mixer, hidden, draft + 1);
    let state = spec.layers.iter().map(state).fold(0, u64::saturating_add);
    state.saturating_add(8 * u64::from(spec.vocab_size) * (draft as u64 + 1))
}
