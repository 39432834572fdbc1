//! `config.json` from metadata.

use serde_json::{Map, Value as Json};

use super::facts::Facts;
use super::rope;

/// The `config.json` of a file; `factors` are those of its rotary frequencies, if it has any.
///
/// # Errors
/// Metadata that are missing, that contradict each other or that no model of ours has.
pub(super) fn make(facts: &Facts<'_>, factors: Option<&[f32]>) -> Result<Json, String> {
    facts.check_known()?;
    let mut config = Map::new();
    for (name, origin) in &facts.table.config.0 {
        config.insert(name.clone(), facts.value(origin)?);
    }
    if let Some(scaling) = rope::scaling(facts, &config, factors)? {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(Json::Object(config))
}
