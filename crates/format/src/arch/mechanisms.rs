//! What a table's models are built of, in words.

use super::Arch;
use super::ffn_rows::MoeRow;
use super::table::{AttentionRow, FullWithoutRope, Kind, QkNormRow};
use crate::model::{GateActivation, QkNorm, Scoring};

impl Arch {
    /// The mechanisms of the architecture, each in a few words.
    pub fn mechanisms(&self) -> Vec<String> {
        let table = &self.table;
        let mut found = Vec::new();
        let mut note = |present: bool, words: &str| {
            if present {
                found.push(words.to_owned());
            }
        };
        note(table.latent.is_some(), "latent attention");
        note(table.attention.is_some(), "grouped-query attention");
        if let Some(row) = &table.attention {
            attention(row, &mut note);
        }
        if let Some(row) = &table.layer_kinds {
            note(row.other != Kind::Conv, &row.other.name().replace('_', " "));
        }
        note(table.short_conv.is_some(), "short convolutions");
        note(table.scaling.logits_cap.is_some(), "capped logits");
        note(table.no_input_norms, "norms of outputs alone");
        note(table.norm_plus_one, "norms of 1 + weight");
        note(table.mlp.is_some(), "dense feed-forward");
        if let Some(row) = &table.mlp {
            note(row.activation == GateActivation::Relu2, "squared ReLU");
            note(row.ungated, "no gate");
            note(row.inner_norm, "norms before last projections");
        }
        note(table.moe.is_some(), "experts");
        if let Some(row) = &table.moe {
            moe(row, &mut note);
        }
        for row in &table.extras {
            note(true, &format!("{} left out", row.role));
        }
        found
    }
}

fn attention(row: &AttentionRow, note: &mut dyn FnMut(bool, &str)) {
    let norm = match &row.qk_norm {
        QkNormRow::Fixed(kind) => *kind,
        QkNormRow::If(row) => row.kind,
    };
    note(norm != QkNorm::None, "query and key norms");
    note(row.clip_qkv.is_some(), "clipped queries, keys and values");
    note(row.rotary.dim.is_some() || row.rotary.factor.is_some(), "partial rotation");
    note(row.score_cap.is_some(), "capped scores");
    note(row.sinks, "attention sinks");
    note(row.output_gate, "output gates");
    let some_without = row.full_without_rope != FullWithoutRope::default();
    note(some_without || row.without_rope.is_some(), "layers without positions");
    let growth = row.temperature.is_some() || row.rotary.query_growth.is_some();
    note(growth, "attention temperature");
}

fn moe(row: &MoeRow, note: &mut dyn FnMut(bool, &str)) {
    note(row.scoring != Scoring::default(), "sigmoid routing");
    note(row.correction_bias, "correction bias");
    note(row.router_bias, "router bias");
    note(row.groups.is_some(), "expert groups");
    note(row.expert_bias, "expert biases");
    note(row.weights_on_input, "routing weights on the input");
    note(row.clamped_swiglu.is_some(), "clamped SwiGLU");
    let gated = row.shared_expert.as_ref().map(|shared| shared.gated);
    note(
        gated.is_some(),
        if gated == Some(true) { "gated shared expert" } else { "shared expert" },
    );
}
