//! Names as transformers would have them, of checkpoints that training tools saved.

use std::collections::{BTreeMap, BTreeSet};

use super::files::StoredTensor;

/// Put before every name by `DataParallel`, by PEFT, and by neither alone.
const WRAPPERS: [&str; 2] = ["module.", "base_model.model."];
/// Steps on the way to a module that a tool wrapped, anywhere in a name, and the tool.
const STEPS: [(&str, &str); 3] = [
    ("_orig_mod.", "torch.compile"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("_checkpoint_wrapped_module.", "activation checkpoints"),
];
/// Before the names of everything but the head, unless the base model was saved alone.
const BASE: &str = "model.";

/// The embedding, by which a beginning of names shows that is nobody's in particular.
const EMBEDDING: &str = "embed_tokens.weight";
/// Before the names of the text model where a configuration describes other parts beside it.
const NESTED: &str = "language_model.";

/// What was done to names.
#[derive(Default)]
pub(super) struct Renaming {
    /// A line for each kind of change.
    pub(super) notes: Vec<String>,
    /// The names in the files, by those that stand for them; those that are the same are left out.
    pub(super) in_files: BTreeMap<String, String>,
}

/// Takes wrappers off the names of `stored`, and adds the `model.` of a base model that was saved
/// alone, where all tensors agree and no two get one name; gives what was done. `nested`: the configuration
/// describes a text model within another.
pub(super) fn normalize(stored: &mut BTreeMap<String, StoredTensor>, nested: bool) -> Renaming {
    let Renaming { mut notes, mut in_files } = Renaming::default();
    let mut rename =
        |stored: &mut _, to: &dyn Fn(&str) -> String| rename(stored, &mut in_files, to);
    for (step, tool) in STEPS {
        let wrapped = stored.keys().any(|name| name.contains(step));
        if wrapped && rename(stored, &|name| name.replace(step, "")) {
            notes.push(format!("`{step}` of {tool} is left out of names"));
        }
    }
    while let Some(wrapper) = shared(stored) {
        if !rename(stored, &|name| name[wrapper.len()..].to_owned()) {
            break;
        }
        notes.push(format!("`{wrapper}` before every name is left out"));
    }
    if let Some((wrapper, instead)) = other(stored, nested) {
        let to = |name: &str| match name.strip_prefix(&wrapper) {
            Some(rest) => format!("{instead}{rest}"),
            None => name.to_owned(),
        };
        if rename(stored, &to) {
            notes.push(format!("`{wrapper}` before every name is taken as `{instead}`"));
        }
    }
    let base = stored.contains_key(EMBEDDING) && !stored.keys().any(|name| name.starts_with(BASE));
    let whole = |name: &str| match name {
        name if name.starts_with("lm_head.") => name.to_owned(),
        name => format!("{BASE}{name}"),
    };
    if base && rename(stored, &whole) {
        notes.push(format!(
            "names without `{BASE}`, of a base model saved alone, are taken as with it"
        ));
    }
    Renaming { notes, in_files }
}

/// The wrapper that every name begins with.
fn shared(stored: &BTreeMap<String, StoredTensor>) -> Option<&'static str> {
    let all = |wrapper: &&str| stored.keys().all(|name| name.starts_with(*wrapper));
    WRAPPERS
        .into_iter()
        .filter(|_| !stored.is_empty())
        .find(all)
}

/// What every name begins with besides what a model's own do, and what stands for it: some class's attribute
/// that holds the whole model, or the one that others call `model`.
fn other(stored: &BTreeMap<String, StoredTensor>, nested: bool) -> Option<(String, &'static str)> {
    let begin = stored
        .keys()
        .find_map(|name| name.strip_suffix(EMBEDDING))?;
    if begin.is_empty() || begin == BASE || (nested && begin.contains(NESTED)) {
        return None;
    }
    let (wrapper, instead) = match begin.strip_suffix(BASE) {
        Some(wrapper) => (wrapper, ""),
        None => (begin, BASE),
    };
    let head = |name: &str| instead == BASE && name.starts_with("lm_head.");
    let all = stored
        .keys()
        .all(|name| name.starts_with(wrapper) || head(name));
    all.then(|| (wrapper.to_owned(), instead))
}

/// What a part of a text model is called where that stands within another, by mlx-lm and by transformers.
pub(super) fn nested(name: &str) -> [String; 2] {
    let inner = name.strip_prefix(BASE).unwrap_or(name);
    [format!("{NESTED}{name}"), format!("{BASE}{NESTED}{inner}")]
}

/// Renames every tensor, unless two would get one name; `in_files` keeps what they were called first.
fn rename(
    stored: &mut BTreeMap<String, StoredTensor>,
    in_files: &mut BTreeMap<String, String>,
    to: &dyn Fn(&str) -> String,
) -> bool {
    let names: BTreeSet<_> = stored.keys().map(|name| to(name)).collect();
    if names.len() < stored.len() {
        return false;
    }
    let mut before = std::mem::take(in_files);
    for (name, tensor) in std::mem::take(stored) {
        let new = to(&name);
        let first = before.remove(&name).unwrap_or(name);
        if first != new {
            in_files.insert(new.clone(), first);
        }
        stored.insert(new, tensor);
    }
    true
}
