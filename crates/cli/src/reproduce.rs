//! Units of bundles made again: the one place that knows both who makes bundles and who judges them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use shardwright_convert::calibrate::SavedStatistics;
use shardwright_convert::{Plan, PlanOptions, Recipe, ReproduceOptions, reproduce as made_again};
use shardwright_format::arch::Inventory;
use shardwright_format::bundle::read_manifest;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::Manifest;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, GENERATOR, Unit};
use shardwright_verify::{Differing, Reproduction};

use crate::args::VerifyArgs;
use crate::failure::Failure;
use crate::inputs;
use crate::output::Output;
use crate::progress::{Count, Stage};

/// Makes `count` shards of the bundle at `path` again from the original.
///
/// # Errors
/// A bundle that cannot be made again here, and why; what a conversion refuses.
pub fn reproduce(
    path: &Path,
    count: usize,
    args: &VerifyArgs,
    cancel: &AtomicBool,
    output: Output,
) -> Result<Reproduction, Failure> {
    if !Bundle::is_bundle(path) {
        return Err(refusal(path, "expected the directory of a bundle"));
    }
    let manifest = read_manifest(path)?;
    let source = original(path, &manifest, args)?;
    let statistics = statistics(path, &manifest, &source, args)?;
    let no_checkpoint = || refusal(path, "expected an original that can be converted");
    let (checkpoint, inventory) = source.checkpoint().ok_or_else(no_checkpoint)?;
    let plan = plan(path, &manifest, (checkpoint, inventory))?;
    let (units, seed) = pick(&manifest, count, args.reproduce_seed);
    let stage = Stage::new(output, "converting again", Count::Of("shards"));
    let total = units.len() as u64;
    let options =
        ReproduceOptions { threads: args.threads.count(), statistics: statistics.as_ref(), cancel };
    let hashes =
        made_again(&plan, checkpoint, &units, &options, &|done| stage.set(done as u64, total))?;
    let differing = |(unit, expected): (&Unit, _)| {
        let shard = manifest.shards().find(|shard| shard.unit == *unit)?;
        let found = shard.extent.blake3;
        (found != expected).then_some(Differing { unit: *unit, expected, found })
    };
    let differing = units.iter().zip(hashes).filter_map(differing).collect();
    Ok(Reproduction { of: manifest.shard_count() as u64, units, seed, differing })
}

fn refusal(path: &Path, detail: &str) -> Failure {
    Failure::new(format!("--reproduce: {}: {detail}", path.display()))
}

/// The original, as much of it as the bundle has.
fn original(path: &Path, manifest: &Manifest, args: &VerifyArgs) -> Result<Weights, Failure> {
    if manifest.generator != GENERATOR {
        let detail = format!(
            "was made by {}, this is {GENERATOR}: only the same version makes the same bytes",
            manifest.generator
        );
        return Err(refusal(path, &detail));
    }
    let no_original = || refusal(path, "expected an original: --against");
    let original = args.against.as_ref().ok_or_else(no_original)?;
    let source = inputs::source(original, &args.arch)?;
    Ok(match manifest.checkpoint.excerpt {
        Some(excerpt) => source.excerpt(excerpt.first..excerpt.end)?,
        None => source,
    })
}

/// What codes were chosen by besides the weights.
fn statistics(
    path: &Path,
    manifest: &Manifest,
    source: &Weights,
    args: &VerifyArgs,
) -> Result<Option<SavedStatistics>, Failure> {
    let Some(calibration) = &manifest.calibration else { return Ok(None) };
    let Some(wanted) = calibration.statistics_blake3 else {
        let detail = "its codes depend on a text that went through the model as it was converted: \
                      convert all of it again with that text, and compare manifests";
        return Err(refusal(path, detail));
    };
    let Some(file) = &args.statistics else {
        let detail = format!("was converted with statistics of hash {wanted}: give the file");
        return Err(refusal(path, &detail).help("--statistics FILE"));
    };
    let found = SavedStatistics::read(file, source.spec())?;
    if found.record != *calibration {
        let detail =
            format!("was converted with statistics of hash {wanted}, this is another file");
        return Err(refusal(file, &detail));
    }
    Ok(Some(found))
}

/// The plan that the bundle's own recipe gives.
fn plan(
    path: &Path,
    manifest: &Manifest,
    (checkpoint, inventory): (&Checkpoint, &Inventory),
) -> Result<Plan, Failure> {
    let name = path.display().to_string();
    let recipe = Recipe::parse(&name, &manifest.recipe.to_string())?;
    let options = PlanOptions {
        alignment: manifest.alignment,
        calibration: manifest.calibration.clone(),
        ..PlanOptions::default()
    };
    Ok(Plan::new(checkpoint, inventory, &recipe, &options)?)
}

/// Units of the bundle, `count` of them picked by the seed, in the bundle's order.
fn pick(manifest: &Manifest, count: usize, seed: Option<u64>) -> (Vec<Unit>, Option<u64>) {
    let mut units: Vec<(usize, Unit)> = manifest
        .shards()
        .map(|shard| shard.unit)
        .enumerate()
        .collect();
    if count >= units.len() {
        return (units.into_iter().map(|(_, unit)| unit).collect(), None);
    }
    // Different each time unless asked for: nobody can know which shards will be looked at.
    // Of 48 bits, which any reader of JSON keeps.
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(()) >> 16);
    let mut state = seed;
    for at in 0..count {
        let left = (units.len() - at) as u64;
        units.swap(at, at + (next(&mut state) % left) as usize);
    }
    units.truncate(count);
    units.sort_by_key(|(at, _)| *at);
    (units.into_iter().map(|(_, unit)| unit).collect(), Some(seed))
}

/// The next of the `SplitMix64` sequence (Steele, Lea and Flood 2014).
const fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
