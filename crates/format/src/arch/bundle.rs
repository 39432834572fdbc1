//! What the tensors of a bundle are for, when another one is made from it: its manifest says so.

use std::collections::BTreeMap;

use super::inventory::{AlikeExperts, Extra, Inventory};
use crate::bundle::Bundle;
use crate::checkpoint::source_tensors;
use crate::error::{FormatError, Result};
use crate::layout::place_dense;
use crate::unit::Unit;

/// Why a bundle works without what is not the text model.
const EXTRA: &str = "not part of the text model";

impl Inventory {
    /// The inventory of the checkpoint that [`Checkpoint::from_bundle`](crate::checkpoint::Checkpoint)
    /// gives.
    ///
    /// # Errors
    /// A unit that the manifest lacks, which no valid one does.
    pub fn from_bundle(bundle: &Bundle) -> Result<Self> {
        let manifest = bundle.manifest();
        let (mut units, mut extras) = (BTreeMap::new(), BTreeMap::new());
        let mut experts = BTreeMap::new();
        for unit in manifest.units() {
            let tensors = source_tensors(unit, &bundle.layout(unit)?);
            let refused = |e| FormatError::file(bundle.root(), format!("{unit}: {e}"));
            let placed = |tensors| place_dense(tensors).map_err(refused);
            if unit.extra_role().is_some() {
                extras.insert(unit, Extra { layout: placed(tensors)?, reason: EXTRA.to_owned() });
                continue;
            }
            let own = tensors.iter().map(|entry| entry.in_unit(unit)).collect();
            units.insert(unit, placed(own)?);
            if let Unit::Expert { layer, expert } = unit {
                AlikeExperts::add(experts.entry(layer).or_default(), expert, tensors);
            }
        }
        Ok(Self {
            spec: manifest.model.clone(),
            units,
            extras,
            // What the first checkpoint had besides is not in the bundle.
            ignored: Vec::new(),
            excerpt: manifest.checkpoint.excerpt,
            experts,
        })
    }
}
