//! Whether statistics are those of a model.

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::FormatError;
use shardwright_format::arch::Inventory;

use super::saved::{SavedStatistics, name};
use super::statistics::Place;
use crate::error::Result;

impl SavedStatistics {
    /// Refuses what was observed of another model; `path` is the file that it was read from.
    ///
    /// # Errors
    /// Inputs that the model does not have, or of another width; a layer of which nothing is known.
    pub fn check(&self, path: &Path, inventory: &Inventory) -> Result<()> {
        let expected = widths(inventory);
        let refuse = |detail: String| {
            FormatError::file(path, format!("{detail}: these are statistics of another model"))
        };
        let observed = self.guides.observed();
        for (place, moments) in observed {
            let (label, found) = (name(*place), moments.cols() as u64);
            let cols = expected.get(place);
            let cols = *cols.ok_or_else(|| refuse(format!("the model has no `{label}`")))?;
            if cols != found {
                return Err(
                    refuse(format!("`{label}`: expected {cols} inputs, found {found}")).into()
                );
            }
        }
        let unknown = |layer: &u32| !observed.keys().any(|place| place.layer == Some(*layer));
        if let Some(layer) = (0..inventory.spec.layers.len() as u32).find(unknown) {
            return Err(refuse(format!("layer {layer}: expected statistics, found none")).into());
        }
        Ok(())
    }
}

/// Inputs at each place of a model.
fn widths(inventory: &Inventory) -> BTreeMap<Place, u64> {
    let tensors = inventory.units.iter();
    let tensors = tensors.flat_map(|(unit, layout)| layout.tensors.iter().map(|t| (*unit, t)));
    let matrices = tensors.filter(|(_, tensor)| tensor.source.shape.len() > 1);
    let places = matrices.filter_map(|(unit, t)| Some((Place::of(unit, t.role)?, t.cols)));
    places.collect()
}
