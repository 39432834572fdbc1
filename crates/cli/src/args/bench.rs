//! Options of `bench`.

use std::path::PathBuf;

use clap::Args;

use super::{AheadArgs, ArchArgs, CacheArgs, ThreadArgs, help, positions};
use crate::bytes;

/// `bench`
#[derive(Debug, Args)]
#[command(after_help = help::BENCH)]
pub struct BenchArgs {
    /// Directory of a bundle, or of a checkpoint to run unquantized
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Lengths of prompts to read, in tokens; 0 for none
    #[arg(short, long, value_name = "N", default_value = "512", value_delimiter = ',', value_parser = positions)]
    pub prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_delimiter = ',', value_parser = positions)]
    pub tokens: Vec<usize>,
    /// Positions that are there before, not timed
    #[arg(short, long, value_name = "N", default_value = "0", value_delimiter = ',', value_parser = positions)]
    pub depth: Vec<usize>,
    /// Times that each test is repeated, after once that does not count
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub repeat: u16,
    /// Memory for the whole process, such as 512MiB; without it, what the machine has free
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub memory: Option<u64>,
    #[command(flatten)]
    pub ahead: AheadArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
}
