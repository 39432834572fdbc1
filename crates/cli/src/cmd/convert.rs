//! `convert`: carries a plan out.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use shardwright_convert::{
    Buffers, ConversionReport, ConvertOptions, PartReport, Phase, Plan, Progress, convert,
    convert_part,
};
use shardwright_format::Part;

use super::plan;
use crate::args::ConvertArgs;
use crate::bytes;
use crate::calibration::Opened;
use crate::failure::Failure;
use crate::inputs;
use crate::output::{Output, Table};
use crate::part::PartArg;
use crate::planning::{self, Planned};
use crate::process;
use crate::progress::{Count, Stage, duration};
use crate::{say, signal, stop};

/// What `convert` prints.
#[derive(Serialize)]
struct Report<'a> {
    bundle: String,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    /// Where the source was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_kept: Option<String>,
    #[serde(flatten)]
    conversion: &'a ConversionReport,
}

/// Runs the command.
///
/// # Errors
/// What a plan or a conversion refuses, and a stop by the user.
pub fn run(args: &ConvertArgs, output: Output) -> Result<(), Failure> {
    let part = args.part.map(PartArg::part).transpose()?;
    if part.is_some() && args.plan.calibration.calibrate.is_some() {
        let message = "--part: a text goes through all layers, of which a part has some";
        let help = "`shardwright calibrate` observes it once; give its file with --statistics";
        return Err(Failure::new(message).help(help));
    }
    let cancel = signal::stop_flag()?;
    let started = Instant::now();
    let (path, arch) = (&args.plan.checkpoint, &args.plan.arch);
    let (model, keeper) = if args.keep {
        let (model, keeper) = inputs::kept_source(path, arch)?;
        (model, Some(keeper))
    } else {
        (inputs::source(path, arch)?, None)
    };
    let Planned { source, plan, calibration, .. } = planning::make(model, &args.plan, output)?;
    let no_checkpoint = || Failure::new("the source is no checkpoint");
    let (checkpoint, _) = source.checkpoint().ok_or_else(no_checkpoint)?;
    let options = ConvertOptions {
        threads: args.plan.threads.count(),
        resume: args.resume,
        cancel: &cancel,
        calibration: calibration.calibration(),
        buffers: Buffers::DEFAULT,
    };
    announce(&plan, &calibration, output);
    let converting = Stage::new(output, "converting", Count::Bytes);
    let complete = Cell::new(false);
    let show = |progress: Progress| match progress.phase {
        Phase::Convert => {
            converting.set(progress.source_bytes, progress.total_source_bytes);
            stop::after(progress.shards, &cancel);
        }
        Phase::Finish => {}
        Phase::Complete => complete.set(true),
    };
    if let Some(part) = part {
        let made = convert_part(&plan, checkpoint, &args.out, part, &options, &show);
        drop(converting);
        return report_part(&made?, part, (&args.out, complete.get(), started), output);
    }
    let conversion = convert(&plan, checkpoint, &args.out, &options, &show);
    drop(converting);
    let conversion = conversion?;
    let kept = keeper.map_or(Ok(None), |keeper| keeper.finish());
    let kept = kept.map_err(|e| e.help(format!("{} was made before that", args.out.display())))?;
    let report = Report {
        bundle: args.out.display().to_string(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
        source_kept: kept.map(|folder| folder.display().to_string()),
        conversion: &conversion,
    };
    let mut text = text(&report);
    if args.plan.target.is_given() {
        let _ = write!(text, "\n{}", plan::rules(&plan));
    }
    if complete.get() {
        let _ = writeln!(text, "\n{}", already(&report.bundle));
    }
    plan::notes(&plan, &mut text);
    output.report(&report, &text)
}

/// What `convert --part` prints.
#[derive(Serialize)]
struct OnePart<'a> {
    directory: String,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    #[serde(flatten)]
    made: &'a PartReport,
}

/// Says what a part has, and what becomes of it.
fn report_part(
    made: &PartReport,
    part: Part,
    (out, complete, started): (&Path, bool, Instant),
    output: Output,
) -> Result<(), Failure> {
    let report = OnePart {
        directory: part.beside(out).display().to_string(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
        made,
    };
    let (files, size) = (made.files.len(), bytes::disk(made.bytes));
    let mut text = format!("{}: part {part}, {files} files, {size}\n", report.directory);
    let _ = if complete {
        writeln!(text, "it was complete already; nothing was written")
    } else {
        writeln!(text, "took {}", duration(report.seconds))
    };
    let (out, count) = (out.display(), part.count());
    let _ = writeln!(text, "all parts: shardwright merge {out}.part-*-of-{count} -o {out}");
    output.report(&report, &text)
}

/// Says before a text goes through the model what that takes.
fn announce(plan: &Plan, calibration: &Opened, output: Output) {
    if output.quiet || !matches!(calibration, Opened::Text(_)) {
        return;
    }
    let peak = plan.cost.peak_memory;
    if output.json {
        say::json(&serde_json::json!({ "peak_memory": peak }));
    } else {
        say::line(&format!("converting takes at most {} of memory", bytes::memory(peak)));
    }
}

/// What was found of a bundle that was there, and what was not looked for.
fn already(bundle: &str) -> String {
    format!(
        "{bundle} is already complete; nothing was written. Names and sizes are those of this \
         conversion; `shardwright verify {bundle} --against CHECKPOINT` looks at every byte, here and there"
    )
}

fn text(report: &Report<'_>) -> String {
    let summary = &report.conversion.summary;
    let mut out = format!(
        "{}: {} ({} bytes), {:.3} bits per weight, recipe {}\n",
        report.bundle,
        bytes::disk(summary.bundle_bytes),
        summary.bundle_bytes,
        summary.bits_per_weight,
        report.conversion.recipe,
    );
    out.extend(
        report
            .conversion
            .excerpt
            .map(|excerpt| format!("{excerpt}\n")),
    );
    let memory = report
        .peak_memory_bytes
        .map_or_else(String::new, |peak| format!(", at most {} of memory", bytes::memory(peak)));
    let _ = writeln!(out, "took {}{memory}", duration(report.seconds));
    out.extend(
        report
            .source_kept
            .iter()
            .map(|folder| format!("the source was kept: {folder}\n")),
    );
    out.push('\n');
    out.extend(calibrated(report.conversion).map(|text| text + "\n"));
    let mut table = Table::new(&["role", "stored", ">size", ">relative RMSE"]);
    for role in &summary.roles {
        let stored = role.encodings.join(", ");
        let error = worst(report.conversion, role.role.name());
        table.row([role.role.to_string(), stored, bytes::disk(role.bytes), error]);
    }
    let _ = write!(out, "{table}");
    out
}

/// What a text showed of the conversion that it calibrated.
fn calibrated(report: &ConversionReport) -> Option<String> {
    let seen = report.calibration.as_ref()?;
    let worst = seen
        .layers
        .iter()
        .map(|layer| layer.relative_output_error)
        .fold(0.0, f64::max);
    let experts: usize = seen.coverage.iter().map(|layer| layer.tokens.len()).sum();
    let starved: usize = seen.coverage.iter().map(|layer| layer.starved.len()).sum();
    let compared = if seen.predicted_tokens < seen.tokens {
        format!("the first {}", seen.predicted_tokens)
    } else {
        "those".to_owned()
    };
    let mut out = format!(
        "calibrated on {} tokens; on {compared}, {:.5} nats per token of divergence, layers off by at most {:.1} %\n",
        seen.tokens,
        seen.divergence,
        100.0 * worst
    );
    if starved > 0 {
        let _ = writeln!(out, "{starved} of {experts} experts are starved: {}", seen.rule);
    }
    Some(out)
}

/// The range of errors over the tensors of a role.
fn worst(report: &ConversionReport, role: &str) -> String {
    let dense = report
        .tensors
        .iter()
        .filter(|t| t.role.name() == role)
        .map(|t| t.relative_rmse);
    let experts = report
        .experts
        .iter()
        .filter(|t| t.role.name() == role)
        .map(|t| t.relative_rmse);
    let (low, high) = dense
        .chain(experts)
        .fold((f64::MAX, 0.0), |(a, b): (f64, f64), e| (a.min(e), b.max(e)));
    match (low, high) {
        (_, 0.0) => "exact".to_owned(),
        _ if high - low < 5e-5 => format!("{high:.4}"),
        _ => format!("{low:.4} to {high:.4}"),
    }
}
