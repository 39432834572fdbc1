//! What codes are. A folder's configuration speaks of the whole model that it was packed from, or only of its dense
//! part: what it says is made true of both.

use serde_json::{Map, Value, json};

use super::GROUP_SIZE;
use crate::checkpoint::files::Files;
use crate::checkpoint::names::nested;

/// Where a configuration describes codes as MLX does, the first of them first.
const PLACES: [&str; 4] = [
    "/quantization",
    "/text_config/quantization",
    "/quantization_config",
    "/text_config/quantization_config",
];
/// The members that are not modules.
const MEMBERS: [&str; 3] = ["bits", "group_size", "mode"];

/// Columns that share a scale in experts.
pub(super) fn group_size(config: &Value) -> u64 {
    let said = described(config).and_then(|object| object["group_size"].as_u64());
    said.unwrap_or_else(|| GROUP_SIZE.into())
}

fn described(config: &Value) -> Option<&Map<String, Value>> {
    let mut objects = PLACES
        .iter()
        .filter_map(|place| config.pointer(place)?.as_object());
    objects.find(|object| object.contains_key("group_size"))
}

/// Makes the configuration say that experts, which are not among the tensors yet, have codes of `bits`, and of each
/// module that is what it said or what these codes are if it said nothing.
pub(super) fn describe(files: &mut Files, bits: u8) {
    let mut object = described(&files.config).cloned().unwrap_or_default();
    let usual = [("bits", json!(4)), ("group_size", json!(GROUP_SIZE))];
    for (key, value) in usual {
        object.entry(key).or_insert(value);
    }
    let usual = MEMBERS
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), object.get(*key)?.clone())));
    let usual = Value::Object(usual.collect());
    for module in files
        .stored
        .keys()
        .filter_map(|name| name.strip_suffix(".scales"))
    {
        let said = |name: &String| object.contains_key(name);
        if !said(&module.to_owned()) && !nested(module).iter().any(said) {
            object.insert(module.to_owned(), usual.clone());
        }
    }
    object.insert("bits".to_owned(), json!(bits));
    object.insert("mode".to_owned(), json!("affine"));
    files.config["quantization"] = Value::Object(object);
}
