//! One of several parts of a conversion: which files of the bundle it makes, and which blocks of the
//! checkpoint it answers for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use shardwright_format::checkpoint::{Checkpoint, view_extents};
use shardwright_format::manifest::{FileKind, Manifest};
use shardwright_format::{Part, Unit};

use super::source::{BlockSet, Source};
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

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
        let owners = assign(manifest, part.count());
        let own = |path: &str| owners.get(path) == Some(&part.index());
        let shards = manifest.shards().filter(|shard| own(shard.file));
        let mut units: Vec<_> = shards.map(|shard| shard.unit).collect();
        units.sort_by_key(|unit| !matches!(unit, Unit::Embedding | Unit::Head));
        let mut manifest = manifest.clone();
        manifest.files.retain(|file| match file.kind {
            FileKind::Shards => own(&file.path),
            FileKind::Copy => part.index() == 1,
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
    let makers = assign(&plan.manifest, part.count());
    let mut bytes = 0;
    for unit in plan.units() {
        let file = plan.planned(unit).map(|unit| unit.file);
        let maker = file.and_then(|file| makers.get(file)).copied();
        let maker = maker.ok_or_else(|| ConvertError::plan(format!("{unit} is in no file")))?;
        for (file, range) in extents(plan, source.checkpoint, unit)? {
            bytes += if maker == part.index() { range.end - range.start } else { 0 };
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
            return *owner == part.index();
        }
        at += 1;
        (at - 1) * u64::from(part.count()) / total + 1 == u64::from(part.index())
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
