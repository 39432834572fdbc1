//! Which tensors a model has, and of what shape: derived from the [`ModelSpec`] alone.

use crate::model::{
    AttentionSpec, DeltaNetSpec, DeltaProjection, DenseSpec, Ffn, GateActivation, GroupLimit,
    LatentSpec, LayerSpec, Mixer, ModelSpec, MoeSpec, QkNorm, RopeScaling, RopeSpec,
};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::Unit;

/// A tensor that a unit must have. A vector is one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// What it is for.
    pub role: Role,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
}

/// Bounds that no real model comes near; beyond them a config is damaged or hostile.
const MAX_LAYERS: usize = 4096;
const MAX_EXPERTS: u32 = 1 << 16;
const MAX_WIDTH: u32 = 1 << 24;
const MAX_KERNEL: u32 = 64;

impl ModelSpec {
    /// The tensors of a unit, in order of use. None for a unit that the model does not have, such
    /// as the parts besides it.
    pub fn tensors(&self, unit: Unit) -> Vec<TensorShape> {
        let (vocab, hidden) = (u64::from(self.vocab_size), u64::from(self.hidden_size));
        let layer = |l: u32| self.layers.get(l as usize);
        let mut list = List(Vec::new());
        match unit {
            Unit::Embedding => list.matrix(Role::EmbedTokens, vocab, hidden),
            Unit::Layer(l) => layer(l).into_iter().for_each(|l| list.layer(l, hidden)),
            Unit::Expert { layer: l, expert } => {
                if let Some(Ffn::Moe(moe)) = layer(l).map(|l| &l.ffn)
                    && expert < moe.num_experts
                {
                    list.expert(moe, hidden);
                }
            }
            Unit::Head => {
                list.vector(Role::FinalNorm, hidden);
                if !self.tie_word_embeddings {
                    list.matrix(Role::LmHead, vocab, hidden);
                }
            }
            // What they hold is the checkpoint's matter, not the model's.
            Unit::Vision | Unit::Mtp | Unit::Indexer => {}
        }
        list.0
    }

    /// Every unit in order: embedding, each layer followed by its experts, head.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        let layers = self.layers.iter().zip(0u32..).flat_map(|(spec, layer)| {
            let experts = (0..spec.num_experts()).map(move |expert| Unit::Expert { layer, expert });
            std::iter::once(Unit::Layer(layer)).chain(experts)
        });
        std::iter::once(Unit::Embedding)
            .chain(layers)
            .chain([Unit::Head])
    }

    /// Checks that the parts fit together and that nothing is absurdly large.
    ///
    /// # Errors
    /// The first field that does not: expected and found.
    pub fn validate(&self) -> Result<(), Refusal> {
        within("vocab_size", self.vocab_size, 1, MAX_WIDTH)?;
        within("hidden_size", self.hidden_size, 1, MAX_WIDTH)?;
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(mismatch(format_args!("1 to {MAX_LAYERS}"), self.layers.len()).at("layers"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(mismatch("a small number", self.rms_norm_eps).at("rms_norm_eps"));
        }
        for (field, factor) in [
            ("embedding_multiplier", self.embedding_multiplier),
            ("residual_multiplier", self.residual_multiplier),
            ("logits_scaling", self.logits_scaling),
            ("logits_cap", self.logits_cap),
        ] {
            factor.map_or(Ok(()), |factor| above_zero(field, factor))?;
        }
        self.layers.iter().try_for_each(LayerSpec::validate)
    }
}

impl LayerSpec {
    fn validate(&self) -> Result<(), Refusal> {
        match &self.mixer {
            Mixer::Attention(attention) => attention.validate()?,
            Mixer::Latent(latent) => latent.validate()?,
            Mixer::DeltaNet(delta) => delta.validate()?,
            Mixer::ShortConv(spec) => within("conv_kernel", spec.conv_kernel, 1, MAX_KERNEL)?,
        }
        if self.no_input_norms && !self.output_norms {
            return Err(mismatch("with output_norms only", "alone").at("no_input_norms"));
        }
        if self.output_norms && self.num_experts() > 0 {
            return Err(mismatch("in dense layers only", "experts").at("output_norms"));
        }
        match &self.ffn {
            Ffn::Dense(dense) => {
                within("intermediate_size", dense.intermediate_size, 1, MAX_WIDTH)?;
                if dense.ungated && matches!(dense.activation, GateActivation::ClampedSwiglu { .. })
                {
                    let detail = mismatch("with an activation of the gate alone", "clamped_swiglu")
                        .at("ungated");
                    return Err(detail);
                }
                dense.activation.validate()
            }
            Ffn::Moe(moe) => moe.validate(),
        }
    }
}

impl AttentionSpec {
    fn validate(&self) -> Result<(), Refusal> {
        within("heads", self.heads, 1, MAX_EXPERTS)?;
        within("kv_heads", self.kv_heads, 1, self.heads)?;
        within("head_dim", self.head_dim, 2, MAX_EXPERTS)?;
        divides("kv_heads", self.kv_heads, self.heads)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(mismatch("an even number", self.head_dim).at("head_dim"));
        }
        if let Some(rope) = &self.rope {
            rope.validate(self.head_dim)?;
        }
        if let Some(scale) = self.softmax_scale {
            above_zero("softmax_scale", scale)?;
        }
        if let Some(cap) = self.score_cap {
            above_zero("score_cap", cap)?;
        }
        if let Some(clip) = self.clip_qkv {
            above_zero("clip_qkv", clip)?;
        }
        if self.sliding_window == Some(0) {
            return Err(mismatch("above 0", "0").at("sliding_window"));
        }
        if self.attention_chunk_size == Some(0) {
            return Err(mismatch("above 0", "0").at("attention_chunk_size"));
        }
        self.temperature
            .map_or(Ok(()), |t| above_zero("floor_scale", t.floor_scale))
    }
}

impl LatentSpec {
    fn validate(&self) -> Result<(), Refusal> {
        within("heads", self.heads, 1, MAX_EXPERTS)?;
        for (field, size) in [
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ] {
            within(field, size, 1, MAX_EXPERTS)?;
        }
        above_zero("softmax_scale", self.softmax_scale)?;
        self.rope.validate(self.qk_rope_head_dim)
    }
}

impl DeltaNetSpec {
    fn validate(&self) -> Result<(), Refusal> {
        within("value_heads", self.value_heads, 1, MAX_EXPERTS)?;
        within("key_heads", self.key_heads, 1, self.value_heads)?;
        divides("key_heads", self.key_heads, self.value_heads)?;
        within("key_head_dim", self.key_head_dim, 1, MAX_EXPERTS)?;
        within("value_head_dim", self.value_head_dim, 1, MAX_EXPERTS)?;
        within("conv_kernel", self.conv_kernel, 1, MAX_KERNEL)
    }

    /// Values of all queries, or of all keys.
    pub const fn key_width(&self) -> u64 {
        self.key_heads as u64 * self.key_head_dim as u64
    }

    /// Values of all heads, or of their gates.
    pub const fn value_width(&self) -> u64 {
        self.value_heads as u64 * self.value_head_dim as u64
    }

    /// Channels of the convolution: queries, keys and values.
    pub const fn conv_width(&self) -> u64 {
        2 * self.key_width() + self.value_width()
    }
}

impl RopeSpec {
    /// Values of a head of `head_dim` that are rotated.
    pub const fn width(&self, head_dim: u32) -> u32 {
        match self.rotary_dim {
            Some(dim) => dim,
            None => head_dim,
        }
    }

    fn validate(&self, head_dim: u32) -> Result<(), Refusal> {
        above_zero("rope theta", self.theta)?;
        // Its ramp divides by the logarithm of theta.
        if self.theta == 1.0 && matches!(self.scaling, RopeScaling::Yarn { .. }) {
            return Err(mismatch("another than 1 with yarn", "1").at("rope theta"));
        }
        let width = self.width(head_dim);
        if !width.is_multiple_of(2) || !(2..=head_dim).contains(&width) {
            let expected = format!("an even number up to {head_dim}");
            return Err(mismatch(expected, width).at("rotary_dim"));
        }
        self.scaling.validate(width as usize / 2)
    }
}

impl RopeScaling {
    /// Checks the scaling of `pairs` frequencies.
    fn validate(&self, pairs: usize) -> Result<(), Refusal> {
        match *self {
            Self::None | Self::Dynamic { .. } => Ok(()),
            Self::Linear { factor } => above_zero("rope factor", factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                above_zero("rope factor", factor)?;
                above_zero("rope low_freq_factor", low)?;
                above_zero("rope high_freq_factor", high)?;
                if low <= high {
                    return Ok(());
                }
                Err(mismatch(format_args!("at most {high}"), low).at("rope low_freq_factor"))
            }
            Self::Yarn { factor, beta_fast, beta_slow, attention_factor, .. } => {
                above_zero("rope factor", factor)?;
                above_zero("rope beta_fast", beta_fast)?;
                above_zero("rope beta_slow", beta_slow)?;
                above_zero("rope attention_factor", attention_factor)
            }
            Self::Longrope { ref short_factor, ref long_factor, attention_factor, .. } => {
                for (field, factors) in
                    [("rope short_factor", short_factor), ("rope long_factor", long_factor)]
                {
                    if factors.len() != pairs {
                        let found = factors.len();
                        return Err(mismatch(format_args!("{pairs} factors"), found).at(field));
                    }
                    factors
                        .iter()
                        .try_for_each(|factor| above_zero(field, *factor))?;
                }
                above_zero("rope attention_factor", attention_factor)
            }
        }
    }
}

impl GateActivation {
    fn validate(self) -> Result<(), Refusal> {
        let Self::ClampedSwiglu { limit, alpha } = self else { return Ok(()) };
        above_zero("swiglu limit", limit)?;
        above_zero("swiglu alpha", alpha)
    }
}

impl MoeSpec {
    fn validate(&self) -> Result<(), Refusal> {
        within("num_experts", self.num_experts, 1, MAX_EXPERTS)?;
        within("num_experts_per_tok", self.num_experts_per_tok, 1, self.num_experts)?;
        within("moe_intermediate_size", self.moe_intermediate_size, 1, MAX_WIDTH)?;
        if let Some(shared) = &self.shared_expert {
            within("shared intermediate_size", shared.intermediate_size, 1, MAX_WIDTH)?;
        }
        if let Some(groups) = self.groups {
            self.validate_groups(groups)?;
        }
        self.activation.validate()?;
        self.routed_scaling_factor
            .map_or(Ok(()), |scale| above_zero("routed_scaling_factor", scale))
    }

    /// Every pick must lie in a picked group, and a group has two experts at least.
    fn validate_groups(&self, limit: GroupLimit) -> Result<(), Refusal> {
        within("groups", limit.groups, 1, self.num_experts / 2)?;
        divides("groups", limit.groups, self.num_experts)?;
        within("picked groups", limit.picked, 1, limit.groups)?;
        let open = self.num_experts / limit.groups * limit.picked;
        within("num_experts_per_tok", self.num_experts_per_tok, 1, open)
    }
}

fn divides(field: &str, found: u32, whole: u32) -> Result<(), Refusal> {
    if whole.is_multiple_of(found) {
        return Ok(());
    }
    Err(mismatch(format_args!("a divisor of {whole}"), found).at(field))
}

fn above_zero(field: &str, found: f32) -> Result<(), Refusal> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(mismatch("above 0", found).at(field))
}

fn within(field: &str, found: u32, low: u32, high: u32) -> Result<(), Refusal> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(mismatch(format_args!("{low} to {high}"), found).at(field))
}

/// Collects shapes in order of use.
struct List(Vec<TensorShape>);

impl List {
    fn matrix(&mut self, role: Role, rows: u64, cols: u64) {
        self.0.push(TensorShape { role, rows, cols });
    }

    fn vector(&mut self, role: Role, cols: u64) {
        self.matrix(role, 1, cols);
    }

    fn vector_if(&mut self, present: bool, role: Role, cols: u64) {
        if present {
            self.vector(role, cols);
        }
    }

    fn layer(&mut self, layer: &LayerSpec, hidden: u64) {
        self.vector_if(!layer.no_input_norms, Role::InputNorm, hidden);
        match &layer.mixer {
            Mixer::Attention(attention) => self.attention(attention, hidden),
            Mixer::Latent(latent) => self.latent(latent, hidden),
            Mixer::DeltaNet(delta) => self.delta_net(delta, hidden),
            Mixer::ShortConv(spec) => {
                self.matrix(Role::ShortConvIn, 3 * hidden, hidden);
                self.matrix(Role::ShortConv, hidden, u64::from(spec.conv_kernel));
                self.matrix(Role::ShortConvOut, hidden, hidden);
            }
        }
        self.vector_if(layer.output_norms, Role::MixerOutNorm, hidden);
        self.vector_if(!layer.no_input_norms, Role::PostAttentionNorm, hidden);
        match &layer.ffn {
            Ffn::Dense(dense) => self.dense(dense, hidden),
            Ffn::Moe(moe) => self.moe(moe, hidden),
        }
        self.vector_if(layer.output_norms, Role::FfnOutNorm, hidden);
    }

    fn attention(&mut self, spec: &AttentionSpec, hidden: u64) {
        let dim = u64::from(spec.head_dim);
        let (q, kv) = (u64::from(spec.heads) * dim, u64::from(spec.kv_heads) * dim);
        let gated = if spec.output_gate { 2 * q } else { q };
        for (weight, bias, rows) in [
            (Role::QProj, Role::QBias, gated),
            (Role::KProj, Role::KBias, kv),
            (Role::VProj, Role::VBias, kv),
        ] {
            self.matrix(weight, rows, hidden);
            self.vector_if(spec.qkv_bias, bias, rows);
        }
        let norms = match spec.qk_norm {
            QkNorm::None | QkNorm::Weightless => None,
            QkNorm::PerHead | QkNorm::PerHeadRotated => Some((dim, dim)),
            QkNorm::Full => Some((q, kv)),
        };
        if let Some((q_norm, k_norm)) = norms {
            self.vector(Role::QNorm, q_norm);
            self.vector(Role::KNorm, k_norm);
        }
        self.vector_if(spec.sinks, Role::Sinks, u64::from(spec.heads));
        self.vector_if(spec.inner_norm, Role::MixerInnerNorm, q);
        self.matrix(Role::OProj, hidden, q);
        self.vector_if(spec.o_bias, Role::OBias, hidden);
    }

    fn latent(&mut self, spec: &LatentSpec, hidden: u64) {
        let [heads, latent, nope, rope, value] = [
            spec.heads,
            spec.kv_lora_rank,
            spec.qk_nope_head_dim,
            spec.qk_rope_head_dim,
            spec.v_head_dim,
        ]
        .map(u64::from);
        if let Some(rank) = spec.q_lora_rank.map(u64::from) {
            self.matrix(Role::QAProj, rank, hidden);
            self.vector_if(spec.bias, Role::QABias, rank);
            self.vector(Role::QANorm, rank);
            self.matrix(Role::QBProj, heads * (nope + rope), rank);
        }
        self.matrix(Role::KvAProj, latent + rope, hidden);
        self.vector_if(spec.bias, Role::KvABias, latent + rope);
        self.vector(Role::KvANorm, latent);
        self.matrix(Role::KvBProj, heads * (nope + value), latent);
        if spec.q_lora_rank.is_none() {
            self.matrix(Role::QProj, heads * (nope + rope), hidden);
        }
        self.matrix(Role::OProj, hidden, heads * value);
        self.vector_if(spec.bias, Role::OBias, hidden);
    }

    fn delta_net(&mut self, spec: &DeltaNetSpec, hidden: u64) {
        let (heads, gates) = (u64::from(spec.value_heads), spec.value_width());
        match spec.projection {
            DeltaProjection::Grouped => {
                self.matrix(Role::DeltaQkvz, spec.conv_width() + gates, hidden);
                self.matrix(Role::DeltaBa, 2 * heads, hidden);
            }
            DeltaProjection::Split => {
                self.matrix(Role::DeltaQkv, spec.conv_width(), hidden);
                self.matrix(Role::DeltaZ, gates, hidden);
                self.matrix(Role::DeltaB, heads, hidden);
                self.matrix(Role::DeltaA, heads, hidden);
            }
        }
        self.matrix(Role::DeltaConv, spec.conv_width(), u64::from(spec.conv_kernel));
        self.vector(Role::DeltaALog, heads);
        self.vector(Role::DeltaDtBias, heads);
        self.vector(Role::DeltaNorm, u64::from(spec.value_head_dim));
        self.matrix(Role::DeltaOutProj, hidden, gates);
    }

    fn dense(&mut self, spec: &DenseSpec, hidden: u64) {
        let width = u64::from(spec.intermediate_size);
        if !spec.ungated {
            self.matrix(Role::GateProj, width, hidden);
            self.vector_if(spec.bias, Role::GateBias, width);
        }
        self.matrix(Role::UpProj, width, hidden);
        self.vector_if(spec.bias, Role::UpBias, width);
        self.vector_if(spec.inner_norm, Role::FfnInnerNorm, width);
        self.matrix(Role::DownProj, hidden, width);
        self.vector_if(spec.bias, Role::DownBias, hidden);
    }

    fn moe(&mut self, spec: &MoeSpec, hidden: u64) {
        let experts = u64::from(spec.num_experts);
        self.matrix(Role::Router, experts, hidden);
        self.vector_if(spec.router_bias, Role::RouterBias, experts);
        self.vector_if(spec.correction_bias, Role::CorrectionBias, experts);
        let Some(shared) = &spec.shared_expert else { return };
        let width = u64::from(shared.intermediate_size);
        if shared.gated {
            self.matrix(Role::SharedExpertGate, 1, hidden);
        }
        self.matrix(Role::SharedGateProj, width, hidden);
        self.matrix(Role::SharedUpProj, width, hidden);
        self.matrix(Role::SharedDownProj, hidden, width);
    }

    fn expert(&mut self, spec: &MoeSpec, hidden: u64) {
        let width = u64::from(spec.moe_intermediate_size);
        let bias = spec.expert_bias;
        self.matrix(Role::ExpertGateProj, width, hidden);
        self.vector_if(bias, Role::ExpertGateBias, width);
        self.matrix(Role::ExpertUpProj, width, hidden);
        self.vector_if(bias, Role::ExpertUpBias, width);
        self.matrix(Role::ExpertDownProj, hidden, width);
        self.vector_if(bias, Role::ExpertDownBias, hidden);
    }
}
