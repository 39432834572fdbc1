//! `export`: a bundle's weights, dequantized, as a Hugging Face checkpoint.

use serde::Serialize;
use shardwright_convert::{ExportOptions, PlannedFile, to_hf};
use shardwright_format::Bundle;
use shardwright_format::manifest::Ignored;
use shardwright_verify::{Monitor, integrity};

use crate::args::{ExportArgs, ExportForm, ThreadArgs};
use crate::bytes;
use crate::failure::Failure;
use crate::output::{Output, Table};

/// What `export` prints.
#[derive(Serialize)]
struct Report {
    checkpoint: String,
    bytes: u64,
    files: Vec<PlannedFile>,
    /// Tensors that the bundle was made without, and the export is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<Ignored>,
}

/// Runs the command.
///
/// # Errors
/// A bundle that is refused or damaged, an output that exists or cannot be written.
pub fn run(args: &ExportArgs, output: Output) -> Result<(), Failure> {
    super::check_directory(&args.bundle)?;
    let bundle = Bundle::open(&args.bundle)?;
    check_sound(args)?;
    let options = ExportOptions { dtype: args.dtype.into(), ..ExportOptions::default() };
    let files = match args.to {
        ExportForm::Hf => to_hf(&bundle, &args.out, &options)?,
    };
    let bytes = files.iter().map(|file| file.size).sum();
    let left_out = bundle.manifest().checkpoint.ignored.clone();
    let report = Report { checkpoint: args.out.display().to_string(), bytes, files, left_out };
    output.report(&report, &text(&report))
}

/// Refuses damaged bytes: what leaves here carries no hash that could tell them apart later.
fn check_sound(args: &ExportArgs) -> Result<(), Failure> {
    let found = integrity(&args.bundle, ThreadArgs::default().count(), &Monitor::silent())?;
    let Some(first) = found.findings.first() else { return Ok(()) };
    let help = format!("`shardwright verify {}` lists every finding", args.bundle.display());
    Err(Failure::new(format!("the bundle is damaged: {first}")).help(help))
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["file", ">bytes"]);
    for file in &report.files {
        table.row([file.path.clone(), file.size.to_string()]);
    }
    let mut out = format!("{}: {}\n\n{table}", report.checkpoint, bytes::disk(report.bytes));
    let lines = Ignored::lines(&report.left_out);
    out.extend((!lines.is_empty()).then_some("\n"));
    out.extend(lines.iter().map(|line| format!("left out: {line}\n")));
    out
}
