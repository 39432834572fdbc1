//! Reads the parameters of a table from `config.json`.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use super::Arch;
use super::ffn_rows::Flag;
use super::table::Parameter;
use crate::error::{FormatError, Result};
use crate::refusal::{Refusal, mismatch};

/// Widest matrix that is believed.
pub(super) const MAX_SIZE: u32 = 1 << 24;
/// Most heads, experts and head widths that are believed.
pub(super) const MAX_COUNT: u32 = 1 << 16;

/// `config.json` seen through a table's parameters.
pub(super) struct Config<'a> {
    arch: &'a Arch,
    path: &'a Path,
    object: &'a Value,
    /// The object inside that describes the text model: what it lacks is looked for outside.
    inner: Option<&'a Value>,
}

/// The value of the parameter that has `key`, if it has one that is not null.
pub(super) fn stated(arch: &Arch, path: &Path, object: &Value, key: &str) -> Result<Option<Value>> {
    let config = Config::new(arch, path, object);
    let has = |(name, parameter): &(&String, &Parameter)| {
        *name == key || parameter.keys.iter().any(|known| known == key)
    };
    let value = match arch.table.parameters.iter().find(has) {
        Some((name, _)) => config.value(name)?.1,
        None => config.raw(key).cloned(),
    };
    Ok(value.filter(|value| !value.is_null()))
}

impl<'a> Config<'a> {
    pub(super) fn new(arch: &'a Arch, path: &'a Path, object: &'a Value) -> Self {
        let inner = arch.table.config.as_ref().and_then(|key| object.get(key));
        Self { arch, path, object, inner }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        let inner = self.inner.and_then(|inner| inner.get(key));
        inner.or_else(|| self.object.get(key))
    }

    /// Refuses values that the table does not support.
    pub(super) fn check_supported(&self) -> Result<()> {
        for (key, allowed) in &self.arch.table.supported {
            match self.get(key) {
                Some(found) if !allowed.contains(found) => {
                    let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
                    return Err(self.unexpected(key, &allowed.join(" or "), Some(found)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A key that is no parameter.
    pub(super) fn raw(&self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    /// An error about `key`.
    pub(super) fn unexpected(
        &self,
        key: &str,
        expected: &str,
        found: Option<&Value>,
    ) -> FormatError {
        self.refused(mismatch(expected, shown(found)).at(format_args!("`{key}`")))
    }

    /// An error about the file.
    pub(super) fn refused(&self, detail: impl Into<Refusal>) -> FormatError {
        FormatError::file(self.path, detail)
    }

    /// A whole number in `range`.
    pub(super) fn size(&self, name: &str, range: RangeInclusive<u32>) -> Result<u32> {
        let (key, value) = self.value(name)?;
        self.whole(&key, value.as_ref(), range)
    }

    /// A whole number in `range`, or none.
    pub(super) fn optional_size(
        &self,
        name: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>> {
        match self.value(name)? {
            (_, Some(Value::Null)) => Ok(None),
            (key, value) => self.whole(&key, value.as_ref(), range).map(Some),
        }
    }

    /// A finite number above zero.
    pub(super) fn number(&self, name: &str) -> Result<f32> {
        let (key, value) = self.value(name)?;
        self.positive(&key, value.as_ref())
    }

    /// A finite number above zero, or none.
    pub(super) fn optional_number(&self, name: &str) -> Result<Option<f32>> {
        match self.value(name)? {
            (_, Some(Value::Null)) => Ok(None),
            (key, value) => self.positive(&key, value.as_ref()).map(Some),
        }
    }

    pub(super) fn flag(&self, flag: &Flag) -> Result<bool> {
        let name = match flag {
            Flag::Fixed(value) => return Ok(*value),
            Flag::Parameter(name) => name,
        };
        match self.value(name)? {
            (_, Some(Value::Bool(value))) => Ok(value),
            (key, value) => Err(self.unexpected(&key, "true or false", value.as_ref())),
        }
    }

    /// A whole number, a list of them, or none.
    pub(super) fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let (key, value) = self.value(name)?;
        let value = value.unwrap_or(Value::Null);
        token_ids(&value).ok_or_else(|| self.unexpected(&key, TOKEN_IDS, Some(&value)))
    }

    /// A text, or none when the parameter is null.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        match self.value(name)? {
            (_, Some(Value::Null)) => Ok(None),
            (_, Some(Value::String(text))) => Ok(Some(text)),
            (key, value) => Err(self.unexpected(&key, "a text", value.as_ref())),
        }
    }

    /// A list, or none when the parameter is null.
    pub(super) fn list(&self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.value(name)? {
            (_, Some(Value::Null)) => Ok(None),
            (_, Some(Value::Array(list))) => Ok(Some(list)),
            (key, value) => Err(self.unexpected(&key, "a list", value.as_ref())),
        }
    }

    /// Reads `value`, found at `key`, as a whole number in `range`.
    pub(super) fn whole(
        &self,
        key: &str,
        value: Option<&Value>,
        range: RangeInclusive<u32>,
    ) -> Result<u32> {
        // Some tools write whole numbers as floats.
        let whole = |n: &f64| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n);
        let float = |value: &Value| value.as_f64().filter(whole).map(|n| n as u64);
        let number = value
            .and_then(|value| value.as_u64().or_else(|| float(value)))
            .and_then(|n| u32::try_from(n).ok());
        number.filter(|n| range.contains(n)).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            self.unexpected(key, &expected, value)
        })
    }

    /// Reads `value`, found at `key`, as a finite number above zero.
    pub(super) fn positive(&self, key: &str, value: Option<&Value>) -> Result<f32> {
        let number = value.and_then(Value::as_f64).map(|n| n as f32);
        number
            .filter(|n| n.is_finite() && *n > 0.0)
            .ok_or_else(|| self.unexpected(key, "a number above 0", value))
    }

    /// A parameter's key and its value; none when it has neither a key nor a default.
    fn value(&self, name: &str) -> Result<(String, Option<Value>)> {
        let parameter = self.arch.table.parameters.get(name).ok_or_else(|| {
            FormatError::file(
                &self.arch.path,
                mismatch(format_args!("`{name}`"), "none").at("parameters"),
            )
        })?;
        let (key, found) = self.find(name, parameter)?;
        let found = match found {
            Some(Value::Array(list)) if parameter.alike && list.iter().all(|v| *v == list[0]) => {
                list.first().or(found)
            }
            found => found,
        };
        let value = match found {
            Some(Value::Null) => parameter.null.as_ref().or(found),
            None => parameter.default.as_ref(),
            found => found,
        };
        let derived = value.filter(|_| found.is_none_or(Value::is_null));
        Ok(match derived {
            Some(Value::String(text)) => (key, Some(self.quotient(name, text)?)),
            _ => (key, value.cloned()),
        })
    }

    /// Whether `config.json` has a value for a parameter, or leaves it to its default.
    pub(super) fn states(&self, name: &str) -> bool {
        let parameter = self.arch.table.parameters.get(name);
        let found = parameter.map(|parameter| self.find(name, parameter));
        matches!(found, Some(Ok((_, Some(value)))) if !value.is_null())
    }

    /// The first of a parameter's keys that `config.json` has; the others must agree with it.
    fn find(&self, name: &str, parameter: &Parameter) -> Result<(String, Option<&'a Value>)> {
        let own = [name.to_owned()];
        let keys = if parameter.keys.is_empty() { &own[..] } else { &parameter.keys };
        // Of the whole: a text model within says nothing of it, whatever it has.
        let get = |key: &String| {
            if parameter.outer { self.object.get(key) } else { self.get(key) }
        };
        let mut found = keys.iter().filter_map(|key| Some((key, get(key)?)));
        let Some((key, value)) = found.next() else { return Ok((keys[0].clone(), None)) };
        match found.find(|(_, other)| *other != value) {
            Some((other, found)) => {
                Err(self.unexpected(other, &format!("{value} as in `{key}`"), Some(found)))
            }
            None => Ok((key.clone(), Some(value))),
        }
    }

    /// The value of `a` or `a / b`, both parameters.
    fn quotient(&self, name: &str, text: &str) -> Result<Value> {
        let mut terms = text
            .split('/')
            .map(|term| self.size(term.trim(), 1..=MAX_SIZE));
        let first = terms.next().unwrap_or(Ok(0))?;
        let value = terms.try_fold(first, |value, term| {
            let term = term?;
            if value.is_multiple_of(term) {
                return Ok(value / term);
            }
            let detail = mismatch("a whole number", format_args!("{value} / {term}"))
                .at(format_args!("`{name}` is {text}"));
            Err(self.refused(detail))
        })?;
        Ok(Value::from(value))
    }
}

/// What [`token_ids`] accepts.
pub(super) const TOKEN_IDS: &str = "a token's number, a list of them or null";

/// The numbers in `value`: one, a list or null. None for anything else. A whole number may be written as a
/// float, and -1 is no token's.
pub(super) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let one = |value: &Value| {
        let number = value.as_f64().filter(|id| id.fract() == 0.0)?;
        let id = (0.0..=f64::from(u32::MAX)).contains(&number);
        (id || number == -1.0).then(|| id.then_some(number as u32))
    };
    let all: Option<Vec<_>> = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(one).collect(),
        id => one(id).map(|id| vec![id]),
    };
    Some(all?.into_iter().flatten().collect())
}

/// A value for an error message.
pub(super) fn shown(value: Option<&Value>) -> String {
    /// Longest text of a value that is shown whole.
    const MOST: usize = 80;
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
