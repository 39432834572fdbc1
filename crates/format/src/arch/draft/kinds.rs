//! The kinds of tensors that a checkpoint has: names with numbers taken out, and how the text
//! model's differ from those of the built-in tables.

use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::names::{LAYER, split};
use crate::role::Role;

/// Parts of names that tell what is not the text model.
const VISION: &[&str] =
    &["vision_model", "vision_tower", "visual", "vision", "multi_modal_projector"];
const MTP: &[&str] = &["mtp"];
/// Why a bundle works without them, in the words of the built-in tables.
const VISION_REASON: &str = "images: the runtime takes text";
const MTP_REASON: &str = "layers that predict further tokens, not used to predict the next one";

/// Tensors whose names differ in numbers alone.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// Dimensions of the first of them.
    pub(super) shape: Vec<u64>,
}

/// What a checkpoint's names show.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// The text model's, by name as after `prefixes`.
    pub(super) text: BTreeMap<String, Kind>,
    /// What the text model's names begin with, and what built-in tables have there.
    pub(super) prefixes: BTreeMap<String, String>,
    /// Beginnings of what is not the text model: role and reason.
    pub(super) extras: BTreeMap<String, (Role, &'static str)>,
}

impl Kinds {
    /// Reads the names of a checkpoint whose text model has `layers` layers; later ones are left
    /// out.
    pub(super) fn from_checkpoint(checkpoint: &Checkpoint, layers: Option<u64>) -> Self {
        let mut kinds = Self::default();
        let mut all = BTreeMap::new();
        for (name, info) in checkpoint.tensors() {
            if let Some((beginning, role, reason)) = extra(name) {
                kinds.extras.insert(beginning, (role, reason));
                continue;
            }
            let (Some(pattern), [layer, _]) = split(name) else { continue };
            let past = layers.is_some_and(|count| u64::from(layer) >= count);
            if !(past && pattern.contains(LAYER)) {
                all.entry(pattern)
                    .or_insert_with(|| Kind { shape: info.shape.clone() });
            }
        }
        kinds.prefixes = prefixes(all.keys());
        kinds.text = all
            .into_iter()
            .map(|(pattern, kind)| (plain(&kinds.prefixes, &pattern), kind))
            .collect();
        kinds
    }
}

fn plain(prefixes: &BTreeMap<String, String>, pattern: &str) -> String {
    let rest =
        |(from, to): (&String, &String)| Some(format!("{to}{}", pattern.strip_prefix(from)?));
    let found = prefixes.iter().find_map(rest);
    found.unwrap_or_else(|| pattern.to_owned())
}

/// Where the layers of most kinds lie, if not under `model.`.
fn prefixes<'a>(patterns: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let mut stems: BTreeMap<&str, usize> = BTreeMap::new();
    for pattern in patterns {
        if let Some((stem, _)) = pattern.split_once("layers.{layer}.") {
            *stems.entry(stem).or_default() += 1;
        }
    }
    let most = stems.into_iter().max_by_key(|(_, count)| *count);
    let replaced = match most.map(|(stem, _)| stem) {
        None | Some("" | "model.") => None,
        Some(stem) => match stem.strip_suffix("model.") {
            Some(wrapper) if wrapper.ends_with('.') => Some((wrapper.to_owned(), String::new())),
            _ if stem.starts_with("model.") => Some((stem.to_owned(), "model.".to_owned())),
            _ => None,
        },
    };
    replaced.into_iter().collect()
}

/// Whether a name says that its tensor is not the text model's.
fn extra(name: &str) -> Option<(String, Role, &'static str)> {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len() + 1;
        let found = if VISION.contains(&part) {
            (Role::Vision, VISION_REASON)
        } else if MTP.contains(&part) {
            (Role::Mtp, MTP_REASON)
        } else {
            continue;
        };
        return Some((name.get(..end)?.to_owned(), found.0, found.1));
    }
    None
}
