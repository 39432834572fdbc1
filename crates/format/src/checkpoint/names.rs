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

/// Takes wrappers off the names of `stored`, and adds the `model.` of a base model that was saved
/// alone, where all tensors agree and no two get one name; gives what was done.
pub(super) fn normalize(stored: &mut BTreeMap<String, StoredTensor>) -> Vec<String> {
    let mut notes = Vec::new();
    for (step, tool) in STEPS {
        let wrapped = stored.keys().any(|name| name.contains(step));
        if wrapped && rename(stored, |name| name.replace(step, "")) {
            notes.push(format!("`{step}` of {tool} is left out of names"));
        }
    }
    while let Some(wrapper) = shared(stored) {
        if !rename(stored, |name| name[wrapper.len()..].to_owned()) {
            break;
        }
        notes.push(format!("`{wrapper}` before every name is left out"));
    }
    let base = stored.contains_key("embed_tokens.weight")
        && !stored.keys().any(|name| name.starts_with(BASE));
    let whole = |name: &str| match name {
        name if name.starts_with("lm_head.") => name.to_owned(),
        name => format!("{BASE}{name}"),
    };
    if base && rename(stored, whole) {
        notes.push(format!(
            "names without `{BASE}`, of a base model saved alone, are taken as with it"
        ));
    }
    notes
}

/// The wrapper that every name begins with.
fn shared(stored: &BTreeMap<String, StoredTensor>) -> Option<&'static str> {
    let all = |wrapper: &&str| stored.keys().all(|name| name.starts_with(*wrapper));
    WRAPPERS
        .into_iter()
        .filter(|_| !stored.is_empty())
        .find(all)
}

/// Renames every tensor, unless two would get one name.
fn rename(stored: &mut BTreeMap<String, StoredTensor>, to: impl Fn(&str) -> String) -> bool {
    let names: BTreeSet<_> = stored.keys().map(|name| to(name)).collect();
    if names.len() < stored.len() {
        return false;
    }
    *stored = std::mem::take(stored)
        .into_iter()
        .map(|(name, tensor)| (to(&name), tensor))
        .collect();
    true
}
