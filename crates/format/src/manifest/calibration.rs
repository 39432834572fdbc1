//! What a bundle was calibrated with: enough to tell an honest evaluation from another.

use serde::{Deserialize, Serialize};

use super::Hash;
use crate::refusal::{Refusal, mismatch};
use crate::text::line_hashes;

/// Most lines of a calibration text whose hashes a manifest holds.
pub const MAX_CALIBRATION_LINES: usize = 4096;

/// What the conversion was calibrated with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Hash of the text's bytes; none when only statistics were at hand that do not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_blake3: Option<Hash>,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens of a window, each read from an empty context.
    pub window: u32,
    /// Hash of the file of statistics; none when they were gathered by the conversion itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics_blake3: Option<Hash>,
    /// Of the text's lines.
    #[serde(default, skip_serializing_if = "LineHashes::is_empty")]
    pub line_hashes: LineHashes,
}

impl Calibration {
    /// # Errors
    /// The first contradiction.
    pub(super) fn validate(&self) -> Result<(), Refusal> {
        if self.text_blake3.is_none() && self.statistics_blake3.is_none() {
            return Err("calibration: expected text_blake3 or statistics_blake3".into());
        }
        if self.text_blake3.is_none() && !self.line_hashes.is_empty() {
            return Err("calibration: line_hashes: of no text".into());
        }
        Ok(())
    }
}

/// Hashes of a text's lines as [`line_hashes`] gives them, at most [`MAX_CALIBRATION_LINES`].
/// Written as one string of 16 hexadecimal digits each, highest digit first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LineHashes(Vec<u64>);

impl LineHashes {
    /// Of a text.
    pub fn from_text(text: &str) -> Self {
        Self(line_hashes(text, MAX_CALIBRATION_LINES))
    }

    /// Ascending.
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of a text's lines, by their [`line_hashes`], are among the lines, and how many could be told:
    /// with less than [`MAX_CALIBRATION_LINES`] hashes that is all, else those with a small hash.
    pub fn shared_with(&self, lines: &[u64]) -> SharedLines {
        let full = self.0.len() >= MAX_CALIBRATION_LINES;
        let last = self.0.last().filter(|_| full).copied();
        let mut shared = SharedLines::default();
        for hash in lines {
            if last.is_none_or(|last| *hash <= last) {
                shared.compared += 1;
                shared.shared += u64::from(self.0.binary_search(hash).is_ok());
            }
        }
        shared
    }
}

/// Lines that two texts have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLines {
    /// Distinct lines that were found.
    pub shared: u64,
    /// Distinct lines that were looked up.
    pub compared: u64,
}

impl SharedLines {
    /// Share of the lines looked up that were found; 0 of none.
    pub fn fraction(&self) -> f64 {
        self.shared as f64 / self.compared.max(1) as f64
    }
}

impl From<Vec<u64>> for LineHashes {
    /// Those of [`line_hashes`]; of more than [`MAX_CALIBRATION_LINES`], the smallest.
    fn from(mut hashes: Vec<u64>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        hashes.truncate(MAX_CALIBRATION_LINES);
        Self(hashes)
    }
}

impl From<LineHashes> for String {
    fn from(hashes: LineHashes) -> Self {
        let digit = |hash: u64, at: u32| {
            char::from_digit((hash >> (60 - 4 * at)) as u32 & 0xf, 16).unwrap_or_default()
        };
        let digits = |hash: u64| (0..16).map(move |at| digit(hash, at));
        hashes.0.into_iter().flat_map(digits).collect()
    }
}

impl TryFrom<String> for LineHashes {
    type Error = Refusal;

    fn try_from(hex: String) -> Result<Self, Refusal> {
        let (digits, rest) = hex.as_bytes().as_chunks::<16>();
        if !rest.is_empty() || digits.len() > MAX_CALIBRATION_LINES {
            let found = hex.len();
            return Err(mismatch(
                format_args!("at most {MAX_CALIBRATION_LINES} times 16 digits"),
                found,
            )
            .at("line_hashes"));
        }
        let hashes = digits.iter().map(number);
        let hashes = hashes.collect::<Option<Vec<_>>>();
        let hashes = hashes.ok_or("line_hashes: expected hexadecimal digits in lower case")?;
        if !hashes.is_sorted_by(|a, b| a < b) {
            return Err("line_hashes: expected ascending numbers".into());
        }
        Ok(Self(hashes))
    }
}

fn number(digits: &[u8; 16]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::Range<u32>) -> String {
        let lines: Vec<_> = range
            .map(|i| format!("line {i} of a text that is long"))
            .collect();
        lines.join("\n")
    }

    fn with(hashes: &LineHashes, text: &str) -> SharedLines {
        hashes.shared_with(&line_hashes(text, usize::MAX))
    }

    fn read(hex: &str) -> Result<LineHashes, Refusal> {
        LineHashes::try_from(hex.to_owned())
    }

    #[test]
    fn hashes_survive_the_round_trip() {
        let hashes = LineHashes::from_text(&lines(0..50));
        let hex = String::from(hashes.clone());
        assert_eq!(hex.len(), 50 * 16);
        assert_eq!(read(&hex).unwrap(), hashes);
    }

    #[test]
    fn wrong_hashes_are_refused() {
        let message = |hex: &str| read(hex).unwrap_err().to_string();
        assert!(message("123").ends_with("found 3"));
        assert!(message("000000000000000g").ends_with("in lower case"));
        assert!(message("00000000000000010000000000000001").ends_with("ascending numbers"));
        assert!(message(&"0".repeat(16 * 4097)).starts_with("line_hashes: expected at most 4096"));
    }

    #[test]
    fn shared_lines_are_counted() {
        let hashes = LineHashes::from_text(&lines(0..100));
        let shared = with(&hashes, &lines(90..110));
        assert_eq!(shared, SharedLines { shared: 10, compared: 20 });
        assert!((shared.fraction() - 0.5).abs() < 1e-15);
        assert_eq!(with(&LineHashes::default(), "").fraction(), 0.0);
    }

    #[test]
    fn of_a_long_text_a_sample_is_compared() {
        let hashes = LineHashes::from_text(&lines(0..3 * 4096));
        assert_eq!(hashes.as_slice().len(), MAX_CALIBRATION_LINES);
        let shared = with(&hashes, &lines(0..2 * 4096));
        // A third of the lines, all of them shared.
        assert_eq!(shared.shared, shared.compared);
        assert!((2000..3500).contains(&shared.compared), "{shared:?}");
        let other = with(&hashes, &lines(100_000..101_000));
        assert!(other.shared == 0 && other.compared > 200, "{other:?}");
    }
}
