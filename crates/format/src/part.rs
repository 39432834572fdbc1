//! One of several parts of a work that many machines do: which one, of how many.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Most parts.
const MAX_PARTS: u32 = 1 << 20;
/// Parts that a message names.
const NAMED: usize = 16;

/// One of the parts of a conversion or of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Part {
    index: u32,
    count: u32,
}

impl Part {
    /// The part `index`, counted from 1, of `count`; none where there is no such part.
    pub const fn new(index: u32, count: u32) -> Option<Self> {
        if index >= 1 && index <= count && count <= MAX_PARTS {
            Some(Self { index, count })
        } else {
            None
        }
    }

    /// Its number, from 1.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Where the part of `out` lies: `OUT.part-I-of-N`, beside it.
    pub fn beside(self, out: &Path) -> PathBuf {
        let mut name = OsString::from(out.file_name().unwrap_or_default());
        name.push(format!(".part-{}-of-{}", self.index, self.count));
        out.with_file_name(name)
    }

    /// Its share of `total` things in a row: as even as can be, each after those of the part before.
    pub fn share(self, total: u64) -> Range<u64> {
        let at = |parts: u32| (total as u128 * parts as u128 / self.count as u128) as u64;
        at(self.index - 1)..at(self.index)
    }

    /// Refuses another number of parts than this one's, which lies at `path`.
    ///
    /// # Errors
    /// As it says.
    pub fn check_count(self, path: &Path, other: Self) -> Result<(), Refusal> {
        let (own, found) = (self.count, other.count);
        let place = path.display();
        let detail = || format!("it is one of {found} parts, in {place} there are {own}").into();
        if own == found { Ok(()) } else { Err(detail()) }
    }

    /// What is said of a part that lies at `path` already.
    pub fn twice(self, path: &Path) -> Refusal {
        format!("part {self} is given twice: {} is one, too", path.display()).into()
    }
}

/// Refuses parts of which some of `count` are missing, and says which.
///
/// # Errors
/// As it says.
pub fn check_all(present: &BTreeSet<u32>, count: u32) -> Result<(), Refusal> {
    let missing: Vec<u32> = (1..=count).filter(|at| !present.contains(at)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = missing.iter().take(NAMED).map(u32::to_string).collect();
    let more = if missing.len() > NAMED { ", …" } else { "" };
    let (noun, are) = if missing.len() == 1 { ("part", "is") } else { ("parts", "are") };
    Err(format!("{noun} {}{more} of {count} {are} missing", named.join(", ")).into())
}

impl TryFrom<(u32, u32)> for Part {
    type Error = Refusal;

    fn try_from((index, count): (u32, u32)) -> Result<Self, Refusal> {
        let refuse = || format!("there is no part {index} of {count}").into();
        Self::new(index, count).ok_or_else(refuse)
    }
}

impl From<Part> for (u32, u32) {
    fn from(part: Part) -> Self {
        (part.index, part.count)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.index, self.count)
    }
}

impl FromStr for Part {
    type Err = Refusal;

    /// `I/N`.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let parts = text.split_once('/');
        let parts = parts.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        parts
            .and_then(|(index, count)| Self::new(index, count))
            .ok_or_else(|| "expected I/N with I from 1 to N, such as 2/4".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_one() {
        assert_eq!("2/4".parse(), Ok(Part { index: 2, count: 4 }));
        for text in ["0/4", "5/4", "1/0", "1", "a/b", "1/2/3", "-1/2", "1/4294967296"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_even_and_leave_nothing_out() {
        let shares = |total, count| {
            let parts = (1..=count).map(|at| Part::new(at, count).unwrap());
            parts.map(|part| part.share(total)).collect::<Vec<_>>()
        };
        assert_eq!(shares(10, 4), [0..2, 2..5, 5..7, 7..10]);
        assert_eq!(shares(2, 3), [0..0, 0..1, 1..2]);
        assert_eq!(shares(u64::MAX, 1), vec![0..u64::MAX]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let told = |present: &[u32], count| {
            let told = check_all(&present.iter().copied().collect(), count);
            told.map_err(|refusal| refusal.to_string())
        };
        assert_eq!(told(&[1, 2], 2), Ok(()));
        assert_eq!(told(&[1], 2), Err("part 2 of 2 is missing".to_owned()));
        let many = told(&[2], 40).unwrap_err();
        assert!(many.starts_with("parts 1, 3, 4, ") && many.ends_with("17, … of 40 are missing"));
    }
}
