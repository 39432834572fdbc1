//! What a model's tensors add up to.

use std::collections::BTreeMap;

use crate::role::Role;
use crate::unit::{TensorEntry, Unit};

/// Sums over some tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tensors, each expert's counted.
    pub tensors: u64,
    /// Values in them.
    pub weights: u64,
    /// Bytes that hold them, scales and biases included, padding not.
    pub bytes: u64,
}

impl Tally {
    /// Bits that a value takes; 0 of none.
    pub fn bits_per_weight(&self) -> f64 {
        if self.weights == 0 { 0.0 } else { self.bytes as f64 * 8.0 / self.weights as f64 }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.tensors += other.tensors;
        self.weights += other.weights;
        self.bytes += other.bytes;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}

/// All tensors of a model by layer, role and the way they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    kinds: BTreeMap<(Option<u32>, Role, String), Tally>,
    matrices: Tally,
}

impl Census {
    /// Takes in `count` tensors that are alike, `bytes` for each, `stored` the label of their encoding.
    pub fn add(
        &mut self,
        unit: Unit,
        count: u64,
        tensor: &TensorEntry,
        stored: String,
        bytes: u64,
    ) {
        let weights = tensor.rows * tensor.cols * count;
        let tally = Tally { tensors: count, weights, bytes: bytes * count };
        *self
            .kinds
            .entry((unit.layer(), tensor.role, stored))
            .or_default() += tally;
        if tensor.source.shape.len() > 1 && !tensor.role.is_extra() {
            self.matrices += tally;
        }
    }

    /// Layer (none for embedding, head and extras), role, label of the encoding, and sums: what
    /// belongs to no layer, then layers in order, roles in order of use.
    pub fn kinds(&self) -> impl Iterator<Item = (Option<u32>, Role, &str, Tally)> {
        self.kinds
            .iter()
            .map(|((layer, role, stored), tally)| (*layer, *role, stored.as_str(), *tally))
    }

    /// Sums by role, in order of use.
    pub fn by_role(&self) -> BTreeMap<Role, Tally> {
        let mut roles = BTreeMap::<_, Tally>::new();
        self.kinds()
            .for_each(|(_, role, _, tally)| *roles.entry(role).or_default() += tally);
        roles
    }

    /// Sums by role and label of the encoding, in order of use.
    pub fn by_encoding(&self) -> BTreeMap<(Role, &str), Tally> {
        let mut found = BTreeMap::<_, Tally>::new();
        for (_, role, stored, tally) in self.kinds() {
            *found.entry((role, stored)).or_default() += tally;
        }
        found
    }

    /// The text model's tensors.
    pub fn text(&self) -> Tally {
        self.kinds()
            .filter(|(_, role, ..)| !role.is_extra())
            .map(|(.., tally)| tally)
            .sum()
    }

    /// Bits per weight over all tensors of the text model that have at least two dimensions in the
    /// checkpoint: scales, biases and those left in 16 bits included, padding not. 0 of none.
    pub fn bits_per_weight(&self) -> f64 {
        self.matrices.bits_per_weight()
    }
}
