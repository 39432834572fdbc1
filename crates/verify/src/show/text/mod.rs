//! The report for a terminal. The statistics are laid out as llama.cpp's, to be read side by side.

mod cache;
mod compare;
mod ladder;

use std::fmt::{self, Display, Formatter};

use shardwright_format::manifest::Ignored;
use shardwright_format::shown::shown;

use crate::check::divergence::{DP_FRACTIONS, Divergence};
use crate::check::fidelity::Fidelity;
use crate::check::finding::folded;
use crate::check::integrity::Integrity;
use crate::check::structure::Structure;
use crate::report::{Report, TextRecord, Verdict};

/// Tensors listed, farthest from their sources first.
const WORST: usize = 10;

/// What nobody can check of a model without hashes of its own.
const NO_RECORD: &str = "that these are the bytes its maker wrote: it keeps no record of them";

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        if let Some(fidelity) = &self.fidelity {
            writeln!(f, "\n{fidelity}")?;
        }
        if let Some(divergence) = &self.divergence {
            writeln!(f, "\n{divergence}")?;
        }
        if let Some(price) = &self.cache {
            write!(f, "\n{price}")?;
        }
        if !self.findings.is_empty() {
            writeln!(f, "\n====== Findings ======")?;
            folded(&self.findings)
                .iter()
                .try_for_each(|finding| writeln!(f, "{finding}"))?;
        }
        if !self.warnings.is_empty() {
            writeln!(f, "\n====== Warnings ======")?;
            folded(&self.warnings)
                .iter()
                .try_for_each(|warning| writeln!(f, "{warning}"))?;
        }
        writeln!(f)?;
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "note: {}", shown(note)))?;
        match (self.verdict, self.findings.len()) {
            (Verdict::Holds, _) => writeln!(f, "verdict: holds"),
            (Verdict::Found, 1) => writeln!(f, "verdict: 1 finding"),
            (Verdict::Found, count) => writeln!(f, "verdict: {count} findings"),
        }
    }
}

impl Report {
    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "====== {} ======", shown(&self.name))?;
        let mut line = |name: &str, value: String| line(f, name, &value);
        if let Some(model) = &self.model {
            let (layers, parameters) = (model.layers, count(model.parameters));
            line("model", format!("{}, {layers} layers, {parameters} weights", model.model_type))?;
        }
        if let Some(bundle) = &self.bundle {
            line("written by", bundle.generator.clone())?;
        }
        if let Some(bits) = self.bits_per_weight {
            line("bits per weight", format!("{bits:.4}"))?;
        }
        if let Some(integrity) = &self.integrity {
            if let Some(hash) = &integrity.manifest {
                line("manifest", hash.to_string())?;
            }
            line("integrity", integrity.to_string())?;
        }
        if let (Some(structure), Some(model)) = (&self.structure, &self.model) {
            let size = bytes(model.weight_bytes);
            line("form", format!("{}, {size} of weights", model.form))?;
            line("checked", structure.to_string())?;
            line("not checked", NO_RECORD.to_owned())?;
        }
        if let Some(text) = &self.text {
            line("text", text.to_string())?;
        }
        if let Some(calibration) = &self.calibration {
            line("calibration", calibration.to_string())?;
        }
        Ok(())
    }
}

/// What something is, under its name.
pub(crate) fn line(f: &mut Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "{name:<16}: {}", shown(value))
}

impl Display for TextRecord {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let size = bytes(self.bytes);
        write!(f, "{}, {size}, {} tokens, {}", self.name, self.tokens, self.blake3)?;
        match self.cache {
            Some(cache) => write!(
                f,
                "; candidates keep keys in {}, values in {}",
                cache.k.name(),
                cache.v.name()
            ),
            None => Ok(()),
        }
    }
}

impl Display for Integrity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (files, shards, read) = (self.files.len(), self.shards, bytes(self.bytes));
        let damaged = self.files.iter().filter(|file| !file.sound).count();
        write!(f, "{files} files, {shards} shards, {read} hashed, ")?;
        if damaged == 0 { f.write_str("all sound") } else { write!(f, "{damaged} damaged") }
    }
}

impl Display for Structure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (files, tensors, weights) = (self.files.len(), self.tensors, count(self.weights));
        write!(f, "headers of {files} files, shapes of {tensors} tensors, {weights} weights finite")
    }
}

impl Display for Fidelity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "====== Fidelity ======")?;
        let (tensors, weights, exact) = (self.tensors, count(self.weights), self.exact);
        writeln!(f, "{tensors} tensors compared, {weights} weights, {exact} tensors exact")?;
        if self.by_role {
            writeln!(f, "each with the original's tensor for the same use\n")?;
        } else {
            let (source, ignored) = (self.checkpoint_tensors, self.ignored.len());
            writeln!(f, "{source} tensors in the checkpoint, {ignored} left out")?;
            for line in Ignored::lines(&self.ignored) {
                writeln!(f, "  {}", shown(&line))?;
            }
            let hashed = if self.checkpoint_hashed { "hashed" } else { "not hashed, as asked" };
            writeln!(f, "checkpoint files {hashed}\n")?;
        }
        let head = ("tensors", "weights", "rel RMSE", "worst", "SQNR dB", "max error");
        writeln!(
            f,
            "{:<26} {:<14} {:>8} {:>9} {:>10} {:>10} {:>8} {:>10}",
            "role", "encoding", head.0, head.1, head.2, head.3, head.4, head.5
        )?;
        for r in &self.roles {
            writeln!(
                f,
                "{:<26} {:<14} {:>8} {:>9} {:>10.6} {:>10.6} {:>8} {:>10.6}",
                r.role.name(),
                r.encoding,
                r.tensors,
                count(r.weights),
                r.rmse,
                r.worst_rmse,
                r.sqnr_db
                    .map_or("exact".to_owned(), |db| format!("{db:.2}")),
                r.max_abs_error,
            )?;
        }
        writeln!(f, "\nfarthest from their sources:")?;
        for t in self
            .worst
            .iter()
            .filter(|t| t.sqnr_db.is_some())
            .take(WORST)
        {
            let (role, rmse) = (t.role.name(), t.worst_rmse);
            writeln!(f, "{:<26} {role:<26} {:<14} {rmse:>10.6}", t.worst_shard, t.encoding)?;
        }
        Ok(())
    }
}

impl Display for Divergence {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (tokens, windows, window, first) = (self.tokens, self.windows, self.window, self.first);
        writeln!(
            f,
            "{tokens} tokens in {windows} windows of {window}, scored from position {first}\n"
        )?;
        writeln!(f, "====== Drift of the residual stream ======")?;
        writeln!(f, "{:<10} {:>12} {:>12} {:>12}", "after", "rel RMSE", "increase", "cosine")?;
        for l in &self.layers {
            let name = l
                .layer
                .map_or("embedding".to_owned(), |layer| format!("layer {layer}"));
            writeln!(f, "{name:<10} {:>12.8} {:>12.8} {:>12.8}", l.rmse, l.increase, l.cosine)?;
        }
        self.perplexity(f)?;
        self.kld(f)?;
        if let Some(floor) = &self.noise_floor {
            let (mean, error, tokens) = (floor.kld_mean, floor.kld_mean_se, floor.tokens);
            let how = "the original with hidden states in bf16";
            writeln!(f, "Floor   KLD: {mean:10.6} ± {error:10.6} ({how}, {tokens} tokens)")?;
        }
        self.probabilities(f)
    }
}

impl Divergence {
    fn perplexity(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n====== Perplexity statistics ======")?;
        let mut line = |name: &str, value: f64, error: f64| {
            writeln!(f, "{name:<30}: {value:10.6} ± {error:10.6}")
        };
        line("Mean PPL(Q)", self.ppl, self.ppl_se)?;
        line("Mean PPL(base)", self.ppl_original, self.ppl_original_se)?;
        let correlation = 100.0 * self.ln_ppl_correlation.unwrap_or(f64::NAN);
        writeln!(f, "{:<30}: {correlation:6.2}%", "Cor(ln(PPL(Q)), ln(PPL(base)))")?;
        let mut line = |name: &str, value: f64, error: f64| {
            writeln!(f, "{name:<30}: {value:10.6} ± {error:10.6}")
        };
        line("Mean ln(PPL(Q)/PPL(base))", self.ln_ppl_ratio, self.ln_ppl_ratio_se)?;
        line("Mean PPL(Q)/PPL(base)", self.ppl_ratio, self.ppl_ratio_se)?;
        line("Mean PPL(Q)-PPL(base)", self.ppl_difference, self.ppl_difference_se)
    }

    fn kld(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n====== KL divergence statistics ======")?;
        writeln!(f, "Mean    KLD: {:10.6} ± {:10.6}", self.kld_mean, self.kld_mean_se)?;
        if let Some(se) = self.kld_mean_se_by_window {
            writeln!(
                f,
                "Mean    KLD: {:10.6} ± {se:10.6} (windows as independent)",
                self.kld_mean
            )?;
        }
        for (name, value) in [
            ("Maximum", self.kld_max),
            ("99.9%", self.kld_p999),
            ("99.0%", self.kld_p99),
            ("95.0%", self.kld_p95),
            ("90.0%", self.kld_p90),
            ("Median", self.kld_median),
            ("10.0%", self.kld_p10),
            (" 5.0%", self.kld_p05),
            (" 1.0%", self.kld_p01),
            (" 0.1%", self.kld_p001),
            ("Minimum", self.kld_min),
        ] {
            writeln!(f, "{name:<7} KLD: {value:10.6}")?;
        }
        Ok(())
    }

    fn probabilities(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n====== Token probability statistics ======")?;
        let (mean, error) = (100.0 * self.dp_mean, 100.0 * self.dp_mean_se);
        writeln!(f, "Mean    Δp: {mean:6.3} ± {error:5.3} %")?;
        for (fraction, change) in DP_FRACTIONS.iter().zip(&self.dp_percentiles) {
            let name = match 100.0 * fraction {
                100.0 => "Maximum".to_owned(),
                50.0 => "Median".to_owned(),
                0.0 => "Minimum".to_owned(),
                percent => format!("{percent:4.1}%"),
            };
            writeln!(f, "{name:<7} Δp: {:6.3}%", 100.0 * change)?;
        }
        let (rms, error) = (100.0 * self.dp_rms, 100.0 * self.dp_rms_se);
        writeln!(f, "RMS Δp    : {rms:6.3} ± {error:5.3} %")?;
        let (same, error) = (100.0 * self.same_top, 100.0 * self.same_top_se);
        write!(f, "Same top p: {same:6.3} ± {error:5.3} %")?;
        let (Some(overlap), Some(error)) = (self.top5_overlap, self.top5_overlap_se) else {
            return Ok(());
        };
        write!(f, "\nSame top 5: {:6.3} ± {:5.3} %", 100.0 * overlap, 100.0 * error)
    }
}

/// Large numbers with three digits: `1.23 M`.
pub(crate) fn count(value: u64) -> String {
    scaled(value, 1000.0, &["", " k", " M", " G", " T"])
}

/// Sizes with three digits: `1.23 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

fn scaled(value: u64, step: f64, units: &[&str]) -> String {
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= step;
        unit += 1;
    }
    let digits = match () {
        () if unit == 0 => 0,
        () if scaled < 9.995 => 2,
        () if scaled < 99.95 => 1,
        () => 0,
    };
    format!("{scaled:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_have_three_digits() {
        assert_eq!(
            [count(7), count(999), count(1000), count(41_250_000)],
            ["7", "999", "1.00 k", "41.2 M"]
        );
        assert_eq!(
            [bytes(512), bytes(1024), bytes(1_048_576 * 100)],
            ["512 B", "1.00 KiB", "100 MiB"]
        );
    }
}
