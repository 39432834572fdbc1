//! Does the bundle give each tensor the role that the checkpoint's own inventory gives it?

use std::collections::BTreeMap;

use serde_json::Value;
use shardwright_format::arch::Inventory;
use shardwright_format::manifest::{Excerpt, Ignored, MANIFEST_FILE};
use shardwright_format::{Manifest, ModelSpec, Role, SourceView, TensorEntry, Unit};

use super::{of_source, place_entry};
use crate::check::finding::{Finding, Kind};

/// A unit of the bundle and its tensors, each with the view that is its own.
pub(super) struct Piece<'a> {
    pub(super) unit: Unit,
    pub(super) file: &'a str,
    pub(super) tensors: Vec<TensorEntry>,
}

pub(super) fn pieces(manifest: &Manifest) -> Vec<Piece<'_>> {
    let pieces = manifest.shards().map(|shard| Piece {
        unit: shard.unit,
        file: shard.file,
        tensors: shard
            .tensors
            .iter()
            .map(|t| t.in_unit(shard.unit))
            .collect(),
    });
    pieces.collect()
}

/// The file that a unit lies in.
pub(super) fn file_of(manifest: &Manifest, unit: Unit) -> Option<&str> {
    if let Unit::Expert { layer, expert } = unit {
        return Some(&manifest.expert(layer, expert)?.0.file);
    }
    let mut dense = manifest.dense.iter();
    Some(&dense.find(|shard| shard.unit == unit)?.file)
}

/// What is wrong with how the bundle accounts for the checkpoint's tensors.
pub(super) fn check(
    manifest: &Manifest,
    inventory: &Inventory,
    pieces: &[Piece<'_>],
) -> Vec<Finding> {
    let mut findings = models(&manifest.model, &inventory.spec);
    let (found, expected) = (manifest.checkpoint.excerpt, inventory.excerpt);
    if found != expected {
        let shown = |excerpt: Option<Excerpt>| {
            excerpt.map_or_else(|| "all layers".to_owned(), |excerpt| excerpt.to_string())
        };
        let finding = Finding::file(Kind::Mapping, MANIFEST_FILE, "checkpoint.excerpt");
        findings.push(finding.expected(shown(expected), shown(found)));
    }
    for piece in pieces {
        for entry in &piece.tensors {
            let right = source(inventory, piece.unit, entry);
            if right != Some(&entry.source) {
                let finding = Finding::new(Kind::Mapping, "source");
                let (expected, found) = describe(right, &entry.source);
                findings.push(place_entry(finding.expected(expected, found), piece, entry));
            }
        }
    }
    findings.extend(left_out(manifest, inventory));
    findings
}

/// Whether all of a unit's tensors come from where the inventory has them. Only then are their
/// shapes the checkpoint's, and no claim of the manifest decides how much is read.
pub(super) fn holds(inventory: &Inventory, piece: &Piece<'_>) -> bool {
    let right = |t: &TensorEntry| source(inventory, piece.unit, t) == Some(&t.source);
    piece.tensors.iter().all(right)
}

/// Where the inventory has the values of an entry: by its role in the text model, by its name in a
/// part besides it, whose tensors are in the order of names.
pub(super) fn source<'a>(
    inventory: &'a Inventory,
    unit: Unit,
    entry: &TensorEntry,
) -> Option<&'a SourceView> {
    let found = if unit.extra_role().is_some() {
        let tensors = &inventory.extras.get(&unit)?.layout.tensors;
        let name = entry.source.tensor.as_str();
        let at = tensors.binary_search_by_key(&name, |s| s.source.tensor.as_str());
        &tensors[at.ok()?]
    } else {
        inventory.units.get(&unit)?.find(entry.role)?
    };
    Some(&found.source)
}

/// What the bundle leaves out must be what it may: tensors without a use and those of parts besides
/// the text model, each for what the checkpoint has it for.
fn left_out(manifest: &Manifest, inventory: &Inventory) -> Vec<Finding> {
    let unused = inventory.ignored.iter();
    let unused = unused.map(|i| (i.tensor.as_str(), i.role));
    let parts = inventory
        .extras
        .values()
        .flat_map(|extra| extra.layout.tensors.iter());
    let parts = parts.map(|t| (t.source.tensor.as_str(), Some(t.role)));
    let known: BTreeMap<_, _> = unused.chain(parts).collect();
    let finding = |tensor: &str| of_source(Kind::Mapping, tensor, "left out of the bundle");
    let name = |role: Option<Role>| role.map_or("no role of its own", Role::name);
    let wrong = |i: &Ignored| match known.get(i.tensor.as_str()) {
        None => {
            let found = format!("`{}`", i.reason);
            Some(finding(&i.tensor).expected("a part of the model", found))
        }
        Some(role) if *role != i.role => {
            Some(finding(&i.tensor).expected(name(*role), name(i.role)))
        }
        Some(_) => None,
    };
    let listed = &manifest.checkpoint.ignored;
    listed.iter().filter_map(wrong).collect()
}

/// The two views, with their places where the names do not tell them apart.
pub(super) fn describe(expected: Option<&SourceView>, found: &SourceView) -> (String, String) {
    let Some(expected) = expected else {
        return ("none".to_owned(), found.tensor.clone());
    };
    if expected.tensor != found.tensor {
        return (expected.tensor.clone(), found.tensor.clone());
    }
    let place = |v: &SourceView| {
        let SourceView { tensor, dtype, shape, start, row_stride, col_stride, .. } = v;
        let dtype = dtype.name();
        let decoder = v.decoder.as_ref();
        let decoder = decoder.map_or_else(String::new, |d| format!(" from {}", d.label()));
        format!(
            "{tensor} {dtype} {shape:?}{decoder} from value {start} by {row_stride} and {col_stride}"
        )
    };
    (place(expected), place(found))
}

/// One finding for every field of the model that the checkpoint's configuration gives otherwise.
pub(super) fn models(found: &ModelSpec, expected: &ModelSpec) -> Vec<Finding> {
    let value = |spec: &ModelSpec| serde_json::to_value(spec).unwrap_or_default();
    let mut findings = Vec::new();
    if found != expected {
        differences("model", &value(expected), &value(found), &mut findings);
    }
    findings
}

fn differences(path: &str, expected: &Value, found: &Value, out: &mut Vec<Finding>) {
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter()
                .zip(b.values())
                .for_each(|((key, a), b)| differences(&format!("{path}.{key}"), a, b, out));
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter()
                .zip(b)
                .enumerate()
                .for_each(|(i, (a, b))| differences(&format!("{path}[{i}]"), a, b, out));
        }
        (a, b) if a != b => {
            let finding = Finding::file(Kind::Mapping, MANIFEST_FILE, path);
            out.push(finding.expected(a, b));
        }
        _ => {}
    }
}
