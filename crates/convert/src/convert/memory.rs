//! Sizes of the conversion's buffers, and what they add up to.
//!
//! No byte of a bundle depends on them.

use shardwright_format::TensorEntry;
use shardwright_format::manifest::Manifest;
use shardwright_quant::Encoding;

/// Sizes of the conversion's buffers. Small ones take a small checkpoint along every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes of the source read at a time. Small enough to stay in a shared cache until it is used.
    pub source_tile: u64,
    /// Weights widened and quantized at a time: 128 KiB of `f32` stay in a core's own cache.
    pub weights_tile: u64,
    /// Units up to this many bytes are put together in memory; larger ones are written in pieces.
    pub record_limit: u64,
    /// Transposed source matrices are gathered in pieces of half as many bytes.
    pub gather_limit: u64,
    /// Bytes hashed or copied at a time.
    pub copy_block: u64,
    /// Bytes of a block of a checkpoint file whose hash the ledger keeps; chosen by the size of the
    /// checkpoint if none.
    pub source_block: Option<u64>,
    /// Bytes of Hessians that wait for their units' conversion.
    pub hessians: usize,
}

impl Buffers {
    /// Those of the program.
    pub const DEFAULT: Self = Self {
        source_tile: 2 << 20,
        weights_tile: 32 << 10,
        record_limit: 32 << 20,
        gather_limit: 96 << 20,
        copy_block: 1 << 20,
        source_block: None,
        hessians: 256 << 20,
    };

    /// Bytes of a hashed block. Larger for large checkpoints, so that neither memory nor the ledger
    /// grows much.
    pub(crate) fn source_block(&self, source_bytes: u64) -> u64 {
        let by_size = if source_bytes <= 0x10_0000_0000 { 256 << 10 } else { 1 << 20 };
        self.source_block.unwrap_or(by_size)
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What names, headers and the ledger's books of one shard take, with its three tensors.
const SHARD_BOOKS: u64 = 2 << 10;
/// What the books of a tensor of a part take, or its name and reason if it is left out: measured
/// with 100,000 of them, 2.4 KiB and 1.3 KiB.
const TENSOR_BOOKS: u64 = 3 << 10;
/// What the names, headers and decoders of a quantized matrix take besides, whose parts are tensors of their own: measured
/// with 44,544 and 69,120 of them in two and three parts, 1.4 KiB.
const DECODED_BOOKS: u64 = 3 << 9;
/// Program, manifest, tables of names and headers.
const BASE: u64 = 40 << 20;

/// Bytes that the conversion holds at most when no text goes through the model.
pub fn peak(manifest: &Manifest, source_bytes: u64, threads: usize) -> u64 {
    let buffers = Buffers::DEFAULT;
    let source_block = buffers.source_block(source_bytes);
    let record = manifest.shards().map(|shard| shard.extent.len);
    let record = record
        .filter(|len| *len <= buffers.record_limit)
        .max()
        .unwrap_or_default();
    let tensors = || manifest.tensors().map(|(.., tensor)| tensor);
    let row = tensors().map(|t| t.cols * 4).max().unwrap_or_default();
    let decoded = tensors().any(|t| t.source.decoder.is_some());
    let decode = if decoded { buffers.source_tile * 4 } else { 0 };
    let strided = tensors()
        .filter(|t| t.source.col_stride != 1)
        .map(|t| t.rows * t.cols * t.source.dtype.size() as u64 * 2)
        .max()
        .map_or(0, |len| len.min(buffers.gather_limit));
    let tile =
        buffers.source_tile.max(row) * 2 + source_block + (buffers.weights_tile * 4).max(row);
    let each = tile + record + strided + decode + search(manifest);
    BASE + each * threads as u64 + books(manifest, source_bytes)
}

/// Bytes that a thread holds while it chooses trellis codes.
pub fn search(manifest: &Manifest) -> u64 {
    let tensors = manifest.tensors().map(|(.., tensor)| tensor.encoding);
    let bytes = tensors.map(|encoding| match encoding {
        Encoding::Trellis(trellis) => trellis.search_bytes(),
        _ => 0,
    });
    bytes.max().unwrap_or(0)
}

/// Bytes of what grows with the number of shards, of other tensors and of hashed blocks.
pub fn books(manifest: &Manifest, source_bytes: u64) -> u64 {
    let shards = (manifest.shard_count() - manifest.dense.len()) as u64;
    let tensors = part_tensors(manifest) + manifest.checkpoint.ignored.len() as u64;
    let blocks = source_bytes / Buffers::DEFAULT.source_block(source_bytes);
    shards * SHARD_BOOKS
        + tensors * TENSOR_BOOKS
        + decoded_matrices(manifest) * DECODED_BOOKS
        + blocks * 40
}

/// Matrices that the checkpoint holds quantized, each by itself.
fn decoded_matrices(manifest: &Manifest) -> u64 {
    let decoded = |tensors: &[TensorEntry]| {
        let own = |t: &&TensorEntry| t.source.decoder.is_some() && t.source.expert_stride == 0;
        tensors.iter().filter(own).count() as u64
    };
    let dense = manifest.dense.iter().map(|shard| decoded(&shard.tensors));
    let experts = manifest.experts.iter();
    let experts = experts.map(|e| decoded(&e.tensors) * e.blake3.len() as u64);
    dense.chain(experts).sum()
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
        + source_bytes.div_ceil(Buffers::DEFAULT.source_block(source_bytes)) * 67
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Case;

    /// Of the FP8 form every matrix that is quantized is two tensors; the plain form has none of these.
    #[test]
    fn matrices_that_are_several_tensors_are_counted() {
        let count = |name: &str| {
            let case = Case::from_fixture(name, "q4");
            (decoded_matrices(&case.plan.manifest), case.checkpoint.stored().len() as u64)
        };
        let (plain, tensors) = count("golden/minimax_m2");
        let (quantized, more) = count("golden/minimax_m2-fp8");
        assert_eq!((plain, quantized), (0, more - tensors));
        assert!(quantized > 0);
    }
}
