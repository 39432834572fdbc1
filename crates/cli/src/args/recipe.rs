//! Options that decide what is written: shared by `plan` and `convert`.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::{ArchArgs, ThreadArgs, bits_per_weight, help, tokens};
use crate::bytes;

/// `plan`
#[derive(Debug, Args)]
#[command(after_help = help::PLAN)]
pub struct PlanCommandArgs {
    /// Say what memory buys when the bundle runs: the floor, the knee and the ceiling, on a text that `run
    /// --trace` recorded with any bundle of the same model
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Measure this machine for some seconds and say how long converting takes on it
    #[arg(long)]
    pub time: bool,
    #[command(flatten)]
    pub plan: PlanArgs,
}

/// The larger part of `plan` and of `convert`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Directory of a Hugging Face checkpoint: config.json and *.safetensors; a GGUF file; a bundle; or a model
    /// elsewhere, by its address (hf:, https:, s3:)
    pub checkpoint: PathBuf,
    /// Shards start on multiples of this: a power of two from 4KiB to 1MiB
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse, default_value = "16KiB")]
    pub align: u64,
    /// Only these layers, such as 0..2, with embedding and head: an excerpt to measure on
    #[arg(long, value_name = "FROM..TO", value_parser = layers,
          conflicts_with_all = ["calibrate", "statistics"])]
    pub layers: Option<Range<u32>>,
    /// Only what this engine's files hold exactly, so that `export` copies every code
    #[arg(long = "for", value_enum, value_name = "ENGINE")]
    pub engine: Option<EngineArg>,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// A total, for which the recipe is found.
#[derive(Debug, Args)]
#[command(next_help_heading = "Total size")]
pub struct TargetArgs {
    /// Find the recipe with at most this many bits per weight, scales included; needs --calibrate
    #[arg(long, value_name = "BITS", group = "total", requires = "calibrate", conflicts_with_all = ["recipe", "bits", "target_size"], value_parser = bits_per_weight)]
    pub target_bpw: Option<f64>,
    /// Find the recipe whose bundle takes at most this much, such as 120GB; needs --calibrate
    #[arg(long, value_name = "BYTES", value_parser = size, group = "total", requires = "calibrate", conflicts_with_all = ["recipe", "bits"])]
    pub target_size: Option<u64>,
    /// Encodings to choose from: affine alone runs on MLX kernels, trellis codes are better below
    /// 5 bits
    #[arg(long, value_enum, value_name = "WHICH", requires = "total", default_value_t = EncodingsArg::All)]
    pub encodings: EncodingsArg,
    /// Bits of the experts of a layer: more for those that the text uses more, or alike for all. By use
    /// gives up to half the divergence at the same size; alike wastes no memory where few experts fit
    #[arg(long, value_enum, value_name = "HOW", requires = "total", default_value_t = ExpertsArg::ByUse)]
    pub experts: ExpertsArg,
    /// Bits of a trellis state: more are better, take longer to make, and are as fast to read
    #[arg(long, value_name = "N", requires = "total", default_value_t = 12, value_parser = state_bits)]
    pub state_bits: u8,
    /// Tokens on which each role of each layer is tried
    #[arg(long, value_name = "N", requires = "total", default_value_t = 4096, value_parser = tokens)]
    pub probe_tokens: usize,
    /// Write the recipe that was found to this file
    #[arg(long, value_name = "FILE")]
    pub save_recipe: Option<PathBuf>,
}

impl TargetArgs {
    /// Whether there is a total.
    pub const fn is_given(&self) -> bool {
        self.target_bpw.is_some() || self.target_size.is_some()
    }
}

/// An engine for which a bundle is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineArg {
    /// mlx-lm: affine codes, and floats where it has no codes
    Mlx,
    /// vLLM and transformers: affine codes about a code for zero, and floats where they have no linear layer
    CompressedTensors,
    /// llama.cpp: its own blocks (`q4_k` and others), or affine codes that its blocks of 4 and 8 bits hold
    Gguf,
    /// flash-moe: every matrix at 4 bits in groups of 64, routed experts at 2 where the recipe has them so
    FlashMoe,
}

impl EngineArg {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mlx => "mlx",
            Self::CompressedTensors => "compressed-tensors",
            Self::Gguf => "gguf",
            Self::FlashMoe => "flash-moe",
        }
    }
}

impl From<EngineArg> for shardwright_convert::engine::Engine {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Mlx => Self::Mlx,
            EngineArg::CompressedTensors => Self::CompressedTensors,
            EngineArg::Gguf => Self::Gguf,
            EngineArg::FlashMoe => Self::FlashMoe,
        }
    }
}

/// Encodings that a recipe for a total is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EncodingsArg {
    /// Grouped affine codes
    Affine,
    /// Trellis codes, and affine ones above 4 bits
    All,
}

/// How a recipe for a total treats the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExpertsArg {
    /// More bits for those that the text uses more
    ByUse,
    /// As many bits for each
    Alike,
}

/// `FROM..TO`, numbers of layers, the last one left out.
fn layers(text: &str) -> Result<Range<u32>, String> {
    let ends = text
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    let some = ends.filter(|layers: &Range<u32>| !layers.is_empty());
    some.ok_or_else(|| "expected FROM..TO, such as 0..2 for the first two".to_owned())
}

/// Any room that there could be.
fn size(text: &str) -> Result<u64, String> {
    let found = bytes::parse(text)?;
    if found > 0 { Ok(found) } else { Err("expected at least 1 byte".to_owned()) }
}

fn state_bits(text: &str) -> Result<u8, String> {
    let known = |bits: &u8| shardwright_quant::Trellis::STATE_BITS.contains(bits);
    let bits = text.parse().ok().filter(known);
    bits.ok_or_else(|| "expected 10, 12, 14 or 16".to_owned())
}

/// What codes are chosen by, besides the weights.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationArgs {
    /// Text that goes through the model while it is converted, so that codes are chosen by what
    /// their errors cost; never the text that the bundle will be judged on
    #[arg(long, value_name = "TEXT", conflicts_with = "statistics")]
    pub calibrate: Option<PathBuf>,
    /// Statistics of an earlier text: a file of `shardwright calibrate`, or llama.cpp's imatrix
    #[arg(long, value_name = "FILE")]
    pub statistics: Option<PathBuf>,
    #[command(flatten)]
    pub text: CalibrationTextArgs,
}

/// How much of a text is used, and how.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationTextArgs {
    /// Tokens of the text to use, in whole windows from its start
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = tokens)]
    pub calibration_tokens: usize,
    /// Tokens of a window, each read from an empty context
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub calibration_window: u32,
}

/// Which recipe, and what to change in it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// A built-in recipe (see `shardwright recipes`) or a file
    #[arg(short, long, value_name = "NAME|FILE", conflicts_with_all = ["bits", "group_size"])]
    pub recipe: Option<String>,
    /// In place of a recipe: every matrix at this many bits (2, 3, 4, 6 or 8), but for routers and
    /// what no group divides
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=8))]
    pub bits: Option<u8>,
    /// With --bits: weights that share one scale and bias (32, 64 or 128)
    #[arg(short, long, value_name = "N", requires = "bits", value_parser = clap::value_parser!(u16).range(32..=128))]
    pub group_size: Option<u16>,
    /// How codes are chosen, in place of what the recipe says
    #[arg(long, value_enum)]
    pub method: Option<MethodArg>,
    /// Which biases codes may have, in place of what the recipe says: some engines hold only
    /// scale * (code - zero) with a whole number for zero
    #[arg(long, value_enum)]
    pub zeros: Option<ZerosArg>,
    /// Type of scales and biases, in place of what the recipe says
    #[arg(long, value_enum)]
    pub scale_dtype: Option<ScaleArg>,
    /// Store a role otherwise: `router=f16`, `expert.*=q2`, `lm_head=q8g32`, `mlp.*=q4_k`; may be
    /// repeated
    #[arg(long, value_name = "ROLE=ENCODING")]
    pub set: Vec<String>,
    /// What becomes of layers that predict further tokens: kept for `run --draft mtp`, experts at 4 bits and other
    /// matrices at 8 unless --set says otherwise; or left out, as they are unless --set names them
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = MtpArg::Drop,
          conflicts_with_all = ["target_bpw", "target_size"])]
    pub mtp: MtpArg,
}

/// What becomes of layers that predict further tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MtpArg {
    /// They are part of the bundle
    Keep,
    /// They are left out and listed
    Drop,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MethodArg {
    /// Smallest squared error, never worse than minmax on any group
    Search,
    /// The group's range divided evenly: fast
    Minmax,
    /// Smallest squared error weighted by the second moments of the inputs; needs calibration
    Importance,
    /// Column by column, later columns making up for earlier ones; needs calibration
    Gptq,
}

/// What biases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ZerosArg {
    /// Any number
    Float,
    /// -zero * scale exactly, with a code for zero
    Integer,
    /// The same with the middle code for zero
    Symmetric,
}

/// Type of scales and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ScaleArg {
    F16,
    Bf16,
}

impl From<MethodArg> for shardwright_quant::Method {
    fn from(arg: MethodArg) -> Self {
        match arg {
            MethodArg::Search => Self::Search,
            MethodArg::Minmax => Self::MinMax,
            MethodArg::Importance => Self::Importance,
            MethodArg::Gptq => Self::Gptq,
        }
    }
}

impl From<ZerosArg> for shardwright_quant::Zeros {
    fn from(arg: ZerosArg) -> Self {
        match arg {
            ZerosArg::Float => Self::Float,
            ZerosArg::Integer => Self::Integer,
            ZerosArg::Symmetric => Self::Symmetric,
        }
    }
}

impl From<ScaleArg> for shardwright_quant::Float {
    fn from(arg: ScaleArg) -> Self {
        match arg {
            ScaleArg::F16 => Self::F16,
            ScaleArg::Bf16 => Self::Bf16,
        }
    }
}
