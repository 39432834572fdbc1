//! Options of commands that keep keys and values.

use clap::{Args, ValueEnum};
use shardwright_quant::Float;
use shardwright_runtime::CacheTypes;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct CacheArgs {
    /// How the KV cache keeps keys, and all that latent attention keeps
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = CacheArgs::DEFAULT.cache_type_k)]
    pub cache_type_k: CacheType,
    /// How the KV cache keeps values
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = CacheArgs::DEFAULT.cache_type_v)]
    pub cache_type_v: CacheType,
}

/// A type of floats: as computed, or 16 bits with 11 or 8 of precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum CacheType {
    F32,
    F16,
    Bf16,
}

impl CacheArgs {
    /// Without options.
    pub const DEFAULT: Self = Self { cache_type_k: CacheType::F16, cache_type_v: CacheType::F16 };
}

impl From<CacheType> for Float {
    fn from(cache: CacheType) -> Self {
        match cache {
            CacheType::F32 => Self::F32,
            CacheType::F16 => Self::F16,
            CacheType::Bf16 => Self::Bf16,
        }
    }
}

impl From<CacheArgs> for CacheTypes {
    fn from(args: CacheArgs) -> Self {
        Self { k: args.cache_type_k.into(), v: args.cache_type_v.into() }
    }
}
