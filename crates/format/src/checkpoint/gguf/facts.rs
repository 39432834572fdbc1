//! What a GGUF file says of its model: metadata and shapes, looked up through a table.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::header::{Array, Value};
use super::table::{Origin, Table};
use crate::refusal::{Refusal, mismatch};

/// What a file says, but for the values of its tensors.
pub(super) struct Facts<'a> {
    pub(super) table: &'a Table,
    pub(super) metadata: &'a BTreeMap<&'a str, Value<'a>>,
    /// Shapes, outermost dimension first.
    pub(super) shapes: &'a BTreeMap<String, Vec<u64>>,
}

impl Facts<'_> {
    /// Refuses metadata of the architecture that have no use: they may change what is computed.
    pub(super) fn check_known(&self) -> Result<(), Refusal> {
        let prefix = format!("{}.", self.table.architecture);
        for key in self.metadata.keys().filter(|key| key.starts_with(&prefix)) {
            if !self.table.knows(key) {
                let path = self.table.path;
                return Err(format!("metadatum `{key}`: expected one that {path} lists").into());
            }
        }
        for (key, allowed) in &self.table.supported {
            let Some(found) = self.get(key)? else { continue };
            if !allowed.contains(&found) {
                let allowed: Vec<_> = allowed.iter().map(Json::to_string).collect();
                let expected = allowed.join(" or ");
                return Err(mismatch(expected, found).at(format_args!("metadatum `{key}`")));
            }
        }
        Ok(())
    }

    pub(super) fn value(&self, origin: &Origin) -> Result<Json, Refusal> {
        let has = |name: &String| self.shapes.contains_key(name);
        Ok(match origin {
            Origin::Keys { keys, default } => return self.agreed(keys, default.as_ref()),
            Origin::Less { key, less } => {
                let all = self.whole(key)?.ok_or_else(|| missing(key))?;
                let less = self.whole(less)?.unwrap_or_default();
                let left = all.checked_sub(less);
                left.ok_or_else(|| {
                    mismatch(format_args!("at least {less}"), all)
                        .at(format_args!("metadatum `{key}`"))
                })?
                .into()
            }
            Origin::Share { share, of, parts } => {
                let Some(part) = self.whole(share)? else { return Ok(Json::Null) };
                let whole = self.whole(of)?.filter(|whole| *whole > 0);
                let parts = parts
                    .as_ref()
                    .map(|key| self.whole(key)?.ok_or_else(|| missing(key)));
                let part = part as f64 * parts.transpose()?.unwrap_or(1) as f64;
                (part / whole.ok_or_else(|| missing(of))? as f64).into()
            }
            Origin::Positive { positive } => match self.whole(positive)? {
                Some(found) if found > 0 => found.into(),
                _ => Json::Null,
            },
            Origin::Value { value } => value.clone(),
            Origin::With { with } => has(with).into(),
            Origin::Without { without } => (!has(without)).into(),
            Origin::Choice { by, cases, absent, other } => {
                let chosen = match (self.get(by)?, absent) {
                    (Some(found), _) => cases.get(&found.to_string()),
                    (None, Some(absent)) => Some(&**absent),
                    (None, None) => None,
                };
                return self.value(chosen.unwrap_or(other));
            }
            Origin::RowsOf { rows_of } => {
                let rows = self.shapes.get(rows_of).and_then(|shape| shape.first());
                let rows =
                    rows.ok_or_else(|| mismatch(format_args!("tensor `{rows_of}`"), "none"))?;
                (*rows).into()
            }
        })
    }

    /// A metadatum that is one value.
    pub(super) fn get(&self, key: &str) -> Result<Option<Json>, Refusal> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let found = |found: &dyn std::fmt::Display| {
            Err(mismatch("one value", found).at(format_args!("metadatum `{key}`")))
        };
        let number = match *value {
            Value::Array(array) => return alike(key, &array),
            Value::Whole(number) => return Ok(Some(number.into())),
            Value::Negative(number) => return Ok(Some(number.into())),
            Value::Bool(value) => return Ok(Some(value.into())),
            Value::Text(text) => return Ok(Some(text.into())),
            // The shortest decimal that is this number in 32 bits.
            Value::F32(number) => number.to_string().parse().unwrap_or(f64::NAN),
            Value::F64(number) => number,
        };
        serde_json::Number::from_f64(number)
            .map_or_else(|| found(&number), |number| Ok(Some(number.into())))
    }

    /// A metadatum that is a whole number.
    fn whole(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let Some(found) = self.get(key)? else { return Ok(None) };
        let whole = found.as_u64();
        whole
            .map(Some)
            .ok_or_else(|| mismatch("a whole number", found).at(format_args!("metadatum `{key}`")))
    }

    /// The value of those of `keys` that are there.
    fn agreed(&self, keys: &[String], default: Option<&Json>) -> Result<Json, Refusal> {
        let mut first: Option<(&String, Json)> = None;
        for key in keys {
            let Some(found) = self.get(key)? else { continue };
            match &first {
                Some((other, expected)) if *expected != found => {
                    return Err(mismatch(format_args!("{expected} as in `{other}`"), found)
                        .at(format_args!("metadatum `{key}`")));
                }
                Some(_) => {}
                None => first = Some((key, found)),
            }
        }
        let value = first.map(|(_, value)| value).or_else(|| default.cloned());
        value.ok_or_else(|| missing(&keys.join("` or `")))
    }
}

fn missing(key: &str) -> Refusal {
    mismatch("one", "none").at(format_args!("metadatum `{key}`"))
}

/// The value that a list has for every layer.
fn alike(key: &str, array: &Array<'_>) -> Result<Option<Json>, Refusal> {
    let values: Vec<_> = array.numbers().collect();
    let first = values.first().copied();
    let other = values.iter().position(|value| Some(*value) != first);
    match (first, other) {
        (Some(Value::Whole(number)), None) => return Ok(Some(number.into())),
        (Some(Value::Bool(value)), None) => return Ok(Some(value.into())),
        _ => {}
    }
    let found = match (first.as_ref().and_then(shown), other) {
        (Some(first), Some(at)) => {
            let other = shown(&values[at]).unwrap_or_else(|| "another".to_owned());
            format!("{first} in layer 0 and {other} in layer {at}")
        }
        _ => format!("a list of {} that is not", array.count),
    };
    let expected = "the same number for every layer";
    Err(mismatch(expected, found).at(format_args!("metadatum `{key}`")))
}

/// A number or bool as a message has it.
fn shown(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Whole(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}
