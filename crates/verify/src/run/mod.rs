//! All checks in order.

mod judge;
mod part;
mod predict;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use shardwright_format::Part;
use shardwright_format::bundle::read_manifest;
use shardwright_format::manifest::Excerpt;
use shardwright_format::weights::Weights;
use shardwright_runtime::CacheTypes;

use crate::check::divergence::{EvalWindows, Party};
use crate::check::fidelity::{FidelityOptions, fidelity, related_by_role};
use crate::check::overlap::{self, Text};
use crate::check::signature::TrustedKey;
use crate::error::{Result, VerifyError};
use crate::monitor::Monitor;
use crate::report::ladder::{Ladder, Original};
use crate::report::thresholds::Thresholds;
use crate::report::{ModelSummary, Report};
use judge::Judged;
pub use part::{MadePart, merge, verify_part};
use predict::Predictions;

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
pub fn verify(request: VerifyRequest<'_>, monitor: &Monitor<'_>) -> Result<Ladder> {
    let Examined { original, judged, predictions } = examine(request, None, monitor)?;
    let original = original.map(|(original, _)| original);
    let reports = judged.into_iter().map(|judged| judged.report).collect();
    let ladder = Ladder { original, text: None, candidates: reports };
    Ok(concluded(ladder, predictions.as_ref()))
}

/// What was found out of all candidates, before figures are summed up and limits are looked at.
struct Examined {
    original: Option<(Original, Weights)>,
    judged: Vec<Judged>,
    predictions: Option<Predictions>,
}

/// All checks, or those that are a part's to make.
fn examine(
    mut request: VerifyRequest<'_>,
    part: Option<Part>,
    monitor: &Monitor<'_>,
) -> Result<Examined> {
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
    let Some((path, weights)) = request.original.take() else {
        return Ok(Examined { original: None, judged, predictions: None });
    };
    let notes = weights.notes().iter();
    let notes: Vec<_> = notes.map(|note| format!("the original: {note}")).collect();
    for judged in &mut judged {
        judged.report.notes.extend_from_slice(&notes);
    }
    let weights = excerpt(weights, &judged)?;
    let census = weights.census()?;
    let original = Original {
        name: last(&path),
        model: ModelSummary::new(&weights, &census),
        bits_per_weight: Some(census.bits_per_weight()),
    };
    let party = Party { name: "original", weights: &weights };
    let predictions = compare(&request, party, text.as_ref(), (&mut judged, part), monitor)?;
    Ok(Examined { original: Some((original, weights)), judged, predictions })
}

/// The reports with the figures of all predictions, and with a verdict.
fn concluded(mut ladder: Ladder, predictions: Option<&Predictions>) -> Ladder {
    if let Some(predictions) = predictions {
        predictions.tell(&mut ladder.candidates);
        ladder.text = Some(predictions.text().clone());
    }
    let reports = std::mem::take(&mut ladder.candidates);
    ladder.candidates = reports.into_iter().map(Report::conclude).collect();
    ladder
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

/// Compares the candidates that can be with the original. Of the parts of a verification the first compares
/// values, each predicts its windows.
fn compare(
    request: &VerifyRequest<'_>,
    original: Party<'_>,
    text: Option<&Text<'_>>,
    (judged, part): (&mut [Judged], Option<Part>),
    monitor: &Monitor<'_>,
) -> Result<Option<Predictions>> {
    let options = FidelityOptions {
        max_rmse: request.thresholds.max_rmse,
        hash_checkpoint: request.hash_checkpoint,
        other_source: request.other_source,
        threads: request.threads,
    };
    let sides = judged.iter_mut().enumerate().filter_map(|(at, judged)| {
        let Judged { name, report, weights } = judged;
        Some(((at, report), Party { name: name.as_str(), weights: weights.as_ref()? }))
    });
    let (mut reports, parties): (Vec<_>, Vec<_>) = sides.unzip();
    let by_role = if part.is_none_or(|part| part.index() == 1) {
        let compared = fidelity(original, &parties, &options, monitor)?;
        let by_role = compared.iter().map(|fidelity| fidelity.by_role).collect();
        let reports = reports.iter_mut().zip(compared);
        reports.for_each(|((_, report), found)| report.fidelity = Some(found));
        by_role
    } else {
        related_by_role(original, &parties, &options, monitor)?
    };
    let mut predicting = Vec::new();
    for (((at, report), party), by_role) in reports.into_iter().zip(parties).zip(by_role) {
        if by_role || party.weights.spec() == original.weights.spec() {
            predicting.push((at, party));
        } else if text.is_some() {
            let note = "predictions not compared: the two are not the same model";
            report.notes.push(note.to_owned());
        }
    }
    match text {
        Some(text) if !predicting.is_empty() => {
            Predictions::new(request, original, text, (&predicting, part), monitor).map(Some)
        }
        _ => Ok(None),
    }
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
