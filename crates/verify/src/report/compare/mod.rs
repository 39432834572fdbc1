//! Reports side by side: what differs, by how much, and whether the difference can be told.

#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;
use shardwright_format::io::{INDEX_LIMIT, read_required};
use shardwright_format::manifest::Hash;

use crate::check::divergence::Divergence;
use crate::error::Result;
use crate::report::curve::{Point, stem, wrong};
use crate::report::{Report, Verdict};

/// Differences of fewer standard errors are not told from chance.
const TELLING: f64 = 2.0;

/// A report and what to call it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Its name in the comparison.
    pub name: String,
    /// The report.
    pub report: Report,
}

impl Named {
    /// Reads what `verify --json` printed into files. Each is called by its file's name, or by its
    /// path where two files have the same.
    ///
    /// # Errors
    /// A file that is no such report.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Vec<Self>> {
        let stems: Vec<_> = paths.iter().map(|path| stem(path.as_ref())).collect();
        let named = |(path, name): (_, &String)| {
            let path: &Path = path;
            let alone = stems.iter().filter(|other| *other == name).count() == 1;
            let name = if alone { name.clone() } else { path.display().to_string() };
            let bytes = read_required(path, INDEX_LIMIT)?;
            let report = serde_json::from_slice(&bytes).map_err(|e| {
                wrong(path, "a JSON report of verify", &format!("other JSON or none: {e}"))
            })?;
            Ok(Self { name, report })
        };
        paths
            .iter()
            .map(AsRef::as_ref)
            .zip(&stems)
            .map(named)
            .collect()
    }
}

/// Reports side by side. Serializes to the JSON of `compare --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportComparison {
    /// The reports, in the order given.
    pub reports: Vec<Row>,
    /// Every report but the first against the first.
    pub differences: Vec<Difference>,
    /// Drift of the residual stream, layer by layer.
    pub drift: Vec<DriftRow>,
    /// Why figures are not to be compared.
    pub warnings: Vec<String>,
    /// Points of the curve that are no reports.
    pub beside: Vec<Point>,
}

/// One report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name here.
    pub name: String,
    /// Name of the bundle's directory.
    pub bundle: String,
    /// The checkpoint's `model_type`.
    pub model_type: Option<String>,
    /// Weights of all tensors.
    pub parameters: Option<u64>,
    /// Bytes of all files but the manifest.
    pub bytes: Option<u64>,
    /// Stored bits of all matrices over their weights.
    pub bits_per_weight: Option<f64>,
    /// Names the checkpoint.
    pub checkpoint_blake3: Option<Hash>,
    /// Hash of the text.
    pub text_blake3: Option<Hash>,
    /// Holds, or something was found.
    pub verdict: Verdict,
    /// What was found.
    pub findings: u64,
    /// What makes its figures doubtful.
    pub warnings: Vec<String>,
    /// Its figures; none of a report without a text.
    pub figures: Option<Figures>,
}

/// The figures of a divergence that are compared; `_se` is the standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Figures {
    pub tokens: u64,
    pub windows: u64,
    pub window: u64,
    pub first: u64,
    pub kld_mean: f64,
    pub kld_mean_se: f64,
    pub kld_median: f64,
    pub kld_p99: f64,
    pub same_top: f64,
    pub same_top_se: f64,
    pub ppl: f64,
    pub ppl_se: f64,
    pub ppl_original: f64,
    pub ln_ppl_ratio: f64,
    pub ln_ppl_ratio_se: f64,
    pub noise_floor: Option<f64>,
}

impl Figures {
    fn new(d: &Divergence) -> Self {
        Self {
            tokens: d.tokens,
            windows: d.windows,
            window: d.window,
            first: d.first,
            kld_mean: d.kld_mean,
            kld_mean_se: d.kld_mean_se,
            kld_median: d.kld_median,
            kld_p99: d.kld_p99,
            same_top: d.same_top,
            same_top_se: d.same_top_se,
            ppl: d.ppl,
            ppl_se: d.ppl_se,
            ppl_original: d.ppl_original,
            ln_ppl_ratio: d.ln_ppl_ratio,
            ln_ppl_ratio_se: d.ln_ppl_ratio_se,
            noise_floor: d.noise_floor.map(|floor| floor.kld_mean),
        }
    }
}

/// A report against the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The report.
    pub name: String,
    /// Its mean divergence over the first's; none when that is 0.
    pub kld_ratio: Option<f64>,
    /// Mean divergence: below 0 is better.
    pub kld_mean: Delta,
    /// Share of same top tokens: above 0 is better.
    pub same_top: Delta,
    /// `ln(ppl / ppl_original)`.
    pub ln_ppl_ratio: Delta,
}

/// How far two figures are apart.
///
/// Both come from the same tokens, so their errors go together, but a report holds sums, not
/// tokens: the error of the difference is that of independent figures, larger than the true one.
/// What is told from chance here is told.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delta {
    /// The figure less the first report's.
    pub difference: f64,
    /// `sqrt(se² + se_first²)`.
    pub se: f64,
    /// The difference in such errors; none when they are 0.
    pub sigmas: Option<f64>,
}

/// A figure and its standard error.
#[derive(Clone, Copy)]
struct Estimate {
    value: f64,
    se: f64,
}

const fn estimate(value: f64, se: f64) -> Estimate {
    Estimate { value, se }
}

impl Delta {
    fn new(figure: Estimate, first: Estimate) -> Self {
        let (difference, se) = (figure.value - first.value, figure.se.hypot(first.se));
        let sigmas = Some(difference / se).filter(|s| s.is_finite());
        Self { difference, se, sigmas }
    }

    /// Whether chance does not explain it.
    pub fn tells(&self) -> bool {
        self.sigmas
            .map_or(self.difference != 0.0, |s| s.abs() >= TELLING)
    }

    /// In a word, where `better` is the sign of an improvement.
    pub(crate) fn word(&self, better: f64) -> &'static str {
        match self.tells() {
            false => "not told from chance",
            true if self.difference * better > 0.0 => "better",
            true => "worse",
        }
    }
}

/// Drift after a layer, of every report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DriftRow {
    /// The layer; none for the embedding.
    pub layer: Option<u32>,
    /// Relative RMSE of the residual stream; none where a report has no such layer.
    pub rmse: Vec<Option<f64>>,
}

impl ReportComparison {
    /// Lays reports side by side; `beside` only shows in the curve.
    pub fn new(reports: &[Named], beside: Vec<Point>) -> Self {
        let rows: Vec<_> = reports.iter().map(row).collect();
        let differences = rows.first().and_then(|row| row.figures);
        let differences = differences.map_or(Vec::new(), |first| differences_from(&first, &rows));
        let warnings = warnings(&rows);
        Self { differences, drift: drift(reports), warnings, reports: rows, beside }
    }

    /// The reports as points of the curve.
    pub(crate) fn points(&self) -> Vec<Point> {
        let point = |row: &Row| {
            let figures = row.figures?;
            Some(Point {
                name: row.name.clone(),
                bits_per_weight: row.bits_per_weight?,
                kld_mean: figures.kld_mean,
                kld_mean_se: Some(figures.kld_mean_se),
                weight_bytes: None,
            })
        };
        self.reports.iter().filter_map(point).collect()
    }
}

fn row(named: &Named) -> Row {
    let report = &named.report;
    let bundle = report.bundle.as_ref();
    Row {
        name: named.name.clone(),
        bundle: report.name.clone(),
        model_type: bundle.map(|b| b.model_type.clone()),
        parameters: bundle.map(|b| b.parameters),
        bytes: bundle.map(|b| b.bytes),
        bits_per_weight: report.bits_per_weight,
        checkpoint_blake3: bundle.and_then(|b| b.checkpoint_blake3),
        text_blake3: report.text.as_ref().map(|t| t.blake3),
        verdict: report.verdict,
        findings: report.findings.len() as u64,
        warnings: report.warnings.iter().map(ToString::to_string).collect(),
        figures: report.divergence.as_ref().map(Figures::new),
    }
}

fn differences_from(first: &Figures, rows: &[Row]) -> Vec<Difference> {
    let difference = |row: &Row| {
        let f = row.figures?;
        Some(Difference {
            name: row.name.clone(),
            kld_ratio: Some(f.kld_mean / first.kld_mean).filter(|r| r.is_finite()),
            kld_mean: Delta::new(
                estimate(f.kld_mean, f.kld_mean_se),
                estimate(first.kld_mean, first.kld_mean_se),
            ),
            same_top: Delta::new(
                estimate(f.same_top, f.same_top_se),
                estimate(first.same_top, first.same_top_se),
            ),
            ln_ppl_ratio: Delta::new(
                estimate(f.ln_ppl_ratio, f.ln_ppl_ratio_se),
                estimate(first.ln_ppl_ratio, first.ln_ppl_ratio_se),
            ),
        })
    };
    rows.iter().skip(1).filter_map(difference).collect()
}

fn drift(reports: &[Named]) -> Vec<DriftRow> {
    let layers = |named: &Named| named.report.divergence.as_ref().map(|d| d.layers.clone());
    let all: Vec<_> = reports.iter().map(layers).collect();
    let Some(longest) = all.iter().flatten().max_by_key(|layers| layers.len()) else {
        return Vec::new();
    };
    let row = |at: usize| DriftRow {
        layer: longest[at].layer,
        rmse: all
            .iter()
            .map(|layers| Some(layers.as_ref()?.get(at)?.rmse))
            .collect(),
    };
    (0..longest.len()).map(row).collect()
}

/// What keeps figures from being compared, the first report being the measure.
fn warnings(rows: &[Row]) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some((first, others)) = rows.split_first() else { return warnings };
    for row in rows {
        let name = &row.name;
        if row.figures.is_none() {
            warnings.push(format!(
                "{name}: has no divergence: it was verified without an original or without a text"
            ));
        }
        if row.verdict == Verdict::Found {
            warnings.push(format!("{name}: verify found {} things wrong", row.findings));
        }
        warnings.extend(row.warnings.iter().map(|w| format!("{name}: {w}")));
    }
    for other in others {
        let (name, first_name) = (&other.name, &first.name);
        let cut = |row: &Row| row.figures.map(|f| (f.windows, f.window, f.first));
        let unlike = |what: &str, differ: bool| {
            differ.then(|| format!("{name} and {first_name}: not comparable: {what}"))
        };
        let differ =
            |a: Option<Hash>, b: Option<Hash>| matches!((a, b), (Some(a), Some(b)) if a != b);
        let both = other.figures.is_some() && first.figures.is_some();
        warnings.extend(unlike(
            "made from different checkpoints",
            differ(other.checkpoint_blake3, first.checkpoint_blake3),
        ));
        warnings.extend(unlike("different texts", differ(other.text_blake3, first.text_blake3)));
        warnings.extend(unlike("different windows", both && cut(other) != cut(first)));
    }
    warnings
}
