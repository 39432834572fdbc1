//! Bits where they count: a recipe for a total, from what each role of each layer costs.

mod carry;
mod memory;
pub mod probe;
mod rounding;
pub mod solve;
pub mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::model::LayerSpec;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};
use shardwright_quant::{Blocks, Float, Zeros};
use shardwright_runtime::thread_pool;

use crate::engine::{Engine, Limits};
use crate::error::{ConvertError, Result};
use crate::plan::{Plan, PlanOptions};
use crate::recipe::{EncodingSpec, Fallback, Match, Numbers, Recipe, Roles, Rule, TakesOver};
use probe::{Probing, Sensitivity};
use rounding::REFERENCE_BITS;
use solve::{EncodingCost, solve};
use usage::UsedAlike;

/// What the bundle may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SizeTarget {
    /// Bits per weight of all matrices together, scales included.
    BitsPerWeight(f64),
    /// Bytes of the whole bundle.
    Bytes(u64),
}

/// Encodings to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Palette {
    /// Affine codes alone: what MLX kernels run on.
    Affine,
    /// Blocks as GGUF files have them.
    Gguf,
    /// Trellis codes with states of this many bits, and affine codes above 4 bits.
    All {
        /// Bits of a state.
        state_bits: u8,
    },
}

/// Affine codes from which a recipe is made.
const AFFINE: [&str; 11] = [
    "q2g128", "q2g64", "q2g32", "q3g128", "q3g64", "q3g32", "q4g128", "q4g64", "q4g32", "q6g64",
    "q8g64",
];
/// Those of them that trellis codes do not replace.
const ABOVE_TRELLIS: [&str; 2] = ["q6g64", "q8g64"];

impl Palette {
    /// What a bundle for an engine is made of.
    pub const fn for_engine(engine: Engine) -> Self {
        match engine {
            Engine::Mlx | Engine::CompressedTensors | Engine::FlashMoe => Self::Affine,
            Engine::Gguf => Self::Gguf,
        }
    }

    /// Encodings to choose from.
    fn specs(self) -> Result<Vec<EncodingSpec>> {
        let names: Vec<String> = match self {
            Self::Affine => AFFINE.map(str::to_owned).to_vec(),
            Self::Gguf => Blocks::ALL.map(|blocks| blocks.name().to_owned()).to_vec(),
            Self::All { state_bits } => {
                let trellis = (2..=4).map(|bits| format!("t{bits}s{state_bits}"));
                trellis.chain(ABOVE_TRELLIS.map(str::to_owned)).collect()
            }
        };
        let parse = |name: &String| {
            let wanted = name.parse();
            wanted.map_err(|e| ConvertError::plan(format!("{name}: {e}")))
        };
        names.iter().map(parse).collect()
    }
}

/// A role of a layer, or several that share an encoding, what they cost, and how they may be stored.
struct Item {
    layer: Option<u32>,
    /// Of which experts; none for what is no expert's, and where all are stored alike.
    experts: Option<Vec<u32>>,
    /// Each with what it costs alone at the reference.
    roles: Vec<(Role, f64)>,
    specs: Vec<EncodingSpec>,
    choices: Vec<EncodingCost>,
}

impl Item {
    /// Takes in another, which is stored as this one is.
    fn join(&mut self, other: Self) {
        self.roles.extend(other.roles);
        let (specs, choices) = (std::mem::take(&mut self.specs), std::mem::take(&mut self.choices));
        for (spec, choice) in specs.into_iter().zip(choices) {
            let Some(at) = other.specs.iter().position(|known| *known == spec) else { continue };
            let (bytes, cost) = (other.choices[at].bytes, other.choices[at].cost);
            self.specs.push(spec);
            self.choices
                .push(EncodingCost { bytes: choice.bytes + bytes, cost: choice.cost + cost });
        }
    }
}

/// What decides over a recipe for a total.
pub struct BitAllocation<'a> {
    /// The original, for running it.
    pub original: &'a Arc<Weights>,
    /// The same, for planning.
    pub checkpoint: &'a Checkpoint,
    /// What its tensors are for.
    pub inventory: &'a Inventory,
    /// Tokens of the probe, in whole windows.
    pub tokens: &'a [u32],
    /// Tokens of a window.
    pub window: usize,
    /// Encodings to choose from.
    pub palette: Palette,
    /// Whether all experts of a layer are stored alike.
    pub alike: bool,
    /// What the engine that the bundle is for holds; anything where it is for none.
    pub limits: Option<&'a Limits>,
    /// The bundle's other options.
    pub options: &'a PlanOptions,
    /// Set to stop.
    pub cancel: &'a AtomicBool,
}

/// Budgets that are planned at most.
const ROUNDS: usize = 20;
/// Changes that are planned at most to fill what the best budget leaves.
const FILLS: usize = 128;

impl BitAllocation<'_> {
    /// Bytes of memory that [`Self::recipe`] holds at most.
    ///
    /// # Errors
    /// Weights without a layout.
    pub fn peak_memory(&self) -> Result<u64> {
        let (tokens, window) = (self.tokens.len() as u64, self.window as u64);
        memory::peak(self.original, tokens, window, self.options.threads as u64)
    }

    /// The recipe that fits `target` and, by the probe, costs least.
    ///
    /// # Errors
    /// A target below what the smallest encodings take, and all that probing and planning refuse.
    pub fn recipe(&self, target: SizeTarget, progress: &dyn Fn(u32)) -> Result<Recipe> {
        let encodings = self.palette.specs()?;
        let probing = Probing {
            original: self.original,
            tokens: self.tokens,
            window: self.window,
            encodings: &encodings,
            threads: self.options.threads,
            pool: &thread_pool(self.options.threads)?,
            cancel: self.cancel,
        };
        let measured = probing.measure(progress)?;
        let items = self.items(&measured, &encodings)?;
        match self.largest(target, &items)? {
            Some(recipe) => Ok(recipe),
            None => self.smallest(target, &items),
        }
    }

    /// The recipe of the largest budget whose plan fits, with what that leaves filled; none when no budget was
    /// found.
    fn largest(&self, target: SizeTarget, items: &[Item]) -> Result<Option<Recipe>> {
        let choices: Vec<_> = items.iter().map(|item| item.choices.clone()).collect();
        // The plan of a budget takes more than it: norms, files, padding, which comes in steps. So
        // the largest budget whose plan fits is searched between these.
        let (mut low, mut high) = (0, self.budget(target));
        let (mut budget, mut best) = (high, None);
        for round in 0..ROUNDS {
            let mut over = 0;
            if let Some(chosen) = solve(&choices, budget) {
                let (recipe, room) = self.planned(target, items, &chosen)?;
                if room >= 0 {
                    (low, best) = (budget, Some((chosen, recipe, room)));
                } else {
                    (high, over) = (budget, room.unsigned_abs());
                }
            } else {
                low = budget;
            }
            if high - low <= high / 2048 {
                break;
            }
            let guess = high.saturating_sub(over);
            budget =
                if round < 2 && guess > low && guess < high { guess } else { low.midpoint(high) };
        }
        best.map(|found| self.filled(target, items, found))
            .transpose()
    }

    /// Gives the room that a plan leaves to changes of single items, those that save most per byte first.
    ///
    /// Budgets grow along the hulls alone, and a step there can take many times its bytes: each expert of a layer
    /// starts on a multiple of the alignment. Where such a step is too large, smaller ones behind it still fit.
    fn filled(
        &self,
        target: SizeTarget,
        items: &[Item],
        (mut chosen, mut best, mut room): (Vec<usize>, Recipe, i64),
    ) -> Result<Recipe> {
        // What was refused for an item, so that nothing larger of it is planned.
        let (mut plans, mut refused) = (0, vec![u64::MAX; items.len()]);
        for (item, to) in changes(items, &chosen) {
            let choices = &items[item].choices;
            let (now, then) = (choices[chosen[item]], choices[to]);
            // An item that was changed before may be better already.
            let fits = then.bytes <= now.bytes + room.unsigned_abs() && then.bytes < refused[item];
            if then.cost >= now.cost || !fits {
                continue;
            }
            if plans == FILLS {
                break;
            }
            plans += 1;
            let before = std::mem::replace(&mut chosen[item], to);
            let (recipe, left) = self.planned(target, items, &chosen)?;
            if left >= 0 {
                (best, room) = (recipe, left);
            } else {
                (chosen[item], refused[item]) = (before, then.bytes);
            }
        }
        Ok(best)
    }

    /// The recipe of some choices, and the bytes that its plan leaves of the target.
    fn planned(
        &self,
        target: SizeTarget,
        items: &[Item],
        chosen: &[usize],
    ) -> Result<(Recipe, i64)> {
        let recipe = recipe((target, self.limits), items, chosen, &self.experts());
        let plan = Plan::new(self.checkpoint, self.inventory, &recipe, self.options)?;
        let room = room(&plan, target);
        Ok((recipe, room))
    }

    /// Experts of each layer.
    fn experts(&self) -> Vec<u32> {
        let layers = self.inventory.spec.layers.iter();
        layers.map(LayerSpec::num_experts).collect()
    }

    /// Each measured role with the encodings that can hold it.
    fn items(&self, measured: &[Sensitivity], specs: &[EncodingSpec]) -> Result<Vec<Item>> {
        let mut items = Vec::<Item>::new();
        for sensitivity in measured {
            // Engines stack the experts of a layer, and so want them alike.
            let apart = !self.alike && self.limits.is_none();
            if apart && sensitivity.used.len() > 1 {
                for used in &sensitivity.used {
                    items.push(self.item(sensitivity, Some(used), specs)?);
                }
                continue;
            }
            let item = self.item(sensitivity, None, specs)?;
            let alike = self
                .limits
                .map_or(&[][..], |limits| limits.alike(sensitivity.role));
            let same = |known: &&mut Item| {
                known.layer == item.layer
                    && known.roles.iter().any(|(role, _)| alike.contains(role))
            };
            match items.iter_mut().find(same) {
                Some(known) => known.join(item),
                None => items.push(item),
            }
        }
        Ok(items)
    }

    /// The choices for a role, of some experts or of all that have it.
    fn item(
        &self,
        sensitivity: &Sensitivity,
        used: Option<&UsedAlike>,
        specs: &[EncodingSpec],
    ) -> Result<Item> {
        let Sensitivity { layer, role, .. } = *sensitivity;
        let (unit, all) = representative(self.inventory, layer, role);
        let count = used.map_or(all, |used| used.experts.len() as u64);
        let divergence = sensitivity.divergence * used.map_or(1.0, |used| used.share);
        let missing = || ConvertError::plan(format!("the inventory has no {role} in {unit}"));
        let layout = self.inventory.units.get(&unit);
        let tensor = layout
            .and_then(|layout| layout.find(role))
            .ok_or_else(missing)?;
        let roles = vec![(role, divergence)];
        let experts = used.map(|used| used.experts.clone());
        let mut item = Item { layer, experts, roles, specs: Vec::new(), choices: Vec::new() };
        let held = |wanted| self.limits.is_none_or(|limits| limits.holds(role, wanted));
        let ratios = specs.iter().zip(&sensitivity.ratios);
        for (wanted, ratio) in ratios.filter(|(wanted, _)| held(**wanted)) {
            let Some(encoding) = wanted.resolve(tensor.source.dtype, None) else { continue };
            let Some(ratio) = ratio else { continue };
            // What cannot hold the shape is no choice.
            let Ok(parts) = encoding.parts(tensor.rows, tensor.cols) else { continue };
            item.specs.push(*wanted);
            item.choices.push(EncodingCost {
                bytes: parts.total() * count,
                cost: divergence.max(0.0) * ratio,
            });
        }
        item.specs.push(EncodingSpec::Keep);
        let kept = Float::size(tensor.source.dtype) as u64 * tensor.rows * tensor.cols;
        item.choices
            .push(EncodingCost { bytes: kept * count, cost: 0.0 });
        Ok(item)
    }

    /// Bytes for the items alone, before anything is known of the rest.
    fn budget(&self, target: SizeTarget) -> u64 {
        match target {
            SizeTarget::Bytes(bytes) => bytes,
            SizeTarget::BitsPerWeight(bits) => {
                let matrices = self.inventory.units.values();
                let matrices = matrices.flat_map(|layout| layout.tensors.iter());
                let matrices = matrices.filter(|tensor| tensor.source.shape.len() > 1);
                let weights: u64 = matrices.map(|tensor| tensor.rows * tensor.cols).sum();
                (weights as f64 * bits / 8.0) as u64
            }
        }
    }

    /// The smallest encodings, where even those are too large a refusal.
    fn smallest(&self, target: SizeTarget, items: &[Item]) -> Result<Recipe> {
        let least: Vec<_> = items
            .iter()
            .map(|item| {
                (0..item.choices.len())
                    .min_by_key(|at| item.choices[*at].bytes)
                    .unwrap_or(0)
            })
            .collect();
        let recipe = recipe((target, self.limits), items, &least, &self.experts());
        let plan = Plan::new(self.checkpoint, self.inventory, &recipe, self.options)?;
        // Padding that no budget foresees can leave room for nothing but these.
        if room(&plan, target) >= 0 {
            return Ok(recipe);
        }
        let (bits, bytes) = (plan.summary.bits_per_weight, plan.summary.bundle_bytes);
        let (least, target) = match target {
            SizeTarget::BitsPerWeight(target) => {
                (format!("{bits:.3} bits per weight"), format!("{target}"))
            }
            SizeTarget::Bytes(target) => (format!("{bytes} bytes"), format!("{target}")),
        };
        Err(ConvertError::TargetTooSmall { least, target })
    }
}

/// Bytes that a plan leaves of the target; negative where it takes more.
fn room(plan: &Plan, target: SizeTarget) -> i64 {
    match target {
        SizeTarget::Bytes(bytes) => {
            let whole = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
            whole(bytes) - whole(plan.summary.bundle_bytes)
        }
        SizeTarget::BitsPerWeight(bits) => {
            let weights: u64 = plan.summary.roles.iter().map(|role| role.weights).sum();
            ((bits - plan.summary.bits_per_weight) * weights as f64 / 8.0).floor() as i64
        }
    }
}

/// Items and the choices of them that cost less than those taken, by what they save per byte.
fn changes(items: &[Item], chosen: &[usize]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (item, at) in chosen.iter().enumerate() {
        let choices = &items[item].choices;
        for (to, then) in choices.iter().enumerate() {
            let more = then.bytes.saturating_sub(choices[*at].bytes).max(1);
            let gain = (choices[*at].cost - then.cost) / more as f64;
            found.push((gain, item, to));
        }
    }
    found.retain(|(gain, ..)| *gain > 0.0);
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, item, to)| (item, to)).collect()
}

/// A unit that has a role, and how many such tensors the layer has.
fn representative(inventory: &Inventory, layer: Option<u32>, role: Role) -> (Unit, u64) {
    let Some(layer) = layer else {
        return (if role == Role::LmHead { Unit::Head } else { Unit::Embedding }, 1);
    };
    let expert = Unit::Expert { layer, expert: 0 };
    let routed = inventory
        .units
        .get(&expert)
        .is_some_and(|layout| layout.find(role).is_some());
    let experts = inventory.spec.layers[layer as usize].num_experts();
    if routed { (expert, u64::from(experts)) } else { (Unit::Layer(layer), 1) }
}

/// What of a role is stored in one encoding: layers as a whole, and experts of others.
#[derive(Default)]
struct Stored {
    layers: Vec<u32>,
    experts: BTreeMap<u32, Vec<u32>>,
    /// What all of it costs alone at the reference.
    cost: f64,
    /// What of it each of those layers costs.
    costs: BTreeMap<u32, f64>,
}

impl Stored {
    /// Matches for it and what they cost: one for whole layers, or for what is in none, and one for each other layer.
    fn matches(self, role: Role, experts: &[u32]) -> Vec<(Match, f64)> {
        let Self { mut layers, experts: some, cost, costs } = self;
        let whole = |layer: &u32, some: &Vec<u32>| some.len() == experts[*layer as usize] as usize;
        let (all, parts): (BTreeMap<_, _>, BTreeMap<_, _>) = some
            .into_iter()
            .partition(|(layer, some)| whole(layer, some));
        layers.extend(all.into_keys());
        layers.sort_unstable();
        let apart: f64 = parts.keys().map(|layer| costs[layer]).sum();
        let role = Some(Roles::from_role(role));
        let mut found = Vec::new();
        if parts.is_empty() || !layers.is_empty() {
            let layer = (!layers.is_empty()).then(|| Numbers::new(&layers));
            let matches = Match { role: role.clone(), layer, ..Match::default() };
            found.push((matches, cost - apart));
        }
        for (layer, mut some) in parts {
            some.sort_unstable();
            let (numbers, expert) = (Numbers::new(&[layer]), Numbers::new(&some));
            let (layer, expert, cost) = (Some(numbers), Some(expert), costs[&layer]);
            found.push((Match { role: role.clone(), layer, expert, name: None }, cost));
        }
        found
    }
}

/// Rules for what was chosen, one per role and encoding, and one for each layer whose experts differ; all else stays as
/// it is. `experts` are how many each layer has.
fn recipe(
    (target, limits): (SizeTarget, Option<&Limits>),
    items: &[Item],
    chosen: &[usize],
    experts: &[u32],
) -> Recipe {
    let mut stored = BTreeMap::<(Role, String), Stored>::new();
    for (item, at) in items.iter().zip(chosen) {
        for (role, divergence) in &item.roles {
            let key = (*role, item.specs[*at].to_string());
            let stored = stored.entry(key).or_default();
            stored.cost += divergence;
            match (item.layer, &item.experts) {
                (Some(layer), Some(experts)) => {
                    stored.experts.entry(layer).or_default().extend(experts);
                    *stored.costs.entry(layer).or_default() += divergence;
                }
                (layer, _) => stored.layers.extend(layer),
            }
        }
    }
    let rules = stored.into_iter().flat_map(|((role, wanted), stored)| {
        let wanted: Option<EncodingSpec> = wanted.parse().ok();
        let matches = wanted.map(|_| stored.matches(role, experts));
        let rule = move |(matches, cost): (Match, f64)| {
            Some(Rule {
                matches,
                encoding: wanted?,
                method: None,
                zeros: Zeros::Float,
                fallback: vec![Fallback::Encoding(EncodingSpec::Keep)],
                optional: false,
                note: format!(
                    "alone at {REFERENCE_BITS} bits these cost {cost:.2e} nats per token"
                ),
            })
        };
        matches
            .into_iter()
            .flatten()
            .filter_map(rule)
            .collect::<Vec<_>>()
    });
    let keep = Rule {
        matches: Match::default(),
        encoding: EncodingSpec::Keep,
        method: None,
        zeros: Zeros::Float,
        fallback: Vec::new(),
        optional: true,
        note: String::new(),
    };
    let total = match target {
        SizeTarget::BitsPerWeight(bits) => format!("{bits} bits per weight"),
        SizeTarget::Bytes(bytes) => format!("{bytes} bytes"),
    };
    Recipe {
        name: format!("at most {total}"),
        description: format!("Bits where they count, at most {total} in all."),
        scale_dtype: None,
        takes_over: limits.map_or(TakesOver::Any, Limits::takes_over),
        rules: rules.chain([keep]).collect(),
    }
}
