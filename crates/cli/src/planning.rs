//! The plan that a conversion's options ask for.

use std::sync::Arc;

use shardwright_convert::engine::Limits;
use shardwright_convert::{ExpectedTime, Plan, PlanOptions};
use shardwright_format::arch::Inventory;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role};
use shardwright_runtime::options::TokenizerMemory;

use crate::args::{MtpArg, PlanArgs};
use crate::calibration::{self, Opened};
use crate::failure::Failure;
use crate::output::Output;
use crate::{process, recipe, target};

/// A model and what would become of it.
pub struct Planned {
    /// The checkpoint.
    pub source: Arc<Weights>,
    pub plan: Plan,
    pub calibration: Opened,
    /// What a program takes with the tokenizer, if there is one that can be read.
    pub tokenizer: Option<TokenizerMemory>,
}

impl Planned {
    /// How long carrying it out takes, by a short measurement of this machine.
    ///
    /// # Errors
    /// Threads and reads that the operating system refuses.
    pub fn expected_time(&self, threads: usize) -> Result<Option<ExpectedTime>, Failure> {
        let Some((checkpoint, _)) = self.source.checkpoint() else { return Ok(None) };
        Ok(Some(shardwright_convert::expected_time(&self.plan, checkpoint, threads)?))
    }
}

/// Refuses to keep layers that predict further tokens of a model that has none.
fn check_predicts(inventory: &Inventory) -> Result<(), Failure> {
    let mut units = inventory.units.keys().chain(inventory.extras.keys());
    if units.any(|unit| unit.extra_role() == Some(Role::Mtp)) {
        return Ok(());
    }
    let none =
        "this model has no layer that predicts further tokens, which `--mtp keep` would keep";
    Err(Failure::new(none).help("leave the option out"))
}

/// Counts what the process has taken so far: a conversion begins with the same. The vocabulary of a GGUF file or of
/// another library may take more while a tokenizer is made of it than all that follows.
fn count_planning(plan: &mut Plan) {
    let taken = process::peak_memory().unwrap_or_default();
    // Pages differ from run to run.
    let again = (taken + taken / 32).next_multiple_of(1 << 20);
    plan.cost.peak_memory = plan.cost.peak_memory.max(again);
}

/// Makes the plan that the options ask for of a model.
///
/// # Errors
/// A checkpoint or recipe that is refused.
pub fn make(mut weights: Weights, args: &PlanArgs, output: Output) -> Result<Planned, Failure> {
    if let Some(layers) = &args.layers {
        weights = weights.excerpt(layers.clone())?;
    }
    let source = Arc::new(weights);
    let calibration = calibration::open(&source, &args.calibration)?;
    let no_checkpoint = || FormatError::file(&args.checkpoint, "is no checkpoint");
    let (checkpoint, inventory) = source.checkpoint().ok_or_else(no_checkpoint)?;
    if args.recipe.mtp == MtpArg::Keep && args.layers.is_none() {
        check_predicts(inventory)?;
    }
    let mut options = PlanOptions {
        alignment: args.align,
        threads: args.threads.count(),
        calibration: calibration.record(),
        statistics: calibration.known(),
        before: calibration.reading_bytes(),
        reading: checkpoint.reading_memory(),
    };
    let limits = args
        .engine
        .map(|engine| Limits::new(engine.into(), checkpoint.config()));
    let limits = limits.transpose()?;
    let recipe = match (target::wanted(&args.target), &calibration) {
        (Some(target), Opened::Text(corpus)) => {
            let model = (checkpoint, inventory);
            let limits = limits.as_ref();
            let (recipe, peak) =
                target::recipe(target, &args.target, model, corpus, limits, &options, output)?;
            options.before = options.before.max(peak);
            recipe
        }
        _ => recipe::choose(&args.recipe, &inventory.spec)?,
    };
    let (recipe, restricted) = match &limits {
        Some(limits) => limits.restrict(recipe),
        None => (recipe, Vec::new()),
    };
    if let Some(path) = &args.target.save_recipe {
        target::save(path, &recipe)?;
    }
    let mut plan = Plan::new(checkpoint, inventory, &recipe, &options)?;
    let tokenizer = plan.note_vocabulary(checkpoint)?;
    count_planning(&mut plan);
    if let Some(engine) = args.engine {
        let name = engine.name();
        plan.notes
            .extend(restricted.iter().map(|line| format!("for {name}: {line}")));
    }
    Ok(Planned { source, plan, calibration, tokenizer })
}
