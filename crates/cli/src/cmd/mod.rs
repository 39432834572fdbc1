//! One module per command: options in, report out.

mod arch;
mod bench;
mod calibrate;
mod compare;
mod convert;
mod export;
mod inspect;
mod merge;
mod pack;
mod plan;
mod recipes;
mod run;
mod trace;
mod verify;

use std::process::ExitCode;

use crate::args::Command;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// Runs a command; gives its exit code.
///
/// # Errors
/// Why the command could not run.
pub fn run(command: &Command, output: Output) -> Outcome {
    match command {
        Command::Inspect(args) => done(inspect::run(args, output)),
        Command::Plan(args) => done(plan::run(args, output)),
        Command::Convert(args) => done(convert::run(args, output)),
        Command::Merge(args) => done(merge::run(args, output)),
        Command::Calibrate(args) => done(calibrate::run(args, output)),
        Command::Verify(args) => verify::run(args, output),
        Command::Compare(args) => done(compare::run(args, output)),
        Command::Run(args) => run::run(args, output),
        Command::Bench(args) => bench::run(args, output),
        Command::Export(args) => done(export::run(args, output)),
        Command::Pack(args) => done(pack::run(args, output)),
        Command::Unpack(args) => done(pack::run_unpack(args, output)),
        Command::Recipes(args) => done(recipes::run(args, output)),
        Command::Arch(args) => arch::run(args, output),
    }
}

fn done(result: Result<(), Failure>) -> Outcome {
    result.map(|()| ExitCode::SUCCESS)
}
