//! Some layers of a checkpoint as a model of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::inventory::Inventory;
use crate::checkpoint::Checkpoint;
use crate::error::{FormatError, Result};
use crate::manifest::Excerpt;
use crate::names::{in_layer, split};
use crate::refusal::mismatch;
use crate::unit::Unit;

impl Inventory {
    /// Keeps `layers` of the model, numbered anew from 0, the embedding and the head; of the
    /// checkpoint, the tensors that they are made of and the files that hold those.
    ///
    /// # Errors
    /// Layers that the model does not have.
    pub fn excerpt(mut self, checkpoint: &mut Checkpoint, layers: Range<u32>) -> Result<Self> {
        let of = self.spec.layers.len() as u32;
        if layers.is_empty() || layers.end > of {
            let Range { start, end } = layers;
            let detail = mismatch(format_args!("some of 0..{of}"), format_args!("{start}..{end}"))
                .at("layers");
            return Err(FormatError::file(checkpoint.root(), detail));
        }
        let excerpt = Excerpt { first: layers.start, end: layers.end, of };
        self.spec.layers = self.spec.layers[layers.start as usize..layers.end as usize].to_vec();
        self.units = renumbered(self.units, |unit| moved(unit, excerpt));
        let layer = |layer| excerpt.has(layer).then(|| layer - excerpt.first);
        self.experts = renumbered(self.experts, layer);
        self.extras.clear();
        self.ignored.retain(|ignored| {
            let (pattern, [layer, _]) = split(&ignored.tensor);
            let in_layer = pattern.as_deref().is_some_and(in_layer);
            ignored.role.is_none() && (!in_layer || excerpt.has(layer))
        });
        self.excerpt = Some(excerpt);
        let used = self
            .units
            .values()
            .flat_map(|layout| layout.tensors.iter())
            .map(|tensor| &tensor.source.tensor);
        let ignored = self.ignored.iter().map(|ignored| &ignored.tensor);
        let kept: BTreeSet<&str> = used.chain(ignored).map(String::as_str).collect();
        checkpoint.keep(|tensor| kept.contains(tensor));
        Ok(self)
    }
}

/// The number of a unit inside an excerpt; none outside it.
fn moved(unit: Unit, excerpt: Excerpt) -> Option<Unit> {
    let layer = |layer| excerpt.has(layer).then(|| layer - excerpt.first);
    Some(match unit {
        Unit::Layer(old) => Unit::Layer(layer(old)?),
        Unit::Expert { layer: old, expert } => Unit::Expert { layer: layer(old)?, expert },
        other => other,
    })
}

fn renumbered<K: Ord, V>(all: BTreeMap<K, V>, number: impl Fn(K) -> Option<K>) -> BTreeMap<K, V> {
    let renumbered = all
        .into_iter()
        .filter_map(|(key, value)| Some((number(key)?, value)));
    renumbered.collect()
}
