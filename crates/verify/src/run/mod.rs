//! All checks in order.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use shardwright_format::Bundle;
use shardwright_format::bundle::{manifest_bytes, read_manifest};
use shardwright_format::manifest::{Excerpt, SIGNATURE_FILE};
use shardwright_format::pack::{Packed, packed_signature};
use shardwright_format::weights::Weights;
use shardwright_runtime::CacheTypes;

use crate::check::divergence::{CachePrice, EvalWindows, Party, Reading, divergences};
use crate::check::fidelity::{FidelityOptions, fidelity};
use crate::check::finding::{Finding, Kind};
use crate::check::integrity::{integrity, packed_integrity};
use crate::check::overlap::{self, Text};
use crate::check::signature::TrustedKey;
use crate::check::structure::Structure;
use crate::check::tokens;
use crate::error::{Result, VerifyError};
use crate::monitor::Monitor;
use crate::report::ladder::{Ladder, Original};
use crate::report::thresholds::Thresholds;
use crate::report::{ModelSummary, Report, TextRecord};

/// A model to be judged.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a command has a few
pub enum Candidate {
    /// A bundle, by its directory or the file that it is packed in: it is opened when its bytes have been
    /// checked.
    Bundle(PathBuf),
    /// Any other model, opened, and its path.
    Model(PathBuf, Weights),
}

impl Candidate {
    fn path(&self) -> &Path {
        match self {
            Self::Bundle(path) | Self::Model(path, _) => path,
        }
    }
}

/// What to verify, and against what.
#[derive(Debug)]
pub struct VerifyRequest<'a> {
    /// The models to judge, at least one.
    pub candidates: Vec<Candidate>,
    /// What they are judged by, and its path: for fidelity and divergence.
    pub original: Option<(PathBuf, Weights)>,
    /// A text to predict: for divergence.
    pub text: Option<&'a Path>,
    /// How the text is cut.
    pub windows: EvalWindows,
    /// Limits that each candidate must keep to.
    pub thresholds: Thresholds,
    /// Hash the original's weight files and compare with a bundle's record of them.
    pub hash_checkpoint: bool,
    /// Bundles may have been made from another form of the model than the original.
    pub other_source: bool,
    /// How the candidates keep keys and values while they predict; the original keeps them as computed.
    /// With another type than `f32` what it costs alone is measured too.
    pub cache: CacheTypes,
    /// Bundles must be signed by this key.
    pub trusted: Option<TrustedKey>,
    /// Threads.
    pub threads: usize,
}

/// Checks each candidate's integrity; with an original, how far its values are; with a text too, its
/// predictions. The original is read once for all candidates.
///
/// A bundle whose weights are damaged is not compared with anything: its report says so.
///
/// # Errors
/// What prevents a check from running. What a check finds is in the reports.
pub fn verify(mut request: VerifyRequest<'_>, monitor: &Monitor<'_>) -> Result<Ladder> {
    let names = names(&request);
    if request.text.is_some() && request.original.is_none() {
        let message = "text: needs the checkpoint to compare predictions with";
        return Err(VerifyError::Invalid(message.to_owned()));
    }
    request
        .thresholds
        .check(request.original.is_some(), request.text.is_some())?;
    let text = request.text.map(Text::read).transpose()?;
    for path in request.candidates.iter().map(Candidate::path) {
        if let (Some(text), Ok(manifest)) = (&text, read_manifest(path)) {
            overlap::refuse_same(text, manifest.calibration.as_ref())?;
        }
    }
    let mut judged = Vec::with_capacity(names.len());
    for (candidate, name) in std::mem::take(&mut request.candidates)
        .into_iter()
        .zip(names)
    {
        judged.push(Judged::new(candidate, name, &request, text.as_ref(), monitor)?);
    }
    let mut ladder = Ladder::default();
    if let Some((path, weights)) = request.original.take() {
        let notes = weights.notes().iter();
        let notes: Vec<_> = notes.map(|note| format!("the original: {note}")).collect();
        for judged in &mut judged {
            judged.report.notes.extend_from_slice(&notes);
        }
        let weights = excerpt(weights, &judged)?;
        let census = weights.census()?;
        ladder.original = Some(Original {
            name: last(&path),
            model: ModelSummary::new(&weights, &census),
            bits_per_weight: Some(census.bits_per_weight()),
        });
        let party = Party { name: "original", weights: &weights };
        ladder.text = compare(&request, party, text.as_ref(), &mut judged, monitor)?;
    }
    ladder.candidates = judged.into_iter().map(|j| j.report.conclude()).collect();
    Ok(ladder)
}

/// A candidate and its report so far.
struct Judged {
    name: String,
    report: Report,
    /// None where it is not to be compared.
    weights: Option<Weights>,
}

impl Judged {
    /// Checks what can be checked of a candidate alone.
    fn new(
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

/// The layers of the original that the candidates have.
fn excerpt(original: Weights, judged: &[Judged]) -> Result<Weights> {
    let excerpt = |judged: &Judged| {
        let bundle = judged.weights.as_ref()?.bundle();
        Some(bundle.and_then(|bundle| bundle.manifest().checkpoint.excerpt))
    };
    let mut excerpts = judged.iter().filter_map(excerpt);
    let first = excerpts.next().flatten();
    if excerpts.any(|other| other != first) {
        let message = "candidates: expected all of the same layers, found excerpts that differ";
        return Err(VerifyError::Invalid(message.to_owned()));
    }
    match first {
        Some(Excerpt { first, end, .. }) => Ok(original.excerpt(first..end)?),
        None => Ok(original),
    }
}

/// Compares the candidates that can be with the original.
fn compare(
    request: &VerifyRequest<'_>,
    original: Party<'_>,
    text: Option<&Text<'_>>,
    judged: &mut [Judged],
    monitor: &Monitor<'_>,
) -> Result<Option<TextRecord>> {
    let options = FidelityOptions {
        max_rmse: request.thresholds.max_rmse,
        hash_checkpoint: request.hash_checkpoint,
        other_source: request.other_source,
        threads: request.threads,
    };
    let sides = judged.iter_mut().filter_map(|judged| {
        let Judged { name, report, weights } = judged;
        Some((report, Party { name: name.as_str(), weights: weights.as_ref()? }))
    });
    let (reports, parties): (Vec<_>, Vec<_>) = sides.unzip();
    let compared = fidelity(original, &parties, &options, monitor)?;
    let mut predicting = Vec::new();
    for ((report, party), fidelity) in reports.into_iter().zip(parties).zip(compared) {
        let same_model = fidelity.by_role || party.weights.spec() == original.weights.spec();
        report.fidelity = Some(fidelity);
        if same_model {
            predicting.push((report, party));
        } else if text.is_some() {
            let note = "predictions not compared: the two are not the same model";
            report.notes.push(note.to_owned());
        }
    }
    match text {
        Some(text) if !predicting.is_empty() => {
            predict(request, original, text, predicting, monitor).map(Some)
        }
        _ => Ok(None),
    }
}

/// Gives each report the divergence of its candidate.
fn predict(
    request: &VerifyRequest<'_>,
    original: Party<'_>,
    text: &Text<'_>,
    predicting: Vec<(&mut Report, Party<'_>)>,
    monitor: &Monitor<'_>,
) -> Result<TextRecord> {
    let (reports, parties): (Vec<_>, Vec<_>) = predicting.into_iter().unzip();
    let read = tokens::read(text, &original, &parties, request.windows)?;
    let record = TextRecord {
        name: last(text.path),
        blake3: text.blake3,
        bytes: text.bytes,
        tokens: read.tokens.len() as u64,
        cache: (request.cache != CacheTypes::default()).then_some(request.cache),
    };
    let reading = Reading {
        tokens: &read.tokens,
        windows: request.windows,
        cache: request.cache,
        threads: request.threads,
    };
    // With the types asked for the original is one more candidate of itself: what they cost alone.
    let itself = record.cache.map(|_| original);
    let sides: Vec<_> = parties.iter().copied().chain(itself).collect();
    let mut found = divergences(original, &sides, &reading, monitor)?;
    let itself = found.split_off(parties.len()).pop().transpose()?;
    let found = reports.into_iter().zip(&parties).zip(found);
    for (((report, party), found), without) in found.zip(read.without) {
        report.text = Some(record.clone());
        if let (Some(itself), Ok(_)) = (&itself, &found) {
            let own = (original, itself);
            report.cache = Some(CachePrice::new(request.cache, own, *party, &reading, monitor)?);
        }
        if without {
            let note = "it has no tokenizer.json: the text's tokens are those of the original";
            report.notes.push(note.to_owned());
        }
        match found {
            Ok(divergence) => report.divergence = Some(divergence),
            // A candidate that cannot predict is a finding, no obstacle.
            Err(e) => report
                .findings
                .push(Finding::new(Kind::NotFinite, e.to_string())),
        }
    }
    Ok(record)
}

/// What each candidate is called: the last part of its path, or all of it where another ends alike.
fn names(request: &VerifyRequest<'_>) -> Vec<String> {
    let paths: Vec<_> = request.candidates.iter().map(Candidate::path).collect();
    let name = |path: &&Path| {
        let alike = paths.iter().filter(|other| last(other) == last(path));
        if alike.count() > 1 { path.display().to_string() } else { last(path) }
    };
    paths.iter().map(name).collect()
}

/// The last part of a path, or all of it.
fn last(path: &Path) -> String {
    let last = path.file_name().unwrap_or(path.as_os_str());
    last.to_string_lossy().into_owned()
}
