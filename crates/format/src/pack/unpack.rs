//! Makes a bundle of a packed file.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{
    Course, PackError, PackOptions, PackSummary, Packed, Result, check_free, lock,
    packed_signature, put_signature, signature,
};
use crate::error::FormatError;
use crate::io::partial_path;
use crate::manifest::{FileEntry, MANIFEST_FILE, Manifest, SIGNATURE_FILE};
use crate::writer::{directories, publish, sync_dir, write_file};

/// Unpacks the file `packed` into the bundle `out`, which has its name only once every byte has
/// been checked.
///
/// # Errors
/// A file that is damaged in any way, an output that exists, a stop, and what the operating system
/// refuses.
pub fn unpack(packed: &Path, out: &Path, options: &PackOptions<'_>) -> Result<PackSummary> {
    let partial = partial_path(out);
    check_free(out, &partial, options.resume)?;
    let signature = signature(&packed_signature(packed))?;
    let packed = Packed::open(packed)?;
    let (packed_bytes, bytes) = (packed.byte_len(), packed.manifest_bytes().to_vec());
    let manifest = packed.manifest().clone();
    let total = bytes.len() as u64 + manifest.files.iter().map(|f| f.size).sum::<u64>();
    make_dir(&partial)?;
    let dir = File::open(&partial).map_err(|e| FormatError::io(&partial, e))?;
    lock(&dir, &partial)?;
    refuse_strangers(&partial, &manifest)?;
    let mut course = Course { options, partial: &partial, total, done: 0, kept: 0 };
    let mut target = Target { dir: &partial, open: None, buf: Vec::new() };
    packed.each(|entry, offset, bytes| {
        let kept = target.put(entry, offset, bytes)? && options.resume;
        course.advance(bytes.len(), kept)
    })?;
    target.close()?;
    for dir in directories(&manifest) {
        sync_dir(&partial.join(dir))?;
    }
    write_file(&partial.join(MANIFEST_FILE), &bytes)?;
    put_signature(signature.as_deref(), &partial.join(SIGNATURE_FILE))?;
    sync_dir(&partial)?;
    publish(&partial, out)?;
    Ok(PackSummary { bundle_bytes: total, packed_bytes, kept_bytes: course.kept })
}

fn make_dir(dir: &Path) -> Result<(), FormatError> {
    std::fs::create_dir_all(dir).map_err(|e| FormatError::io(dir, e))
}

/// What is there from before is published too, so it must be of this bundle.
fn refuse_strangers(dir: &Path, manifest: &Manifest) -> Result<(), FormatError> {
    let files: BTreeSet<&Path> = manifest.files.iter().map(|f| Path::new(&f.path)).collect();
    let dirs = directories(manifest);
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        let here = dir.join(&at);
        let io = |e| FormatError::io(&here, e);
        for entry in std::fs::read_dir(&here).map_err(io)? {
            let entry = entry.map_err(io)?;
            let (path, kind) = (at.join(entry.file_name()), entry.file_type().map_err(io)?);
            let own = [MANIFEST_FILE, SIGNATURE_FILE].map(Path::new);
            let is_file = files.contains(path.as_path()) || own.contains(&&*path);
            match kind {
                kind if kind.is_dir() && dirs.contains(path.as_path()) => pending.push(path),
                kind if kind.is_file() && is_file => {}
                _ => {
                    let detail = "is not of the bundle that is unpacked; remove it";
                    return Err(FormatError::file(&dir.join(path), detail));
                }
            }
        }
    }
    Ok(())
}

/// The directory that is filled.
struct Target<'a> {
    dir: &'a Path,
    /// The file that is written, and its path.
    open: Option<(PathBuf, File)>,
    buf: Vec<u8>,
}

impl Target<'_> {
    /// Puts `bytes` at `offset` of a file; whether they were there already.
    fn put(&mut self, entry: &FileEntry, offset: u64, bytes: &[u8]) -> Result<bool, PackError> {
        if offset == 0 {
            self.close()?;
            let path = self.dir.join(&entry.path);
            path.parent().map_or(Ok(()), make_dir)?;
            let file = open(&path, entry.size).map_err(|e| FormatError::io(&path, e))?;
            self.open = Some((path, file));
        }
        let Some((path, file)) = &self.open else { return Ok(false) };
        self.buf.resize(bytes.len(), 0);
        let read = file.read_exact_at(&mut self.buf, offset);
        if read.is_ok() && self.buf == bytes {
            return Ok(true);
        }
        file.write_all_at(bytes, offset)
            .map_err(|e| FormatError::io(path, e))?;
        Ok(false)
    }

    /// Puts the open file on disk.
    fn close(&mut self) -> Result<(), FormatError> {
        let Some((path, file)) = self.open.take() else { return Ok(()) };
        file.sync_all().map_err(|e| FormatError::io(&path, e))
    }
}

/// Opens a file of `size` bytes for writing, never through a link.
fn open(path: &Path, size: u64) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    file.set_len(size)?;
    Ok(file)
}
