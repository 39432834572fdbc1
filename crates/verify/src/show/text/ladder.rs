//! The ladder for a terminal. One candidate is its own report.

use std::fmt::{self, Display, Formatter};

use shardwright_format::shown::shown;

use crate::check::divergence::Divergence;
use crate::check::finding::folded;
use crate::report::ladder::Ladder;
use crate::report::{Report, Verdict};
use crate::show::text::cache::of_ladder;
use crate::show::text::{bytes, count, line};

impl Display for Ladder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let [report] = &self.candidates[..] {
            return report.fmt(f);
        }
        let names = self.candidates.iter().map(|r| r.name.chars().count());
        let width = names.max().unwrap_or(0).max(9);
        self.head(f)?;
        self.rows(f, width)?;
        of_ladder(f, self)?;
        let errors = self.errors().into_iter();
        let errors: Vec<_> = errors
            .map(|(role, row)| (role.name().to_owned(), row))
            .collect();
        self.table(f, "Relative RMSE of the weights", &format!("{:<26}", "role"), &errors)?;
        self.table(
            f,
            "Drift of the residual stream, relative RMSE",
            &format!("{:<10}", "after"),
            &self.drift(),
        )?;
        self.candidates
            .iter()
            .try_for_each(|report| judgement(f, report))?;
        let found = |report: &&Report| report.verdict == Verdict::Found;
        let (found, all) = (self.candidates.iter().filter(found).count(), self.candidates.len());
        match found {
            0 => writeln!(f, "\nverdict: all {all} hold"),
            _ => writeln!(f, "\nverdict: {found} of {all} with findings"),
        }
    }
}

impl Ladder {
    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "====== {} candidates ======", self.candidates.len())?;
        if let Some(original) = &self.original {
            let model = &original.model;
            let (form, kind, layers) = (model.form, &model.model_type, model.layers);
            let (weights, size) = (count(model.parameters), bytes(model.weight_bytes));
            let bits = original.bits_per_weight.unwrap_or(f64::NAN);
            let what = format!(
                "{}, {form}, {kind}, {layers} layers, {weights} weights, {size}, {bits:.4} bits per weight",
                original.name
            );
            line(f, "original", &what)?;
        }
        if let Some(text) = &self.text {
            line(f, "text", &text.to_string())?;
        }
        let mut measured = self.candidates.iter().filter_map(|r| r.divergence.as_ref());
        let Some(d) = measured.next() else { return Ok(()) };
        let (tokens, windows, window) = (d.tokens, d.windows, d.window);
        line(f, "predicted", &format!("{tokens} tokens in {windows} windows of {window}"))?;
        let (ppl, se) = (d.ppl_original, d.ppl_original_se);
        line(f, "perplexity", &format!("{ppl:.4} ± {se:.4}, the original's"))?;
        let Some(floor) = &d.noise_floor else { return Ok(()) };
        let (floor, tokens) = (floor.kld_mean, floor.tokens);
        let what =
            format!("{floor:.6}, the original with hidden states in bf16, over {tokens} tokens");
        line(f, "floor of KLD", &what)
    }

    /// One row per candidate. The error of the mean divergence takes windows as independent.
    fn rows(&self, f: &mut Formatter<'_>, width: usize) -> fmt::Result {
        let head = ["size", "bits/w", "PPL", "mean KLD ± error", "median", "99 %", "99.9 %"];
        let more = ["maximum", "same top", "top-5", "RMS Δp"];
        write!(
            f,
            "\n{:<width$}  {:>9} {:>8} {:>10} {:>21}",
            "candidate", head[0], head[1], head[2], head[3]
        )?;
        write!(f, " {:>9} {:>9} {:>9} {:>9}", head[4], head[5], head[6], more[0])?;
        writeln!(f, " {:>9} {:>9} {:>9}  verdict", more[1], more[2], more[3])?;
        for report in &self.candidates {
            let size = report
                .model
                .as_ref()
                .map_or("-".to_owned(), |m| bytes(m.weight_bytes));
            let bits = report
                .bits_per_weight
                .map_or("-".to_owned(), |b| format!("{b:.4}"));
            write!(f, "{:<width$}  {size:>9} {bits:>8} ", report.name)?;
            match &report.divergence {
                Some(d) => figures(f, d)?,
                None => write!(f, "{:>108}", "-")?,
            }
            let verdict = match (report.verdict, report.findings.len()) {
                (Verdict::Holds, _) => "holds".to_owned(),
                (Verdict::Found, 1) => "1 finding".to_owned(),
                (Verdict::Found, count) => format!("{count} findings"),
            };
            writeln!(f, "  {verdict}")?;
        }
        Ok(())
    }

    /// A row per name, a column per candidate.
    fn table(
        &self,
        f: &mut Formatter<'_>,
        title: &str,
        heading: &str,
        rows: &[(String, Vec<Option<f64>>)],
    ) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n====== {title} ======")?;
        let width = |report: &Report| report.name.chars().count().max(10);
        f.write_str(heading)?;
        let first = heading.len();
        for report in &self.candidates {
            write!(f, "  {:>1$}", report.name, width(report))?;
        }
        writeln!(f)?;
        for (name, row) in rows {
            write!(f, "{name:<first$}")?;
            for (report, value) in self.candidates.iter().zip(row) {
                let value = value.map_or("-".to_owned(), |v| format!("{v:.6}"));
                write!(f, "  {value:>0$}", width(report))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn figures(f: &mut Formatter<'_>, d: &Divergence) -> fmt::Result {
    let error = d
        .kld_mean_se_by_window
        .map_or("-".to_owned(), |se| format!("{se:.6}"));
    let kld = format!("{:.6} ± {error:>8}", d.kld_mean);
    write!(f, "{:>10.4} {kld:>21} {:>9.6} {:>9.6}", d.ppl, d.kld_median, d.kld_p99)?;
    write!(f, " {:>9.6} {:>9.6} {:>8.2}%", d.kld_p999, d.kld_max, 100.0 * d.same_top)?;
    let overlap = d.top5_overlap.map_or(f64::NAN, |overlap| 100.0 * overlap);
    write!(f, " {overlap:>8.2}% {:>8.3}%", 100.0 * d.dp_rms)
}

/// What was found of a candidate, and what a reader should know besides.
fn judgement(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    if report.findings.is_empty() && report.warnings.is_empty() && report.notes.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n====== {} ======", shown(&report.name))?;
    for finding in folded(&report.findings) {
        writeln!(f, "{finding}")?;
    }
    for warning in folded(&report.warnings) {
        writeln!(f, "warning: {warning}")?;
    }
    report
        .notes
        .iter()
        .try_for_each(|note| writeln!(f, "note: {}", shown(note)))
}
