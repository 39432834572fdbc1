//! The report as one page: everything inline, nothing fetched, no script.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::divergence::Divergence;
use crate::fidelity::{Fidelity, TensorFidelity};
use crate::integrity::FileCheck;
use crate::plot::{self, Chart, LogBar, RoleBar};
use crate::report::Report;
use crate::text::{bytes, count};

const TEMPLATE: &str = include_str!("report.html");

/// Rows of the longest tables; the page says how many more there are.
const MAX_ROWS: usize = 400;

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    r: &'a Report,
    d: Option<&'a Divergence>,
    f: Option<&'a Fidelity>,
    findings: Rows<'a, String>,
    worst: Rows<'a, TensorFidelity>,
    files: Rows<'a, FileCheck>,
    drift: Option<Chart>,
    histogram: Option<Chart>,
    percentiles: Vec<LogBar>,
    roles: Vec<RoleBar<'a>>,
}

/// The first rows of a table, and how many are left out.
#[derive(Serialize)]
struct Rows<'a, T> {
    shown: &'a [T],
    more: usize,
}

impl<'a, T> Rows<'a, T> {
    fn of(rows: &'a [T]) -> Self {
        let shown = &rows[..rows.len().min(MAX_ROWS)];
        Self { shown, more: rows.len() - shown.len() }
    }
}

impl Report {
    /// The report as a self-contained HTML page. Everything that comes from outside is escaped.
    ///
    /// # Panics
    /// Never: the template is part of the program and tested with it.
    pub fn to_html(&self) -> String {
        let (d, f) = (self.divergence.as_ref(), self.fidelity.as_ref());
        let findings: Vec<_> = self.findings.iter().map(ToString::to_string).collect();
        let page = Page {
            r: self,
            d,
            f,
            findings: Rows::of(&findings),
            worst: Rows::of(f.map_or(&[], |f| &f.worst)),
            files: Rows::of(&self.integrity.files),
            drift: d.map(|d| plot::drift(&d.layers)),
            histogram: d.map(plot::histogram),
            percentiles: d.map(plot::percentiles).unwrap_or_default(),
            roles: f.map(|f| plot::roles(&f.roles)).unwrap_or_default(),
        };
        environment()
            .render_named_str("report.html", TEMPLATE, Serde(&page))
            .expect("the template fits the report")
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("short", plot::short);
    environment.add_filter("count", count);
    environment.add_filter("bytes", bytes);
    environment.add_filter("percent", |share: f64| format!("{:.2} %", 100.0 * share));
    environment.add_filter("plain", |value: f64| format!("{value:.6}"));
    environment.add_filter("fixed", |value: f64| format!("{value:.3}"));
    environment.add_filter("decibel", |value: f64| format!("{value:.2} dB"));
    environment
}
