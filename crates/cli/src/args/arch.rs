//! Options of `arch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ArchArgs, ThreadArgs, help};

/// `arch`
#[derive(Debug, Args)]
#[command(after_help = help::ARCH)]
pub struct ArchCommandArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ArchCommand,
}

/// `arch check`
#[derive(Debug, Args)]
pub struct ArchCheckArgs {
    /// The model: a checkpoint, a GGUF file or a bundle
    pub model: PathBuf,
    /// What another implementation computed, in safetensors: `input_ids`, `logits` and, to find the layer that
    /// differs, `hidden.0` and so on; `docs/ARCH_TABLES.md` has the script that writes it
    #[arg(long, value_name = "FILE")]
    pub against: PathBuf,
    #[command(flatten)]
    pub arch: ArchArgs,
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// The commands of `arch`.
#[derive(Debug, Subcommand)]
pub enum ArchCommand {
    /// List the built-in tables and their mechanisms
    List,
    /// Print a built-in table, as a file that `--arch` takes
    Show {
        /// Its `model_type`
        name: String,
    },
    /// Write a first table for a checkpoint of an unknown architecture, uncertain rows marked
    Draft {
        /// Directory of a Hugging Face checkpoint: config.json and *.safetensors
        checkpoint: PathBuf,
        /// File to create; without it, the table is printed
        #[arg(short, long = "output", value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Compare a model's pass with what another implementation computed: the proof of a table
    Check(ArchCheckArgs),
}
