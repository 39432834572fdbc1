//! `plan`: what `convert` would write and cost, from headers alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use shardwright_convert::{ExpectedTime, Plan};
use shardwright_format::arch::Prediction;
use shardwright_format::{FormatError, Unit};
use shardwright_quant::CacheType;
use shardwright_runtime::options::TokenizerMemory;
use shardwright_runtime::replay::{Bought, Replay};
use shardwright_runtime::{CacheTypes, MemoryPlan, Options as RuntimeOptions, Runtime};

use crate::args::{CacheArgs, PlanCommandArgs};
use crate::bytes;
use crate::cmd::trace;
use crate::failure::{Failure, cut};
use crate::inputs;
use crate::output::{Output, Table};
use crate::planning::{self, Planned};
use crate::progress::duration;

/// Positions for which the runtime's memory is stated.
const CONTEXT: usize = 4096;

/// The memory for whose sake contexts are compared: a phone of 6 GB.
const PHONE: u64 = 6_000_000_000;

/// How keys and values may be kept.
const CACHES: [CacheTypes; 4] = [
    CacheTypes { k: CacheType::F16, v: CacheType::F16 },
    CacheTypes { k: CacheType::Q8_0, v: CacheType::Q8_0 },
    CacheTypes { k: CacheType::Q8_0, v: CacheType::Q4_0 },
    CacheTypes { k: CacheType::Q4_0, v: CacheType::Q4_0 },
];

/// What `plan` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    /// How long converting takes on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<ExpectedTime>,
    runtime: RuntimeMemory,
}

/// Memory that a run of the bundle needs.
#[derive(Serialize)]
struct RuntimeMemory {
    /// Positions of the KV cache.
    context: usize,
    /// The least that works.
    floor_bytes: u64,
    /// With everything in memory.
    resident_bytes: u64,
    /// Memory of one expert, and of all of them.
    expert_bytes: u64,
    experts_bytes: u64,
    /// What drafts of the model's own layer take besides, where the bundle keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_bytes: Option<u64>,
    /// What memory buys on a trace, in experts that there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Bought>,
    /// What other types of the KV cache would take.
    caches: Vec<Cache>,
}

/// A KV cache of certain types.
#[derive(Serialize)]
struct Cache {
    #[serde(flatten)]
    types: CacheTypes,
    /// What each position takes, once sliding windows are full.
    position_bytes: u64,
    /// What layers remember of the positions above.
    state_bytes: u64,
    /// Positions with which the least that works is within 6 GB, no more than the model knows.
    positions_in_6gb: usize,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint or recipe that is refused.
pub fn run(args: &PlanCommandArgs, output: Output) -> Result<(), Failure> {
    // A file that is no trace is refused before the work.
    let replay = args.trace.as_deref().map(Replay::read).transpose()?;
    let model = inputs::source(&args.plan.checkpoint, &args.plan.arch)?;
    let planned = planning::make(model, &args.plan, output)?;
    let plan = &planned.plan;
    let mut runtime = RuntimeMemory::from_plan(&planned)?;
    if let (Some(replay), Some(path)) = (replay, &args.trace) {
        replay.header.check(path, &plan.manifest.model)?;
        runtime.trace = Some(replay.bought()?);
    }
    let time = if args.time { planned.expected_time(args.plan.threads.count())? } else { None };
    let report = Report { plan, time, runtime };
    output.report(&report, &text(&report))
}

impl RuntimeMemory {
    /// With the tokenizer, if there is one that can be read.
    fn from_plan(planned: &Planned) -> Result<Self, Failure> {
        let plan = &planned.plan;
        let layout = |unit| {
            let missing = || FormatError::file(Path::new("plan"), format!("has no {unit}"));
            plan.layout(unit).ok_or_else(missing)
        };
        let mut options = RuntimeOptions { context: CONTEXT, ..RuntimeOptions::default() };
        if let Some(TokenizerMemory { reserved, loading }) = planned.tokenizer {
            (options.reserved, options.loading) = (reserved, loading);
        }
        let spec = &plan.manifest.model;
        let memory = |cache| {
            let options = RuntimeOptions { cache, ..options };
            MemoryPlan::for_layouts(spec, &layout, &options)
        };
        let cache = |types| {
            let (memory, known) = (memory(types)?, spec.max_position_embeddings as usize);
            Ok(Cache {
                types,
                position_bytes: memory.position_bytes,
                state_bytes: memory.state,
                positions_in_6gb: memory.positions_within(spec, types, PHONE, known),
            })
        };
        let default = memory(CacheArgs::DEFAULT.into())?;
        Ok(Self {
            context: CONTEXT,
            floor_bytes: default.min_bytes,
            resident_bytes: default.resident,
            expert_bytes: default.expert_slot,
            experts_bytes: default.experts_bytes,
            draft_bytes: draft_bytes(plan, &options)?,
            trace: None,
            caches: CACHES
                .into_iter()
                .map(cache)
                .collect::<Result<_, Failure>>()?,
        })
    }
}

/// What `run --draft mtp` takes besides; nothing where the bundle keeps no layer that it can read.
fn draft_bytes(plan: &Plan, options: &RuntimeOptions) -> Result<Option<u64>, Failure> {
    let options = RuntimeOptions { cache: CacheArgs::DEFAULT.into(), ..*options };
    let part = plan.layout(Unit::Mtp);
    let layer = part.and_then(|part| Prediction::new(&plan.manifest.model, &part).ok());
    let bytes = layer.map(|layer| Runtime::predictor_bytes(&layer, &options));
    Ok(bytes.transpose()?)
}

impl RuntimeMemory {
    /// With room for `slots` experts.
    const fn memory(&self, slots: usize) -> u64 {
        let other = self.resident_bytes - self.experts_bytes;
        let with = other + self.expert_bytes * slots as u64;
        if with < self.floor_bytes { self.floor_bytes } else { with }
    }
}

fn text(report: &Report<'_>) -> String {
    let plan = report.plan;
    let mut out = heading(plan);
    let _ = write!(out, "\n{}\n{}", rules(plan), roles(plan));
    notes(plan, &mut out);
    let _ = write!(out, "\n{}\n{}\n{}", files(plan), costs(report), caches(report));
    out
}

fn heading(plan: &Plan) -> String {
    let summary = &plan.summary;
    let excerpt = plan.manifest.checkpoint.excerpt;
    let excerpt = excerpt.map_or_else(String::new, |excerpt| format!("{excerpt}\n"));
    format!(
        "{} with recipe {}: {:.3} bits per weight, {} ({} bytes)\n{excerpt}",
        plan.manifest.model.model_type,
        plan.recipe.name,
        summary.bits_per_weight,
        bytes::disk(summary.bundle_bytes),
        summary.bundle_bytes,
    )
}

/// Longest rule that a table shows whole: of experts by use some name a hundred. `--json` and the recipe have all.
const LONGEST_RULE: usize = 120;

/// Every rule and what it matched; of a recipe found for a total also why.
pub fn rules(plan: &Plan) -> Table {
    let mut head = vec!["rule", "encoding", "method", ">tensors", ">weights", ">size"];
    let explained = plan.recipe.rules.iter().any(|rule| !rule.note.is_empty());
    head.extend(explained.then_some("why"));
    let mut table = Table::new(&head);
    for (found, rule) in plan.rules.iter().zip(&plan.recipe.rules) {
        let coded = found.encoding.starts_with(['q', 't']);
        let method = if coded { found.method.name() } else { "" };
        let shown = cut(&found.rule, LONGEST_RULE);
        let head = [shown, found.encoding.clone(), method.to_owned()];
        let numbers =
            [found.tensors.to_string(), bytes::count(found.weights), bytes::disk(found.bytes)];
        let why = explained.then(|| rule.note.clone());
        table.row(head.into_iter().chain(numbers).chain(why));
    }
    table
}

fn roles(plan: &Plan) -> Table {
    let mut table =
        Table::new(&["role", "stored", ">tensors", ">weights", ">size", ">bits per weight"]);
    for role in &plan.summary.roles {
        table.row([
            role.role.to_string(),
            role.encodings.join(", "),
            role.tensors.to_string(),
            bytes::count(role.weights),
            bytes::disk(role.bytes),
            format!("{:.3}", role.bits_per_weight),
        ]);
    }
    table
}

/// Everything that is not as one might expect: fallbacks, what stays wide, what is left out.
pub fn notes(plan: &Plan, out: &mut String) {
    // What many layers have in common is said once.
    let mut lines = BTreeMap::<String, (u64, u64)>::new();
    let mut note = |line: String, tensors: u64, bytes: u64| {
        let sum = lines.entry(line).or_default();
        *sum = (sum.0 + tensors, sum.1 + bytes);
    };
    for f in &plan.fallbacks {
        let (role, wanted, used) = (f.role, &f.wanted, &f.used);
        let line = format!("fallback: {role}: {used} instead of {wanted}: {}", f.reason);
        note(line, f.tensors, 0);
    }
    for r in &plan.repacked {
        let (role, source, encoding) = (r.role, &r.source, &r.encoding);
        note(format!("lossless repack: {role}: {encoding} from {source}"), r.tensors, 0);
    }
    for l in &plan.leftovers {
        note(format!("kept wide: {}: {}: {}", l.role, l.encoding, l.reason), 1, l.bytes);
    }
    for i in plan.ignored.iter().filter(|i| i.role.is_none()) {
        note(format!("left out: tensor {}: {}", i.tensor, i.reason), 1, 0);
    }
    for l in &plan.left_out {
        let (tensors, parameters) = (l.tensors, bytes::count(l.parameters));
        let count = format!("{tensors} tensors, {parameters} parameters, {}", bytes::disk(l.bytes));
        note(format!("left out: {}: {count}: {}", l.role, l.reason), 1, 0);
    }
    for line in &plan.notes {
        note(format!("note: {line}"), 1, 0);
    }
    for s in &plan.skipped {
        note(format!("left out: file {}: {}", s.path, s.reason), 1, 0);
    }
    if !lines.is_empty() {
        out.push('\n');
    }
    for (line, (tensors, size)) in lines {
        let many = if tensors > 1 { format!(" ({tensors} times)") } else { String::new() };
        let size = if size > 0 { format!(", {}", bytes::disk(size)) } else { String::new() };
        let _ = writeln!(out, "{line}{many}{size}");
    }
}

fn files(plan: &Plan) -> Table {
    let mut table = Table::new(&["file", ">bytes"]);
    for file in &plan.files {
        table.row([file.path.clone(), file.size.to_string()]);
    }
    table
}

/// What the types of the KV cache cost, and what they leave room for.
fn caches(report: &Report<'_>) -> Table {
    let known = report.plan.manifest.model.max_position_embeddings as usize;
    let mut table = Table::new(&[
        "cache: keys, values",
        ">per position",
        ">of 4096 positions",
        ">positions in 6 GB",
    ]);
    for cache in &report.runtime.caches {
        let CacheTypes { k, v } = cache.types;
        let all = if cache.positions_in_6gb == known { "all " } else { "" };
        table.row([
            format!("{}, {}", k.name(), v.name()),
            bytes::memory(cache.position_bytes),
            bytes::memory(cache.state_bytes),
            format!("{all}{}", cache.positions_in_6gb),
        ]);
    }
    table
}

/// What converting takes, and what of it takes how long.
fn time(time: ExpectedTime) -> String {
    let parts = [
        ("text", time.text_seconds),
        ("factors", time.factor_seconds),
        ("codes", time.rounding_seconds),
        ("hashes", time.hashing_seconds),
    ];
    let parts = parts.iter().filter(|(_, seconds)| *seconds >= 0.05);
    let parts = parts.map(|(name, seconds)| format!("{name} {}", duration(*seconds)));
    let reading = time
        .reading_seconds
        .map(|seconds| format!("beside it reading {}", duration(seconds)));
    let parts: Vec<_> = parts.chain(reading).collect();
    let (all, threads) = (duration(time.seconds), time.threads);
    // What a small model takes may round to nothing.
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    format!("converting takes about {all} on this machine with {threads} threads{parts}\n")
}

fn costs(report: &Report<'_>) -> String {
    let (cost, runtime) = (&report.plan.cost, &report.runtime);
    let experts = match cost.expert_bytes_per_token {
        0 => String::new(),
        n => format!(", {} of them experts", bytes::disk(n)),
    };
    let time = report.time.map_or_else(String::new, time);
    let draft = runtime.draft_bytes.map_or_else(String::new, |draft| {
        format!("drafts of its own layer take {} besides\n", bytes::memory(draft))
    });
    format!(
        "converting reads {}, takes at most {} of memory and {} of disk\n{time}\
         a token reads {} when nothing is cached{experts}\n\
         running takes at least {} of memory, {} with everything in it ({} positions)\n{draft}{}",
        bytes::disk(cost.source_bytes),
        bytes::memory(cost.peak_memory),
        bytes::disk(cost.peak_disk),
        bytes::disk(cost.bytes_per_token),
        bytes::memory(runtime.floor_bytes),
        bytes::memory(runtime.resident_bytes),
        runtime.context,
        runtime
            .trace
            .map_or_else(String::new, |bought| trace::line(bought, |slots| runtime.memory(slots))),
    )
}
