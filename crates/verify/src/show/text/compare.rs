//! The comparison for a terminal.

use std::fmt::{self, Display, Formatter};

use crate::report::compare::{Delta, ReportComparison, Row};
use crate::show::text::bytes;

impl Display for ReportComparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = self.reports.iter().map(|r| r.name.chars().count());
        let width = names.max().unwrap_or(0).max(6);
        self.sizes(f, width)?;
        self.figures(f, width)?;
        self.differences(f, width)?;
        self.drift(f)?;
        if !self.warnings.is_empty() {
            writeln!(f)?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

impl ReportComparison {
    fn sizes(&self, f: &mut Formatter<'_>, width: usize) -> fmt::Result {
        writeln!(f, "====== Bundles ======")?;
        let head = ("report", "bits/weight", "size", "model", "bundle");
        writeln!(
            f,
            "{:<width$}  {:>11}  {:>9}  {:<12}  {}",
            head.0, head.1, head.2, head.3, head.4
        )?;
        for r in &self.reports {
            let bits = r
                .bits_per_weight
                .map_or("-".to_owned(), |b| format!("{b:.4}"));
            let size = r.bytes.map_or("-".to_owned(), bytes);
            let model = r.model_type.as_deref().unwrap_or("-");
            writeln!(f, "{:<width$}  {bits:>11}  {size:>9}  {model:<12}  {}", r.name, r.bundle)?;
        }
        Ok(())
    }

    fn figures(&self, f: &mut Formatter<'_>, width: usize) -> fmt::Result {
        writeln!(f, "\n====== Divergence ======")?;
        let head = ("report", "mean KLD ± error", "median", "99 %", "same top", "PPL ± error");
        writeln!(
            f,
            "{:<width$}  {:>19}  {:>9}  {:>9}  {:>15}  {:>19}  {:>12}  {:>9}",
            head.0, head.1, head.2, head.3, head.4, head.5, "PPL original", "floor"
        )?;
        self.reports.iter().try_for_each(|r| figures(f, r, width))
    }

    fn differences(&self, f: &mut Formatter<'_>, width: usize) -> fmt::Result {
        let Some(first) = self
            .reports
            .first()
            .filter(|_| !self.differences.is_empty())
        else {
            return Ok(());
        };
        writeln!(f, "\n====== Differences from {} ======", first.name)?;
        let mut line = |name: &str, what: &str, delta: &Delta, better: f64, ratio: Option<f64>| {
            let Delta { difference, se, sigmas } = *delta;
            let sigmas = sigmas.map_or("-".to_owned(), |s| format!("{s:+.1}"));
            let ratio = ratio.map_or(String::new(), |r| format!(", {r:.3} times"));
            let word = delta.word(better);
            writeln!(
                f,
                "{name:<width$}  {what:<22} {difference:+10.6} ± {se:8.6}  {sigmas:>7} errors  {word}{ratio}"
            )
        };
        for d in &self.differences {
            line(&d.name, "mean KLD", &d.kld_mean, -1.0, d.kld_ratio)?;
            line("", "same top token", &d.same_top, 1.0, None)?;
            line("", "ln PPL(Q)/PPL(base)", &d.ln_ppl_ratio, -1.0, None)?;
        }
        writeln!(
            f,
            "errors are those of independent figures: for one text they are smaller, so what is told is told"
        )
    }

    fn drift(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.drift.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n====== Drift of the residual stream, relative RMSE ======")?;
        write!(f, "{:<10}", "after")?;
        let width = |name: &str| name.chars().count().max(10);
        for r in &self.reports {
            write!(f, "  {:>1$}", r.name, width(&r.name))?;
        }
        writeln!(f)?;
        for row in &self.drift {
            let name = row
                .layer
                .map_or("embedding".to_owned(), |l| format!("layer {l}"));
            write!(f, "{name:<10}")?;
            for (r, rmse) in self.reports.iter().zip(&row.rmse) {
                let rmse = rmse.map_or("-".to_owned(), |v| format!("{v:.6}"));
                write!(f, "  {rmse:>0$}", width(&r.name))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn figures(f: &mut Formatter<'_>, row: &Row, width: usize) -> fmt::Result {
    let Some(d) = row.figures else { return writeln!(f, "{:<width$}  -", row.name) };
    let floor = d
        .noise_floor
        .map_or("-".to_owned(), |floor| format!("{floor:.6}"));
    writeln!(
        f,
        "{:<width$}  {:>9.6} ± {:<7.6}  {:>8.6}  {:>9.6}  {:>6.2} ± {:<4.2} %  {:>9.4} ± {:<7.4}  {:>12.4}  {floor:>9}",
        row.name,
        d.kld_mean,
        d.kld_mean_se,
        d.kld_median,
        d.kld_p99,
        100.0 * d.same_top,
        100.0 * d.same_top_se,
        d.ppl,
        d.ppl_se,
        d.ppl_original,
    )
}
