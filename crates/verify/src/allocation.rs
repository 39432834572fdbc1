//! Where a bundle's bytes are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardwright_format::{Manifest, Role};

/// Tensors of one role in one layer that are stored alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// The layer; none for embedding and head.
    pub layer: Option<u32>,
    /// What they are for.
    pub role: Role,
    /// How they are stored.
    pub encoding: String,
    /// Tensors: 1, or the number of experts.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Bytes that they take, uncompressed.
    pub bytes: u64,
}

impl Allocation {
    /// Bits that a weight takes, scales and biases included.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}

/// One entry per layer, role and encoding: what belongs to no layer, then layers in order, roles in
/// order of use.
pub(crate) fn allocation(manifest: &Manifest) -> Vec<Allocation> {
    let dense = manifest
        .dense
        .iter()
        .map(|s| (s.unit.layer(), 1, &s.tensors));
    let experts = manifest
        .experts
        .iter()
        .map(|e| (Some(e.layer), e.blake3.len() as u64, &e.tensors));
    let mut found = BTreeMap::new();
    for (layer, count, tensors) in dense.chain(experts) {
        for entry in tensors.iter() {
            let key = (layer, entry.role, entry.encoding.label());
            let (role, encoding) = (entry.role, key.2.clone());
            let place = found.entry(key).or_insert(Allocation {
                layer,
                role,
                encoding,
                tensors: 0,
                weights: 0,
                bytes: 0,
            });
            place.tensors += count;
            place.weights += count * entry.rows * entry.cols;
            // A valid manifest's encodings hold their shapes.
            place.bytes += count * entry.byte_len().unwrap_or(0);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FOUR_BITS, TestBundle};

    #[test]
    fn every_byte_has_a_place() {
        let manifest = TestBundle::new("qwen3_moe", FOUR_BITS).manifest;
        let places = allocation(&manifest);
        assert_eq!((places[0].layer, places[0].role), (None, Role::EmbedTokens));
        let stored: u64 = manifest
            .experts
            .iter()
            .flat_map(|e| {
                e.tensors
                    .iter()
                    .map(|t| t.byte_len().unwrap() * e.blake3.len() as u64)
            })
            .chain(
                manifest
                    .dense
                    .iter()
                    .flat_map(|s| s.tensors.iter().map(|t| t.byte_len().unwrap())),
            )
            .sum();
        assert_eq!(places.iter().map(|p| p.bytes).sum::<u64>(), stored);
        let experts: Vec<_> = places.iter().filter(|p| p.role.is_expert()).collect();
        assert!(
            experts
                .iter()
                .all(|p| p.tensors == 6 && p.bits_per_weight() == 5.0)
        );
    }
}
