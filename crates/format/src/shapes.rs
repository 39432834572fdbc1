//! Which tensors a model has, and of what shape: derived from the [`ModelSpec`] alone.

use crate::model::{
    AttentionSpec, DenseSpec, Ffn, LayerSpec, Mixer, ModelSpec, MoeSpec, QkNorm, RopeScaling,
};
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

impl ModelSpec {
    /// The tensors of a unit, in order of use. None for a unit that the model does not have.
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
    pub fn validate(&self) -> Result<(), String> {
        within("vocab_size", self.vocab_size, 1, MAX_WIDTH)?;
        within("hidden_size", self.hidden_size, 1, MAX_WIDTH)?;
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(format!("layers: expected 1 to {MAX_LAYERS}, found {}", self.layers.len()));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!(
                "rms_norm_eps: expected a small number, found {}",
                self.rms_norm_eps
            ));
        }
        self.layers.iter().try_for_each(LayerSpec::validate)
    }
}

impl LayerSpec {
    fn validate(&self) -> Result<(), String> {
        let Mixer::Attention(attention) = &self.mixer;
        attention.validate()?;
        match &self.ffn {
            Ffn::Dense(dense) => within("intermediate_size", dense.intermediate_size, 1, MAX_WIDTH),
            Ffn::Moe(moe) => moe.validate(),
        }
    }
}

impl AttentionSpec {
    fn validate(&self) -> Result<(), String> {
        within("heads", self.heads, 1, MAX_EXPERTS)?;
        within("kv_heads", self.kv_heads, 1, self.heads)?;
        within("head_dim", self.head_dim, 2, MAX_EXPERTS)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(format!("kv_heads: expected a divisor of {heads}, found {kv}"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim: expected an even number, found {}", self.head_dim));
        }
        above_zero("rope theta", self.rope.theta)?;
        self.rope.scaling.validate()?;
        if let Some(clip) = self.clip_qkv {
            above_zero("clip_qkv", clip)?;
        }
        if self.sliding_window == Some(0) {
            return Err("sliding_window: expected above 0, found 0".to_owned());
        }
        Ok(())
    }
}

impl RopeScaling {
    fn validate(self) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => above_zero("rope factor", factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                above_zero("rope factor", factor)?;
                above_zero("rope low_freq_factor", low)?;
                above_zero("rope high_freq_factor", high)?;
                if low < high {
                    return Ok(());
                }
                Err(format!("rope low_freq_factor: expected below {high}, found {low}"))
            }
        }
    }
}

impl MoeSpec {
    fn validate(&self) -> Result<(), String> {
        within("num_experts", self.num_experts, 1, MAX_EXPERTS)?;
        within("num_experts_per_tok", self.num_experts_per_tok, 1, self.num_experts)?;
        within("moe_intermediate_size", self.moe_intermediate_size, 1, MAX_WIDTH)?;
        match &self.shared_expert {
            Some(shared) => {
                within("shared intermediate_size", shared.intermediate_size, 1, MAX_WIDTH)
            }
            None => Ok(()),
        }
    }
}

fn above_zero(field: &str, found: f32) -> Result<(), String> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(format!("{field}: expected above 0, found {found}"))
}

fn within(field: &str, found: u32, low: u32, high: u32) -> Result<(), String> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    Err(format!("{field}: expected {low} to {high}, found {found}"))
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
        self.vector(Role::InputNorm, hidden);
        let Mixer::Attention(attention) = &layer.mixer;
        self.attention(attention, hidden);
        self.vector(Role::PostAttentionNorm, hidden);
        match &layer.ffn {
            Ffn::Dense(dense) => self.dense(dense, hidden),
            Ffn::Moe(moe) => self.moe(moe, hidden),
        }
    }

    fn attention(&mut self, spec: &AttentionSpec, hidden: u64) {
        let dim = u64::from(spec.head_dim);
        let (q, kv) = (u64::from(spec.heads) * dim, u64::from(spec.kv_heads) * dim);
        for (weight, bias, rows) in [
            (Role::QProj, Role::QBias, q),
            (Role::KProj, Role::KBias, kv),
            (Role::VProj, Role::VBias, kv),
        ] {
            self.matrix(weight, rows, hidden);
            self.vector_if(spec.qkv_bias, bias, rows);
        }
        let (q_norm, k_norm) = match spec.qk_norm {
            QkNorm::None | QkNorm::PerHead => (dim, dim),
            QkNorm::Full => (q, kv),
        };
        self.vector_if(spec.qk_norm != QkNorm::None, Role::QNorm, q_norm);
        self.vector_if(spec.qk_norm != QkNorm::None, Role::KNorm, k_norm);
        self.matrix(Role::OProj, hidden, q);
        self.vector_if(spec.o_bias, Role::OBias, hidden);
    }

    fn dense(&mut self, spec: &DenseSpec, hidden: u64) {
        let width = u64::from(spec.intermediate_size);
        self.matrix(Role::GateProj, width, hidden);
        self.vector_if(spec.bias, Role::GateBias, width);
        self.matrix(Role::UpProj, width, hidden);
        self.vector_if(spec.bias, Role::UpBias, width);
        self.matrix(Role::DownProj, hidden, width);
        self.vector_if(spec.bias, Role::DownBias, hidden);
    }

    fn moe(&mut self, spec: &MoeSpec, hidden: u64) {
        self.matrix(Role::Router, u64::from(spec.num_experts), hidden);
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
        self.matrix(Role::ExpertGateProj, width, hidden);
        self.matrix(Role::ExpertUpProj, width, hidden);
        self.matrix(Role::ExpertDownProj, hidden, width);
    }
}
