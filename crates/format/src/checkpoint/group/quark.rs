//! Quark, of AMD: FP8 as [`super::fp8`] has it. Source: `QConfig` of quark, vLLM's `quantization/quark/quark.py`.

use serde_json::Value;

use super::setting::shown;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// What of weights is read.
const DTYPE: &str = "fp8_e4m3";
/// Members with descriptions by modules, or by kinds of them.
const BY_MODULE: [&str; 2] = ["layer_quant_config", "layer_type_quant_config"];
/// What the names of algorithms have in them that turn activations while the model runs.
const TURNS: &str = "rot";
const NEXT: &str = "take the model that it was made from";

/// # Errors
/// Weights of another type than FP8, and rotations, of which parts belong to the activations.
pub(super) fn check(config: &Value) -> Result<(), Refusal> {
    let whole = "global_quant_config";
    check_weights(&config[whole]).map_err(|e| e.at(format_args!("`{whole}`")))?;
    for key in BY_MODULE {
        for (name, own) in config[key].as_object().into_iter().flatten() {
            check_weights(own).map_err(|e| e.at(format_args!("`{key}`: `{name}`")))?;
        }
    }
    let list = std::slice::from_ref(&config["algo_config"]);
    let list = list[0].as_array().map_or(list, Vec::as_slice);
    let mut names = list.iter().filter_map(|one| one["name"].as_str());
    match names.find(|name| name.contains(TURNS)) {
        Some(name) => {
            let found = format_args!("{name:?}: {NEXT}");
            Err(mismatch("no rotation of activations", found).at("`algo_config`"))
        }
        None => Ok(()),
    }
}

/// The type of the weights that `own` describes, where it describes any.
fn check_weights(own: &Value) -> Result<(), Refusal> {
    let dtype = match &own["weight"] {
        Value::Null => return Ok(()),
        weight => weight.get("dtype"),
    };
    if dtype.is_some_and(|dtype| dtype == DTYPE) {
        return Ok(());
    }
    let found = format_args!("{}: {NEXT}", shown(dtype));
    Err(mismatch(format_args!("{DTYPE:?}"), found).at("`weight.dtype`"))
}
