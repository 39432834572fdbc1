//! Text from outside as it may be shown: on one line, without what steers a terminal, not too long.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of one value that are shown; of longer ones the start, and how much is left out.
const MOST: usize = 2000;

/// A value that may come from a stranger's file, fit for a line of a report: control characters, marks of
/// writing direction and line separators escaped, what is too long cut.
pub fn shown(value: &str) -> Cow<'_, str> {
    let long = value.len() > MOST && value.chars().count() > MOST;
    if !long && !value.chars().any(steers) {
        return Cow::Borrowed(value);
    }
    let end = value
        .char_indices()
        .nth(MOST)
        .map_or(value.len(), |(end, _)| end);
    let mut out = escaped(&value[..end]);
    let more = value.chars().count().saturating_sub(MOST);
    if more > 0 {
        let _ = write!(out, "… ({more} characters more)");
    }
    Cow::Owned(out)
}

/// Text of any length on one line, whatever [`steers`] a terminal escaped.
pub fn escaped(text: &str) -> String {
    escaped_but(text, |_| false)
}

/// The same of text in lines and columns, which stay.
pub fn escaped_lines(text: &str) -> String {
    escaped_but(text, |c| matches!(c, '\n' | '\t'))
}

/// A text that a model made, as a terminal may have it: its lines and marks that join letters stay, and whatever else
/// moves the cursor or turns the direction of what is no longer its own is escaped.
pub fn escaped_prose(text: &str) -> String {
    escaped_but(text, |c| !c.is_control() && !turns(c) || matches!(c, '\n' | '\t'))
}

fn escaped_but(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !stays(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The same of JSON, which means what it meant: outside of strings it has no such characters but
/// line ends, which stay.
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // What steers lies below U+10000, in four digits.
        let _ = match c {
            c if steers(c) && c != '\n' => write!(out, "\\u{:04x}", c as u32),
            c => out.write_char(c),
        };
    }
    out
}

/// Whether a character ends a line, moves the cursor, or turns the direction of what follows.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

/// Whether a character ends a line by itself, or turns the direction of all that follows until another ends it.
const fn turns(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert!(matches!(shown("layer 0: naïve — 日本"), Cow::Borrowed(_)));
        assert_eq!(shown("a\n\nverdict: holds\u{1b}[8m"), "a\\n\\nverdict: holds\\u{1b}[8m");
        assert_eq!(shown("a\u{202e}b\u{2028}c"), "a\\u{202e}b\\u{2028}c");
    }

    #[test]
    fn lines_stay_in_reports_and_json_keeps_its_meaning() {
        assert_eq!(escaped_lines("a\tb\n\u{1b}"), "a\tb\n\\u{1b}");
        assert_eq!(escaped("a\nb\u{2066}"), "a\\nb\\u{2066}");
        let value = serde_json::json!({ "name": "a\u{202e}\u{2029}\u{9b}\u{7f}\u{feff}\nb" });
        let json = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!json.chars().any(|c| steers(c) && c != '\n'), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }

    #[test]
    fn prose_keeps_what_joins_its_letters() {
        let joined = "\u{1f468}\u{200d}\u{1f469} \u{645}\u{6cc}\u{200c}\u{62e}\u{200f}!\n\tend";
        assert_eq!(escaped_prose(joined), joined);
        let steering = "a\u{1b}]0;b\u{7}\rc\u{9b}d\u{202e}e\u{2066}f\u{2028}";
        let expected = "a\\u{1b}]0;b\\u{7}\\rc\\u{9b}d\\u{202e}e\\u{2066}f\\u{2028}";
        assert_eq!(escaped_prose(steering), expected);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let long = "é".repeat(2200);
        let cut = shown(&long);
        assert!(cut.starts_with("éé") && cut.ends_with("é… (200 characters more)"), "{cut}");
        assert!(matches!(shown(&long[..1000]), Cow::Borrowed(_)));
    }
}
