//! What Python's texts and lists can do and minijinja's cannot.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The filter that stands for Python's `%` after a text.
pub(super) const PERCENT: &str = "percent";

/// `format % values`: those of a tuple are several. As in Python none may be left, but for objects.
pub(super) fn percent(state: &mut State, format: &Value, values: &Value) -> Result<Value, Error> {
    let several = values.downcast_object_ref::<Tuple>();
    let several = several.map_or_else(|| vec![values.clone()], |tuple| tuple.to_vec());
    let text = format.as_str().unwrap_or_default().replace("%%", "");
    if values.kind() != ValueKind::Map && several.len() > text.matches('%').count() {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    state.apply_filter("format", &[vec![format.clone()], several].concat())
}

/// The method `name` of `value`.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match value.as_str() {
        Some(text) => of_text(state, text, name, args)?,
        None if value.kind() == ValueKind::Seq && name == "index" => Some(position(value, args)?),
        None => None,
    };
    found.map_or_else(|| unknown_method_callback(state, value, name, args), Ok)
}

fn of_text(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "split" | "rsplit" => split(text, args, name == "rsplit")?,
        "partition" | "rpartition" => parted(text, args, name == "rpartition")?,
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if name == "index" { text.find(part) } else { text.rfind(part) };
            Value::from(
                text[..at.ok_or_else(|| invalid("substring not found"))?]
                    .chars()
                    .count(),
            )
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let rest = if name == "removeprefix" {
                text.strip_prefix(part)
            } else {
                text.strip_suffix(part)
            };
            Value::from(rest.unwrap_or(text))
        }
        "zfill" | "ljust" | "rjust" | "center" => padded(state, text, name, args)?,
        "swapcase" => text.chars().map(swapped).collect::<String>().into(),
        _ => return Ok(None),
    }))
}

const NO_TEXT: &str = "sep: expected a text";

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Where a list has a value.
fn position(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|item| item == *wanted);
    at.map(Value::from)
        .ok_or_else(|| invalid("the value is not in list"))
}

/// Before, separator and after; all in the first, or in the last, where the separator is not.
fn parted(text: &str, args: &[Value], last: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    let separator = separator_of(separator)?;
    let parts = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match parts {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn separator_of(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(invalid("empty separator")) } else { Ok(separator) }
}

/// `split(sep=None, maxsplit=-1)`, counted from the left or from the right.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (places, options): (&[Value], Kwargs) = from_args(args)?;
    let (separator, most): (Option<Value>, Option<i64>) = from_args(places)?;
    let separator = separator
        .or(options.get("sep")?)
        .filter(|value| !value.is_none());
    let most = most.or(options.get("maxsplit")?).unwrap_or(-1);
    options.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let separator = separator.map(|value| value.as_str().map(str::to_owned).ok_or(NO_TEXT));
    let separator = separator.transpose().map_err(invalid)?;
    separator.as_deref().map(separator_of).transpose()?;
    if !from_right {
        return Ok(Value::from(parts(text, separator.as_deref(), most)));
    }
    let separator = separator.map(|separator| reversed(&separator));
    let found = parts(&reversed(text), separator.as_deref(), most);
    Ok(found.iter().rev().map(|part| reversed(part)).collect())
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

/// What stands between separators, or between white space; after `most` cuts all the rest.
fn parts(text: &str, separator: Option<&str>, most: usize) -> Vec<String> {
    if let Some(separator) = separator {
        return text
            .splitn(most + 1, separator)
            .map(str::to_owned)
            .collect();
    }
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let end = rest
            .find(char::is_whitespace)
            .filter(|_| found.len() < most);
        let (word, others) = rest.split_at(end.unwrap_or(rest.len()));
        found.push(word.to_owned());
        rest = others.trim_start();
    }
    found
}

/// `text` with zeros or other letters around it, as wide as asked.
fn padded(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(args)?;
    let width = usize::try_from(width).unwrap_or(0);
    state.consume_fuel(width as u64 / 16)?;
    let missing = width.saturating_sub(text.chars().count());
    let fill = |count: usize| {
        let letter = if name == "zfill" { '0' } else { fill.unwrap_or(' ') };
        letter.to_string().repeat(count)
    };
    Ok(Value::from(match name {
        "ljust" => text.to_owned() + &fill(missing),
        "rjust" => fill(missing) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", fill(missing))
        }
        // Of an odd number Python puts one more to the left where the width is odd too.
        _ => {
            let left = missing / 2 + (missing & width & 1);
            fill(left) + text + &fill(missing - left)
        }
    }))
}

fn swapped(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}
