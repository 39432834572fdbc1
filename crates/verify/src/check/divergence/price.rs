//! What the types of the KV cache cost alone: a model against itself with keys and values as computed.
//!
//! A layer computes a window's rows together, but each is written to the cache first and attention reads
//! what is kept: the figures are those of decoding token by token, to the bit.

use serde::{Deserialize, Serialize};
use shardwright_format::ModelSpec;
use shardwright_quant::CacheType;
use shardwright_runtime::CacheTypes;
use shardwright_runtime::plan::position_bytes;

use super::Divergence;

/// What certain types of the KV cache cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CachePrice {
    /// The types.
    #[serde(flatten)]
    pub types: CacheTypes,
    /// Bytes of each position of context, once sliding windows are full.
    pub position_bytes: u64,
    /// The same in `f16`.
    pub position_bytes_f16: u64,
    /// On the original.
    pub original: CacheCost,
    /// On the candidate; none where its values are not finite.
    pub candidate: Option<CacheCost>,
}

/// How far a model's predictions drift from its own when only the cache differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheCost {
    /// Mean divergence, in nats per token.
    pub kld_mean: f64,
    /// Its standard error, tokens taken as independent.
    pub kld_mean_se: f64,
    /// The same, windows taken as independent; none for a single window.
    pub kld_mean_se_by_window: Option<f64>,
    /// 99 % of tokens lie below.
    pub kld_p99: f64,
    /// Share of tokens for which the same token stays most probable.
    pub same_top: f64,
}

impl CacheCost {
    const fn new(d: &Divergence) -> Self {
        Self {
            kld_mean: d.kld_mean,
            kld_mean_se: d.kld_mean_se,
            kld_mean_se_by_window: d.kld_mean_se_by_window,
            kld_p99: d.kld_p99,
            same_top: d.same_top,
        }
    }
}

/// What positions of context take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheBytes {
    position_bytes: u64,
    position_bytes_f16: u64,
}

impl CacheBytes {
    /// Of a model whose cache is of such types.
    pub(crate) fn new(spec: &ModelSpec, types: CacheTypes) -> Self {
        let float = CacheTypes { k: CacheType::F16, v: CacheType::F16 };
        Self {
            position_bytes: position_bytes(spec, types),
            position_bytes_f16: position_bytes(spec, float),
        }
    }
}

impl CachePrice {
    /// Of how the original and the candidate diverge each from itself; the candidate's values may not have
    /// been finite.
    pub(crate) fn new(
        types: CacheTypes,
        bytes: CacheBytes,
        original: &Divergence,
        candidate: Option<&Divergence>,
    ) -> Self {
        let CacheBytes { position_bytes, position_bytes_f16 } = bytes;
        let (original, candidate) = (CacheCost::new(original), candidate.map(CacheCost::new));
        Self { types, position_bytes, position_bytes_f16, original, candidate }
    }
}
