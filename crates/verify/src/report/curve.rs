//! Points of divergence against size: reports, and what others have measured.

use std::path::Path;

use serde::{Deserialize, Serialize};
use shardwright_format::FormatError;
use shardwright_format::io::{INDEX_LIMIT, read_required};

use crate::error::Result;
use crate::report::Report;

/// A model of some size that diverges by so much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What it is.
    #[serde(alias = "cand")]
    pub name: String,
    /// Bits per weight of the whole model.
    #[serde(alias = "bpw")]
    pub bits_per_weight: f64,
    /// Mean divergence, in nats per token.
    pub kld_mean: f64,
    /// Its standard error, where it is known.
    #[serde(default)]
    pub kld_mean_se: Option<f64>,
    /// Bytes of the files with its weights, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bytes: Option<u64>,
}

impl Point {
    /// None without a size and a divergence.
    pub fn new(name: &str, report: &Report) -> Option<Self> {
        let d = report.divergence.as_ref()?;
        Some(Self {
            name: name.to_owned(),
            bits_per_weight: report.bits_per_weight?,
            kld_mean: d.kld_mean,
            kld_mean_se: Some(d.kld_mean_se_by_window.unwrap_or(d.kld_mean_se)),
            weight_bytes: report.model.as_ref().map(|model| model.weight_bytes),
        })
    }

    /// The points of a file: one of a report of `verify --json`, or one of each line
    /// `{"name", "bits_per_weight", "kld_mean"}`.
    ///
    /// # Errors
    /// A file that is neither.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let bytes = read_required(path, INDEX_LIMIT)?;
        if let Ok(report) = serde_json::from_slice::<Report>(&bytes) {
            let point = Self::new(&stem(path), &report);
            let none = || wrong(path, "a report with a divergence", "one of no text");
            return Ok(vec![point.ok_or_else(none)?]);
        }
        let expected =
            "a JSON report of verify, or lines of {\"name\", \"bits_per_weight\", \"kld_mean\"}";
        let text =
            std::str::from_utf8(&bytes).map_err(|e| wrong(path, expected, &e.to_string()))?;
        let lines = text.lines().zip(1..).filter(|(l, _)| !l.trim().is_empty());
        let point = |(line, at): (&str, usize)| {
            serde_json::from_str(line)
                .map_err(|e| wrong(path, expected, &format!("line {at}: {e}")))
        };
        let points = lines.map(point).collect::<Result<Vec<_>>>()?;
        if points.is_empty() {
            return Err(wrong(path, expected, "no line"));
        }
        Ok(points)
    }
}

/// A file's name without its last ending.
pub(crate) fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

pub(crate) fn wrong(path: &Path, expected: &str, found: &str) -> crate::VerifyError {
    FormatError::file(path, format!("expected {expected}, found {found}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<Point>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Point::read(file.path())
    }

    #[test]
    fn lines_of_points_are_read_under_both_names() {
        let lines = "{\"name\": \"a\", \"bits_per_weight\": 2.5, \"kld_mean\": 0.1}\n\n\
                     {\"cand\": \"b\", \"bpw\": 3.5, \"kld_mean\": 0.05, \"top1\": 0.9}\n";
        let points = read(lines).unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!((points[1].name.as_str(), points[1].bits_per_weight), ("b", 3.5));
    }

    #[test]
    fn other_files_are_refused() {
        let error = |content| read(content).unwrap_err().to_string();
        assert!(error("").ends_with("found no line"), "{}", error(""));
        assert!(error("{}").contains("found line 1: missing field `name`"), "{}", error("{}"));
    }
}
