//! What is known of the inputs of each group of matrices.

use std::collections::BTreeMap;

use shardwright_format::{ModelSpec, Role, Unit};
use shardwright_runtime::InputSite;

/// Matrices that share their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputKey {
    /// The layer; none for the head.
    pub layer: Option<u32>,
    /// The routed expert, for those.
    pub expert: Option<u32>,
    /// Which of the layer's inputs.
    pub site: InputSite,
}

impl InputKey {
    /// Where the input of a tensor is observed; none for what multiplies nothing.
    pub fn for_tensor(unit: Unit, role: Role) -> Option<Self> {
        let site = InputSite::from_role(role)?;
        let expert = match unit {
            Unit::Expert { expert, .. } => Some(expert),
            _ => None,
        };
        Some(Self { layer: unit.layer(), expert, site })
    }

    /// How many inputs a model has there; none where it has no such matrix.
    pub fn inputs(self, spec: &ModelSpec) -> Option<u64> {
        let unit = match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => Unit::Expert { layer, expert },
            (Some(layer), None) => Unit::Layer(layer),
            // As wide as the head, and there whether or not they are one.
            (None, _) => Unit::Embedding,
        };
        let tensors = spec.tensors(unit);
        let tensor = tensors
            .iter()
            .find(|t| Self::for_tensor(unit, t.role) == Some(self));
        tensor.map(|t| t.cols)
    }
}

/// Mean products of the inputs of matrices.
#[derive(Clone, Debug, PartialEq)]
pub enum Hessian {
    /// Of each input with itself, `[cols]`.
    Diagonal(Vec<f32>),
    /// Of each with each, `[cols, cols]`.
    Full(Vec<f32>),
}

impl Hessian {
    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Self::Diagonal(values) => values.len(),
            Self::Full(values) => values.len().isqrt(),
        }
    }

    /// Of each input with itself, `[cols]`.
    pub fn diagonal(&self) -> Vec<f32> {
        match self {
            Self::Diagonal(values) => values.clone(),
            Self::Full(values) => values.iter().copied().step_by(self.cols() + 1).collect(),
        }
    }
}

/// By key.
pub type InputStats = BTreeMap<InputKey, Hessian>;
