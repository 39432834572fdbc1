//! Whether statistics are those of a model.

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::arch::Inventory;
use shardwright_format::{FormatError, Refusal, mismatch};

use super::saved::{SavedStatistics, name};
use super::statistics::InputKey;
use crate::error::Result;

impl SavedStatistics {
    /// Refuses what was observed of another model; `path` is the file that it was read from.
    ///
    /// # Errors
    /// Inputs that the model does not have, or of another width; a layer of which nothing is known.
    pub fn check(&self, path: &Path, inventory: &Inventory) -> Result<()> {
        let expected = widths(inventory);
        let refuse = |wrong: Refusal| {
            FormatError::file(path, format!("{wrong}: these are statistics of another model"))
        };
        let places = self.objectives.moments().places();
        for (key, found) in &places {
            let label = name(*key);
            let cols = expected.get(key);
            let cols = *cols.ok_or_else(|| refuse(format!("the model has no `{label}`").into()))?;
            if cols != *found {
                return Err(refuse(
                    mismatch(format_args!("{cols} inputs"), found).at(format_args!("`{label}`")),
                )
                .into());
            }
        }
        let unknown = |layer: &u32| !places.keys().any(|key| key.layer == Some(*layer));
        if let Some(layer) = (0..inventory.spec.layers.len() as u32).find(unknown) {
            return Err(
                refuse(mismatch("statistics", "none").at(format_args!("layer {layer}"))).into()
            );
        }
        Ok(())
    }
}

/// Inputs at each place of a model.
pub(super) fn widths(inventory: &Inventory) -> BTreeMap<InputKey, u64> {
    let tensors = inventory.units.iter();
    let tensors = tensors.flat_map(|(unit, layout)| layout.tensors.iter().map(|t| (*unit, t)));
    let matrices = tensors.filter(|(_, tensor)| tensor.source.shape.len() > 1);
    let keys = matrices.filter_map(|(unit, t)| Some((InputKey::for_tensor(unit, t.role)?, t.cols)));
    keys.collect()
}
