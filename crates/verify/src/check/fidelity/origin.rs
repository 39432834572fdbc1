//! Was a candidate made from the original, and what does its account of that say?

use std::collections::BTreeSet;

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::MANIFEST_FILE;
use shardwright_format::{Manifest, ModelSpec, SourceView, TensorEntry, Unit};

use super::mapping::{self, Piece};
use super::meaning::Meaning;
use super::{FidelityOptions, coverage, place_entry, source};
use crate::check::divergence::Party;
use crate::check::finding::{Finding, Kind};
use crate::error::Result;
use crate::monitor::Monitor;

/// What a candidate's account of its making comes to.
pub(super) struct Origin {
    relation: Relation,
    pub(super) findings: Vec<Finding>,
    pub(super) notes: Vec<String>,
}

/// How a candidate is related to the original.
enum Relation {
    /// It is a bundle made from the original; of these units every tensor comes from where the original's
    /// inventory has it, and no others are read: no claim of the manifest decides how much is.
    Source(BTreeSet<Unit>),
    /// It was made from something else, or does not say from what: tensors are compared by what they are
    /// for.
    Other,
}

impl Origin {
    /// Whether tensors are compared by what they are for alone.
    pub(super) const fn by_role(&self) -> bool {
        matches!(self.relation, Relation::Other)
    }

    /// Whether a unit's tensors are compared at all.
    pub(super) fn reads(&self, unit: Unit) -> bool {
        match &self.relation {
            Relation::Source(units) => units.contains(&unit),
            Relation::Other => true,
        }
    }
}

/// Follows a candidate's account of where it comes from.
///
/// # Errors
/// What the operating system refuses.
pub(super) fn trace(
    candidate: &Party<'_>,
    original: &Party<'_>,
    options: &FidelityOptions,
    monitor: &Monitor<'_>,
) -> Result<Origin> {
    let mut notes = models_note(original.weights.spec(), candidate.weights.spec());
    let Some(bundle) = candidate.weights.bundle() else {
        return Ok(other(Vec::new(), notes));
    };
    let pieces = mapping::pieces(bundle.manifest());
    if let Some(quantized) = original.weights.bundle() {
        if quantized.manifest().blake3 == bundle.manifest().blake3 {
            notes.push("the original is the same bundle".to_owned());
            return Ok(other(Vec::new(), notes));
        }
        let source = Checkpoint::from_bundle(quantized)?;
        if same_files(bundle.manifest(), &source) {
            let inventory = Inventory::from_bundle(quantized)?;
            let meaning = Meaning::new((bundle, candidate.weights), (&source, original.weights));
            return made_from_it(meaning, &inventory, &pieces, options, monitor);
        }
    }
    let Some(checkpoint) = original.weights.checkpoint() else {
        let expected = made_from(bundle.manifest());
        let finding = unlike().expected(expected, format!("another bundle, {}", original.name));
        return Ok(elsewhere(finding, notes, options));
    };
    if let Some(finding) = differing(bundle.manifest(), checkpoint, &pieces) {
        return Ok(elsewhere(finding, notes, options));
    }
    let (checkpoint, inventory) = checkpoint;
    let meaning = Meaning::new((bundle, candidate.weights), (checkpoint, original.weights));
    made_from_it(meaning, inventory, &pieces, options, monitor)
}

const fn other(findings: Vec<Finding>, notes: Vec<String>) -> Origin {
    Origin { relation: Relation::Other, findings, notes }
}

/// A bundle that was made from something else: the one finding that says so, unless that is wanted.
fn elsewhere(finding: Finding, mut notes: Vec<String>, options: &FidelityOptions) -> Origin {
    if options.other_source {
        notes.insert(0, format!("made from another source, as asked: {finding}"));
        return other(Vec::new(), notes);
    }
    other(vec![finding], notes)
}

fn unlike() -> Finding {
    Finding::file(Kind::Checkpoint, MANIFEST_FILE, "source of the bundle")
}

/// Names what a bundle was made from.
fn made_from(manifest: &Manifest) -> String {
    let files = &manifest.checkpoint.files;
    let bytes = files.iter().map(|f| f.size).sum::<u64>();
    let first = files.first().map_or("no file", |f| f.name.as_str());
    match files.len() {
        0 | 1 => format!("{first} of {bytes} bytes"),
        count => format!("{first} and {} more files, {bytes} bytes in all", count - 1),
    }
}

/// What tells the original from the checkpoint that a bundle was made from. None where its files have the
/// recorded names and sizes: whatever is wrong then is wrong with the bundle. None either where every
/// tensor comes from the very tensor that the original has for it: the same weights may lie in other files.
fn differing(
    manifest: &Manifest,
    (checkpoint, inventory): (&Checkpoint, &Inventory),
    pieces: &[Piece<'_>],
) -> Option<Finding> {
    if same_files(manifest, checkpoint) {
        return None;
    }
    let entries = pieces
        .iter()
        .flat_map(|piece| piece.tensors.iter().map(move |entry| (piece.unit, entry)));
    let text = entries.filter(|(unit, _)| unit.extra_role().is_none());
    let (mut count, mut unlike_sources) = (0, Vec::new());
    for (unit, entry) in text {
        count += 1;
        let expected = mapping::source(inventory, unit, entry);
        if expected != Some(&entry.source) {
            unlike_sources.push((unit, entry, expected));
        }
    }
    let how = how_unlike(&unlike_sources, count)?;
    Some(unlike().expected(made_from(manifest), format!("{}; {how}", files(checkpoint))))
}

/// A tensor of a bundle whose source is not what the original has in its place.
type UnlikeSource<'a> = (Unit, &'a TensorEntry, Option<&'a SourceView>);

/// What sets sources apart: their types alone, or the first.
fn how_unlike(unlike: &[UnlikeSource<'_>], count: usize) -> Option<String> {
    let (unit, entry, expected) = unlike.first()?;
    let types = unlike
        .iter()
        .map(|(_, entry, here)| other_type(*here, &entry.source));
    let unlike = unlike.len();
    if let Some(types) = types.collect::<Option<BTreeSet<_>>>() {
        let types = types.into_iter().collect::<Vec<_>>().join(", ");
        return Some(format!(
            "the same tensors, {unlike} of {count} in another type, {types}: with --other-source their values \
             are compared"
        ));
    }
    let (here, there) = mapping::describe(*expected, &entry.source);
    let role = entry.role;
    Some(format!(
        "{unlike} of {count} tensors come from elsewhere: {unit} {role} from {there}, which is {here} there"
    ))
}

/// The two types of a tensor that is the same one but for its type.
fn other_type(here: Option<&SourceView>, there: &SourceView) -> Option<String> {
    let here = here?;
    let same = SourceView { dtype: there.dtype, ..here.clone() } == *there;
    same.then(|| format!("{} for {}", here.dtype.name(), there.dtype.name()))
}

fn files(checkpoint: &Checkpoint) -> String {
    let files = checkpoint.files();
    let bytes = files.iter().map(|f| f.file.len()).sum::<u64>();
    let first = files.first().map_or("no file", |f| f.name.as_str());
    format!("{first}, {} files of {bytes} bytes", files.len())
}

fn same_files(manifest: &Manifest, checkpoint: &Checkpoint) -> bool {
    let recorded = manifest.checkpoint.files.iter();
    let recorded: BTreeSet<_> = recorded.map(|f| (f.name.as_str(), f.size)).collect();
    let files = checkpoint.files().iter();
    files
        .map(|f| (f.name.as_str(), f.file.len()))
        .collect::<BTreeSet<_>>()
        == recorded
}

/// A bundle made from the original: its whole account is checked.
fn made_from_it(
    meaning: Meaning<'_>,
    inventory: &Inventory,
    pieces: &[Piece<'_>],
    options: &FidelityOptions,
    monitor: &Monitor<'_>,
) -> Result<Origin> {
    let (bundle, checkpoint) = (meaning.bundle, meaning.checkpoint);
    let manifest = bundle.manifest();
    let same_files = same_files(manifest, checkpoint);
    let hash_weights = options.hash_checkpoint;
    let check = source::Check { bundle, checkpoint, hash_weights, same_files, meaning };
    let (mut findings, notes) = check.run(monitor)?;
    findings.extend(mapping::check(manifest, inventory, pieces));
    findings.extend(coverage::check(manifest, checkpoint, pieces));
    let same_model = manifest.model == inventory.spec;
    let (right, wrong): (Vec<_>, Vec<_>) = pieces
        .iter()
        .partition(|piece| same_model && mapping::holds(inventory, piece));
    for piece in wrong {
        let provenance = |entry: &TensorEntry| {
            let wrong = coverage::provenance(checkpoint, entry)?;
            Some(place_entry(wrong, piece, entry))
        };
        findings.extend(piece.tensors.iter().filter_map(provenance));
    }
    let units = right.iter().map(|piece| piece.unit).collect();
    Ok(Origin { relation: Relation::Source(units), findings, notes })
}

/// Settings in which the two models differ, in one line.
fn models_note(original: &ModelSpec, candidate: &ModelSpec) -> Vec<String> {
    let differences = mapping::models(candidate, original);
    let Some(first) = differences.first() else { return Vec::new() };
    let setting = Finding { file: None, ..first.clone() };
    let more = match differences.len() {
        1 => String::new(),
        count => format!(" and {} more settings", count - 1),
    };
    vec![format!("its configuration is not the original's: {setting}{more}")]
}
