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
    let mut out = String::new();
    for c in value.chars().take(MOST) {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    let more = value.chars().count().saturating_sub(MOST);
    if more > 0 {
        let _ = write!(out, "… ({more} characters more)");
    }
    Cow::Owned(out)
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
    fn what_is_too_long_is_cut() {
        let long = "é".repeat(2200);
        let cut = shown(&long);
        assert!(cut.starts_with("éé") && cut.ends_with("é… (200 characters more)"), "{cut}");
        assert!(matches!(shown(&long[..1000]), Cow::Borrowed(_)));
    }
}
