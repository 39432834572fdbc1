//! Units of a bundle that were made again from the original. The bundle's maker makes them; here is what it means.

use serde::{Deserialize, Serialize};
use shardwright_format::Unit;
use shardwright_format::manifest::Hash;

use crate::check::finding::{Finding, Kind};
use crate::report::{Report, Verdict};

/// What making units of a bundle again gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reproduction {
    /// Units of the bundle.
    pub of: u64,
    /// Those that were made again.
    pub units: Vec<Unit>,
    /// What they were picked by; none where all were made.
    pub seed: Option<u64>,
    /// Those whose bytes differ.
    pub differing: Vec<Differing>,
}

/// A unit of which a conversion makes other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    /// The unit.
    pub unit: Unit,
    /// Hash of the bytes that a conversion makes.
    pub expected: Hash,
    /// Hash of the bundle's, which the check of its bytes held against them.
    pub found: Hash,
}

impl Report {
    /// Takes in what making units again gave; other bytes are a finding each.
    pub fn reproduced(&mut self, reproduction: Reproduction) {
        let count = reproduction.units.len();
        let seed = reproduction
            .seed
            .map_or_else(String::new, |seed| format!(", with the seed {seed}"));
        let equal = count - reproduction.differing.len();
        self.notes.push(format!(
            "{count} of {} shards were made again from the original{seed}: {equal} have the same bytes",
            reproduction.of
        ));
        let finding = |differing: &Differing| {
            Finding::new(Kind::Reproduction, "bytes, made again from the original")
                .shard(differing.unit)
                .expected(differing.expected, differing.found)
        };
        self.findings
            .extend(reproduction.differing.iter().map(finding));
        if !self.findings.is_empty() {
            self.verdict = Verdict::Found;
        }
        self.reproduction = Some(reproduction);
    }
}
