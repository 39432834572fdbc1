//! `recipes`: the recipes that are part of the program.

use serde::Serialize;
use shardwright_convert::recipe::Recipe;

use crate::args::RecipesArgs;
use crate::failure::Failure;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct Row {
    name: String,
    description: String,
}

/// Runs the command.
///
/// # Errors
/// A name that is no recipe's.
pub fn run(args: &RecipesArgs, output: Output) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        let recipe = Recipe::builtin(name)?;
        return output.report(&recipe, &serde_json::to_string_pretty(&recipe)?);
    }
    let mut rows = Vec::new();
    let mut table = Table::new(&["recipe", "for"]);
    for name in Recipe::builtin_names() {
        let Recipe { name, description, .. } = Recipe::builtin(name)?;
        table.row([name.clone(), description.clone()]);
        rows.push(Row { name, description });
    }
    output.report(&rows, &table.to_string())
}
