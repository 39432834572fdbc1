//! One file that holds a whole bundle, compressed and hashed: for a download or an artifact store.
//!
//! `docs/FORMAT.md` describes it. The bundle's files are cut into pieces, each compressed alone:
//! so packing runs on many threads, stops and goes on at any piece, and holds a few of them.

mod packed;
#[cfg(test)]
mod tests;
mod unpack;
mod write;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::FormatError;
use crate::io::read_limited;
pub use packed::Packed;
pub use unpack::unpack;
pub use write::pack;

/// First bytes of every packed file.
pub const PACK_MAGIC: &[u8; 16] = b"shardwright-pack";
/// The version this code reads and writes.
pub const PACK_VERSION: u32 = 1;
/// Bytes of a piece once unpacked; the last one of each file of the bundle may be shorter.
pub const PIECE_LEN: usize = 1 << 20;
/// Bytes before the first piece: magic, version, version of the compressor, length of the manifest.
const HEADER_LEN: usize = 32;
/// Bytes before a piece: its stored length and the hash of what it unpacks to.
const HEAD_LEN: usize = 36;

/// Larger signatures are none: those of minisign have some 300 bytes and a comment.
const SIGNATURE_LIMIT: u64 = 64 << 10;

/// Why nothing was packed or unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A bundle or packed file that was refused, or the operating system.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The caller asked to stop; what there is stays for `resume`.
    #[error("{}: stopped at {done} of {total} bytes", path.display())]
    Stopped {
        /// What there is.
        path: PathBuf,
        /// Bytes of the bundle done.
        done: u64,
        /// Bytes of the bundle.
        total: u64,
    },
}

/// Where the signature of a packed bundle's manifest lies: beside the file, since it signs what is in it.
pub fn packed_signature(packed: &Path) -> PathBuf {
    let mut name = packed.file_name().unwrap_or_default().to_owned();
    name.push(".minisig");
    packed.with_file_name(name)
}

/// The signature at `path`, if there is one.
fn signature(path: &Path) -> Result<Option<Vec<u8>>, FormatError> {
    read_limited(path, SIGNATURE_LIMIT)
}

/// Puts a signature beside what it signs.
fn put_signature(signature: Option<&[u8]>, to: &Path) -> Result<(), FormatError> {
    let written = signature.map_or(Ok(()), |signature| std::fs::write(to, signature));
    written.map_err(|e| FormatError::io(to, e))
}

/// What packing and unpacking give.
pub type Result<T, E = PackError> = std::result::Result<T, E>;

/// How to pack or unpack.
#[derive(Clone, Copy)]
pub struct PackOptions<'a> {
    /// Threads that compress.
    pub threads: usize,
    /// Go on with what an interrupted run left.
    pub resume: bool,
    /// Set to stop soon.
    pub cancel: &'a AtomicBool,
    /// Told bytes of the bundle that are done, and all of them.
    pub progress: &'a dyn Fn(u64, u64),
}

/// What was packed or unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackSummary {
    /// Bytes of the bundle's files, the manifest among them.
    pub bundle_bytes: u64,
    /// Bytes of the packed file.
    pub packed_bytes: u64,
    /// Bytes of the bundle that an interrupted run had done.
    pub kept_bytes: u64,
}

/// How far a run has come.
struct Course<'a> {
    options: &'a PackOptions<'a>,
    partial: &'a Path,
    total: u64,
    done: u64,
    kept: u64,
}

impl Course<'_> {
    /// Counts `len` bytes as done, which an earlier run may have `kept`.
    fn advance(&mut self, len: usize, kept: bool) -> Result<()> {
        self.done += len as u64;
        self.kept += if kept { len as u64 } else { 0 };
        (self.options.progress)(self.done, self.total);
        if self.options.cancel.load(Ordering::Relaxed) {
            let (path, done, total) = (self.partial.to_owned(), self.done, self.total);
            return Err(PackError::Stopped { path, done, total });
        }
        Ok(())
    }
}

/// What stands before the first piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Bytes of `manifest.json`.
    manifest_len: u64,
}

impl Header {
    /// Another compressor may give other bytes, so its version is part of what a run goes on with.
    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..16].copy_from_slice(PACK_MAGIC);
        bytes[16..20].copy_from_slice(&PACK_VERSION.to_le_bytes());
        bytes[20..24].copy_from_slice(&zstd::zstd_safe::version_number().to_le_bytes());
        bytes[24..].copy_from_slice(&self.manifest_len.to_le_bytes());
        bytes
    }
}

/// Refuses an output that exists, and without `resume` what an interrupted run left of it.
fn check_free(out: &Path, partial: &Path, resume: bool) -> Result<(), FormatError> {
    if out.symlink_metadata().is_ok() {
        return Err(FormatError::file(out, "already exists; remove it or choose another name"));
    }
    if !resume && partial.symlink_metadata().is_ok() {
        return Err(FormatError::Unfinished { path: partial.to_owned() });
    }
    Ok(())
}

/// Takes the lock of an open file or directory at `path`.
fn lock(file: &File, path: &Path) -> Result<(), FormatError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(FormatError::file(path, "another run is writing it")),
        Err(e) => Err(FormatError::io(path, e.into())),
    }
}
