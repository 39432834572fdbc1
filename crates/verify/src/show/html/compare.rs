//! The comparison as one page.

use serde::Serialize;

use crate::report::compare::{Delta, Difference, ReportComparison};
use crate::show::html::render;
use crate::show::plot::{self, Axis, Curve};

/// What the template sees.
#[derive(Serialize)]
struct Page<'a> {
    c: &'a ReportComparison,
    curve: Option<Curve>,
    judged: Vec<Judged<'a>>,
}

/// A difference in words.
#[derive(Serialize)]
struct Judged<'a> {
    difference: &'a Difference,
    kld_mean: Word,
    same_top: Word,
    ln_ppl_ratio: Word,
}

impl<'a> Judged<'a> {
    fn new(difference: &'a Difference) -> Self {
        Self {
            difference,
            kld_mean: Word::new(&difference.kld_mean, -1.0),
            same_top: Word::new(&difference.same_top, 1.0),
            ln_ppl_ratio: Word::new(&difference.ln_ppl_ratio, -1.0),
        }
    }
}

#[derive(Serialize)]
struct Word {
    text: &'static str,
    /// How it is coloured: `good`, `bad` or not at all.
    class: &'static str,
}

impl Word {
    /// `better` is the sign of an improvement.
    fn new(delta: &Delta, better: f64) -> Self {
        let text = delta.word(better);
        let class = match text {
            "better" => "good",
            "worse" => "bad",
            _ => "",
        };
        Self { text, class }
    }
}

impl ReportComparison {
    /// The comparison as a self-contained HTML page. Everything that comes from outside is escaped.
    pub fn to_html(&self) -> String {
        let floor = self.reports.iter().find_map(|r| r.figures?.noise_floor);
        let page = Page {
            c: self,
            curve: plot::curve(&self.points(), &self.beside, floor, Axis::BitsPerWeight),
            judged: self.differences.iter().map(Judged::new).collect(),
        };
        render("compare.html", &page)
    }
}
