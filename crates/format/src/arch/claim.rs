//! A tensor of a checkpoint as one of the model's.

use shardwright_quant::Encoding;

use crate::shapes::TensorShape;
use crate::unit::{SourceView, TensorEntry, Unit};

/// A tensor's claim to be one of the model's.
pub(super) struct Claim {
    pub(super) unit: Unit,
    pub(super) shape: TensorShape,
    /// Its place, for every expert alike.
    pub(super) template: SourceView,
}

impl Claim {
    pub(super) fn view(&self) -> SourceView {
        match self.unit {
            Unit::Expert { expert, .. } => self.template.of_expert(expert),
            _ => self.template.clone(),
        }
    }

    /// The tensor in the checkpoint's type, not placed yet.
    pub(super) fn tensor(&self, view: SourceView) -> TensorEntry {
        let TensorShape { role, rows, cols } = self.shape;
        TensorEntry::new(role, [rows, cols], Encoding::from(view.dtype), view)
    }
}
