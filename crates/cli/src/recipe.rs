//! The recipe that a conversion's options ask for.

use std::path::Path;

use shardwright_convert::recipe::{EncodingSpec, Recipe};
use shardwright_format::ModelSpec;
use shardwright_format::io::{CONFIG_LIMIT, read_required};

use crate::args::{MtpArg, RecipeArgs};
use crate::failure::Failure;

/// Group size of `--bits` alone.
const DEFAULT_GROUP_SIZE: u16 = 64;
/// What a model with experts, and one without, is converted with unless the user says otherwise.
const DEFAULT_SPARSE: &str = "moe-q4";
const DEFAULT_DENSE: &str = "dense-q4";

/// The recipe that the options ask for, changed as they say.
///
/// # Errors
/// An unknown recipe, an unreadable or malformed file, an impossible encoding.
pub fn choose(args: &RecipeArgs, spec: &ModelSpec) -> Result<Recipe, Failure> {
    let sparse = spec.layers.iter().any(|layer| layer.num_experts() > 0);
    let mut recipe = match (&args.recipe, args.bits) {
        (Some(name), _) => named(name)?,
        (None, Some(bits)) => {
            let group = args.group_size.unwrap_or(DEFAULT_GROUP_SIZE);
            let wanted = EncodingSpec::affine(bits, group, None);
            Recipe::uniform(wanted.map_err(|e| Failure::new(e.to_string()))?, sparse)
        }
        (None, None) => Recipe::builtin(if sparse { DEFAULT_SPARSE } else { DEFAULT_DENSE })?,
    };
    if let Some(dtype) = args.scale_dtype {
        recipe.scale_dtype = Some(dtype.into());
    }
    if !args.set.is_empty() {
        // A rule whose tensors are all taken by --set has nothing left to match, and that is no
        // mistake of the recipe's.
        recipe
            .rules
            .iter_mut()
            .for_each(|rule| rule.optional = true);
    }
    recipe = recipe.with_overrides(&args.set)?;
    if args.mtp == MtpArg::Keep {
        recipe = recipe.with_prediction(!args.set.is_empty())?;
    }
    if let Some(method) = args.method {
        recipe = recipe.with_method(method.into());
    }
    Ok(match args.zeros {
        Some(zeros) => recipe.with_zeros(zeros.into()),
        None => recipe,
    })
}

/// A built-in recipe, or a file where the text looks like one.
fn named(name: &str) -> Result<Recipe, Failure> {
    let path = Path::new(name);
    if path.components().count() < 2 && path.extension().is_none() && !path.is_file() {
        let unknown = |e| Failure::from(e).help("`shardwright recipes` says what each is for");
        return Recipe::builtin(name).map_err(unknown);
    }
    let json = read_required(path, CONFIG_LIMIT)?;
    let json = String::from_utf8(json).map_err(|e| Failure::new(format!("{name}: {e}")))?;
    Ok(Recipe::parse(name, &json)?)
}
