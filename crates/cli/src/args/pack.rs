//! Options of `pack` and `unpack`.

use std::path::PathBuf;

use clap::Args;

use super::{ThreadArgs, help};

/// `pack`
#[derive(Debug, Args)]
#[command(after_help = help::PACK)]
pub struct PackArgs {
    /// Directory of a bundle
    pub bundle: PathBuf,
    /// File to create
    #[arg(short, long = "output", value_name = "FILE")]
    pub out: PathBuf,
    /// Go on with what an interrupted run left; the result is the same to the byte
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// `unpack`
#[derive(Debug, Args)]
#[command(after_help = help::UNPACK)]
pub struct UnpackArgs {
    /// A file that `pack` made
    #[arg(value_name = "FILE")]
    pub packed: PathBuf,
    /// Directory to create
    #[arg(short, long = "output", value_name = "BUNDLE")]
    pub out: PathBuf,
    /// Go on with what an interrupted run left
    #[arg(long)]
    pub resume: bool,
}
