//! What can be checked of a candidate alone.

use std::path::Path;

use shardwright_format::Bundle;
use shardwright_format::bundle::{manifest_bytes, read_manifest};
use shardwright_format::manifest::SIGNATURE_FILE;
use shardwright_format::pack::{Packed, packed_signature};
use shardwright_format::weights::Weights;

use super::{Candidate, VerifyRequest};
use crate::check::finding::Finding;
use crate::check::integrity::{integrity, packed_integrity};
use crate::check::overlap::{self, Text};
use crate::check::structure::Structure;
use crate::error::{Result, VerifyError};
use crate::monitor::Monitor;
use crate::report::{ModelSummary, Report};

/// A candidate and its report so far.
pub(super) struct Judged {
    pub(super) name: String,
    pub(super) report: Report,
    /// None where it is not to be compared.
    pub(super) weights: Option<Weights>,
}

impl Judged {
    /// Checks what can be checked of a candidate alone.
    pub(super) fn new(
        candidate: Candidate,
        name: String,
        request: &VerifyRequest<'_>,
        text: Option<&Text<'_>>,
        monitor: &Monitor<'_>,
    ) -> Result<Self> {
        let report = Report::new(name.clone(), request.thresholds);
        let (report, weights) = match candidate {
            Candidate::Bundle(path) => bundle(report, &path, request, text, monitor),
            Candidate::Model(_, weights) => model(report, weights, request, monitor),
        }?;
        Ok(Self { name, report, weights })
    }
}

/// Checks a bundle's bytes; gives its weights where it is to be compared.
fn bundle(
    mut report: Report,
    path: &Path,
    request: &VerifyRequest<'_>,
    text: Option<&Text<'_>>,
    monitor: &Monitor<'_>,
) -> Result<(Report, Option<Weights>)> {
    if Packed::is_packed(path) {
        return packed(report, path, request, monitor);
    }
    let integrity = integrity(path, request.threads, monitor)?;
    let readable = integrity.weights_hold();
    let damaged = integrity.manifest.is_none();
    report.integrity = Some(integrity);
    if !readable {
        let note = "not compared with the checkpoint: the bundle is damaged";
        report.notes.push(note.to_owned());
    }
    if damaged {
        return Ok((report, None));
    }
    let (_, bytes) = manifest_bytes(path)?;
    report.signed(signed(request, &bytes, &path.join(SIGNATURE_FILE))?);
    let manifest = read_manifest(path)?;
    report.describe_bundle(&manifest);
    report
        .findings
        .extend(overlap::check_report(path, &manifest));
    if let Some(overlap) = overlap::look_up(path, &manifest, text) {
        report.overlap(overlap);
    }
    let weights = readable.then(|| Bundle::open(path)).transpose()?;
    Ok((report, weights.map(Weights::from)))
}

/// What is to be said of the signature of these bytes of a manifest, or found.
fn signed(
    request: &VerifyRequest<'_>,
    manifest: &[u8],
    signature: &Path,
) -> Result<Result<Option<String>, Finding>> {
    let unheeded = || {
        let name = signature.file_name().unwrap_or_default().to_string_lossy();
        let unheeded = format!("{name}: not checked, since no key was named that is trusted");
        signature.exists().then_some(unheeded)
    };
    match &request.trusted {
        Some(key) => Ok(key.check(manifest, signature)?.map(Some)),
        None => Ok(Ok(unheeded())),
    }
}

/// Checks a bundle in the file that it is packed in.
fn packed(
    mut report: Report,
    path: &Path,
    request: &VerifyRequest<'_>,
    monitor: &Monitor<'_>,
) -> Result<(Report, Option<Weights>)> {
    if request.original.is_some() {
        let path = path.display();
        let message =
            format!("{path}: expected a bundle to compare, found a packed one: unpack it");
        return Err(VerifyError::Invalid(message));
    }
    let (manifest, integrity) = packed_integrity(path, monitor)?;
    report.integrity = Some(integrity);
    if let Some(manifest) = &manifest {
        report.describe_bundle(manifest);
        let packed = Packed::open(path)?;
        report.signed(signed(request, packed.manifest_bytes(), &packed_signature(path))?);
    }
    Ok((report, None))
}

/// Checks a model that is no bundle.
fn model(
    mut report: Report,
    weights: Weights,
    request: &VerifyRequest<'_>,
    monitor: &Monitor<'_>,
) -> Result<(Report, Option<Weights>)> {
    if request.trusted.is_some() {
        let message = format!("{}: expected a bundle: no other model is signed", report.name);
        return Err(VerifyError::Invalid(message));
    }
    let mut structure = Structure::new(&weights)?;
    // With an original the comparison reads every weight.
    if request.original.is_none() {
        structure.read_all(&weights, request.threads, monitor)?;
    }
    report.structure = Some(structure);
    report.notes.extend_from_slice(weights.notes());
    let census = weights.census()?;
    report.describe(ModelSummary::new(&weights, &census), &census);
    Ok((report, Some(weights)))
}
