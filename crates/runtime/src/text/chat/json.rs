//! `tojson` of chat templates: JSON as Python's `json.dumps` writes it.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;
use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde_json::Serializer;
use serde_json::ser::{CharEscape, Formatter};

/// Longest text that one value may become. Values share parts, and a small one can be endless.
const MOST_BYTES: usize = 8 << 20;

/// The filter, with the options that transformers gives it.
#[allow(clippy::needless_pass_by_value)] // filters are given it so
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = indent.map(|unit| step(&unit)).transpose()?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let between = if indent.is_some() { "," } else { ", " };
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        _ => [between.to_owned(), ": ".to_owned()],
    };
    let style = Style { indent, item, key, ascii: ascii.unwrap_or(false), depth: 0, empty: true };
    let mut text = Bounded(Vec::new());
    let mut serializer = Serializer::with_formatter(&mut text, style);
    let written = match sorted {
        Some(true) => Sorted(value).serialize(&mut serializer),
        _ => value.serialize(&mut serializer),
    };
    written.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    state.consume_fuel(text.0.len() as u64 / 64)?;
    Ok(Value::from(String::from_utf8_lossy(&text.0).into_owned()))
}

/// What stands before a value for each level: so many spaces, or a text.
fn step(unit: &Value) -> Result<String, Error> {
    if let Some(text) = unit.as_str() {
        return Ok(text.to_owned());
    }
    let spaces = i64::try_from(unit.clone())?;
    Ok(" ".repeat(spaces.clamp(0, MOST_BYTES as i64) as usize))
}

/// A value of which objects have their keys in order.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = || self.0.try_iter().map_err(S::Error::custom);
        match self.0.kind() {
            ValueKind::Map => {
                let mut keys: Vec<_> = items()?.collect();
                keys.sort();
                let member = |key: &Value| self.0.get_item(key).unwrap_or_default();
                let mut map = serializer.serialize_map(Some(keys.len()))?;
                for key in &keys {
                    map.serialize_entry(key, &Sorted(&member(key)))?;
                }
                map.end()
            }
            ValueKind::Seq => {
                let mut list = serializer.serialize_seq(self.0.len())?;
                for item in items()? {
                    list.serialize_element(&Sorted(&item))?;
                }
                list.end()
            }
            _ => self.0.serialize(serializer),
        }
    }
}

/// Bytes up to [`MOST_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other(format!("expected at most {MOST_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How Python sets out JSON.
struct Style {
    /// What each level is indented by, each value on its own line; none for all in one line.
    indent: Option<String>,
    /// Between values.
    item: String,
    /// Between a key and its value.
    key: String,
    /// Whether other letters than ASCII are written as numbers.
    ascii: bool,
    depth: usize,
    /// Whether the innermost list or object has no value yet.
    empty: bool,
}

impl Style {
    fn open(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        (self.depth, self.empty) = (self.depth + 1, true);
        out.write_all(bracket)
    }

    fn close(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn value(&mut self, out: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.line(out)
    }

    fn line(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let Some(step) = &self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(step.as_bytes()))
    }
}

impl Formatter for Style {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.value(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            let mut units = [0; 2];
            if self.ascii && !c.is_ascii() {
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            } else {
                out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(out, escape)
    }
}
