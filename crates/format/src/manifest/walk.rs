//! Walks over a manifest: its shards, its tensors, and what they add up to.

use std::sync::Arc;

use super::{Extent, Manifest};
use crate::census::Census;
use crate::unit::{TensorEntry, Unit};

/// One shard: what it holds and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    /// What it holds.
    pub unit: Unit,
    /// The file that it lies in.
    pub file: &'a str,
    /// Where in the file.
    pub extent: Extent,
    /// Its tensors in order of offset. Source views of experts have to be filled in:
    /// [`TensorEntry::in_unit`].
    pub tensors: &'a Arc<[TensorEntry]>,
}

impl Manifest {
    /// Every shard: those of `dense` in order, then the experts of each entry one by one.
    pub fn shards(&self) -> impl Iterator<Item = Shard<'_>> {
        let dense = self.dense.iter().map(|s| {
            let extent = s.extent();
            Shard { unit: s.unit, file: &s.file, extent, tensors: &s.tensors }
        });
        let experts = self.experts.iter().flat_map(|s| {
            s.numbers().filter_map(|expert| {
                let extent = s.extent(expert)?;
                let unit = Unit::Expert { layer: s.layer, expert };
                Some(Shard { unit, file: &s.file, extent, tensors: &s.tensors })
            })
        });
        dense.chain(experts)
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        let experts = self.experts.iter().map(|s| s.blake3.len());
        self.dense.len() + experts.sum::<usize>()
    }

    /// The shards that are laid out alike, once each: the unit (the first expert for all of an entry),
    /// how many they are, and their tensors.
    pub fn layouts(&self) -> impl Iterator<Item = (Unit, u64, &Arc<[TensorEntry]>)> {
        let dense = self.dense.iter().map(|s| (s.unit, 1, &s.tensors));
        let experts = self.experts.iter();
        let experts = experts.map(|s| (s.first(), s.blake3.len() as u64, &s.tensors));
        dense.chain(experts)
    }

    /// Every tensor of [`Self::layouts`] with its unit and the number of its kind.
    pub fn tensors(&self) -> impl Iterator<Item = (Unit, u64, &TensorEntry)> {
        self.layouts()
            .flat_map(|(unit, count, tensors)| tensors.iter().map(move |t| (unit, count, t)))
    }

    /// What the bundle's tensors add up to.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for (unit, count, tensor) in self.tensors() {
            // A valid manifest's encodings hold their shapes.
            let bytes = tensor.byte_len().unwrap_or_default();
            census.add(unit, count, tensor, tensor.encoding.label(), bytes);
        }
        census
    }
}
