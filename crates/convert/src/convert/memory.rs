//! Sizes of the conversion's buffers, and what they add up to.
//!
//! Tests use small ones, so that small checkpoints take every path; no byte of a bundle depends on
//! them.

use shardwright_format::manifest::Manifest;

/// Bytes of the source read at a time. Small enough to stay in a shared cache until it is used.
pub const SOURCE_TILE: u64 = if cfg!(test) { 8 << 10 } else { 2 << 20 };
/// Weights widened and quantized at a time: 128 KiB of `f32` stay in a core's own cache.
pub const WEIGHTS_TILE: u64 = if cfg!(test) { 1 << 10 } else { 32 << 10 };
/// Units up to this many bytes are put together in memory; larger ones are written in pieces.
pub const RECORD_LIMIT: u64 = if cfg!(test) { 12 << 10 } else { 32 << 20 };
/// Strided source matrices up to this many bytes are held whole while they are gathered.
pub const GATHER_LIMIT: u64 = if cfg!(test) { 48 << 10 } else { 96 << 20 };
/// Bytes hashed or copied at a time.
pub const COPY_BLOCK: u64 = if cfg!(test) { 16 << 10 } else { 1 << 20 };
/// What names, headers and the ledger's books of one shard take, with its three tensors.
const SHARD_BOOKS: u64 = 2 << 10;
/// What the books of a tensor of a part take, or its name and reason if it is left out: measured
/// with 100,000 of them, 2.4 KiB and 1.3 KiB.
const TENSOR_BOOKS: u64 = 3 << 10;
/// Program, manifest, tables of names and headers.
const BASE: u64 = 40 << 20;

/// Bytes of a block of a checkpoint file whose hash the ledger keeps. Larger for large
/// checkpoints, so that neither memory nor the ledger grows much.
pub const fn source_block(source_bytes: u64) -> u64 {
    match source_bytes {
        _ if cfg!(test) => 4 << 10,
        0..=0x10_0000_0000 => 256 << 10,
        _ => 1 << 20,
    }
}

/// Bytes that the conversion holds at most.
pub fn peak(manifest: &Manifest, source_bytes: u64, threads: usize) -> u64 {
    let record = manifest.shards().map(|shard| shard.extent.len);
    let record = record
        .filter(|len| *len <= RECORD_LIMIT)
        .max()
        .unwrap_or_default();
    let tensors = || manifest.tensors().map(|(.., tensor)| tensor);
    let row = tensors().map(|t| t.cols * 4).max().unwrap_or_default();
    let decoded = tensors().any(|t| t.source.decoder.is_some());
    let decode = if decoded { SOURCE_TILE * 4 } else { 0 };
    let strided = tensors()
        .filter(|t| t.source.col_stride != 1)
        .map(|t| t.rows * t.cols * t.source.dtype.size() as u64 * 2)
        .max()
        .map_or(0, |len| len.min(GATHER_LIMIT));
    let tile = SOURCE_TILE.max(row) * 2 + source_block(source_bytes) + (WEIGHTS_TILE * 4).max(row);
    let shards = (manifest.shard_count() - manifest.dense.len()) as u64;
    let blocks = source_bytes / source_block(source_bytes);
    BASE + (tile + record + strided + decode) * threads as u64
        + shards * SHARD_BOOKS
        + (part_tensors(manifest) + manifest.checkpoint.ignored.len() as u64) * TENSOR_BOOKS
        + blocks * 40
}

/// Tensors of parts besides the text model: there may be any number of them in a shard.
fn part_tensors(manifest: &Manifest) -> u64 {
    let each = manifest.extras().iter().map(|s| s.tensors.len() as u64);
    each.sum()
}

/// Bytes of the ledger: a line per shard and a chaining value per block of the source.
pub fn ledger_bytes(manifest: &Manifest, source_bytes: u64) -> u64 {
    manifest.shard_count() as u64 * 1024
        + part_tensors(manifest) * 512
        + source_bytes.div_ceil(source_block(source_bytes)) * 67
}
