//! Why something was refused, as parts: what was looked at, what was expected, what was found.

use std::fmt;

/// Why something was refused. Only who prints it makes one line of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// What was looked at, from the outermost place inwards; or all that there is to say.
    pub what: String,
    /// What it should be.
    pub expected: Option<Box<str>>,
    /// What it is.
    pub found: Option<Box<str>>,
}

/// Something is not what it should be. [`Refusal::at`] says what.
pub fn mismatch(expected: impl fmt::Display, found: impl fmt::Display) -> Refusal {
    let (expected, found) = (expected.to_string().into(), found.to_string().into());
    Refusal { what: String::new(), expected: Some(expected), found: Some(found) }
}

impl Refusal {
    /// The same, seen from farther out: `place` goes before what was looked at.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.what = match self.what.as_str() {
            "" => place.to_string(),
            what => format!("{place}: {what}"),
        };
        self
    }
}

impl From<String> for Refusal {
    fn from(what: String) -> Self {
        Self { what, ..Self::default() }
    }
}

impl From<&str> for Refusal {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(expected) = &self.expected {
            let colon = if self.what.is_empty() { "" } else { ": " };
            write!(f, "{colon}expected {expected}")?;
        }
        self.found
            .as_ref()
            .map_or(Ok(()), |found| write!(f, ", found {found}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_from_the_outermost_place_inwards() {
        let size = || mismatch(3, "none");
        assert_eq!(size().to_string(), "expected 3, found none");
        let placed = size().at("size").at("file 1");
        assert_eq!(placed.to_string(), "file 1: size: expected 3, found none");
        assert_eq!(placed.what, "file 1: size");
        assert_eq!(Refusal::from("no file").at("a").to_string(), "a: no file");
    }
}
