//! `merge`: puts the parts of a conversion together.

use serde::Serialize;
use shardwright_convert::{MergeOptions, merge};

use crate::args::MergeArgs;
use crate::bytes;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Count, Stage};
use crate::signal;

/// What `merge` prints.
#[derive(Serialize)]
struct Report {
    bundle: String,
    parts: usize,
    linked_files: usize,
    copied_files: usize,
    bundle_bytes: u64,
    bits_per_weight: f64,
}

/// Runs the command.
///
/// # Errors
/// Parts that do not make a bundle, an output that exists, a stop by the user.
pub fn run(args: &MergeArgs, output: Output) -> Result<(), Failure> {
    let cancel = signal::stop_flag()?;
    let options = MergeOptions { threads: args.threads.count(), cancel: &cancel };
    let stage = Stage::new(output, "checking", Count::Bytes);
    let merged = merge(&args.parts, &args.out, &options, &|done, total| stage.set(done, total));
    drop(stage);
    let merged = merged?;
    let summary = &merged.report.summary;
    let report = Report {
        bundle: args.out.display().to_string(),
        parts: merged.parts,
        linked_files: merged.linked,
        copied_files: merged.copied,
        bundle_bytes: summary.bundle_bytes,
        bits_per_weight: summary.bits_per_weight,
    };
    output.report(&report, &text(&report))
}

fn text(report: &Report) -> String {
    let Report { bundle, parts, linked_files, copied_files, bundle_bytes, bits_per_weight } =
        report;
    let size = bytes::disk(*bundle_bytes);
    format!(
        "{bundle}: {size} ({bundle_bytes} bytes), {bits_per_weight:.3} bits per weight, of {parts} parts\n\
         {linked_files} files linked, {copied_files} copied\n"
    )
}
