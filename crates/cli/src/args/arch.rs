//! Options of `arch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::help;

/// `arch`
#[derive(Debug, Args)]
#[command(after_help = help::ARCH)]
pub struct ArchCommandArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ArchCommand,
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
}
