//! Which tensors a rule is about: globs over names, sets of roles, ranges of layers and of experts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shardwright_format::{Refusal, Role, mismatch};

/// Whether `text` matches `glob`, where `*` stands for any characters and `?` for one.
pub fn matches_glob(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one more character taken by it.
    let mut star = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g + 1, t));
                g += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (g, t) = (g + 1, t + 1),
            _ => match &mut star {
                Some((after, taken)) => {
                    *taken += 1;
                    (g, t) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}

/// One value or a list of them, as recipes may write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(raw: OneOrMany) -> Self {
        match raw {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

impl From<Vec<String>> for OneOrMany {
    fn from(mut many: Vec<String>) -> Self {
        if many.len() == 1 { Self::One(many.swap_remove(0)) } else { Self::Many(many) }
    }
}

/// A set of roles, written as globs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "OneOrMany", into = "OneOrMany")]
pub struct Roles {
    globs: Vec<String>,
    roles: Vec<Role>,
}

impl Roles {
    /// One role.
    pub fn from_role(role: Role) -> Self {
        Self { globs: vec![role.name().to_owned()], roles: vec![role] }
    }

    /// The roles that any of `globs` names.
    ///
    /// # Errors
    /// A glob that names no role there is.
    pub fn new(globs: Vec<String>) -> Result<Self, Refusal> {
        let names = |glob: &str| Role::ALL.iter().any(|role| matches_glob(glob, role.name()));
        if let Some(unknown) = globs.iter().find(|glob| !names(glob)) {
            let known: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
            return Err(format!("unknown role `{unknown}`: expected {}", known.join(", ")).into());
        }
        let named = |role: &Role| globs.iter().any(|glob| matches_glob(glob, role.name()));
        let roles = Role::ALL.iter().copied().filter(named).collect();
        Ok(Self { globs, roles })
    }

    /// Whether the role is one of them.
    pub fn contains(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether all of them are other than the text model's.
    pub(crate) fn only_extras(&self) -> bool {
        self.roles.iter().all(|role| role.is_extra())
    }

    /// Whether the two sets meet.
    pub(crate) fn shares_any(&self, other: &Self) -> bool {
        other.roles.iter().any(|role| self.contains(*role))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.globs.join(", "))
    }
}

impl TryFrom<OneOrMany> for Roles {
    type Error = Refusal;
    fn try_from(raw: OneOrMany) -> Result<Self, Refusal> {
        Self::new(raw.into())
    }
}

impl From<Roles> for OneOrMany {
    fn from(roles: Roles) -> Self {
        roles.globs.into()
    }
}

/// A set of layers, or of a layer's experts, written as ranges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "OneOrMany", into = "OneOrMany")]
pub struct Numbers(Vec<NumberRange>);

impl Numbers {
    /// These numbers, ascending, as few ranges as hold them.
    pub fn new(numbers: &[u32]) -> Self {
        let mut ranges = Vec::new();
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            ranges.extend(match *run {
                [one] => Some(NumberRange::One(one)),
                [first, .., last] => Some(NumberRange::Between(first, last + 1)),
                [] => None,
            });
        }
        Self(ranges)
    }

    /// Whether `number`, of `count` from 0, is among them.
    pub fn contains(&self, number: u32, count: u32) -> bool {
        self.0.iter().any(|range| range.contains(number, count))
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(NumberRange::to_string).collect();
        f.write_str(&ranges.join(", "))
    }
}

impl TryFrom<OneOrMany> for Numbers {
    type Error = Refusal;
    fn try_from(raw: OneOrMany) -> Result<Self, Refusal> {
        let texts = Vec::from(raw);
        texts
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl From<Numbers> for OneOrMany {
    fn from(layers: Numbers) -> Self {
        let texts: Vec<_> = layers.0.iter().map(NumberRange::to_string).collect();
        texts.into()
    }
}

/// Layers, or experts, that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberRange {
    /// One alone: `3`.
    One(u32),
    /// From the first number to before the second: `0..4`.
    Between(u32, u32),
    /// That many from the beginning: `first 2`.
    First(u32),
    /// That many from the end: `last 2`.
    Last(u32),
}

impl NumberRange {
    fn contains(self, number: u32, count: u32) -> bool {
        match self {
            Self::One(one) => number == one,
            Self::Between(from, to) => (from..to).contains(&number),
            Self::First(n) => number < n,
            Self::Last(n) => number >= count.saturating_sub(n),
        }
    }
}

impl FromStr for NumberRange {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let number = |part: &str| part.trim().parse::<u32>().ok();
        let parsed = if let Some(n) = text.strip_prefix("first ") {
            number(n).map(Self::First)
        } else if let Some(n) = text.strip_prefix("last ") {
            number(n).map(Self::Last)
        } else if let Some((from, to)) = text.split_once("..") {
            number(from)
                .zip(number(to))
                .filter(|(from, to)| from < to)
                .map(|(a, b)| Self::Between(a, b))
        } else {
            number(text).map(Self::One)
        };
        parsed.ok_or_else(|| {
            mismatch("like `3`, `0..4`, `first 2` or `last 2`", format_args!("`{text}`"))
        })
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => write!(f, "{one}"),
            Self::Between(from, to) => write!(f, "{from}..{to}"),
            Self::First(n) => write!(f, "first {n}"),
            Self::Last(n) => write!(f, "last {n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_people_expect() {
        for (glob, text, expected) in [
            ("expert.*", "expert.gate_proj", true),
            ("expert.*", "shared_expert.gate_proj", false),
            ("*expert*", "shared_expert.gate_proj", true),
            ("model.layers.?.mlp.*.weight", "model.layers.3.mlp.experts.7.up_proj.weight", true),
            ("model.layers.?.mlp.*.weight", "model.layers.13.mlp.gate.weight", false),
            ("*a*b", "xaxbxab", true),
            ("*a*b", "xaxbxa", false),
            ("", "", true),
            ("", "x", false),
            ("*", "", true),
        ] {
            assert_eq!(matches_glob(glob, text), expected, "{glob} {text}");
        }
    }

    #[test]
    fn ranges_count_from_either_end() {
        for (text, expected) in
            [("2", vec![2]), ("1..3", vec![1, 2]), ("first 2", vec![0, 1]), ("last 2", vec![3, 4])]
        {
            let range: NumberRange = text.parse().unwrap();
            let found: Vec<_> = (0..5).filter(|number| range.contains(*number, 5)).collect();
            assert_eq!(found, expected, "{text}");
            assert_eq!(range.to_string(), text);
        }
    }
}
