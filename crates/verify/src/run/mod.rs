//! All checks in order.

#[cfg(test)]
mod tests;

use std::path::Path;

use shardwright_format::Bundle;
use shardwright_format::arch::{Arch, Inventory};
use shardwright_format::bundle::read_manifest;
use shardwright_format::checkpoint::{Checkpoint, CheckpointWeights};
use shardwright_format::pack::Packed;
use shardwright_format::weights::Weights;
use shardwright_runtime::RuntimeError;
use shardwright_runtime::text::Tokenizer;

use crate::divergence::{Windows, divergence};
use crate::error::{Model, Result, VerifyError};
use crate::fidelity::{FidelityOptions, fidelity};
use crate::finding::{Finding, Kind};
use crate::integrity::{integrity, packed_integrity};
use crate::monitor::Monitor;
use crate::overlap::{self, Text};
use crate::report::{Report, TextRecord};
use crate::thresholds::Thresholds;

/// What to verify, and against what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The bundle's directory, or the file that it is packed in.
    pub bundle: &'a Path,
    /// The checkpoint that it was made from: for fidelity and divergence.
    pub checkpoint: Option<&'a Path>,
    /// How to read the checkpoint; the built-in table of its `model_type` when absent.
    pub arch: Option<&'a Arch>,
    /// A text to predict: for divergence.
    pub text: Option<&'a Path>,
    /// How the text is cut.
    pub windows: Windows,
    /// Limits to keep to.
    pub thresholds: Thresholds,
    /// Hash the checkpoint's weight files and compare with the manifest's record.
    pub hash_checkpoint: bool,
    /// Threads.
    pub threads: usize,
}

impl Request<'_> {
    fn check(&self) -> Result<()> {
        if self.text.is_some() && self.checkpoint.is_none() {
            let message = "text: needs the checkpoint to compare predictions with";
            return Err(VerifyError::Invalid(message.to_owned()));
        }
        self.thresholds
            .check(self.checkpoint.is_some(), self.text.is_some())
    }
}

/// Checks integrity; with a checkpoint, fidelity; with a text too, divergence.
///
/// A bundle whose weights are damaged is not compared with anything: the report says so.
///
/// # Errors
/// What prevents a check from running. What a check finds is in the report.
pub fn verify(request: &Request<'_>, monitor: &Monitor<'_>) -> Result<Report> {
    request.check()?;
    let dir = request.bundle;
    if Packed::is_packed(dir) {
        return packed(request, monitor);
    }
    let text = request.text.map(Text::read).transpose()?;
    if let (Some(text), Ok(manifest)) = (&text, read_manifest(dir)) {
        overlap::refuse_same(text, manifest.calibration.as_ref())?;
    }
    let integrity = integrity(dir, request.threads, monitor)?;
    let readable = integrity.weights_hold();
    let mut report = Report::new(name(dir), integrity, request.thresholds);
    if report.integrity.manifest.is_some() {
        let manifest = read_manifest(dir)?;
        report.describe(&manifest);
        overlap::record(&mut report, dir, &manifest, text.as_ref());
    }
    match request.checkpoint {
        Some(_) if !readable => {
            report
                .notes
                .push("not compared with the checkpoint: the bundle is damaged".to_owned());
        }
        Some(checkpoint) => compare(request, checkpoint, text.as_ref(), &mut report, monitor)?,
        None => {}
    }
    Ok(report.conclude())
}

/// Checks a bundle in the file that it is packed in.
fn packed(request: &Request<'_>, monitor: &Monitor<'_>) -> Result<Report> {
    if request.checkpoint.is_some() {
        let path = request.bundle.display();
        let message =
            format!("{path}: expected a bundle to compare, found a packed one: unpack it");
        return Err(VerifyError::Invalid(message));
    }
    let (manifest, integrity) = packed_integrity(request.bundle, monitor)?;
    let mut report = Report::new(name(request.bundle), integrity, request.thresholds);
    if let Some(manifest) = &manifest {
        report.describe(manifest);
    }
    Ok(report.conclude())
}

fn compare(
    request: &Request<'_>,
    checkpoint: &Path,
    text: Option<&Text>,
    report: &mut Report,
    monitor: &Monitor<'_>,
) -> Result<()> {
    let bundle = Bundle::open(request.bundle)?;
    let mut checkpoint = Checkpoint::open(checkpoint)?;
    let mut inventory = Inventory::new(&checkpoint, request.arch)?;
    if let Some(excerpt) = bundle.manifest().checkpoint.excerpt {
        inventory = inventory.excerpt(&mut checkpoint, excerpt.first..excerpt.end)?;
    }
    let options = FidelityOptions {
        max_rmse: request.thresholds.max_rmse,
        hash_checkpoint: request.hash_checkpoint,
        threads: request.threads,
    };
    report.fidelity = Some(fidelity(&bundle, &checkpoint, &inventory, &options, monitor)?);
    let Some(text) = text else { return Ok(()) };
    if bundle.manifest().model != inventory.spec {
        report
            .notes
            .push("predictions not compared: the two are not the same model".to_owned());
        return Ok(());
    }
    let original = Weights::Checkpoint(CheckpointWeights::new(checkpoint, inventory));
    let (tokens, record) = tokens(text, &original)?;
    report.text = Some(record);
    let candidate = Weights::Bundle(bundle);
    let Request { windows, threads, .. } = *request;
    match divergence(&original, &candidate, &tokens, windows, threads, monitor) {
        Ok(divergence) => report.divergence = Some(divergence),
        Err(e) => report.findings.push(failure(e)?),
    }
    Ok(())
}

/// A candidate that cannot predict is a finding, no obstacle.
fn failure(error: VerifyError) -> Result<Finding> {
    match error {
        VerifyError::Runtime {
            model: Model::Candidate,
            source: source @ RuntimeError::NotFinite { .. },
        } => Ok(Finding::new(Kind::NotFinite, source.to_string())),
        error => Err(error),
    }
}

/// A text's tokens, by the original's tokenizer, without any that it puts around a text.
fn tokens(text: &Text, original: &Weights) -> Result<(Vec<u32>, TextRecord)> {
    let tokenizer =
        Tokenizer::open(&original.tokenizer_path()).map_err(Model::Original.failed())?;
    let tokens = tokenizer
        .encode(&text.content, false)
        .map_err(Model::Original.failed())?;
    let record = TextRecord {
        name: name(text.path),
        blake3: text.blake3,
        bytes: text.content.len() as u64,
        tokens: tokens.len() as u64,
    };
    Ok((tokens, record))
}

/// The last part of a path, or all of it.
fn name(path: &Path) -> String {
    let last = path.file_name().unwrap_or(path.as_os_str());
    last.to_string_lossy().into_owned()
}
