//! Which files of a directory are the model. A complete set decides, not the index alone: one left
//! over from another save names files that are not there, or not all that are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::file_names::{FILE_SUFFIX, SINGLE_NAME, is_other};
use super::index::{INDEX_NAME, Index};
use super::wrong;
use crate::error::{FormatError, Result};
use crate::io::{INDEX_LIMIT, read_limited};
use crate::refusal::mismatch;

/// The files to read, and what is odd about them.
#[derive(Debug)]
pub(super) struct Found {
    /// Checkpoint files, by their path from the directory.
    pub names: BTreeSet<String>,
    /// The index, where it describes these files.
    pub index: Option<Index>,
    /// Another set that looks complete: it must hold the same values.
    pub rival: BTreeSet<String>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// A set of files named `PREFIX-00001-of-00003.safetensors`.
struct Numbered {
    names: BTreeSet<String>,
    count: usize,
}

/// Finds the files of the checkpoint in `dir`: those of its index; without one that fits
/// `model.safetensors` alone, a complete numbered set, or every `.safetensors` file.
///
/// # Errors
/// A malformed index, files that are missing, several sets of which none is the model's, and
/// directories that hold no model in safetensors at all: what they hold is named.
pub(super) fn find(dir: &Path) -> Result<Found> {
    let names = safetensors(dir)?;
    let path = dir.join(INDEX_NAME);
    let index = read_limited(&path, INDEX_LIMIT)?;
    match index.map(|text| Index::parse(&path, &text)).transpose()? {
        Some(index) => indexed(dir, &names, index),
        None => unindexed(dir, &names),
    }
}

/// The `.safetensors` files directly in `dir`, without those that tools put beside a model.
fn safetensors(dir: &Path) -> Result<BTreeSet<String>> {
    let io = |e| FormatError::io(dir, e);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = name.to_str().filter(|name| name.ends_with(FILE_SUFFIX));
        names.extend(name.filter(|name| !is_other(name)).map(str::to_owned));
    }
    Ok(names)
}

fn indexed(dir: &Path, names: &BTreeSet<String>, index: Index) -> Result<Found> {
    let listed = index.file_names();
    let single = BTreeSet::from([SINGLE_NAME.to_owned()]);
    let has_single = names.contains(SINGLE_NAME) && !listed.contains(SINGLE_NAME);
    let missing = listed.iter().find(|name| !dir.join(name).exists());
    let sets = complete(names);
    let Some(missing) = missing else {
        // A partial index names some files of a set that is there in full.
        let whole = sets
            .into_iter()
            .find(|set| set.len() > listed.len() && listed.is_subset(set));
        let rival = if has_single { single } else { BTreeSet::new() };
        return Ok(match whole {
            None => Found { names: listed, index: Some(index), rival, notes: Vec::new() },
            Some(names) => {
                let note = format!(
                    "{INDEX_NAME} names {} of the {} files: all are read",
                    listed.len(),
                    names.len()
                );
                Found { names, index: None, rival, notes: vec![note] }
            }
        });
    };
    let note = format!(
        "{INDEX_NAME} is of another save and not used: it names `{missing}`, which is not there"
    );
    let (names, rival) = match (has_single, &sets[..]) {
        (true, []) => (single, BTreeSet::new()),
        (true, [set]) => (single, set.clone()),
        (false, [set]) => (set.clone(), BTreeSet::new()),
        _ => {
            let detail = format!(
                "named by {INDEX_NAME}: no such file; fetch it, or remove the index if it is of another save"
            );
            return Err(FormatError::file(&dir.join(missing), detail));
        }
    };
    Ok(Found { names, index: None, rival, notes: vec![note] })
}

fn unindexed(dir: &Path, names: &BTreeSet<String>) -> Result<Found> {
    let sets = complete(names);
    let found = |names, rival| Found { names, index: None, rival, notes: Vec::new() };
    if names.contains(SINGLE_NAME) {
        let rival = sets.into_iter().next().unwrap_or_default();
        return Ok(found(BTreeSet::from([SINGLE_NAME.to_owned()]), rival));
    }
    if names.is_empty() {
        let what = wrong::weights(dir)
            .unwrap_or_else(|| mismatch(format_args!("{FILE_SUFFIX} files"), "none"));
        return Err(FormatError::file(dir, what));
    }
    match &sets[..] {
        [set] => return Ok(found(set.clone(), BTreeSet::new())),
        [a, b, ..] => {
            let (a, b) = (first(a), first(b));
            let detail = format!(
                "two complete models, `{a}` and `{b}` with their following files: keep one of them here"
            );
            return Err(FormatError::file(dir, detail));
        }
        [] => {}
    }
    if let Some(name) = lacking(names) {
        return Err(FormatError::file(&dir.join(name), "a file of this set is missing: fetch it"));
    }
    Ok(found(names.clone(), BTreeSet::new()))
}

fn first(set: &BTreeSet<String>) -> &str {
    set.first().map_or("", String::as_str)
}

/// The numbered sets of which every file is there.
fn complete(names: &BTreeSet<String>) -> Vec<BTreeSet<String>> {
    let sets = numbered(names).into_values();
    sets.filter(|set| set.names.len() == set.count)
        .map(|set| set.names)
        .collect()
}

/// The first file that a numbered set lacks.
fn lacking(names: &BTreeSet<String>) -> Option<String> {
    let sets = numbered(names);
    let ((prefix, count), set) = sets.iter().find(|(_, set)| set.names.len() < set.count)?;
    let name = |number: usize| format!("{prefix}-{number:05}-of-{count}{FILE_SUFFIX}");
    (1..=set.count)
        .map(name)
        .find(|name| !set.names.contains(name))
}

fn numbered(names: &BTreeSet<String>) -> BTreeMap<(String, String), Numbered> {
    let mut sets = BTreeMap::new();
    for name in names {
        let Some((prefix, count)) = parts(name) else { continue };
        let Some(number) = count.parse().ok().filter(|count| *count > 0) else { continue };
        let empty = || Numbered { names: BTreeSet::new(), count: number };
        let set: &mut Numbered = sets
            .entry((prefix.to_owned(), count.to_owned()))
            .or_insert_with(empty);
        set.names.insert(name.clone());
    }
    sets
}

/// Prefix and count of `PREFIX-00001-of-00003.safetensors`.
fn parts(name: &str) -> Option<(&str, &str)> {
    let (rest, count) = name.strip_suffix(FILE_SUFFIX)?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(number)).then_some((prefix, count))
}
