//! Which file each shard lies in, and where.

use std::collections::BTreeMap;

use shardwright_format::manifest::{
    DENSE_FILE_LIMIT, DenseShard, EXPERTS_DIR, ExpertShards, FileEntry, FileKind, Hash, Manifest,
};
use shardwright_format::{ModelSpec, Unit, UnitLayout, mismatch};

use super::entry;
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

/// One file per layer with experts, every expert on a multiple of the stride.
pub fn place_expert_shards(
    units: Vec<(Unit, UnitLayout)>,
    spec: &ModelSpec,
    alignment: u64,
) -> Result<Vec<ExpertShards>> {
    let place = |(unit, UnitLayout { tensors, len }): (Unit, UnitLayout)| {
        let layer = unit.layer().unwrap_or_default();
        let count = spec.layers[layer as usize].num_experts() as usize;
        let stride = len
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| too_large(unit))?;
        stride
            .checked_mul(count as u64)
            .ok_or_else(|| too_large(unit))?;
        let file = format!("{EXPERTS_DIR}/layer-{layer:03}.bin");
        let blake3 = vec![Hash::ZERO; count];
        Ok(ExpertShards { layer, file, stride, len, tensors, blake3 })
    };
    units.into_iter().map(place).collect()
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
