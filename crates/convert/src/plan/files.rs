//! Which file each shard lies in, and where.

use std::collections::BTreeMap;

use shardwright_format::manifest::{
    DENSE_FILE_LIMIT, DenseShard, EXPERTS_DIR, ExpertShards, FileEntry, FileKind, Hash, Manifest,
};
use shardwright_format::{Unit, UnitLayout, mismatch};

use super::{PlacedExperts, entry};
use crate::error::{ConvertError, Result};

fn too_large(unit: Unit) -> ConvertError {
    ConvertError::plan(format!("{unit}: larger than any file"))
}

/// Dense shards one after the other, a new file before the limit is passed.
pub fn place_dense_shards(
    units: Vec<(Unit, UnitLayout)>,
    alignment: u64,
) -> Result<Vec<DenseShard>> {
    let (mut file, mut offset) = (0, 0);
    let mut shards = Vec::with_capacity(units.len());
    for (unit, UnitLayout { tensors, len }) in units {
        let end = |offset: u64| {
            let end = offset.checked_add(len)?;
            end.checked_next_multiple_of(alignment)
        };
        let mut next = end(offset).ok_or_else(|| too_large(unit))?;
        if next > DENSE_FILE_LIMIT && offset > 0 {
            (file, offset) = (file + 1, 0);
            next = end(0).ok_or_else(|| too_large(unit))?;
        }
        let name = format!("dense-{file:03}.bin");
        shards.push(DenseShard { unit, file: name, offset, len, blake3: Hash::ZERO, tensors });
        offset = next;
    }
    Ok(shards)
}

/// One file for the experts of a layer that are stored alike, every expert on a multiple of the stride.
pub fn place_expert_shards(
    placed: Vec<PlacedExperts>,
    alignment: u64,
) -> Result<Vec<ExpertShards>> {
    let mut shards: Vec<ExpertShards> = Vec::with_capacity(placed.len());
    for placed in placed {
        let unit = placed.first();
        let PlacedExperts { layer, experts, count, layout: UnitLayout { tensors, len } } = placed;
        let stride = len.checked_next_multiple_of(alignment);
        let stride = stride.ok_or_else(|| too_large(unit))?;
        stride
            .checked_mul(u64::from(count))
            .ok_or_else(|| too_large(unit))?;
        // The first of a layer's files has its name alone; the others are numbered.
        let before = shards
            .iter()
            .rev()
            .take_while(|shards| shards.layer == layer);
        let number = match before.count() {
            0 => String::new(),
            number => format!("-{number}"),
        };
        let file = format!("{EXPERTS_DIR}/layer-{layer:03}{number}.bin");
        let blake3 = vec![Hash::ZERO; count as usize];
        shards.push(ExpertShards { layer, experts, file, stride, len, tensors, blake3 });
    }
    Ok(shards)
}

/// Every shard file with its size: the end of its last shard rounded up to the alignment.
pub fn shard_files(manifest: &Manifest) -> Result<Vec<FileEntry>> {
    let mut ends = BTreeMap::<&str, u64>::new();
    if let Some(experts) = manifest.experts.iter().find(|s| s.blake3.is_empty()) {
        let detail = mismatch("experts", "none").at(format_args!("layer {}", experts.layer));
        return Err(ConvertError::Plan(detail));
    }
    for shard in manifest.shards() {
        let end = ends.entry(shard.file).or_default();
        *end = (*end).max(shard.extent.offset + shard.extent.len);
    }
    let files = ends
        .into_iter()
        .map(|(path, end)| entry(path, FileKind::Shards, end.next_multiple_of(manifest.alignment)));
    Ok(files.collect())
}
