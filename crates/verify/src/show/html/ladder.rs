//! The ladder as one page, to be posted beside a model.

use serde::Serialize;

use crate::check::finding;
use crate::report::curve::Point;
use crate::report::ladder::Ladder;
use crate::report::{Report, Verdict};
use crate::show::html::render;
use crate::show::plot::{self, Axis, Curve};

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    l: &'a Ladder,
    holds: bool,
    /// The divergence of the first candidate that has one: what is said of the original is in each.
    measured: Option<&'a crate::Divergence>,
    by_bits: Option<Curve>,
    by_size: Option<Curve>,
    beside: bool,
    errors: Vec<(String, Vec<Option<f64>>)>,
    drift: Vec<(String, Vec<Option<f64>>)>,
    judgements: Vec<Judgement<'a>>,
}

/// What was found of a candidate.
#[derive(Serialize)]
struct Judgement<'a> {
    name: &'a str,
    findings: Vec<String>,
    warnings: Vec<String>,
    notes: &'a [String],
}

impl<'a> Judgement<'a> {
    fn new(report: &'a Report) -> Option<Self> {
        let Report { name, findings, warnings, notes, .. } = report;
        let something = !(findings.is_empty() && warnings.is_empty() && notes.is_empty());
        something.then(|| Self {
            name,
            findings: finding::folded(findings),
            warnings: finding::folded(warnings),
            notes,
        })
    }
}

impl Ladder {
    /// The ladder as a self-contained HTML page; of one candidate its report. Everything that comes from
    /// outside is escaped. Points `beside` only show in the curve against bits per weight.
    pub fn to_html(&self, beside: &[Point]) -> String {
        if let [report] = &self.candidates[..] {
            return report.to_html(beside);
        }
        let own: Vec<_> = self
            .candidates
            .iter()
            .filter_map(|report| Point::new(&report.name, report))
            .collect();
        let measured = self.candidates.iter().find_map(|r| r.divergence.as_ref());
        let floor = measured
            .and_then(|d| d.noise_floor)
            .map(|floor| floor.kld_mean);
        let errors = self.errors().into_iter();
        let page = Page {
            l: self,
            holds: self.verdict() == Verdict::Holds,
            measured,
            by_bits: plot::curve(&own, beside, floor, Axis::BitsPerWeight),
            by_size: plot::curve(&own, &[], floor, Axis::Size),
            beside: !beside.is_empty(),
            errors: errors
                .map(|(role, row)| (role.name().to_owned(), row))
                .collect(),
            drift: self.drift(),
            judgements: self.candidates.iter().filter_map(Judgement::new).collect(),
        };
        render("ladder.html", &page)
    }
}
