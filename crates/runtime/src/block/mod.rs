//! The mechanisms of a layer, one file each. All act on rows: one row when a token is decoded,
//! many when a layer is evaluated for a whole text.
//!
//! A new mixer is one file here, one variant of [`Mixer`] and one of [`MixerState`].

pub mod attention;
pub mod capture;
pub mod convolution;
pub mod delta_net;
pub mod kv;
pub mod latent;
pub mod mlp;
pub mod moe;
pub mod ops;
pub mod rope;
pub mod router;
pub mod saved;
pub mod short_conv;

use shardwright_format::Role;
use shardwright_format::model::{Ffn, LayerSpec, Mixer, ModelSpec, RopeScaling};

use shardwright_quant::Backend;

use crate::block::kv::CacheTypes;
use crate::error::{Result, RuntimeError};
use crate::linear::Linear;
use crate::view::UnitView;

/// A layer ready to compute: its options and its dense weights.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// From 0.
    pub index: u32,
    /// Its options.
    pub spec: &'a LayerSpec,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Added to the mean square inside its norms.
    pub eps: f32,
    /// Its norms multiply with `1 + weight`.
    pub norm_plus_one: bool,
    /// What it adds is multiplied with this.
    pub residual_multiplier: Option<f32>,
    /// Its dense weights.
    pub unit: UnitView<'a>,
}

impl<'a> Layer<'a> {
    /// Layer `index` of `spec`, whose dense weights are `unit`.
    pub fn new(spec: &'a ModelSpec, index: u32, unit: UnitView<'a>) -> Self {
        Self {
            index,
            spec: &spec.layers[index as usize],
            hidden: spec.hidden_size as usize,
            eps: spec.rms_norm_eps,
            norm_plus_one: spec.norm_plus_one,
            residual_multiplier: spec.residual_multiplier,
            unit,
        }
    }

    /// `x += out` for what the mixer or the feed-forward gives, `[n, hidden]` both; normed first
    /// with the weights of `norm`, where the layer norms what it adds.
    ///
    /// # Errors
    /// As [`UnitView::vector`].
    pub fn join(&self, norm: Role, x: &mut [f32], out: &mut [f32]) -> Result<()> {
        if self.spec.output_norms {
            let weight = self.norm(norm, self.hidden)?;
            ops::rms_norm_in_place(Backend::detect(), out, &weight, self.eps);
        }
        ops::add_scaled(x, self.residual_multiplier, out);
        Ok(())
    }

    /// `out = norm(x)` with the weights of `role` for `x: [n, hidden]`, or `x` itself where mixer and
    /// feed-forward take it as it is.
    ///
    /// # Errors
    /// As [`UnitView::vector`].
    pub fn input(&self, backend: Backend, role: Role, x: &[f32], out: &mut Vec<f32>) -> Result<()> {
        if self.spec.no_input_norms {
            out.clear();
            out.extend_from_slice(x);
            return Ok(());
        }
        ops::rms_norm(backend, x, &self.norm(role, self.hidden)?, self.eps, out);
        Ok(())
    }

    /// What the norm with a role multiplies with.
    ///
    /// # Errors
    /// As [`UnitView::vector`].
    pub fn norm(&self, role: Role, len: usize) -> Result<Vec<f32>> {
        let mut weight = self.unit.vector(role, len)?;
        ops::complete_norm(self.norm_plus_one, &mut weight);
        Ok(weight)
    }
}

/// Rows that go through a layer together: sequences of equal length, one after the other.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The residual stream, `[n, hidden]`.
    pub x: &'a mut [f32],
    /// Rows of one sequence.
    pub length: usize,
    /// Position of each sequence's first row.
    pub first: usize,
}

/// Buffers shared by the layers. They grow to the largest use and stay.
#[derive(Debug)]
pub struct Work {
    /// Products.
    pub linear: Linear,
    /// Normed rows; later the output of a block, `[n, hidden]`.
    pub normed: Vec<f32>,
    /// Rows of some experts, normed, `[n, hidden]`.
    pub gathered: Vec<f32>,
    /// Router scores `[n, experts]`, or the shared expert's gate `[n, 1]`.
    pub scores: Vec<f32>,
    /// Of attention.
    pub attention: attention::Buffers,
    /// Of latent attention.
    pub latent: latent::Buffers,
    /// Of delta nets.
    pub delta_net: delta_net::Buffers,
    /// Of short convolutions.
    pub short_conv: short_conv::Buffers,
    /// Of feed-forwards.
    pub mlp: mlp::Buffers,
}

impl Work {
    /// Empty buffers.
    pub fn new() -> Self {
        Self {
            linear: Linear::new(),
            normed: Vec::new(),
            gathered: Vec::new(),
            scores: Vec::new(),
            attention: attention::Buffers::default(),
            latent: latent::Buffers::default(),
            delta_net: delta_net::Buffers::default(),
            short_conv: short_conv::Buffers::default(),
            mlp: mlp::Buffers::default(),
        }
    }
}

/// What a mixer remembers of the positions before.
#[derive(Debug)]
pub enum MixerState {
    /// Keys and values.
    Attention(kv::KvCache),
    /// Latents and rotary keys.
    Latent(latent::LatentCache),
    /// The state of a delta net and the inputs its convolution still sees.
    DeltaNet(delta_net::State),
    /// The inputs that a short convolution still sees.
    ShortConv(short_conv::State),
}

impl MixerState {
    /// For one sequence up to `context` positions, at most `chunk` of them at a time, of a model whose
    /// stream is `hidden` wide.
    pub fn for_tokens(
        mixer: &Mixer,
        hidden: usize,
        context: usize,
        chunk: usize,
        types: CacheTypes,
    ) -> Self {
        match mixer {
            Mixer::Attention(spec) => {
                let capacity = attention::cache_capacity(spec, context, chunk);
                Self::Attention(kv::KvCache::new(spec, capacity, types))
            }
            Mixer::Latent(spec) => Self::Latent(latent::LatentCache::new(spec, context, types)),
            Mixer::DeltaNet(spec) => Self::DeltaNet(delta_net::State::new(spec)),
            Mixer::ShortConv(spec) => Self::ShortConv(short_conv::State::new(spec, hidden)),
        }
    }

    /// For whole sequences of `length` positions at once.
    pub fn for_sequences(mixer: &Mixer, hidden: usize, length: usize, types: CacheTypes) -> Self {
        match mixer {
            Mixer::Attention(spec) => Self::Attention(kv::KvCache::new(spec, length, types)),
            Mixer::Latent(_) | Mixer::DeltaNet(_) | Mixer::ShortConv(_) => {
                Self::for_tokens(mixer, hidden, length, length, types)
            }
        }
    }

    /// Bytes that [`Self::for_tokens`] takes.
    pub fn byte_len(
        mixer: &Mixer,
        hidden: usize,
        context: usize,
        chunk: usize,
        types: CacheTypes,
    ) -> u64 {
        match mixer {
            Mixer::Attention(spec) => {
                let capacity = attention::cache_capacity(spec, context, chunk);
                kv::KvCache::byte_len(spec, capacity as u64, types)
            }
            Mixer::Latent(spec) => latent::LatentCache::byte_len(spec, context, types),
            Mixer::DeltaNet(spec) => delta_net::State::byte_len(spec),
            Mixer::ShortConv(spec) => short_conv::State::byte_len(spec, hidden),
        }
    }

    /// Bytes that a thread takes besides to read what is kept.
    pub const fn decoded_byte_len(mixer: &Mixer, types: CacheTypes) -> u64 {
        match mixer {
            Mixer::Attention(spec) => {
                kv::KvCache::decoded_byte_len(spec, types) + attention::parts_byte_len(spec)
            }
            Mixer::Latent(spec) => latent::LatentCache::decoded_byte_len(spec, types),
            Mixer::DeltaNet(_) | Mixer::ShortConv(_) => 0,
        }
    }

    /// Bytes that a trial of `rows` takes besides.
    pub const fn trial_byte_len(mixer: &Mixer, hidden: usize, rows: usize) -> u64 {
        match mixer {
            Mixer::Attention(_) | Mixer::Latent(_) => 0,
            Mixer::DeltaNet(spec) => delta_net::State::trial_byte_len(spec, rows),
            Mixer::ShortConv(spec) => short_conv::State::trial_byte_len(spec, hidden, rows),
        }
    }

    /// The rows that come next, one chunk, may have to go again: [`Self::keep`] says how many.
    pub fn begin_trial(&mut self) {
        match self {
            Self::Attention(_) | Self::Latent(_) => {}
            Self::DeltaNet(state) => state.begin_trial(),
            Self::ShortConv(state) => state.conv.begin_trial(),
        }
    }

    /// Ends a trial after its first `rows` rows, at least one. What is kept by position needs nothing:
    /// a ring for chunks still has all that the next row sees, and rows that went are written over
    /// before anything sees them.
    pub fn keep(&mut self, rows: usize) {
        match self {
            Self::Attention(_) | Self::Latent(_) => {}
            Self::DeltaNet(state) => state.keep(rows),
            Self::ShortConv(state) => state.conv.keep(rows),
        }
    }
}

/// `x += mixer(norm(x))` for the rows of `batch`.
///
/// # Errors
/// Weights that are not what the spec says.
pub fn mix(
    layer: &Layer<'_>,
    batch: &mut Batch<'_>,
    state: &mut MixerState,
    work: &mut Work,
) -> Result<()> {
    match (&layer.spec.mixer, state) {
        (Mixer::Attention(spec), MixerState::Attention(cache)) => {
            attention::forward(layer, spec, batch, cache, work)
        }
        (Mixer::Latent(spec), MixerState::Latent(cache)) => {
            latent::forward(layer, spec, batch, cache, work)
        }
        (Mixer::DeltaNet(spec), MixerState::DeltaNet(state)) => {
            delta_net::forward(layer, spec, batch, state, work)
        }
        (Mixer::ShortConv(spec), MixerState::ShortConv(state)) => {
            short_conv::forward(layer, spec, batch, state, work)
        }
        _ => Err(RuntimeError::State { layer: layer.index }),
    }
}

/// Positions that a mixer computes without choosing among them or stretching its rotation.
pub fn reach(mixer: &Mixer) -> usize {
    let picked = match mixer {
        Mixer::Latent(spec) => spec.index_topk,
        Mixer::Attention(_) | Mixer::DeltaNet(_) | Mixer::ShortConv(_) => None,
    };
    let stretched = mixer.rope().and_then(|rope| match rope.scaling {
        RopeScaling::Dynamic { original_max_position_embeddings: most } => Some(most),
        _ => None,
    });
    let least = picked.into_iter().chain(stretched).min();
    least.map_or(usize::MAX, |least| least as usize)
}

/// `f32` values that a mixer's buffers hold for one token of a stream that is `hidden` wide.
pub fn mixer_buffer_len(mixer: &Mixer, hidden: u64) -> u64 {
    match mixer {
        Mixer::Attention(spec) => attention::buffer_len(spec),
        Mixer::Latent(spec) => latent::buffer_len(spec),
        Mixer::DeltaNet(spec) => delta_net::buffer_len(spec),
        Mixer::ShortConv(_) => short_conv::buffer_len(hidden),
    }
}

/// What a product's input takes with its copies in the order of codes and in the basis of trellis codes.
const COPIES: u64 = 3;

/// `f32` values that [`Work`] holds for `tokens` together, from the widest layer, with the copies of inputs.
pub fn buffer_len(spec: &ModelSpec, tokens: u64) -> u64 {
    let hidden = u64::from(spec.hidden_size);
    let all = |each: u64| COPIES.saturating_mul(tokens).saturating_mul(each);
    let layer = |layer: &LayerSpec| {
        let ffn = match &layer.ffn {
            Ffn::Dense(dense) => all(mlp::buffer_len(dense.intermediate_size)),
            Ffn::Moe(moe) => moe::buffer_len(moe, hidden, tokens),
        };
        all(mixer_buffer_len(&layer.mixer, hidden)).saturating_add(ffn)
    };
    all(8 * hidden).saturating_add(spec.layers.iter().map(layer).max().unwrap_or(0))
}

/// Columns of the widest matrix of any layer.
pub fn widest_input(spec: &ModelSpec) -> usize {
    let layer = |layer: &LayerSpec| {
        let mixer = match &layer.mixer {
            Mixer::Attention(spec) => spec.heads * spec.head_dim,
            Mixer::Latent(spec) => latent::widest_input(spec),
            Mixer::DeltaNet(spec) => spec.value_heads * spec.value_head_dim,
            Mixer::ShortConv(_) => 0,
        };
        let ffn = match &layer.ffn {
            Ffn::Dense(dense) => dense.intermediate_size,
            Ffn::Moe(moe) => {
                let shared = moe.shared_expert.as_ref();
                shared
                    .map_or(0, |s| s.intermediate_size)
                    .max(moe.moe_intermediate_size)
            }
        };
        mixer.max(ffn)
    };
    spec.layers
        .iter()
        .map(layer)
        .max()
        .unwrap_or(0)
        .max(spec.hidden_size) as usize
}

/// Refuses a layer's output that is not finite.
///
/// # Errors
/// The first such value of `x: [n, hidden]`.
pub fn check_finite(layer: u32, first: usize, hidden: usize, x: &[f32]) -> Result<()> {
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            Err(RuntimeError::NotFinite { layer, token: first + at / hidden, channel: at % hidden })
        }
    }
}
