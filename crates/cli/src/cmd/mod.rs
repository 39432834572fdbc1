//! One module per command: options in, report out.

mod arch;
mod calibrate;
mod calibration;
mod compare;
mod convert;
mod export;
mod inspect;
mod pack;
mod plan;
mod recipes;
mod run;
mod target;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use shardwright_format::arch::{Arch, Inventory};
use shardwright_format::checkpoint::{Checkpoint, CheckpointWeights};
use shardwright_format::io::{CONFIG_LIMIT, read_required};
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, FormatError};

use crate::args::{ArchArgs, Command};
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
        Command::Calibrate(args) => done(calibrate::run(args, output)),
        Command::Verify(args) => verify::run(args, output),
        Command::Compare(args) => done(compare::run(args, output)),
        Command::Run(args) => run::run(args, output),
        Command::Export(args) => done(export::run(args, output)),
        Command::Pack(args) => done(pack::run(args, output)),
        Command::Unpack(args) => done(pack::run_unpack(args, output)),
        Command::Recipes(args) => done(recipes::run(args, output)),
        Command::Arch(args) => done(arch::run(args, output)),
    }
}

fn done(result: Result<(), Failure>) -> Outcome {
    result.map(|()| ExitCode::SUCCESS)
}

/// Opens a bundle or a checkpoint.
///
/// # Errors
/// A directory that is neither, or damaged.
fn open_weights(path: &Path, arch: &ArchArgs) -> Result<Weights, Failure> {
    check_model(path)?;
    if Bundle::is_bundle(path) {
        return Ok(Weights::Bundle(Bundle::open(path)?));
    }
    let (checkpoint, inventory) = open_checkpoint(path, arch)?;
    Ok(Weights::Checkpoint(CheckpointWeights::new(checkpoint, inventory)))
}

/// Opens a checkpoint and finds out what its tensors are for.
///
/// # Errors
/// A directory that is no sound checkpoint of a known architecture.
fn open_checkpoint(path: &Path, arch: &ArchArgs) -> Result<(Checkpoint, Inventory), Failure> {
    check_checkpoint(path)?;
    let table = arch.arch.as_deref().map(read_arch).transpose()?;
    let checkpoint = Checkpoint::open(path)?;
    let inventory = Inventory::new(&checkpoint, table.as_ref())?;
    Ok((checkpoint, inventory))
}

/// # Errors
/// A path that cannot be a checkpoint's.
fn check_checkpoint(path: &Path) -> Result<(), Failure> {
    check_model(path)?;
    if Bundle::is_bundle(path) {
        let message = format!("{}: expected a checkpoint, found a bundle", path.display());
        return Err(Failure::new(message));
    }
    Ok(())
}

fn read_arch(path: &Path) -> Result<Arch, Failure> {
    let json = read_required(path, CONFIG_LIMIT)?;
    let json = String::from_utf8(json).map_err(|e| FormatError::file(path, e.to_string()))?;
    Ok(Arch::parse(path, &json)?)
}

/// Refuses a file to write where it cannot be, before the work that leads to it.
///
/// # Errors
/// A directory that does not exist.
fn check_parent(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => check_directory(parent),
        _ => Ok(()),
    }
}

/// # Errors
/// A path that is neither a directory nor a file, which may be a GGUF model.
fn check_model(path: &Path) -> Result<(), Failure> {
    if path.is_file() { Ok(()) } else { check_directory(path) }
}

/// # Errors
/// A path that is no directory, in plainer words than the file inside it that would be missed.
fn check_directory(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Ok(());
    }
    Err(Failure::new(format!("{}: there is no such directory", path.display())))
}
