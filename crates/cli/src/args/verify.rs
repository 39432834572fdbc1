//! Options of `verify` and `compare`.

use std::path::PathBuf;

use clap::Args;

use super::{ArchArgs, CacheTypeArg, ThreadArgs, bits_per_weight, help, within};
use crate::part::PartArg;

/// `verify`
#[derive(Debug, Args)]
#[command(after_help = help::VERIFY)]
pub struct VerifyArgs {
    /// Models to judge: bundles, files that `pack` made, checkpoints of any dtype or quantization, GGUF
    /// files
    #[arg(required_unless_present = "merge", value_name = "CANDIDATE")]
    pub candidates: Vec<PathBuf>,
    /// The original, any model too: compare every tensor of each candidate with its own
    #[arg(long, value_name = "ORIGINAL")]
    pub against: Option<PathBuf>,
    /// A text that all models read: perplexities, KL divergence, drift of each layer
    #[arg(long, value_name = "FILE", requires = "against", group = "predicted")]
    pub text: Option<PathBuf>,
    /// Tokens that the model sees at a time
    #[arg(long, value_name = "N", default_value_t = 256, requires = "text",
          value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    pub window: u32,
    /// Windows to read; without it, the whole text
    #[arg(long, value_name = "N", requires = "text",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
    /// How the candidates' KV cache keeps keys, as in `run`; the original's keeps f32. What another type
    /// than f32 costs alone is measured too: on the original and on each candidate, against itself
    #[arg(long, value_enum, value_name = "TYPE", requires = "text", default_value_t = CacheTypeArg::F32)]
    pub cache_type_k: CacheTypeArg,
    /// How the candidates' KV cache keeps values
    #[arg(long, value_enum, value_name = "TYPE", requires = "text", default_value_t = CacheTypeArg::F32)]
    pub cache_type_v: CacheTypeArg,
    /// Do not hash the checkpoint's files and compare with what the bundle says it was made from;
    /// spares reading the checkpoint twice
    #[arg(long, requires = "against")]
    pub skip_checkpoint_hashes: bool,
    /// That a bundle was made from another form of the model than the original, such as a GGUF file of it,
    /// is wanted and no finding
    #[arg(long, requires = "against")]
    pub other_source: bool,
    /// Also convert N shards of each bundle again from the original, picked at random, by the bundle's own
    /// recipe: they must be equal to the byte; `all` for all of them
    #[arg(long, value_name = "N|all", requires = "against", num_args = 0..=1, default_missing_value = "8", value_parser = reproduce)]
    pub reproduce: Option<usize>,
    /// Picks the shards of --reproduce that an earlier run picked and named
    #[arg(long, value_name = "N", requires = "reproduce")]
    pub reproduce_seed: Option<u64>,
    /// The file of statistics that a bundle was converted with, for --reproduce
    #[arg(long, value_name = "FILE", requires = "reproduce")]
    pub statistics: Option<PathBuf>,
    /// Predict one of several parts of the text's windows instead, for --merge: part I of N, in
    /// FILE.part-I-of-N; with `auto` as in `convert`
    #[arg(long, value_name = "I/N|auto[/N]", requires = "text", requires = "out",
          conflicts_with_all = ["html", "beside", "reproduce"])]
    pub part: Option<PartArg>,
    /// Where parts go: FILE.part-I-of-N
    #[arg(short, long = "output", value_name = "FILE", requires = "part")]
    pub out: Option<PathBuf>,
    /// Put the files that `verify --part` made together: the report of one run
    #[arg(long, value_name = "PART", num_args = 1.., group = "predicted",
          conflicts_with_all = ["candidates", "against", "text", "trusted", "max_bpw", "arch"])]
    pub merge: Vec<PathBuf>,
    /// Bundles must be signed by this public key of minisign: their manifest, in manifest.json.minisig
    /// beside it, for a packed bundle in FILE.minisig
    #[arg(long, value_name = "KEY")]
    pub trusted: Option<PathBuf>,
    /// Also write a page to look at in a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A report of `verify --json`, or lines of `{"name", "bits_per_weight", "kld_mean"}`, to set
    /// beside the candidates in the page's curve; may be repeated
    #[arg(long, value_name = "FILE", requires = "html", requires = "predicted")]
    pub beside: Vec<PathBuf>,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
}

/// `compare`
#[derive(Debug, Args)]
#[command(after_help = help::COMPARE)]
pub struct CompareArgs {
    /// Reports of `verify --json`, the first being what the others are measured against
    #[arg(value_name = "REPORT", num_args = 2.., required = true)]
    pub reports: Vec<PathBuf>,
    /// Another report, or lines of `{"name", "bits_per_weight", "kld_mean"}`, to set beside them in the
    /// page's curve; may be repeated
    #[arg(long, value_name = "FILE", requires = "html")]
    pub beside: Vec<PathBuf>,
    /// Also write a page to look at in a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Limits; beyond any of them the exit code is 1.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Limits (exit code 1 beyond any of them)")]
pub struct ThresholdArgs {
    /// Mean KL divergence, in nats
    #[arg(long, value_name = "NATS", requires = "text", value_parser = limit)]
    pub max_kld: Option<f64>,
    /// 99th percentile of the KL divergence, in nats
    #[arg(long, value_name = "NATS", requires = "text", value_parser = limit)]
    pub max_kld_p99: Option<f64>,
    /// 99.9th percentile of the KL divergence, in nats
    #[arg(long, value_name = "NATS", requires = "text", value_parser = limit)]
    pub max_kld_p999: Option<f64>,
    /// Share of tokens whose likeliest successor is the original's, 0 to 1
    #[arg(long, value_name = "SHARE", requires = "text", value_parser = share)]
    pub min_same_top: Option<f64>,
    /// Perplexity divided by the original's
    #[arg(long, value_name = "RATIO", requires = "text", value_parser = limit)]
    pub max_ppl_ratio: Option<f64>,
    /// Relative RMS error of any quantized tensor; without it, a sanity limit by its bits
    #[arg(long, value_name = "SHARE", requires = "against", value_parser = limit)]
    pub max_rmse: Option<f64>,
    /// Bits per weight of the whole model
    #[arg(long, value_name = "BITS", value_parser = bits_per_weight)]
    pub max_bpw: Option<f64>,
}

/// A number of shards, or all.
fn reproduce(text: &str) -> Result<usize, String> {
    match text.parse() {
        _ if text == "all" => Ok(usize::MAX),
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected `all` or a number from 1".to_owned()),
    }
}

/// A share of a whole: percentages are a slip that no bundle could pass.
fn share(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1.0)
}

/// A limit that something can exceed: with NaN or infinity a gate would let everything pass.
fn limit(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1e6)
}
