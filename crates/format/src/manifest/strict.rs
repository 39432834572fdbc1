//! One way to write each thing: what a lenient parser would let pass in a manifest is refused.
//!
//! The file is parsed a second time, as plain JSON, and held against the manifest that was made of
//! it: whatever was read as something else than it says (an array as an object, `0` as a name, upper
//! case as lower) differs there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::refusal::{Refusal, mismatch};

/// Arrays and objects inside each other, at most.
pub const MAX_DEPTH: usize = 64;

/// Fields whose default is a number: absent, but never `null`.
const NUMBERS_BY_DEFAULT: [&str; 7] = [
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logits_cap",
    "softmax_scale",
    "score_cap",
    "routed_scaling_factor",
];

/// Plain JSON, no name twice in an object.
struct Json(Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(Self)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Json(value)) = access.next_element()? {
            array.push(value);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Json(value))) = access.next_entry::<String, _>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("`{}` appears twice", name.escape_debug())));
            }
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// Refuses bytes that do not say what `read`, which was made of them, says.
///
/// # Errors
/// The first place where they differ: expected and found.
pub fn check(bytes: &[u8], read: &Value) -> Result<(), Refusal> {
    let Json(written) = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    same(&written, read, "")
}

/// Whether `written` is a spelling of `read`. Fields at their defaults may be left out of either.
fn same(written: &Value, read: &Value, at: &str) -> Result<(), Refusal> {
    let differs = || {
        let at = at.trim_start_matches('.');
        Err(mismatch(kind(read), kind(written)).at(format_args!("`{at}`")))
    };
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                let at = format!("{at}.{name}");
                match read.get(name) {
                    Some(read) => same(value, read, &at)?,
                    None if value.is_null() && NUMBERS_BY_DEFAULT.contains(&name.as_str()) => {
                        let at = at.trim_start_matches('.');
                        return Err(
                            mismatch("a number or no field", "null").at(format_args!("`{at}`"))
                        );
                    }
                    None => {}
                }
            }
            Ok(())
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            let mut both = written.iter().zip(read).enumerate();
            both.try_for_each(|(i, (written, read))| same(written, read, &format!("{at}[{i}]")))
        }
        // The manifest holds binary32 where JSON may spell more digits, or none after the point.
        (Value::Number(written), Value::Number(read)) if read.is_f64() => {
            let close = written.as_f64().map(|n| n as f32) == read.as_f64().map(|n| n as f32);
            if close { Ok(()) } else { differs() }
        }
        _ if written == read => Ok(()),
        _ => differs(),
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::Object(_) => "an object".to_owned(),
        plain => plain.to_string(),
    }
}

/// Refuses what is nested too deeply, and characters that could make a terminal or a page show
/// something else than the manifest says: control characters, line and paragraph separators, and
/// marks of direction.
///
/// # Errors
/// The first of them.
pub fn check_values(value: &Value, depth: usize) -> Result<(), Refusal> {
    if depth > MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH} arrays and objects").into());
    }
    match value {
        Value::String(text) => check_text(text),
        Value::Array(array) => array
            .iter()
            .try_for_each(|value| check_values(value, depth + 1)),
        Value::Object(object) => object.iter().try_for_each(|(name, value)| {
            check_text(name)?;
            check_values(value, depth + 1)
        }),
        _ => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), Refusal> {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    match text.chars().find(|c| steers(*c)) {
        None => Ok(()),
        Some(c) => {
            let (c, text) = (u32::from(c), text.escape_default());
            Err(mismatch("no control character", format_args!("U+{c:04X}"))
                .at(format_args!("\"{text}\"")))
        }
    }
}
