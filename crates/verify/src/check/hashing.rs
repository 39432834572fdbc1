//! Files read once, front to back, in bounded memory.

use std::path::Path;

use shardwright_format::io::ReadFile;
use shardwright_format::manifest::Hash;

use crate::error::Result;
use crate::monitor::Meter;

/// Hands every byte of a file to `each`, with its offset, in order; gives the file's length.
///
/// Reads past the page cache where that works: what is checked is what the medium holds.
pub(crate) fn stream(path: &Path, meter: &Meter<'_>, each: impl FnMut(u64, &[u8])) -> Result<u64> {
    stream_file(&ReadFile::open_direct(path)?, meter, each)
}

/// As [`stream`], of an open file.
fn stream_file(
    file: &ReadFile,
    meter: &Meter<'_>,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<u64> {
    file.blocks(|offset, bytes| {
        each(offset, bytes);
        meter.add(bytes.len() as u64)
    })?;
    Ok(file.len())
}

/// BLAKE3 and length of a file at a path.
pub(crate) fn hash_path(path: &Path, meter: &Meter<'_>) -> Result<(Hash, u64)> {
    hash_file(&ReadFile::open_direct(path)?, meter)
}

/// BLAKE3 and length of an open file.
pub(crate) fn hash_file(file: &ReadFile, meter: &Meter<'_>) -> Result<(Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let len = stream_file(file, meter, |_, bytes| {
        hasher.update(bytes);
    })?;
    Ok((hasher.finalize().into(), len))
}

/// Threads for checks that run in parallel.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()?)
}
