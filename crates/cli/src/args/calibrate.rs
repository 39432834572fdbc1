//! Options of `calibrate`.

use std::path::PathBuf;

use clap::Args;

use super::{ArchArgs, CalibrationTextArgs, ThreadArgs, help};

/// `calibrate`
#[derive(Debug, Args)]
#[command(after_help = help::CALIBRATE)]
pub struct CalibrateArgs {
    /// Directory of a Hugging Face checkpoint: config.json and *.safetensors; a GGUF file; a bundle; or a model
    /// elsewhere, by its address (hf:, https:, s3:)
    pub checkpoint: PathBuf,
    /// Text to observe the model on
    pub text: PathBuf,
    /// File to create
    #[arg(short, long = "output", value_name = "FILE")]
    pub out: PathBuf,
    /// Keep each input's own second moment alone: far smaller, enough for `--method importance`
    #[arg(long)]
    pub importance_only: bool,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
    #[command(flatten)]
    pub amount: CalibrationTextArgs,
}
