//! `pack` and `unpack`: a bundle as one compressed file, and back.

use std::path::Path;

use serde::Serialize;
use shardwright_format::pack::{PackError, PackOptions, PackSummary, pack, unpack};

use crate::args::{PackArgs, UnpackArgs};
use crate::bytes;
use crate::failure::Failure;
use crate::inputs;
use crate::output::Output;
use crate::process;
use crate::progress::{Count, Stage};
use crate::signal;

/// What both commands print.
#[derive(Serialize)]
struct Report {
    output: String,
    bundle_bytes: u64,
    packed_bytes: u64,
    /// Bytes of the bundle that an interrupted run had done.
    kept_bytes: u64,
    peak_memory_bytes: Option<u64>,
}

/// Runs `pack`.
///
/// # Errors
/// A bundle that is damaged, an output that exists, a stop by the user.
pub fn run(args: &PackArgs, output: Output) -> Result<(), Failure> {
    inputs::check_directory(&args.bundle)?;
    let (resume, threads) = (args.resume, args.threads.count());
    let work = |options: &PackOptions<'_>| pack(&args.bundle, &args.out, options);
    carry_out("packing", (resume, threads), &args.out, output, &work)
}

/// Runs `unpack`.
///
/// # Errors
/// A file that is damaged or not packed, an output that exists, a stop by the user.
pub fn run_unpack(args: &UnpackArgs, output: Output) -> Result<(), Failure> {
    let work = |options: &PackOptions<'_>| unpack(&args.packed, &args.out, options);
    carry_out("unpacking", (args.resume, 1), &args.out, output, &work)
}

fn carry_out(
    what: &str,
    (resume, threads): (bool, usize),
    out: &Path,
    output: Output,
    work: &dyn Fn(&PackOptions<'_>) -> Result<PackSummary, PackError>,
) -> Result<(), Failure> {
    let cancel = signal::stop_flag()?;
    let stage = Stage::new(output, what, Count::Bytes);
    let progress = |done, total| stage.set(done, total);
    let options = PackOptions { threads, resume, cancel: &cancel, progress: &progress };
    let done = work(&options).map_err(failure)?;
    drop(stage);
    let report = Report {
        output: out.display().to_string(),
        bundle_bytes: done.bundle_bytes,
        packed_bytes: done.packed_bytes,
        kept_bytes: done.kept_bytes,
        peak_memory_bytes: process::peak_memory(),
    };
    output.report(&report, &text(&report))
}

/// A stop by the user is no failure of the input.
fn failure(error: PackError) -> Failure {
    match error {
        PackError::Stopped { .. } => {
            Failure::interrupted(error.to_string()).help("`--resume` goes on from there")
        }
        other => other.into(),
    }
}

fn text(report: &Report) -> String {
    let share = 100.0 * report.packed_bytes as f64 / report.bundle_bytes as f64;
    let [packed, bundle] = [report.packed_bytes, report.bundle_bytes].map(bytes::disk);
    let kept = match report.kept_bytes {
        0 => String::new(),
        kept => format!("; {} were done before", bytes::disk(kept)),
    };
    format!("{}: {packed} packed ({share:.1} %), {bundle} unpacked{kept}\n", report.output)
}
