//! The plan: every byte of the bundle, decided from headers alone.

mod calibrated;
mod cost;
mod files;
mod notes;
mod report;
mod resolve;
mod stored;
mod unguided;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shardwright_format::arch::{Extra, Inventory};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::{place_dense, place_expert};
use shardwright_format::manifest::{
    ALIGNMENTS, Calibration, CheckpointRecord, DEFAULT_ALIGNMENT, DenseShard, FORMAT, FileEntry,
    FileKind, Hash, Ignored, MANIFEST_FILE, Manifest, REPORT_FILE, SourceFile, VERSION,
};
use shardwright_format::{
    FormatError, GENERATOR, Role, SourceView, TensorEntry, Unit, UnitLayout, mismatch,
};
use shardwright_quant::{Method, Zeros};

use crate::error::{ConvertError, Result};
use crate::recipe::Recipe;

pub use calibrated::Known;
pub(crate) use calibrated::PROGRAM;
pub use cost::{Cost, RoleSummary, Summary};
pub(crate) use files::shard_files;
use notes::notes;
pub use report::{ConversionReport, ExpertReport, TensorReport};
pub(crate) use resolve::takes_over;
pub use resolve::{FallbackUsed, Repacked, RuleMatch, UnquantizedMatrix};
use resolve::{Resolver, Rounding};
use unguided::Unguided;

/// What the plan must know besides the checkpoint and the recipe.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Every shard starts on a multiple of this many bytes.
    pub alignment: u64,
    /// Threads of the conversion; only its memory depends on them.
    pub threads: usize,
    /// What codes are chosen by, besides the weights.
    pub calibration: Option<Calibration>,
    /// What the statistics hold that guide the conversion.
    pub statistics: Option<Known>,
    /// Bytes that the program holds at once before the conversion: to read a tokenizer, to probe a model.
    pub before: u64,
    /// Bytes that reading the source holds besides what is read: of a source that is elsewhere.
    pub reading: u64,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            alignment: DEFAULT_ALIGNMENT,
            threads: 1,
            calibration: None,
            statistics: None,
            before: 0,
            reading: 0,
        }
    }
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Path inside the bundle.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// A file of the checkpoint that is not in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedFile {
    /// Path from the checkpoint's directory.
    pub path: String,
    /// Why it is left out.
    pub reason: String,
}

/// A part of the checkpoint that is not the text model, or some of its tensors, as far as the bundle
/// does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OmittedExtra {
    /// Which part.
    pub role: Role,
    /// Tensors; [`Plan::ignored`] names them.
    pub tensors: u64,
    /// Values in them.
    pub parameters: u64,
    /// Bytes that they take in the checkpoint.
    pub bytes: u64,
    /// Why a bundle works without them.
    pub reason: String,
}

/// What a conversion will do: a pure value, made from headers alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The recipe in full.
    pub recipe: Recipe,
    /// Every rule and what it matched.
    pub rules: Vec<RuleMatch>,
    /// Tensors that could not be stored as wished, and how they are stored instead.
    pub fallbacks: Vec<FallbackUsed>,
    /// Matrices that stay in 16 or 32 bits.
    pub leftovers: Vec<UnquantizedMatrix>,
    /// Tensors whose codes are taken over from the checkpoint, without loss.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repacked: Vec<Repacked>,
    /// Tensors of the checkpoint that are not in the bundle.
    pub ignored: Vec<Ignored>,
    /// Those of them that are parts besides the text model, counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<OmittedExtra>,
    /// Files of the checkpoint that are not in the bundle.
    pub skipped: Vec<SkippedFile>,
    /// Inputs that codes would be chosen by, of which the statistics say nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unguided: Vec<String>,
    /// What is odd about the checkpoint, and what an engine's limits changed: a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every file of the bundle, the manifest last.
    pub files: Vec<PlannedFile>,
    /// Sizes.
    pub summary: Summary,
    /// What the conversion and a token cost.
    pub cost: Cost,
    /// The manifest with every hash zero; its shards are the layout.
    #[serde(skip, default = "stored::no_manifest")]
    pub manifest: Manifest,
    /// How codes are chosen, per tensor of a dense unit and of the first of experts that are stored alike; only
    /// [`Self::planned`] looks here.
    #[serde(skip)]
    methods: BTreeMap<Unit, Vec<Rounding>>,
}

/// A unit as it will be made.
pub(crate) struct PlannedUnit<'p> {
    /// Which one.
    pub unit: Unit,
    /// Path of its shard file inside the bundle.
    pub file: &'p str,
    /// Where in the file it starts.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Its tensors, by offset.
    pub tensors: Vec<PlannedTensor<'p>>,
}

/// A tensor as it will be made.
pub(crate) struct PlannedTensor<'p> {
    /// The unit that it is of.
    pub unit: Unit,
    /// Role, shape, encoding, and where it lies in the unit.
    pub entry: &'p TensorEntry,
    /// Where its values come from; an expert's own.
    pub view: SourceView,
    /// How codes are chosen, if the inputs are known as well as it asks.
    pub method: Method,
    /// What biases of affine codes may be.
    pub zeros: Zeros,
}

/// The layout of a unit, or of experts alike, and the methods of its tensors.
struct Resolved {
    unit: Unit,
    layout: UnitLayout,
    methods: Vec<Rounding>,
}

/// Experts of a layer that are stored alike, and how.
pub(crate) struct PlacedExperts {
    layer: u32,
    /// Ascending; none where they are all.
    experts: Option<Vec<u32>>,
    count: u32,
    layout: UnitLayout,
}

impl Plan {
    /// Resolves `recipe` for a checkpoint.
    ///
    /// # Errors
    /// A rule that matches nothing, a tensor that no rule matches, a group size that does not
    /// divide a dimension and has no fallback, an alignment that bundles cannot have.
    pub fn new(
        checkpoint: &Checkpoint,
        inventory: &Inventory,
        recipe: &Recipe,
        options: &PlanOptions,
    ) -> Result<Self> {
        check_alignment(options.alignment)?;
        let mut resolver = Resolver::new(recipe, inventory, options.calibration.is_some());
        let (mut dense, mut experts, mut methods) = (Vec::new(), Vec::new(), BTreeMap::new());
        for unit in inventory.spec.units() {
            match unit {
                Unit::Expert { expert: 1.., .. } => {}
                Unit::Expert { layer, .. } => {
                    let found = resolve_experts(&mut resolver, inventory, layer)?;
                    for (placed, roundings) in found {
                        methods.insert(placed.first(), roundings);
                        experts.push(placed);
                    }
                }
                _ => dense.push(resolve_dense(&mut resolver, inventory, unit)?),
            }
        }
        let (mut ignored, mut left_out) = (inventory.ignored.clone(), Vec::new());
        for (unit, extra) in &inventory.extras {
            let (stored, out) = resolve_extra(&mut resolver, *unit, extra)?;
            dense.extend(stored);
            left_out.extend(OmittedExtra::new(checkpoint, &out, &extra.reason));
            ignored.extend(out.iter().map(|tensor| Ignored {
                tensor: tensor.source.tensor.clone(),
                role: Some(tensor.role),
                reason: extra.reason.clone(),
            }));
        }
        ignored.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        let resolution = resolver.finish()?;
        let (copies, skipped) = copies(checkpoint)?;
        methods.extend(dense.iter().map(|r| (r.unit, r.methods.clone())));
        let dense = dense.into_iter().map(|r| (r.unit, r.layout)).collect();
        let mut plan = Self {
            recipe: recipe.clone(),
            rules: resolution.rules,
            fallbacks: resolution.fallbacks,
            leftovers: resolution.leftovers,
            left_out,
            repacked: resolution.repacked,
            skipped,
            unguided: Vec::new(),
            notes: notes(checkpoint, &copies),
            files: Vec::new(),
            summary: Summary::default(),
            cost: Cost::default(),
            manifest: skeleton(checkpoint, inventory, recipe, options, ignored.clone())?,
            ignored,
            methods,
        };
        plan.lay_out(dense, experts, copies)?;
        if let Some(statistics) = &options.statistics {
            let unguided = Unguided::new(&plan, statistics);
            plan.notes.extend(unguided.notes());
            plan.unguided = unguided.names();
        }
        plan.measure(options);
        plan.manifest
            .validate()
            .map_err(|detail| ConvertError::plan(format!("plan: {detail}")))?;
        Ok(plan)
    }

    /// Gives every unit its file and offset, and every file its size.
    fn lay_out(
        &mut self,
        dense: Vec<(Unit, UnitLayout)>,
        experts: Vec<PlacedExperts>,
        copies: Vec<FileEntry>,
    ) -> Result<()> {
        self.manifest.dense = files::place_dense_shards(dense, self.manifest.alignment)?;
        self.manifest.experts = files::place_expert_shards(experts, self.manifest.alignment)?;
        let mut entries = shard_files(&self.manifest)?;
        entries.extend(copies);
        entries.push(entry(REPORT_FILE, FileKind::Report, 0));
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        self.manifest.files = entries;
        Ok(())
    }

    /// Fills in what follows from the layout: sizes, then the size of the report that states them.
    fn measure(&mut self, options: &PlanOptions) {
        self.summary = cost::summarize(&self.manifest);
        let report_len = ConversionReport::padded_len(self);
        for file in self
            .manifest
            .files
            .iter_mut()
            .filter(|f| f.kind == FileKind::Report)
        {
            file.size = report_len;
        }
        let manifest_len = self.manifest.to_bytes().len() as u64;
        let entries = self.manifest.files.iter().map(|f| (f.path.clone(), f.size));
        self.files = entries
            .chain([(MANIFEST_FILE.to_owned(), manifest_len)])
            .map(|(path, size)| PlannedFile { path, size })
            .collect();
        self.summary.bundle_bytes = self.files.iter().map(|f| f.size).sum();
        self.cost = cost::cost(&self.manifest, &self.methods, self.summary.bundle_bytes, options);
    }

    /// Every unit, in the order in which they are converted.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.manifest.units()
    }

    /// Bytes of a unit; none for a unit that the model does not have.
    pub fn unit_len(&self, unit: Unit) -> Option<u64> {
        self.layout(unit).map(|layout| layout.len)
    }

    /// The layout of a unit; none for a unit that the model does not have.
    pub fn layout(&self, unit: Unit) -> Option<UnitLayout> {
        match unit {
            Unit::Expert { layer, expert } => self
                .manifest
                .expert(layer, expert)
                .map(|(s, _)| UnitLayout { tensors: s.tensors.clone(), len: s.len }),
            _ => self
                .dense_shard(unit)
                .map(|s| UnitLayout { tensors: s.tensors.clone(), len: s.len }),
        }
    }

    /// What makes a unit; none for one that the model does not have.
    pub(crate) fn planned<'p>(&'p self, unit: Unit) -> Option<PlannedUnit<'p>> {
        let (file, extent, tensors, methods) = if let Unit::Expert { layer, expert } = unit {
            let (shards, extent) = self.manifest.expert(layer, expert)?;
            (&shards.file, extent, &shards.tensors, self.methods.get(&shards.first())?)
        } else {
            let shard = self.dense_shard(unit)?;
            (&shard.file, shard.extent(), &shard.tensors, self.methods.get(&unit)?)
        };
        let tensor = |(entry, how): (&'p TensorEntry, &Rounding)| PlannedTensor {
            unit,
            entry,
            view: match unit {
                Unit::Expert { expert, .. } => entry.source.of_expert(expert),
                _ => entry.source.clone(),
            },
            method: how.method,
            zeros: how.zeros,
        };
        let tensors = tensors.iter().zip(methods).map(tensor).collect();
        Some(PlannedUnit { unit, file, offset: extent.offset, len: extent.len, tensors })
    }

    /// A dense shard.
    fn dense_shard(&self, unit: Unit) -> Option<&DenseShard> {
        self.manifest.dense.get(self.manifest.dense_position(unit)?)
    }
}

fn entry(path: &str, kind: FileKind, size: u64) -> FileEntry {
    FileEntry { path: path.to_owned(), kind, size, blake3: Hash::ZERO }
}

fn check_alignment(alignment: u64) -> Result<()> {
    if alignment.is_power_of_two() && ALIGNMENTS.contains(&alignment) {
        return Ok(());
    }
    let (low, high) = (ALIGNMENTS.start(), ALIGNMENTS.end());
    Err(ConvertError::Plan(
        mismatch(format_args!("a power of two from {low} to {high}"), alignment).at("alignment"),
    ))
}

/// The manifest before anything is placed.
fn skeleton(
    checkpoint: &Checkpoint,
    inventory: &Inventory,
    recipe: &Recipe,
    options: &PlanOptions,
    ignored: Vec<Ignored>,
) -> Result<Manifest> {
    let files = checkpoint.files().iter();
    let files =
        files.map(|f| SourceFile { name: f.name.clone(), size: f.file.len(), blake3: Hash::ZERO });
    Ok(Manifest {
        blake3: Hash::ZERO,
        format: FORMAT.to_owned(),
        version: VERSION,
        generator: GENERATOR.to_owned(),
        alignment: options.alignment,
        model: inventory.spec.clone(),
        recipe: serde_json::to_value(recipe)
            .map_err(|e| ConvertError::plan(format!("recipe `{}`: {e}", recipe.name)))?,
        checkpoint: CheckpointRecord {
            files: files.collect(),
            ignored,
            excerpt: inventory.excerpt,
        },
        calibration: options.calibration.clone(),
        files: Vec::new(),
        dense: Vec::new(),
        experts: Vec::new(),
    })
}

/// Files copied as they are, and those left out.
fn copies(checkpoint: &Checkpoint) -> Result<(Vec<FileEntry>, Vec<SkippedFile>)> {
    let skipped = checkpoint.skipped()?.into_iter();
    let skipped = skipped
        .map(|s| SkippedFile { path: s.path, reason: s.reason })
        .collect();
    let mut copies = Vec::new();
    for path in checkpoint.copies()? {
        let size = match checkpoint.synthesized(&path)? {
            Some(made) => made.len() as u64,
            None => size_of(&checkpoint.root().join(&path))?,
        };
        copies.push(entry(&path, FileKind::Copy, size));
    }
    Ok((copies, skipped))
}

fn size_of(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(|e| FormatError::io(path, e))?;
    Ok(metadata.len())
}

fn resolve_dense(
    resolver: &mut Resolver<'_>,
    inventory: &Inventory,
    unit: Unit,
) -> Result<Resolved> {
    let tensors = inventory.units.get(&unit).map(|layout| &layout.tensors[..]);
    let (tensors, methods) = choose_all(resolver, unit, tensors, 1)?;
    let layout = place_dense(tensors).map_err(|e| ConvertError::plan(format!("{unit}: {e}")))?;
    Ok(Resolved { unit, layout, methods })
}

/// What is not the text model: what of it is stored, if anything, and what is left out.
fn resolve_extra<'a>(
    resolver: &mut Resolver<'_>,
    unit: Unit,
    extra: &'a Extra,
) -> Result<(Option<Resolved>, Vec<&'a TensorEntry>)> {
    let (mut tensors, mut methods, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for tensor in extra.layout.tensors.iter() {
        match resolver.choose_extra(unit, tensor)? {
            Some(chosen) => {
                tensors.push(chosen.tensor(tensor));
                methods.push(chosen.rounding);
            }
            None => out.push(tensor),
        }
    }
    if tensors.is_empty() {
        return Ok((None, out));
    }
    let layout = place_dense(tensors).map_err(|e| ConvertError::plan(format!("{unit}: {e}")))?;
    Ok((Some(Resolved { unit, layout, methods }), out))
}

impl OmittedExtra {
    /// These tensors of one part counted; none of none.
    fn new(checkpoint: &Checkpoint, tensors: &[&TensorEntry], reason: &str) -> Option<Self> {
        let role = tensors.first()?.role;
        Some(Self {
            role,
            tensors: tensors.len() as u64,
            parameters: tensors.iter().map(|t| t.rows * t.cols).sum(),
            bytes: tensors
                .iter()
                .map(|t| checkpoint.stored_len(&t.source))
                .sum(),
            reason: reason.to_owned(),
        })
    }
}

impl PlacedExperts {
    /// The unit that stands for all of them.
    fn first(&self) -> Unit {
        let first = self.experts.iter().flatten().next();
        Unit::Expert { layer: self.layer, expert: first.copied().unwrap_or_default() }
    }
}

/// The experts of a layer, those together that the source has alike and the recipe treats alike.
fn resolve_experts(
    resolver: &mut Resolver<'_>,
    inventory: &Inventory,
    layer: u32,
) -> Result<Vec<(PlacedExperts, Vec<Rounding>)>> {
    let mut groups: Vec<(Vec<u32>, UnitLayout, Vec<Rounding>)> = Vec::new();
    for alike in inventory.experts(layer) {
        for experts in resolver.groups(layer, &alike.tensors, &alike.experts) {
            let unit = Unit::Expert { layer, expert: experts[0] };
            let count = experts.len() as u32;
            let (tensors, methods) = choose_all(resolver, unit, Some(&alike.tensors), count)?;
            let layout =
                place_expert(tensors).map_err(|e| ConvertError::plan(format!("{unit}: {e}")))?;
            let same = |(_, known, how): &&mut (_, UnitLayout, Vec<Rounding>)| {
                known.tensors == layout.tensors && *how == methods
            };
            match groups.iter_mut().find(same) {
                Some((known, ..)) => known.extend(experts),
                None => groups.push((experts, layout, methods)),
            }
        }
    }
    for (experts, ..) in &mut groups {
        experts.sort_unstable();
    }
    groups.sort_by_key(|(experts, ..)| experts[0]);
    let alone = groups.len() == 1;
    let placed = groups.into_iter().map(|(experts, layout, methods)| {
        let count = experts.len() as u32;
        let experts = (!alone).then_some(experts);
        (PlacedExperts { layer, experts, count, layout }, methods)
    });
    Ok(placed.collect())
}

/// The tensors of a unit, or of `count` units alike, with how they are stored.
fn choose_all(
    resolver: &mut Resolver<'_>,
    unit: Unit,
    tensors: Option<&[TensorEntry]>,
    count: u32,
) -> Result<(Vec<TensorEntry>, Vec<Rounding>)> {
    let tensors =
        tensors.ok_or_else(|| ConvertError::plan(format!("the inventory has no {unit}")))?;
    let choose = |tensor: &TensorEntry| {
        let chosen = resolver.choose(unit, tensor, count)?;
        Ok((chosen.tensor(tensor), chosen.rounding))
    };
    tensors.iter().map(choose).collect()
}
