//! `export`: a model in a form that other engines read.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;
use shardwright_convert::{ExportOptions, Exported, ExportedFile, Requantized, export};
use shardwright_format::manifest::Ignored;
use shardwright_format::shown::shown;
use shardwright_verify::{Monitor, integrity};

use crate::args::{DtypeArg, ExportArgs, ExportForm, ThreadArgs};
use crate::bytes;
use crate::failure::Failure;
use crate::inputs;
use crate::output::{Output, Table};

/// What `export` prints.
#[derive(Serialize)]
struct Report {
    /// The directory that was made.
    checkpoint: String,
    bytes: u64,
    files: Vec<ExportedFile>,
    /// Tensors of the model, or of its checkpoint, that the export is without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<Ignored>,
    /// How the checkpoint held tensors that are plain floats here.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    unquantized: BTreeSet<String>,
    /// What the engine computes otherwise than the model says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<String>,
    /// What was stored anew, and what that cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    requantized: Option<Requantized>,
}

/// Runs the command.
///
/// # Errors
/// A model that is refused, a damaged bundle, an output that exists or cannot be written.
pub fn run(args: &ExportArgs, output: Output) -> Result<(), Failure> {
    check_meant(args)?;
    let model = inputs::model(&args.model, &args.arch)?;
    if model.bundle().is_some() {
        check_sound(args)?;
    }
    let (dtype, requantize) = (args.dtype.unwrap_or(DtypeArg::F32).into(), args.requantize);
    let options = ExportOptions { dtype, requantize, ..ExportOptions::default() };
    let Exported { files, unquantized, left_out, differences, requantized } =
        export(&model, &args.out, args.to.into(), &options)?;
    let bytes = files.iter().map(|file| file.size).sum();
    let checkpoint = args.out.display().to_string();
    let report =
        Report { checkpoint, bytes, files, left_out, unquantized, differences, requantized };
    output.report(&report, &text(&report))
}

/// Refuses options that the form has no use for.
fn check_meant(args: &ExportArgs) -> Result<(), Failure> {
    let typed = matches!(args.to, ExportForm::Hf | ExportForm::Mlx);
    let unmeant = match args {
        ExportArgs { dtype: Some(_), .. } if !typed => "--dtype",
        ExportArgs { requantize: true, to: ExportForm::Hf | ExportForm::FlashMoe, .. } => {
            "--requantize"
        }
        _ => return Ok(()),
    };
    let form = args.to.name();
    let message = format!("{unmeant} has no meaning with --to {form}");
    Err(Failure::new(message).help("leave it out"))
}

/// Refuses damaged bytes: what leaves here carries no hash that could tell them apart later.
fn check_sound(args: &ExportArgs) -> Result<(), Failure> {
    let found = integrity(&args.model, ThreadArgs::default().count(), &Monitor::silent())?;
    let Some(first) = found.findings.first() else { return Ok(()) };
    let help = format!("`shardwright verify {}` lists every finding", args.model.display());
    Err(Failure::new(format!("the bundle is damaged: {first}")).help(help))
}

/// What was stored anew, a line for each role.
fn roles(anew: &Requantized) -> Table {
    let mut table = Table::new(&["role", "stored", ">tensors", ">weights", ">relative error"]);
    for role in &anew.roles {
        let stored: Vec<_> = role.stored.iter().map(String::as_str).collect();
        let error = format!("{:.4}", role.relative_rmse);
        let [tensors, weights] = [role.tensors, role.weights].map(bytes::count);
        table.row([role.role.to_string(), stored.join(", "), tensors, weights, error]);
    }
    table
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["file", ">bytes", "BLAKE3"]);
    for file in &report.files {
        let blake3 = String::from(file.blake3);
        table.row([file.path.clone(), file.size.to_string(), blake3]);
    }
    let mut out = format!("{}: {}\n\n{table}", report.checkpoint, bytes::disk(report.bytes));
    let lines = Ignored::lines(&report.left_out);
    out.extend((!lines.is_empty()).then_some("\n"));
    out.extend(
        lines
            .iter()
            .map(|line| format!("left out: {}\n", shown(line))),
    );
    if let Some(anew) = &report.requantized {
        let _ = write!(
            out,
            "\nrequantized: {} tensors, {} weights: relative error {:.4} in all, {:.4} in the worst, {}\n\n{}\n\
             The error is that of values beside the model's; `verify {} --against ORIGINAL --text TEXT` says what \
             it does to predictions.\n",
            anew.tensors,
            bytes::count(anew.weights),
            anew.relative_rmse,
            anew.worst_relative_rmse,
            anew.worst,
            roles(anew),
            report.checkpoint
        );
    }
    out.extend((!report.differences.is_empty()).then_some("\n"));
    out.extend(
        report
            .differences
            .iter()
            .map(|line| format!("note: {line}\n")),
    );
    if !report.unquantized.is_empty() {
        let schemes: Vec<_> = report.unquantized.iter().map(String::as_str).collect();
        let schemes = schemes.join(", ");
        let _ = write!(
            out,
            "\nplain floats, where the original held {schemes}: config.json says nothing of it any \
             more\n"
        );
    }
    out
}
