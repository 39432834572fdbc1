//! Where a model's bytes are.

use serde::{Deserialize, Serialize};
use shardwright_format::Role;
use shardwright_format::census::{Census, Tally};

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
    /// Bytes that they take as they are stored.
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
pub(crate) fn allocation(census: &Census) -> Vec<Allocation> {
    let kinds = census.kinds().map(|(layer, role, encoding, tally)| {
        let Tally { tensors, weights, bytes } = tally;
        Allocation { layer, role, encoding: encoding.to_owned(), tensors, weights, bytes }
    });
    kinds.collect()
}

#[cfg(test)]
mod tests {
    use shardwright_format::weights::Weights;

    use super::*;
    use shardwright_testing::golden;
    use shardwright_testing::models::{FOUR_BITS, TestBundle};

    #[test]
    fn every_byte_has_a_place() {
        let manifest = TestBundle::new("qwen3_moe", FOUR_BITS).manifest;
        let places = allocation(&manifest.census());
        assert_eq!((places[0].layer, places[0].role), (None, Role::EmbedTokens));
        let lens = manifest.shards().flat_map(|s| s.tensors.iter());
        let stored: u64 = lens.map(|t| t.byte_len().unwrap()).sum();
        assert_eq!(places.iter().map(|p| p.bytes).sum::<u64>(), stored);
        let experts: Vec<_> = places.iter().filter(|p| p.role.is_expert()).collect();
        assert!(
            experts
                .iter()
                .all(|p| p.tensors == 6 && p.bits_per_weight() == 5.0)
        );
    }

    #[test]
    fn codes_of_other_formats_count_as_they_are_stored() {
        let open = |case| Weights::open(&golden(case)).unwrap().census().unwrap();
        let (plain, fp8) = (open("minimax_m2"), open("minimax_m2-fp8"));
        assert_eq!(plain.text().weights, fp8.text().weights);
        let (wide, narrow) = (plain.bits_per_weight(), fp8.bits_per_weight());
        assert!(narrow < wide - 4.0, "{narrow} {wide}");
        let places = allocation(&fp8);
        assert!(places.iter().any(|a| a.encoding.starts_with("f8_e4m3 ")));
    }
}
