//! Models that a command is given: a bundle, a checkpoint's directory or a GGUF file, opened once.

use std::path::{Path, PathBuf};

use shardwright_format::arch::{Arch, Inventory};
use shardwright_format::checkpoint::{Checkpoint, is_repository, resolve};
use shardwright_format::io::{CONFIG_LIMIT, read_required};
use shardwright_format::pack::Packed;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, FormatError};
use shardwright_verify::Candidate;

use crate::args::ArchArgs;
use crate::elsewhere::{self, Keeper};
use crate::failure::Failure;

/// A file that every bundle has and no other model.
const SHARDS: &str = "dense-000.bin";

/// Opens any model.
///
/// # Errors
/// A path that is no model, or a damaged one.
pub fn model(path: &Path, arch: &ArchArgs) -> Result<Weights, Failure> {
    check_model(path)?;
    if Bundle::is_bundle(path) {
        return Ok(Bundle::open(path)?.into());
    }
    checkpoint(path, arch)
}

/// Opens any model to run it: a quantized checkpoint in its own codes.
///
/// # Errors
/// As [`model`].
pub fn runnable(path: &Path, arch: &ArchArgs) -> Result<Weights, Failure> {
    Ok(model(path, arch)?.in_codes()?)
}

/// Opens what a conversion reads and finds out what its tensors are for: a checkpoint, or a bundle whose
/// matrices are quantized again.
///
/// # Errors
/// A path that is no sound model of a known architecture.
pub fn source(path: &Path, arch: &ArchArgs) -> Result<Weights, Failure> {
    check_model(path)?;
    if !Bundle::is_bundle(path) {
        return checkpoint(path, arch);
    }
    let bundle = Bundle::open(path)?;
    let inventory = Inventory::from_bundle(&bundle)?;
    Ok(Weights::from_checkpoint(Checkpoint::from_bundle(&bundle)?, inventory))
}

/// Opens a model that is no bundle and finds out what its tensors are for.
///
/// # Errors
/// A path that is no sound checkpoint of a known architecture.
pub fn checkpoint(path: &Path, arch: &ArchArgs) -> Result<Weights, Failure> {
    check_checkpoint(path)?;
    with_inventory(open_checkpoint(path)?, arch)
}

/// Opens a model elsewhere as [`source`] does, and keeps what is read of it in this machine's cache.
///
/// # Errors
/// As [`source`]; a model of this machine.
pub fn kept_source(path: &Path, arch: &ArchArgs) -> Result<(Weights, Keeper), Failure> {
    let Some(found) = elsewhere::open(path, true)? else {
        let message = format!("--keep: {} is no address: there is nothing to keep", path.display());
        return Err(Failure::new(message).help("hf://ORG/NAME is one"));
    };
    Ok((with_inventory(found.checkpoint, arch)?, found.keeper))
}

fn with_inventory(checkpoint: Checkpoint, arch: &ArchArgs) -> Result<Weights, Failure> {
    let table = arch.arch.as_deref().map(read_arch).transpose()?;
    let inventory = Inventory::new(&checkpoint, table.as_ref())?;
    Ok(Weights::from_checkpoint(checkpoint, inventory))
}

/// Opens a model that is no bundle: on this machine, or elsewhere.
///
/// # Errors
/// A path that is no sound checkpoint.
pub fn open_checkpoint(path: &Path) -> Result<Checkpoint, Failure> {
    match elsewhere::open(path, false)? {
        Some(found) => Ok(found.checkpoint),
        None => Ok(Checkpoint::open(path)?),
    }
}

/// Models to judge, packed bundles too. A bundle is opened when its bytes have been checked: a damaged one is a finding.
///
/// # Errors
/// As [`model`].
pub fn candidates(paths: &[PathBuf], arch: &ArchArgs) -> Result<Vec<Candidate>, Failure> {
    let open = |path: &PathBuf| {
        check_model(path)?;
        if Bundle::is_bundle(path) || Packed::is_packed(path) {
            return Ok(Candidate::Bundle(path.clone()));
        }
        Ok(Candidate::Model(path.clone(), checkpoint(path, arch)?))
    };
    paths.iter().map(open).collect()
}

/// # Errors
/// A path that cannot be a checkpoint's.
pub fn check_checkpoint(path: &Path) -> Result<(), Failure> {
    check_model(path)?;
    if Bundle::is_bundle(path) {
        let message = format!("{}: expected a checkpoint, found a bundle", path.display());
        return Err(Failure::new(message).help("take the model that it was made from"));
    }
    if Packed::is_packed(path) {
        let message = format!("{}: is a packed bundle", path.display());
        return Err(
            Failure::new(message).help("`shardwright unpack FILE -o BUNDLE` makes it a bundle")
        );
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
pub fn check_parent(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => check_directory(parent),
        _ => Ok(()),
    }
}

/// # Errors
/// A path that is neither a directory nor a file, in plainer words than the file inside it that would be
/// missed.
fn check_model(path: &Path) -> Result<(), Failure> {
    if elsewhere::is_remote(path) {
        return Ok(());
    }
    let found = &resolve(path);
    let unfinished = !Bundle::is_bundle(path) && path.join(SHARDS).is_file();
    if !unfinished && (found.is_file() || found.is_dir()) {
        return Ok(());
    }
    let message = match path.symlink_metadata() {
        _ if unfinished => "is not a bundle: it has no manifest.json",
        Ok(found) if found.is_symlink() => "is a link to nothing",
        Ok(_) => "is neither a file nor a directory",
        Err(_) if path.extension().is_some() => "there is no such file",
        Err(_) => "there is no such directory",
    };
    let failure = Failure::new(format!("{}: {message}", path.display()));
    Err(match path.to_str().filter(|_| !path.exists()).and_then(elsewhere) {
        Some(help) => failure.help(help),
        None => failure,
    })
}

/// How a model is read that a name is of on the hub; none of any other name.
fn elsewhere(name: &str) -> Option<String> {
    if is_repository(Path::new(name)) {
        return Some(format!(
            "nor is it a model in the Hugging Face cache; `hf download {name}` would fetch one of this name, hf://{name} reads it from the hub"
        ));
    }
    let (repository, _) = name
        .split_once(['@', ':'])
        .filter(|(of, _)| is_repository(Path::new(of)))?;
    if name[repository.len()..].starts_with('@') {
        return Some(format!("hf://{name} reads that revision from the hub"));
    }
    Some(format!("hf://{repository}/FILE.gguf reads one GGUF file from the hub, named whole"))
}

/// # Errors
/// A path that is no directory.
pub fn check_directory(path: &Path) -> Result<(), Failure> {
    let message = match path.is_dir() {
        true => return Ok(()),
        false if path.exists() => "is not a directory",
        false => "there is no such directory",
    };
    Err(Failure::new(format!("{}: {message}", path.display())))
}
