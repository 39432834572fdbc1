//! `shardwright`: commands, help, progress and exit codes over the workspace's libraries.

mod args;
mod bytes;
mod calibration;
mod cmd;
mod elsewhere;
mod engine;
mod failure;
mod inputs;
mod output;
mod page;
mod part;
mod planning;
mod process;
mod progress;
mod recipe;
mod reproduce;
mod say;
mod signal;
mod stop;
mod target;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::output::Output;

fn main() -> ExitCode {
    shardwright_quant::return_freed_memory();
    failure::install_panic_hook();
    signal::outlive_size_limits();
    let cli = Cli::parse();
    let output = Output { json: cli.output.json, quiet: cli.output.quiet };
    shardwright_quant::Backend::chosen()
        .map_err(failure::Failure::from)
        .and_then(|_| cmd::run(&cli.command, output))
        .unwrap_or_else(|failure| failure.report(output.json))
}
