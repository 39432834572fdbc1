//! One of several parts of a conversion: which files of the bundle it makes, and which blocks of the
//! checkpoint it answers for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shardwright_format::checkpoint::{Checkpoint, view_extents};
use shardwright_format::manifest::{FileKind, Manifest};
use shardwright_format::{Refusal, Unit};

use super::source::{BlockSet, Source};
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// Most parts.
const MAX_PARTS: u32 = 1 << 20;

/// One of the parts of a conversion.
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

/// The part, by its number, that makes each shard file: the largest files first, each to the part that has
/// the fewest bytes so far; the first begins with the copies. A function of names and sizes alone, so that
/// all parts agree on it.
pub fn assign(manifest: &Manifest, count: u32) -> BTreeMap<&str, u32> {
    let of = |kind| manifest.files.iter().filter(move |f| f.kind == kind);
    let mut files: Vec<_> = of(FileKind::Shards).collect();
    files.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    let copies: u64 = of(FileKind::Copy).map(|file| file.size).sum();
    // Parts beyond the number of files have none: only so many need be looked at.
    let parts = 2..=count.min(files.len() as u32 + 1);
    let mut loads: BTreeSet<(u64, u32)> = parts.map(|part| (0, part)).collect();
    loads.insert((copies, 1));
    let mut owners = BTreeMap::new();
    for file in files {
        let Some((load, part)) = loads.pop_first() else { break };
        owners.insert(file.path.as_str(), part);
        loads.insert((load + file.size, part));
    }
    owners
}

/// What a part makes of a plan.
pub struct Share {
    /// The planned manifest with those files alone that the part makes; the first part makes copies.
    pub manifest: Manifest,
    /// The shards in them, the largest kinds first.
    pub units: Vec<Unit>,
}

impl Share {
    /// Of `part` in `manifest`.
    pub fn new(manifest: &Manifest, part: Part) -> Self {
        let owners = assign(manifest, part.count);
        let own = |path: &str| owners.get(path) == Some(&part.index);
        let shards = manifest.shards().filter(|shard| own(shard.file));
        let mut units: Vec<_> = shards.map(|shard| shard.unit).collect();
        units.sort_by_key(|unit| !matches!(unit, Unit::Embedding | Unit::Head));
        let mut manifest = manifest.clone();
        manifest.files.retain(|file| match file.kind {
            FileKind::Shards => own(&file.path),
            FileKind::Copy => part.index == 1,
            FileKind::Report => false,
        });
        Self { manifest, units }
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.size).sum()
    }
}

/// Which blocks of the checkpoint's files `part` answers for, and the bytes of tensors that it reads.
///
/// A block belongs to the part that makes the tensor in which it begins, so that it is hashed when it is
/// read; what no tensor of the bundle begins is dealt out evenly. Each block has one owner.
pub fn blocks(plan: &Plan, source: &Source<'_>, part: Part) -> Result<(BlockSet, u64)> {
    let files = 0..source.checkpoint.files().len();
    let counts = files.map(|file| source.num_blocks(file));
    let mut owners: Vec<Vec<u32>> = counts.map(|count| vec![0; count]).collect();
    let makers = assign(&plan.manifest, part.count);
    let mut bytes = 0;
    for unit in plan.units() {
        let file = plan.planned(unit).map(|unit| unit.file);
        let maker = file.and_then(|file| makers.get(file)).copied();
        let maker = maker.ok_or_else(|| ConvertError::plan(format!("{unit} is in no file")))?;
        for (file, range) in extents(plan, source.checkpoint, unit)? {
            bytes += if maker == part.index { range.end - range.start } else { 0 };
            let first = range.start.div_ceil(source.block) as usize;
            let blocks = first..range.end.div_ceil(source.block) as usize;
            let blocks = owners[file].get_mut(blocks).into_iter().flatten();
            blocks
                .filter(|owner| **owner == 0)
                .for_each(|owner| *owner = maker);
        }
    }
    let free = || owners.iter().flatten().filter(|owner| **owner == 0);
    let (total, mut at) = (free().count() as u64, 0);
    let mut is_own = |owner: &u32| {
        if *owner > 0 {
            return *owner == part.index;
        }
        at += 1;
        (at - 1) * u64::from(part.count) / total + 1 == u64::from(part.index)
    };
    let own = owners
        .iter()
        .map(|owners| owners.iter().map(&mut is_own).collect());
    Ok((own.collect(), bytes))
}

/// Where in the checkpoint's files the tensors of a unit lie.
fn extents(plan: &Plan, checkpoint: &Checkpoint, unit: Unit) -> Result<Vec<(usize, Range<u64>)>> {
    let mut found = Vec::new();
    for tensor in plan.planned(unit).into_iter().flat_map(|unit| unit.tensors) {
        let (rows, cols) = (0..tensor.entry.rows, tensor.entry.cols);
        found.extend(view_extents(checkpoint, &tensor.view, rows, cols)?);
    }
    Ok(found)
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
}
