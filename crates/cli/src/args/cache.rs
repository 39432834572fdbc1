//! Options of commands that keep keys and values.

use clap::{Args, ValueEnum};
use shardwright_quant::CacheType;
use shardwright_runtime::CacheTypes;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct CacheArgs {
    /// How the KV cache keeps keys, and all that latent attention keeps
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = CacheArgs::DEFAULT.cache_type_k)]
    pub cache_type_k: CacheTypeArg,
    /// How the KV cache keeps values
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = CacheArgs::DEFAULT.cache_type_v)]
    pub cache_type_v: CacheTypeArg,
}

/// A type of the KV cache, by llama.cpp's names: floats of 32 or 16 bits, blocks of 8 or 4 bits and a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum CacheTypeArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl CacheArgs {
    /// Without options.
    pub const DEFAULT: Self =
        Self { cache_type_k: CacheTypeArg::F16, cache_type_v: CacheTypeArg::F16 };
}

impl From<CacheTypeArg> for CacheType {
    fn from(cache: CacheTypeArg) -> Self {
        match cache {
            CacheTypeArg::F32 => Self::F32,
            CacheTypeArg::F16 => Self::F16,
            CacheTypeArg::Bf16 => Self::Bf16,
            CacheTypeArg::Q8_0 => Self::Q8_0,
            CacheTypeArg::Q4_0 => Self::Q4_0,
        }
    }
}

impl From<CacheArgs> for CacheTypes {
    fn from(args: CacheArgs) -> Self {
        Self { k: args.cache_type_k.into(), v: args.cache_type_v.into() }
    }
}
