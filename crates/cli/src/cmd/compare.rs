//! `compare`: reports of `verify` side by side, as text, JSON and a page.

use shardwright_verify::{Named, ReportComparison};

use crate::args::CompareArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::page::{points, write_page};

/// Runs the command.
///
/// # Errors
/// Files that are no reports, and a page that cannot be written.
pub fn run(args: &CompareArgs, output: Output) -> Result<(), Failure> {
    let reports = Named::read(&args.reports)?;
    let comparison = ReportComparison::new(&reports, points(&args.beside)?);
    if let Some(path) = &args.html {
        write_page(path, &comparison.to_html())?;
    }
    output.report(&comparison, &comparison.to_string())
}
