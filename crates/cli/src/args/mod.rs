//! The command line: every command, option and example.

mod ahead;
mod arch;
mod bench;
mod cache;
mod calibrate;
mod help;
mod pack;
mod recipe;
mod verify;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bytes;
use crate::part::PartArg;
pub use ahead::AheadArgs;
pub use arch::{ArchCheckArgs, ArchCommand, ArchCommandArgs};
pub use bench::BenchArgs;
pub use cache::{CacheArgs, CacheTypeArg};
pub use calibrate::CalibrateArgs;
pub use pack::{PackArgs, UnpackArgs};
pub use recipe::{
    CalibrationArgs, CalibrationTextArgs, EncodingsArg, ExpertsArg, MtpArg, PlanArgs,
    PlanCommandArgs, RecipeArgs, TargetArgs,
};
pub use verify::{CompareArgs, ThresholdArgs, VerifyArgs};

/// Turns Hugging Face checkpoints of any size into bundles a phone can stream from flash, and proves
/// what the conversion cost.
#[derive(Debug, Parser)]
#[command(name = "shardwright", version, after_help = help::MAIN, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Print the report as one JSON object; progress and errors become JSON lines on stderr
    #[arg(long, global = true, display_order = 100)]
    pub json: bool,
    /// Show no progress
    #[arg(short, long, global = true, display_order = 101)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a checkpoint or bundle holds
    Inspect(InspectArgs),
    /// Show exactly what `convert` would write, and write nothing
    Plan(PlanCommandArgs),
    /// Convert a checkpoint into a bundle
    Convert(ConvertArgs),
    /// Put the parts of a conversion together
    Merge(MergeArgs),
    /// Observe a checkpoint on a text, for conversions to come
    Calibrate(CalibrateArgs),
    /// Judge models: their bytes, their error against an original, their divergence on a text
    Verify(VerifyArgs),
    /// Lay reports of `verify --json` side by side
    Compare(CompareArgs),
    /// Generate text with a bundle or a checkpoint, inside a memory budget
    Run(RunArgs),
    /// Measure how fast a model reads prompts and generates
    Bench(BenchArgs),
    /// Write a model in a form that other engines read
    Export(ExportArgs),
    /// Compress a bundle into one file, for a download or an artifact store
    Pack(PackArgs),
    /// Make a bundle of a packed file again
    Unpack(UnpackArgs),
    /// List the built-in recipes, or print one
    Recipes(RecipesArgs),
    /// List, print or draft the tables that describe architectures
    Arch(ArchCommandArgs),
}

/// `inspect`
#[derive(Debug, Args)]
#[command(after_help = help::INSPECT)]
pub struct InspectArgs {
    /// Directory of a checkpoint or a bundle, a GGUF file, or a model elsewhere, by its
    /// address (hf:, https:, s3:)
    #[arg(required_unless_present = "trace")]
    pub path: Option<PathBuf>,
    /// List every tensor; of a bundle, every shard
    #[arg(long)]
    pub tensors: bool,
    /// Show instead what `run --trace` recorded: how many experts were found in memory, and how many would be
    /// with more or less room, by the policy in use, by two others and by the best possible one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "tensors", "arch"])]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub arch: ArchArgs,
}

/// `convert`
#[derive(Debug, Args)]
#[command(after_help = help::CONVERT)]
pub struct ConvertArgs {
    /// Directory to create
    #[arg(short, long = "output", value_name = "BUNDLE")]
    pub out: PathBuf,
    /// Finish a conversion that was stopped; the result is the same to the byte
    #[arg(long)]
    pub resume: bool,
    /// Make one of several parts instead, in BUNDLE.part-I-of-N, for `merge`: part I of N; with `auto`
    /// as this job's scheduler numbers it (Slurm, AWS Batch), with `auto/N` in Kubernetes, too
    #[arg(long, value_name = "I/N|auto[/N]")]
    pub part: Option<PartArg>,
    /// Keep the source of an hf:// address in this machine's cache, where `hf download` would put it; without this
    /// none of it stays
    #[arg(long, conflicts_with_all = ["part", "layers"])]
    pub keep: bool,
    #[command(flatten)]
    pub plan: PlanArgs,
}

/// `merge`
#[derive(Debug, Args)]
#[command(after_help = help::MERGE)]
pub struct MergeArgs {
    /// Directories that `convert --part` made, all of one conversion
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<PathBuf>,
    /// Directory to create
    #[arg(short, long = "output", value_name = "BUNDLE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// `run`
#[derive(Debug, Args)]
#[command(after_help = help::RUN)]
pub struct RunArgs {
    /// Directory of a bundle, or of a checkpoint to run unquantized; a GGUF file; or the address of
    /// a model elsewhere (hf:, https:, s3:)
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Text to continue; with --chat, the user's turn
    #[arg(short, long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "chat"])]
    pub prompt: Option<String>,
    /// File that holds the text to continue; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Converse in the model's own chat template, up to the end of its turn; without a prompt, a
    /// conversation on standard input, a line for each turn
    #[arg(long)]
    pub chat: bool,
    /// What the model is told of its task before the conversation begins
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Tokens to generate, fewer if the model ends its text; without it 128, with --chat 1024
    #[arg(short = 'n', long, value_name = "N", value_parser = positions)]
    pub tokens: Option<usize>,
    /// Memory for the whole process, such as 512MiB; without it, what the machine has free
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub memory: Option<u64>,
    /// File that holds such a size, in place of --memory; it is read again on SIGUSR1. With less, experts leave
    /// memory before the next token, and the text stays the same
    #[arg(long, value_name = "FILE", conflicts_with = "memory")]
    pub memory_file: Option<PathBuf>,
    /// Positions the KV cache has room for; without it, the prompt and the tokens asked for, and for
    /// a conversation 4096
    #[arg(long, value_name = "N", value_parser = positions)]
    pub context: Option<usize>,
    /// File that holds the KV cache of a prompt from run to run: what a prompt has in common with it is
    /// not computed again. Written where it does not hold this prompt; with a conversation, at its end
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// Hold the bytes of each expert and dense layer to their hash when they are first read: a flipped bit is
    /// an error that names the expert, not another text
    #[arg(long)]
    pub check_reads: bool,
    /// Write which experts each layer picked, found in memory and read, a line of JSON for each layer and
    /// pass, for `inspect --trace` and `plan --trace`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub ahead: AheadArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Try several tokens in one pass where a guess at them is at hand: `ngram`, those that followed the same
    /// tokens earlier in the text; `mtp`, what the model's own layer for that predicts (see `convert --mtp`); or
    /// MODEL, what a smaller model with the same tokenizer would go on with. The text stays the same; where it
    /// takes longer, it stops by itself
    #[arg(long, value_parser = DraftSource::parse, value_name = "ngram|mtp|MODEL")]
    pub draft: Option<DraftSource>,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Where drafts come from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DraftSource {
    /// The text itself.
    Ngram,
    /// A layer of the model's own.
    Mtp,
    /// Another model.
    #[serde(untagged)]
    Model(PathBuf),
}

impl DraftSource {
    #[allow(clippy::unnecessary_wraps)] // as clap wants it
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "ngram" => Self::Ngram,
            "mtp" => Self::Mtp,
            model => Self::Model(model.into()),
        })
    }
}

impl RunArgs {
    /// Tokens to generate at most, for each turn of a conversation.
    pub fn new_tokens(&self) -> usize {
        self.tokens.unwrap_or(if self.chat { 1024 } else { 128 })
    }
}

/// How `run` picks a token.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Start of the random sequence; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Go on after the model ends its text
    #[arg(long)]
    pub ignore_eos: bool,
}

/// Where a checkpoint's architecture is described.
#[derive(Debug, Args)]
pub struct ArchArgs {
    /// Table for a checkpoint whose `model_type` is not built in; `shardwright arch draft` starts one
    #[arg(long, value_name = "FILE")]
    pub arch: Option<PathBuf>,
}

/// How many threads.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct ThreadArgs {
    /// Threads; without it, one per core. The result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl ThreadArgs {
    /// The number to use.
    pub fn count(self) -> usize {
        match self.threads {
            Some(n) => usize::from(n),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// `export`
#[derive(Debug, Args)]
#[command(after_help = help::EXPORT)]
pub struct ExportArgs {
    /// A bundle, a checkpoint of any dtype or quantization, or a GGUF file
    pub model: PathBuf,
    /// Form to write
    #[arg(long, value_enum)]
    pub to: ExportForm,
    /// Directory to create, or the .gguf file
    #[arg(short, long = "output", value_name = "DIR|FILE")]
    pub out: PathBuf,
    /// Type of the dequantized weights of hf, f32 unless given; with mlx, of the norms that mlx-lm adds one
    /// to and of nothing else
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// With mlx, gguf and compressed-tensors, store anew what the engine's files cannot hold exactly, and say what
    /// error that adds: see docs/ENGINES.md
    #[arg(long)]
    pub requantize: bool,
    #[command(flatten)]
    pub arch: ArchArgs,
}

/// What `export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportForm {
    /// A Hugging Face checkpoint of plain floats, with the source's own tensor names and layout
    Hf,
    /// A directory that mlx-lm loads: affine codes copied as they are, floats as they are stored
    Mlx,
    /// A GGUF file for llama.cpp, every value exactly the model's, or refused without --requantize
    Gguf,
    /// A directory for vLLM and transformers: codes packed as they are, floats as they are stored
    CompressedTensors,
    /// The folder of flash-moe and its apps for phones: packed experts, and everything else in one file
    FlashMoe,
}

impl ExportForm {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::Mlx => "mlx",
            Self::Gguf => "gguf",
            Self::CompressedTensors => "compressed-tensors",
            Self::FlashMoe => "flash-moe",
        }
    }
}

/// Type of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DtypeArg {
    /// 32 bits: exactly what the model stands for
    F32,
    /// As the checkpoint's values are: where these have 16 bits half the size, those of a bundle rounded once more
    Source,
}

impl From<ExportForm> for shardwright_convert::ExportTarget {
    fn from(form: ExportForm) -> Self {
        match form {
            ExportForm::Hf => Self::Hf,
            ExportForm::Mlx => Self::Mlx,
            ExportForm::Gguf => Self::Gguf,
            ExportForm::CompressedTensors => Self::CompressedTensors,
            ExportForm::FlashMoe => Self::FlashMoe,
        }
    }
}

impl From<DtypeArg> for shardwright_convert::ExportDtype {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Source => Self::Source,
        }
    }
}

/// `recipes`
#[derive(Debug, Args)]
#[command(after_help = help::RECIPES)]
pub struct RecipesArgs {
    /// Recipe to print, as a file that `--recipe` takes
    pub name: Option<String>,
}

/// More positions than any model has.
const MAX_POSITIONS: usize = 1 << 24;

/// A number of tokens or positions that arithmetic can bear.
fn positions(text: &str) -> Result<usize, String> {
    let found = text.parse().map_err(|e| format!("{e}"))?;
    if found > MAX_POSITIONS {
        return Err(format!("expected at most {MAX_POSITIONS}"));
    }
    Ok(found)
}

/// A number of a text's tokens, of which there is at least one.
fn tokens(text: &str) -> Result<usize, String> {
    match positions(text)? {
        0 => Err("expected at least 1".to_owned()),
        found => Ok(found),
    }
}

/// Bits that a weight can take.
fn bits_per_weight(text: &str) -> Result<f64, String> {
    within(text, 0.01..=64.0)
}

/// A number of a range, in which NaN is not.
fn within(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let found = text.parse().map_err(|e| format!("{e}"))?;
    if range.contains(&found) {
        return Ok(found);
    }
    Err(format!("expected {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
