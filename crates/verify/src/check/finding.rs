//! What a verification holds against a bundle.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardwright_format::shown::shown;
use shardwright_format::{Refusal, Role, Unit};

/// What sort of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The manifest is damaged or contradicts itself.
    Manifest,
    /// The conversion's report does not agree with the manifest, or is none.
    Report,
    /// A file of the manifest is not there.
    Missing,
    /// Something is there that the manifest does not name.
    Extra,
    /// A file is shorter or longer than it should be.
    Size,
    /// Bytes are not those that were written.
    Hash,
    /// Bytes between shards or tensors are not zero.
    Padding,
    /// The checkpoint is not the one that the bundle was made from.
    Checkpoint,
    /// A tensor's provenance does not exist in the checkpoint, or is not what it says.
    Provenance,
    /// Values of the checkpoint that the bundle uses not at all or more than once.
    Coverage,
    /// The bundle gives a tensor another role than the checkpoint does.
    Mapping,
    /// A tensor that should be exact is not.
    Exactness,
    /// Values that are infinite or not numbers.
    NotFinite,
    /// A tensor is farther from its source than its encoding explains.
    Error,
    /// A tensor is as near to its source as it should be, but no rounding made it so: it was scaled, or
    /// its codes carry something else.
    Intent,
    /// A conversion of the original makes other bytes.
    Reproduction,
    /// Nobody who is trusted signed the bundle.
    Signature,
    /// A quality limit is not kept.
    Threshold,
    /// The text has lines of the one that the bundle was calibrated with.
    Overlap,
    /// The bundle predicts the text better than the original does.
    Overfit,
}

/// One thing that is wrong: where, what was expected, what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What sort of thing.
    pub kind: Kind,
    /// The file, relative to the bundle or the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The tensor: its role in a bundle, its name in a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What was looked at.
    pub what: String,
    /// What it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl Finding {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        let (file, shard, tensor, expected, found) = (None, None, None, None, None);
        Self { kind, file, shard, tensor, what: what.into(), expected, found }
    }

    /// A finding about a file.
    pub(crate) fn file(kind: Kind, file: &str, what: impl Into<String>) -> Self {
        Self { file: Some(file.to_owned()), ..Self::new(kind, what) }
    }

    /// A finding about a file that was refused.
    pub(crate) fn refused(kind: Kind, file: &str, why: Refusal) -> Self {
        let Refusal { what, expected, found } = why;
        let [expected, found] = [expected, found].map(|text| text.map(String::from));
        Self { expected, found, ..Self::file(kind, file, what) }
    }

    pub(crate) fn shard(mut self, unit: Unit) -> Self {
        self.shard = Some(unit.to_string());
        self
    }

    pub(crate) fn role(self, role: Role) -> Self {
        self.tensor(role.name())
    }

    pub(crate) fn tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.to_owned());
        self
    }

    pub(crate) fn expected(
        mut self,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        self.expected = Some(expected.to_string());
        self.found = Some(found.to_string());
        self
    }
}

/// Findings of one kind that are shown; of more, how many there are.
const SHOWN: usize = 5;

/// Findings as lines, kind by kind in the order of their first: the first few, and how many more. The
/// JSON report has all of them.
pub(crate) fn folded(findings: &[Finding]) -> Vec<String> {
    let mut kinds: Vec<(Kind, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        match kinds.iter_mut().find(|(kind, _)| *kind == finding.kind) {
            Some((_, alike)) => alike.push(finding),
            None => kinds.push((finding.kind, vec![finding])),
        }
    }
    let mut lines = Vec::new();
    for (_, alike) in kinds {
        // A line that says "1 more" would be no shorter than the one more.
        let count = if alike.len() > SHOWN + 1 { SHOWN } else { alike.len() };
        let line = |finding: &&Finding| shown(&finding.to_string()).into_owned();
        lines.extend(alike[..count].iter().map(line));
        if alike.len() > count {
            lines.push(format!(
                "and {} more of this kind: the JSON report has all",
                alike.len() - count
            ));
        }
    }
    lines
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in [&self.file, &self.shard, &self.tensor]
            .into_iter()
            .flatten()
        {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.what)?;
        let colon = if self.what.is_empty() { "" } else { ": " };
        match (&self.expected, &self.found) {
            (Some(expected), Some(found)) => write!(f, "{colon}expected {expected}, found {found}"),
            (Some(expected), None) => write!(f, "{colon}expected {expected}"),
            (None, Some(found)) => write!(f, "{colon}found {found}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_a_kind_are_folded() {
        let many = |kind, count: usize| (0..count).map(move |i| Finding::new(kind, format!("{i}")));
        let findings: Vec<_> = many(Kind::Hash, 1)
            .chain(many(Kind::Mapping, 820))
            .chain(many(Kind::Hash, 5))
            .collect();
        let lines = folded(&findings);
        assert_eq!(lines[..7], ["0", "0", "1", "2", "3", "4", "0"]);
        assert_eq!(lines.last().unwrap(), "and 815 more of this kind: the JSON report has all");
        assert_eq!(lines.len(), 6 + 6);
    }
}
