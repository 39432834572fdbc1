//! Is the text one that the bundle was fitted to?

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shardwright_format::io::{INDEX_LIMIT, read_required};
use shardwright_format::manifest::{Calibration, Hash, REPORT_FILE, SharedLines};
use shardwright_format::prose::Digest;
use shardwright_format::report::CalibrationReport;
use shardwright_format::{FormatError, Manifest};

use crate::check::finding::{Finding, Kind};
use crate::error::Result;

/// Lines of a text that are looked up at most, those with the smallest hashes: a sample of a longer one.
const LINES: usize = 1 << 16;

/// A text to predict: what is known of it before it is read for its tokens.
pub(crate) struct Text<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) blake3: Hash,
    lines: Vec<u64>,
}

impl<'a> Text<'a> {
    /// # Errors
    /// What is no readable text.
    pub(crate) fn read(path: &'a Path) -> Result<Self> {
        let Digest { blake3, bytes, lines, .. } = Digest::read(path, u64::MAX, LINES)?;
        Ok(Self { path, bytes, blake3: blake3.into(), lines })
    }
}

/// What a bundle was calibrated with, and what the evaluation has in common with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// Hash of the text; none when the bundle was made from statistics that do not name it.
    pub text_blake3: Option<Hash>,
    /// Hash of the file of statistics, where the conversion read one.
    pub statistics_blake3: Option<Hash>,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens of a window.
    pub window: u64,
    /// Lines that the evaluation shares with it; none without a text, or where its lines are not
    /// known.
    pub shared_lines: Option<SharedLines>,
    /// How the conversion says that it went; none where `report.json` does not say it.
    pub conversion: Option<CalibrationReport>,
}

impl fmt::Display for CalibrationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens in windows of {}", self.tokens, self.window)?;
        if let Some(hash) = self.text_blake3 {
            write!(f, ", text {hash}")?;
        }
        if let Some(hash) = self.statistics_blake3 {
            write!(f, ", statistics {hash}")?;
        }
        Ok(())
    }
}

/// # Errors
/// A text that the bundle was calibrated with: its figures would flatter.
pub(crate) fn refuse_same(text: &Text<'_>, calibration: Option<&Calibration>) -> Result<()> {
    if calibration.and_then(|c| c.text_blake3) != Some(text.blake3) {
        return Ok(());
    }
    let detail = "expected a text that the bundle was not calibrated with, found its calibration \
                  text: it would be judged on what it was fitted to";
    Err(FormatError::file(text.path, detail).into())
}

/// What a bundle's calibration comes to beside a text.
pub(crate) struct Overlap {
    pub(crate) record: CalibrationRecord,
    /// Lines that the text shares with it.
    pub(crate) warning: Option<Finding>,
    pub(crate) note: Option<String>,
}

/// What the bundle was calibrated with, and whether the text shares lines with that. None of a bundle that
/// was not.
pub(crate) fn look_up(
    bundle: &Path,
    manifest: &Manifest,
    text: Option<&Text<'_>>,
) -> Option<Overlap> {
    let calibration = manifest.calibration.as_ref()?;
    let known = !calibration.line_hashes.is_empty();
    let unknown = "the bundle does not tell the lines that it was calibrated with: whether the \
                   text shares any is not known";
    let note = (text.is_some() && !known).then(|| unknown.to_owned());
    let shared = text
        .filter(|_| known)
        .map(|text| calibration.line_hashes.shared_with(&text.lines));
    let record = CalibrationRecord {
        text_blake3: calibration.text_blake3,
        statistics_blake3: calibration.statistics_blake3,
        tokens: calibration.tokens,
        window: calibration.window.into(),
        shared_lines: shared,
        conversion: conversion(&bundle.join(REPORT_FILE)),
    };
    Some(Overlap { record, warning: shared.and_then(overlap), note })
}

fn overlap(shared: SharedLines) -> Option<Finding> {
    let SharedLines { shared: count, compared } = shared;
    let percent = 100.0 * shared.fraction();
    let found = format!("{count} of {compared} lines looked up, {percent:.2} %");
    let finding = Finding::new(Kind::Overlap, "lines of the calibration text in this one");
    (count > 0).then_some(Finding { found: Some(found), ..finding })
}

/// What the report in the bundle and its manifest say differently of the calibration: a manifest
/// that was signed anew, its record taken out or changed, does not agree with the report that it lists.
pub(crate) fn check_report(bundle: &Path, manifest: &Manifest) -> Option<Finding> {
    let bytes = read_required(&bundle.join(REPORT_FILE), INDEX_LIMIT).ok()?;
    let finding = |what: &str| Finding::file(Kind::Report, REPORT_FILE, what);
    let Ok(serde_json::Value::Object(report)) = serde_json::from_slice(&bytes) else {
        return Some(finding("contents").expected("one JSON object", "something else"));
    };
    let told = |report: &serde_json::Value| {
        let number = |name: &str| {
            report[name]
                .as_u64()
                .map_or("?".to_owned(), |n| n.to_string())
        };
        format!("{} tokens in windows of {}", number("tokens"), number("window"))
    };
    let found = report
        .get("calibration")
        .filter(|found| !found.is_null())
        .map(told);
    // A conversion from statistics sees no text that it could report on.
    let text = manifest
        .calibration
        .as_ref()
        .filter(|c| c.statistics_blake3.is_none());
    let expected = text.map(|c| format!("{} tokens in windows of {}", c.tokens, c.window));
    let words = |told: Option<String>| told.unwrap_or_else(|| "none".to_owned());
    (found != expected)
        .then(|| finding("calibration, as in the manifest").expected(words(expected), words(found)))
}

/// The conversion's own account. Nothing depends on it, so one that cannot be read is none.
fn conversion(path: &Path) -> Option<CalibrationReport> {
    #[derive(Deserialize)]
    struct Conversion {
        calibration: Option<CalibrationReport>,
    }
    let bytes = read_required(path, INDEX_LIMIT).ok()?;
    let conversion: Conversion = serde_json::from_slice(&bytes).ok()?;
    conversion.calibration
}
