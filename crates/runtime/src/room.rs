//! What a text on its way through the layers takes of memory, apart from the weights.

use shardwright_format::model::{Ffn, LayerSpec, ModelSpec};
use shardwright_quant::product_bytes;

use crate::block::kv::CacheTypes;
use crate::block::{MixerState, mixer_buffer_len, widest_input};
use crate::pass::ROWS;

/// Bytes that a [`LayerPass`](crate::layerwise::LayerPass) holds, and what it takes besides at times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassRoom {
    /// The residual stream, and what experts add to it.
    pub stream: u64,
    /// Copies of the stream that a layer is tried on.
    pub tried: u64,
    /// Buffers of its mechanisms, kept from layer to layer.
    pub buffers: u64,
    /// Inputs of matrices that are shown at once, the widest of them twice, since whoever is shown them lays them out
    /// anew, router scores and the rows of all experts.
    pub shown: u64,
}

impl PassRoom {
    /// For `tokens` in windows of `window`, computed by `threads`.
    pub fn new(spec: &ModelSpec, tokens: u64, window: u64, threads: u64) -> Self {
        let hidden = u64::from(spec.hidden_size);
        let stream = 4 * tokens * hidden;
        let routed = spec.layers.iter().any(|layer| layer.num_experts() > 0);
        let rows = Rows::new(tokens, window);
        let layers = || spec.layers.iter().map(|layer| rows.layer(layer, hidden));
        let most = |of: fn(&LayerRoom) -> u64| layers().map(|room| of(&room)).max().unwrap_or(0);
        Self {
            stream: if routed { 2 * stream } else { stream },
            tried: stream,
            buffers: most(|room| room.buffers) + threads * product_bytes(widest_input(spec)) as u64,
            shown: most(|room| room.shown),
        }
    }
}

/// What one layer takes.
struct LayerRoom {
    buffers: u64,
    shown: u64,
}

/// Rows that go through a mechanism together.
struct Rows {
    tokens: u64,
    window: u64,
    mixer: u64,
    ffn: u64,
}

impl Rows {
    fn new(tokens: u64, window: u64) -> Self {
        let window = window.max(1);
        let mixer = (ROWS as u64 / window).max(1) * window;
        Self { tokens, window, mixer: mixer.min(tokens), ffn: tokens.min(ROWS as u64) }
    }

    /// Four bytes for each value: rows normed, gathered, and prepared twice over for products, then
    /// what the mixer, or the feed-forward, makes of them.
    fn layer(&self, layer: &LayerSpec, hidden: u64) -> LayerRoom {
        let (mixer, context) = (&layer.mixer, self.window as usize);
        let kept =
            MixerState::byte_len(mixer, hidden as usize, context, context, CacheTypes::default());
        let mixed = mixer_buffer_len(mixer, hidden);
        let (width, picks, experts) = match &layer.ffn {
            Ffn::Dense(dense) => (u64::from(dense.intermediate_size), 0, 0),
            Ffn::Moe(moe) => {
                let shared = moe
                    .shared_expert
                    .as_ref()
                    .map_or(0, |s| s.intermediate_size);
                let width = u64::from(moe.moe_intermediate_size.max(shared));
                (width, u64::from(moe.num_experts_per_tok), u64::from(moe.num_experts))
            }
        };
        let widest = hidden.max(width);
        let mixer = self.mixer * (hidden + mixed);
        // Gate, up and out; gathered rows of an expert.
        let ffn = self.ffn * (2 * width + hidden + if experts > 0 { hidden + experts } else { 0 });
        let prepared = 2 * self.mixer.max(self.ffn) * widest;
        // What is picked for each token: expert, weight, and where it goes, before and after starved
        // experts are filled up.
        let routes = self.tokens * (picks * 48 + experts * 4);
        let shown = 4 * (self.mixer * 3 * hidden).max(self.ffn * (hidden + width + widest));
        // They are many small pieces, which the allocator keeps.
        LayerRoom { buffers: 4 * (mixer + ffn + prepared) + kept + routes, shown: shown + routes }
    }
}
