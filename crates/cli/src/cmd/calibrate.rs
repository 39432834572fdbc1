//! `calibrate`: what a text shows of a model's inputs, kept for later conversions.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use shardwright_convert::calibrate::{Keep, save_statistics};
use shardwright_format::report::LayerCoverage;

use crate::args::CalibrateArgs;
use crate::bytes;
use crate::calibration;
use crate::failure::Failure;
use crate::inputs;
use crate::output::{Output, Table};
use crate::process;
use crate::progress::{Count, Stage, duration};
use crate::signal;

/// What `calibrate` prints.
#[derive(Serialize)]
struct Report<'a> {
    statistics: String,
    bytes: u64,
    tokens: u64,
    window: u32,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    coverage: &'a [LayerCoverage],
}

/// Runs the command.
///
/// # Errors
/// A checkpoint or text that is refused, a file that cannot be written, a stop by the user.
pub fn run(args: &CalibrateArgs, output: Output) -> Result<(), Failure> {
    let cancel = signal::stop_flag()?;
    let started = Instant::now();
    if args.out.exists() {
        let out = args.out.display();
        return Err(Failure::new(format!(
            "{out}: already exists; remove it or choose another name"
        )));
    }
    inputs::check_parent(&args.out)?;
    let source = Arc::new(inputs::model(&args.checkpoint, &args.arch)?);
    let corpus = calibration::corpus(&source, &args.text, args.amount)?;
    let layers = corpus.original.spec().layers.len() as u64;
    let stage = Stage::new(output, "calibrating", Count::Of("layers"));
    let keep = if args.importance_only { Keep::Diagonal } else { Keep::Full };
    let show = |done: u32| stage.set(u64::from(done), layers);
    let threads = args.threads.count();
    let coverage = save_statistics(&args.out, &corpus, keep, threads, &cancel, &show);
    drop(stage);
    let coverage = coverage?;
    let report = Report {
        statistics: args.out.display().to_string(),
        bytes: std::fs::metadata(&args.out).map_or(0, |data| data.len()),
        tokens: corpus.record.tokens,
        window: corpus.record.window,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
        coverage: &coverage,
    };
    output.report(&report, &text(&report))
}

fn text(report: &Report<'_>) -> String {
    let mut out = format!(
        "{}: {}, {} tokens in windows of {}\ntook {}\n",
        report.statistics,
        bytes::disk(report.bytes),
        report.tokens,
        report.window,
        duration(report.seconds),
    );
    if !report.coverage.is_empty() {
        let _ = write!(out, "\n{}", coverage(report.coverage));
    }
    out
}

/// How often the experts of each layer were picked.
pub fn coverage(layers: &[LayerCoverage]) -> Table {
    let mut table =
        Table::new(&["layer", ">least picks", ">median", ">most", ">experts", ">starved"]);
    for layer in layers {
        let mut picks = layer.tokens.clone();
        picks.sort_unstable();
        let at = |i: usize| picks.get(i).copied().unwrap_or_default().to_string();
        let count = picks.len();
        let starved = layer.starved.len().to_string();
        table.row([
            layer.layer.to_string(),
            at(0),
            at(count / 2),
            at(count.saturating_sub(1)),
            count.to_string(),
            starved,
        ]);
    }
    table
}
