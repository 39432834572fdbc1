//! A recipe for a total: `--target-bpw`, `--target-size`.

use std::path::Path;

use shardwright_convert::allocate::{BitAllocation, Palette, SizeTarget};
use shardwright_convert::calibrate::Corpus;
use shardwright_convert::engine::Limits;
use shardwright_convert::{PlanOptions, Recipe};
use shardwright_format::FormatError;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;

use crate::args::{EncodingsArg, ExpertsArg, TargetArgs};
use crate::failure::Failure;
use crate::inputs;
use crate::output::Output;
use crate::progress::{Count, Stage};
use crate::signal;

/// The total that the options ask for.
pub fn wanted(args: &TargetArgs) -> Option<SizeTarget> {
    let bits = args.target_bpw.map(SizeTarget::BitsPerWeight);
    bits.or(args.target_size.map(SizeTarget::Bytes))
}

/// The recipe that fits `target` and costs least on the first windows of the text, and the bytes of memory that it
/// takes at most to find it.
///
/// # Errors
/// A target that nothing fits, what probing the model refuses, a stop by the user.
pub fn recipe(
    target: SizeTarget,
    args: &TargetArgs,
    (checkpoint, inventory): (&Checkpoint, &Inventory),
    corpus: &Corpus,
    limits: Option<&Limits>,
    options: &PlanOptions,
    output: Output,
) -> Result<(Recipe, u64), Failure> {
    if let Some(path) = &args.save_recipe {
        inputs::check_parent(path)?;
    }
    let cancel = signal::stop_flag()?;
    let windows = args.probe_tokens.div_ceil(corpus.window) * corpus.window;
    let palette = match (limits, args.encodings) {
        (Some(limits), _) => Palette::for_engine(limits.engine()),
        (None, EncodingsArg::Affine) => Palette::Affine,
        (None, EncodingsArg::All) => Palette::All { state_bits: args.state_bits },
    };
    let allocation = BitAllocation {
        original: &corpus.original,
        checkpoint,
        inventory,
        tokens: &corpus.tokens[..windows.min(corpus.tokens.len())],
        window: corpus.window,
        palette,
        alike: args.experts == ExpertsArg::Alike,
        limits,
        options,
        cancel: &cancel,
    };
    let layers = inventory.spec.layers.len() as u64;
    let stage = Stage::new(output, "probing", Count::Of("layers"));
    let found = allocation.recipe(target, &|done| stage.set(u64::from(done), layers));
    Ok((found?, allocation.peak_memory()?))
}

/// Writes a recipe to a file of its own.
///
/// # Errors
/// What the operating system refuses.
pub fn save(path: &Path, recipe: &Recipe) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(recipe).map_err(|e| Failure::new(e.to_string()))?;
    Ok(std::fs::write(path, json + "\n").map_err(|e| FormatError::io(path, e))?)
}
