//! What a planned bundle weighs, and what making and using it costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardwright_format::census::Tally;
use shardwright_format::manifest::Manifest;
use shardwright_format::model::Ffn;
use shardwright_format::{Role, Unit};

use super::resolve::Rounding;
use super::{PlanOptions, calibrated};
use crate::convert::memory;

/// Sizes of a bundle.
///
/// Bits per weight count the text model's tensors of two or more dimensions, with their scales and
/// biases and those of them that stay in 16 bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Bytes of all files.
    pub bundle_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Values in all tensors.
    pub parameters: u64,
    /// Bits per weight of the text model.
    pub bits_per_weight: f64,
    /// The same by role, in order of use.
    pub roles: Vec<RoleSummary>,
}

/// The tensors of one role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleSummary {
    /// The role.
    pub role: Role,
    /// How they are stored, each way once.
    pub encodings: Vec<String>,
    /// Tensors.
    pub tensors: u64,
    /// Values in them.
    pub weights: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bits per value.
    pub bits_per_weight: f64,
}

/// What the conversion and a token cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of memory that the conversion needs at most, page cache apart.
    pub peak_memory: u64,
    /// Bytes on disk while converting: the bundle and the ledger.
    pub peak_disk: u64,
    /// Bytes of checkpoint files, each read once.
    pub source_bytes: u64,
    /// Bytes that a token reads when nothing is cached: dense shards, the experts it visits, the
    /// head, one row of the embedding with those it can only be read with.
    pub bytes_per_token: u64,
    /// The part of them that is experts.
    pub expert_bytes_per_token: u64,
}

/// Adds up tensors; the bundle's own size is not known yet.
pub fn summarize(manifest: &Manifest) -> Summary {
    let mut encodings = BTreeMap::<Role, Vec<String>>::new();
    for (_, _, tensor) in manifest.tensors() {
        let (labels, label) = (encodings.entry(tensor.role).or_default(), tensor.encoding.label());
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let census = manifest.census();
    let role = |(role, tally): (Role, Tally)| RoleSummary {
        role,
        encodings: encodings.remove(&role).unwrap_or_default(),
        tensors: tally.tensors,
        weights: tally.weights,
        bytes: tally.bytes,
        bits_per_weight: tally.bits_per_weight(),
    };
    let roles: Vec<_> = census.by_role().into_iter().map(role).collect();
    Summary {
        bundle_bytes: 0,
        tensor_bytes: roles.iter().map(|r| r.bytes).sum(),
        parameters: roles.iter().map(|r| r.weights).sum(),
        bits_per_weight: census.bits_per_weight(),
        roles,
    }
}

/// Estimates what conversion and decoding need.
pub fn cost(
    manifest: &Manifest,
    methods: &BTreeMap<Unit, Vec<Rounding>>,
    bundle_bytes: u64,
    options: &PlanOptions,
) -> Cost {
    let source_bytes = manifest.checkpoint.files.iter().map(|f| f.size).sum();
    let expert_bytes_per_token = experts_per_token(manifest);
    let text = calibrated::peak(manifest, methods, source_bytes, options.threads);
    let peak = text.unwrap_or_else(|| {
        let known = |statistics| calibrated::known(manifest, methods, statistics, options.threads);
        memory::peak(manifest, source_bytes, options.threads)
            + options.statistics.as_ref().map_or(0, known)
    });
    Cost {
        peak_memory: peak.max(options.before) + options.reading,
        peak_disk: bundle_bytes + memory::ledger_bytes(manifest, source_bytes),
        source_bytes,
        bytes_per_token: dense_per_token(manifest) + expert_bytes_per_token,
        expert_bytes_per_token,
    }
}

/// Where experts of a layer differ, as if all that are picked were of the largest.
fn experts_per_token(manifest: &Manifest) -> u64 {
    let layers = manifest.experts.chunk_by(|a, b| a.layer == b.layer);
    let largest = layers.filter_map(|entries| entries.iter().max_by_key(|entry| entry.len));
    let layers = largest.map(|experts| {
        let layer = &manifest.model.layers[experts.layer as usize];
        let visited = match &layer.ffn {
            Ffn::Moe(moe) => u64::from(moe.num_experts_per_tok),
            Ffn::Dense(_) => 0,
        };
        visited * experts.len
    });
    layers.sum()
}

fn dense_per_token(manifest: &Manifest) -> u64 {
    let tied = manifest.model.tie_word_embeddings;
    let text = manifest
        .dense
        .iter()
        .filter(|shard| shard.unit.extra_role().is_none());
    let shards = text.map(|shard| match (shard.unit, shard.tensors.first()) {
        // One row is read, unless the same matrix is the head.
        (Unit::Embedding, Some(t)) if !tied => t.row_len().unwrap_or_default(),
        _ => shard.len,
    });
    shards.sum()
}
