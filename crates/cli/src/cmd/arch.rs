//! `arch`: the tables that say which tensor plays which role.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use shardwright_format::FormatError;
use shardwright_format::arch::{Arch, Draft};
use shardwright_verify::{GOLDEN_LIMIT, GoldenCheck, HiddenDifference, check_golden};

use crate::args::{ArchCheckArgs, ArchCommand, ArchCommandArgs};
use crate::failure::{FOUND, Failure, Outcome};
use crate::inputs;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct Row {
    name: &'static str,
    aliases: Vec<String>,
    mechanisms: Vec<String>,
}

/// What `arch draft` prints about a table that it wrote.
#[derive(Serialize)]
struct Drafted<'a> {
    file: String,
    nearest: &'a str,
    uncertain: &'a std::collections::BTreeMap<String, String>,
    /// Why the table, its marks aside, does not yet describe the checkpoint.
    misfit: Option<&'a str>,
}

/// Runs the command.
///
/// # Errors
/// A name that is no table's, a checkpoint that cannot be read, a file that exists.
pub fn run(args: &ArchCommandArgs, output: Output) -> Outcome {
    match &args.command {
        ArchCommand::List => list(output),
        ArchCommand::Show { name } => show(name, output),
        ArchCommand::Draft { checkpoint, out } => draft(checkpoint, out.as_deref(), output),
        ArchCommand::Check(args) => return check(args, output),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a model computes what another implementation did.
fn check(args: &ArchCheckArgs, output: Output) -> Outcome {
    let weights = inputs::model(&args.model, &args.arch)?;
    let found = check_golden(&weights, &args.against, args.threads.count())?;
    output.report(&found, &differences(&found))?;
    Ok(if found.agrees { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn differences(found: &GoldenCheck) -> String {
    let mut table = Table::new(&["after", ">difference"]);
    for HiddenDifference { layer, difference } in &found.hidden {
        let place = layer.map_or_else(|| "embedding".to_owned(), |layer| format!("layer {layer}"));
        table.row([place, format!("{difference:.1e}")]);
    }
    table.row(["logits".to_owned(), format!("{:.1e}", found.logits)]);
    let (same, tokens) = (found.same_top, found.tokens);
    let verdict = if found.agrees { "agrees" } else { "differs" };
    format!(
        "{table}\nsame top token: {same} of {tokens}\n\
         verdict: {verdict} (largest differences over the largest value; limit {GOLDEN_LIMIT:.0e})"
    )
}

fn list(output: Output) -> Result<(), Failure> {
    let mut table = Table::new(&["table", "also", "mechanisms"]);
    let mut rows = Vec::new();
    for name in Arch::builtin_names() {
        let Some(arch) = Arch::builtin(name) else { continue };
        let row = Row { name, aliases: arch.aliases().to_vec(), mechanisms: arch.mechanisms() };
        table.row([name.to_owned(), row.aliases.join(", "), row.mechanisms.join(", ")]);
        rows.push(row);
    }
    output.report(&rows, &table.to_string())
}

fn show(name: &str, output: Output) -> Result<(), Failure> {
    let Some(json) = Arch::builtin_json(name) else {
        let unknown = Failure::new(format!("there is no built-in table `{name}`"));
        return Err(unknown.help("`shardwright arch list` names them"));
    };
    output.report(&serde_json::from_str::<serde_json::Value>(json)?, json.trim_end())
}

fn draft(path: &Path, out: Option<&Path>, output: Output) -> Result<(), Failure> {
    inputs::check_checkpoint(path)?;
    let draft = Draft::new(&inputs::open_checkpoint(path)?)?;
    let Some(out) = out else {
        let json: serde_json::Value = serde_json::from_str(&draft.json)?;
        return output.report(&json, draft.json.trim_end());
    };
    inputs::check_parent(out)?;
    let created = std::fs::File::create_new(out);
    let written = created.and_then(|mut file| file.write_all(draft.json.as_bytes()));
    written.map_err(|e| FormatError::io(out, e))?;
    let drafted = Drafted {
        file: out.display().to_string(),
        nearest: draft.nearest,
        uncertain: &draft.uncertain,
        misfit: draft.misfit.as_deref(),
    };
    output.report(&drafted, &drafted.text(path))
}

impl Drafted<'_> {
    fn text(&self, checkpoint: &Path) -> String {
        let Self { file, nearest, uncertain, misfit } = self;
        let mut out =
            format!("{file}: drafted from {nearest}, {} rows uncertain\n", uncertain.len());
        if !uncertain.is_empty() {
            let mut table = Table::new(&["uncertain", "why"]);
            for (place, why) in *uncertain {
                table.row([place.clone(), why.clone()]);
            }
            let _ = write!(out, "\n{table}");
        }
        let _ = match misfit {
            Some(misfit) => writeln!(out, "\nit does not fit the checkpoint yet: {misfit}"),
            None => writeln!(out, "\nit accounts for every tensor of the checkpoint"),
        };
        let _ = write!(
            out,
            "see that each uncertain row is right, remove `_uncertain`, then:\n\
             shardwright plan {} --arch {file}",
            checkpoint.display()
        );
        out
    }
}
