//! The report as one page: everything inline, nothing fetched, no script.

mod compare;
mod ladder;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::check::divergence::Divergence;
use crate::check::fidelity::{Fidelity, TensorFidelity};
use crate::check::finding;
use crate::check::integrity::FileCheck;
use crate::report::Report;
use crate::report::curve::Point;
use crate::show::breakdown::Breakdown;
use crate::show::plot::{self, Axis, Chart, Curve, LogBar};
use crate::show::text::{bytes, count};

/// The pages, the frame of all, and what they include.
const TEMPLATES: [(&str, &str); 6] = [
    ("page.html", include_str!("page.html")),
    ("ladder.html", include_str!("ladder.html")),
    ("verify.html", include_str!("verify.html")),
    ("compare.html", include_str!("compare.html")),
    ("parts.html", include_str!("parts.html")),
    ("style.css", include_str!("style.css")),
];

/// Rows of the longest tables; the page says how many more there are.
const MAX_ROWS: usize = 400;

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    r: &'a Report,
    d: Option<&'a Divergence>,
    f: Option<&'a Fidelity>,
    breakdown: Breakdown<'a>,
    findings: Vec<String>,
    warnings: Vec<String>,
    worst: Rows<'a, TensorFidelity>,
    files: Rows<'a, FileCheck>,
    curve: Option<Curve>,
    drift: Option<Chart>,
    histogram: Option<Chart>,
    percentiles: Vec<LogBar>,
}

/// The first rows of a table, and how many are left out.
#[derive(Serialize)]
struct Rows<'a, T> {
    shown: &'a [T],
    more: usize,
}

impl<'a, T> Rows<'a, T> {
    fn new(rows: &'a [T]) -> Self {
        let shown = &rows[..rows.len().min(MAX_ROWS)];
        Self { shown, more: rows.len() - shown.len() }
    }
}

impl Report {
    /// The report as a self-contained HTML page. Everything that comes from outside is escaped.
    /// With points `beside`, it has the curve of divergence against bits per weight.
    ///
    /// # Panics
    /// Never: the template is part of the program and tested with it.
    pub fn to_html(&self, beside: &[Point]) -> String {
        let (d, f) = (self.divergence.as_ref(), self.fidelity.as_ref());
        let own: Vec<_> = Point::new(&self.name, self).into_iter().collect();
        let floor = d.and_then(|d| d.noise_floor).map(|floor| floor.kld_mean);
        let page = Page {
            r: self,
            d,
            f,
            breakdown: Breakdown::new(self),
            findings: finding::folded(&self.findings),
            warnings: finding::folded(&self.warnings),
            worst: Rows::new(f.map_or(&[], |f| &f.worst)),
            files: Rows::new(
                self.integrity
                    .as_ref()
                    .map_or(&[], |integrity| &integrity.files),
            ),
            curve: plot::curve(&own, beside, floor, Axis::BitsPerWeight),
            drift: d.map(|d| plot::drift(&d.layers)),
            histogram: d.map(plot::histogram),
            percentiles: d.map(plot::percentiles).unwrap_or_default(),
        };
        render("verify.html", &page)
    }
}

/// A page of the program's own templates.
pub(crate) fn render(template: &str, page: &impl Serialize) -> String {
    environment()
        .get_template(template)
        .and_then(|template| template.render(Serde(page)))
        .expect("the template fits the report")
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("short", plot::short);
    environment.add_filter("count", count);
    environment.add_filter("bytes", bytes);
    environment.add_filter("percent", |share: f64| format!("{:.2} %", 100.0 * share));
    environment.add_filter("plain", |value: f64| format!("{value:.6}"));
    environment.add_filter("signed", |value: f64| format!("{value:+.6}"));
    environment.add_filter("errors", |value: f64| format!("{value:+.1}"));
    environment.add_filter("fixed", |value: f64| format!("{value:.3}"));
    environment.add_filter("decibel", |value: f64| format!("{value:.2} dB"));
    for (name, template) in TEMPLATES {
        environment
            .add_template(name, template)
            .expect("the template is sound");
    }
    environment
}
