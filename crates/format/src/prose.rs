//! Texts that people give: prompts, and what is calibrated on and predicted.

use std::path::Path;

use crate::error::{FormatError, Result};

/// The text in `bytes`, without a byte order mark.
///
/// # Errors
/// Any encoding but UTF-8, named as far as its bytes tell it, with the command that changes it.
pub fn decode(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let wide = match bytes.get(..2) {
        Some([0xff, 0xfe]) => Some("UTF-16LE"),
        Some([0xfe, 0xff]) => Some("UTF-16BE"),
        _ => zeros(&bytes),
    };
    if let Some(name) = wide {
        return Err(refused(path, "UTF-16", name));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let found = format!("byte {:#04x} at {at}, as in Latin-1", e.as_bytes()[at]);
        refused(path, &found, "LATIN1")
    })?;
    Ok(text
        .strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text))
}

/// UTF-16 without a mark: every other byte of mostly western text is zero.
fn zeros(bytes: &[u8]) -> Option<&'static str> {
    let first = &bytes[..bytes.len().min(1024)];
    let zeros = |from: usize| {
        first
            .iter()
            .skip(from)
            .step_by(2)
            .filter(|byte| **byte == 0)
            .count()
    };
    let most = first.len() / 4;
    let (even, odd) = (zeros(0), zeros(1));
    match () {
        () if first.len() >= 4 && odd > most && even == 0 => Some("UTF-16LE"),
        () if first.len() >= 4 && even > most && odd == 0 => Some("UTF-16BE"),
        () => None,
    }
}

fn refused(path: &Path, found: &str, name: &str) -> FormatError {
    let detail =
        format!("expected text in UTF-8, found {found}: `iconv -f {name} -t UTF-8` changes it");
    FormatError::file(path, detail)
}

/// Why a text may surprise: lines that end in two characters are other tokens.
pub fn note(text: &str) -> Option<&'static str> {
    let (all, both) = (text.matches('\n').count(), text.matches("\r\n").count());
    (all > 0 && all == both).then_some(
        "lines end in CRLF throughout, which are other tokens than LF; models have seen the latter",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        decode(Path::new("t"), bytes.to_vec())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn other_encodings_are_named() {
        let little: Vec<u8> = "plain".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "plain".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let expected =
            "t: expected text in UTF-8, found UTF-16: `iconv -f UTF-16LE -t UTF-8` changes it";
        assert_eq!(refusal(&little), expected);
        assert_eq!(refusal(&[&[0xff, 0xfe], &little[..]].concat()), expected);
        assert!(refusal(&big).contains("UTF-16BE"));
        let latin = "t: expected text in UTF-8, found byte 0xe9 at 3, as in Latin-1: \
                     `iconv -f LATIN1 -t UTF-8` changes it";
        assert_eq!(refusal(b"caf\xe9s"), latin);
    }

    #[test]
    fn a_mark_is_no_text_and_crlf_is_noted() {
        let text = |bytes: &[u8]| decode(Path::new("t"), bytes.to_vec()).unwrap();
        assert_eq!(text(b"\xef\xbb\xbfabc"), "abc");
        assert_eq!(text(b"a\0b"), "a\0b");
        assert!(note("a\r\nb\r\n").is_some());
        assert!(note("a\r\nb\n").is_none() && note("a").is_none());
    }
}
