//! Aligned buffers and positioned reads, past the page cache where the file system allows it.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::checkpoint::wrong::lfs_pointer;
use crate::error::{FormatError, Result};
use crate::refusal::mismatch;

/// Alignment that direct I/O wants of addresses, offsets and lengths.
pub const DIRECT_IO_ALIGNMENT: usize = 4096;

/// Larger configs, tables and generation settings are refused unread: real ones take kilobytes.
pub const CONFIG_LIMIT: u64 = 16 << 20;
/// Larger indexes and manifests are refused unread: a model of a trillion weights takes a tenth.
pub const INDEX_LIMIT: u64 = 256 << 20;
/// Larger tokenizers are refused unread: those of 262,144 tokens take 33 MB.
pub const TOKENIZER_LIMIT: u64 = 256 << 20;
/// Bytes that [`ReadFile::blocks`] reads at once.
const BLOCK: u64 = 4 << 20;

/// The bytes of a file of at most `limit` bytes.
///
/// # Errors
/// A larger file, something that is no file, and what the operating system refuses.
pub fn read_required(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|e| FormatError::io(path, e))?;
    if !metadata.is_file() {
        return Err(FormatError::file(path, "expected a regular file"));
    }
    if metadata.len() > limit {
        let found = metadata.len();
        return Err(FormatError::file(
            path,
            mismatch(format_args!("at most {limit} bytes"), found),
        ));
    }
    let bytes = std::fs::read(path).map_err(|e| FormatError::io(path, e))?;
    match lfs_pointer(&bytes, metadata.len()) {
        Some(detail) => Err(FormatError::file(path, detail)),
        None => Ok(bytes),
    }
}

/// As [`read_required`]; `None` where there is no such file.
///
/// # Errors
/// As [`read_required`], but for a missing file.
pub fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match read_required(path, limit) {
        Err(FormatError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The name under which the file or directory `out` is made: `OUT.partial`, beside it.
pub fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    out.with_file_name(name)
}

/// Removes everything in the directory `dir` but what is called `kept`.
///
/// # Errors
/// What the operating system refuses.
pub fn clear(dir: &Path, kept: &str) -> Result<(), FormatError> {
    for entry in std::fs::read_dir(dir).map_err(|e| FormatError::io(dir, e))? {
        let path = entry.map_err(|e| FormatError::io(dir, e))?.path();
        let removed = match path.file_name() {
            Some(name) if name == kept => Ok(()),
            _ if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) => {
                std::fs::remove_dir_all(&path)
            }
            _ => std::fs::remove_file(&path),
        };
        removed.map_err(|e| FormatError::io(&path, e))?;
    }
    Ok(())
}

/// Makes `path` what `write` writes to a file beside it: whole, or not at all.
///
/// # Errors
/// Those of `write`, and what the operating system refuses.
pub fn replace<E: From<FormatError>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let partial = &partial_path(path);
    let written = write(partial);
    if written.is_err() {
        // The error that matters is the one above.
        let _ = std::fs::remove_file(partial);
    }
    written?;
    Ok(std::fs::rename(partial, path).map_err(|e| FormatError::io(path, e))?)
}

/// Whether a stranger's relative path stays in its directory, on every system.
pub fn stays_inside(path: &str) -> bool {
    let plain = |name: &str| !matches!(name, "" | "." | "..");
    !path.contains(['\\', ':', '\0']) && path.split('/').all(plain)
}

/// Bytes whose first one lies on a [`DIRECT_IO_ALIGNMENT`] boundary. Grows, never shrinks.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zeros.
    pub fn new(len: usize) -> Self {
        let mut buf = Self::default();
        buf.resize(len);
        buf
    }

    /// Makes it `len` bytes long; what they hold is unspecified (but initialized).
    pub fn resize(&mut self, len: usize) {
        if self.start + len > self.bytes.len() || self.bytes.is_empty() {
            // Replaced, not extended: the contents need not survive and the address may move.
            self.bytes = vec![0; len + DIRECT_IO_ALIGNMENT];
            self.start = self.bytes.as_ptr().align_offset(DIRECT_IO_ALIGNMENT);
        }
        self.len = len;
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// Its bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    /// Its length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory it holds, in bytes.
    pub const fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

/// Ranges of a file that is not on this machine. The network is none of this crate's business: whoever
/// opens a model says how its files are read.
pub trait RemoteFile: Debug + Send + Sync {
    /// Fills `out` from byte `offset`.
    ///
    /// # Errors
    /// What the network or the server refuses, in words that name the file.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()>;

    /// Begins to bring in bytes that will be read soon; a hint that may be ignored.
    fn will_need(&self, range: &Range<u64>);

    /// What tells these bytes from any others that the server may hold under the same name.
    fn revision(&self) -> &str;

    /// Bytes of memory that this file and others of the same model hold together at most.
    fn memory(&self) -> u64;
}

/// How [`ReadFile`]s come to be: from the file system, or from elsewhere for some paths.
pub type OpenFile<'a> = &'a dyn Fn(&Path) -> Result<ReadFile>;

/// A file opened for positioned reads, with a second descriptor past the page cache if asked for
/// and possible.
#[derive(Debug)]
pub struct ReadFile {
    path: PathBuf,
    bytes: Bytes,
    direct: Option<File>,
    len: u64,
}

#[derive(Debug)]
enum Bytes {
    Local(File),
    Remote(Arc<dyn RemoteFile>),
}

impl ReadFile {
    /// Opens `path` for reads through the page cache.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| FormatError::io(path, e);
        // Asked before opening: the open of a pipe waits for a writer that may never come.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(FormatError::file(path, "expected a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        let (bytes, len) = (Bytes::Local(file), metadata.len());
        Ok(Self { path: path.to_owned(), bytes, direct: None, len })
    }

    /// A file of `len` bytes that is elsewhere, as if it lay at `path`.
    pub fn remote(path: &Path, len: u64, file: Arc<dyn RemoteFile>) -> Self {
        Self { path: path.to_owned(), bytes: Bytes::Remote(file), direct: None, len }
    }

    /// The same file once more, so that the system's read-ahead follows each of its readers.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn reopen(&self) -> Result<Self> {
        match &self.bytes {
            Bytes::Local(_) => Self::open(&self.path),
            Bytes::Remote(file) => Ok(Self::remote(&self.path, self.len, Arc::clone(file))),
        }
    }

    /// As [`Self::reopen`], past the page cache where that works.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn reopen_direct(&self) -> Result<Self> {
        match &self.bytes {
            Bytes::Local(_) => Self::open_direct(&self.path),
            Bytes::Remote(_) => self.reopen(),
        }
    }

    /// What tells a file that is elsewhere from any other of its name; none for one on this machine.
    pub fn revision(&self) -> Option<&str> {
        match &self.bytes {
            Bytes::Local(_) => None,
            Bytes::Remote(file) => Some(file.revision()),
        }
    }

    /// Bytes of memory that it and other files of its model hold together at most, besides what is read.
    pub fn memory(&self) -> u64 {
        match &self.bytes {
            Bytes::Local(_) => 0,
            Bytes::Remote(file) => file.memory(),
        }
    }

    /// Tells the system what will be read soon; a hint that may be ignored.
    pub fn will_need(&self, range: &Range<u64>) {
        match &self.bytes {
            Bytes::Local(file) => will_need(file, range),
            Bytes::Remote(file) => file.will_need(range),
        }
    }

    /// Opens `path`, and past the page cache too when a real transfer shows that it works.
    ///
    /// # Errors
    /// What the operating system refuses; a file system without direct I/O is no error.
    pub fn open_direct(path: &Path) -> Result<Self> {
        let mut opened = Self::open(path)?;
        opened.direct = probe_direct(path, opened.len);
        Ok(opened)
    }

    /// Whether reads can go past the page cache.
    pub const fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// The file's size when it was opened, in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from byte `offset`, through the page cache.
    ///
    /// # Errors
    /// What the operating system refuses, a file that ends early among it.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let read = match &self.bytes {
            Bytes::Local(file) => file.read_exact_at(out, offset),
            Bytes::Remote(file) => file.read_at(offset, out),
        };
        read.map_err(|e| FormatError::io(&self.path, e))
    }

    /// Makes `buf` hold `len` bytes from `offset`; past the page cache when the range starts on a
    /// [`DIRECT_IO_ALIGNMENT`] boundary and the file was opened so.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_aligned(&self, offset: u64, len: usize, buf: &mut AlignedBuf) -> Result<()> {
        let aligned = offset.is_multiple_of(DIRECT_IO_ALIGNMENT as u64);
        match self.direct.as_ref().filter(|_| aligned) {
            None => {
                buf.resize(len);
                self.read_at(offset, buf.as_mut_slice())
            }
            Some(direct) => {
                buf.resize(len.next_multiple_of(DIRECT_IO_ALIGNMENT));
                let read = read_up_to(direct, offset, buf.as_mut_slice(), len);
                let read = read.map_err(|e| FormatError::io(&self.path, e))?;
                buf.resize(len);
                if read < len {
                    let detail = format!("ends {} bytes early", len - read);
                    return Err(FormatError::file(&self.path, detail));
                }
                Ok(())
            }
        }
    }

    /// Hands every byte to `each`, with its offset, in order, a bounded block at a time; past the page cache where
    /// that works, so that what is seen is what the medium holds.
    ///
    /// # Errors
    /// As [`Self::read_at`], and those of `each`, which end it.
    pub fn blocks<E: From<FormatError>>(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut buf, mut offset) = (AlignedBuf::default(), 0);
        while offset < self.len {
            let len = BLOCK.min(self.len - offset);
            self.read_aligned(offset, len as usize, &mut buf)?;
            each(offset, buf.as_slice())?;
            offset += len;
        }
        Ok(())
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn will_need(file: &File, range: &Range<u64>) {
    let Some(len) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) else {
        return;
    };
    let _ = rustix::fs::fadvise(file, range.start, Some(len), rustix::fs::Advice::WillNeed);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn will_need(_file: &File, _range: &Range<u64>) {}

/// Reads until at least `enough` bytes lie in `out` or the file ends; gives the count.
fn read_up_to(file: &File, offset: u64, out: &mut [u8], enough: usize) -> std::io::Result<usize> {
    let mut done = 0;
    while done < enough {
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// A descriptor past the page cache, if one real transfer through it works.
fn probe_direct(path: &Path, len: u64) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | direct_flag()?;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let mut probe = AlignedBuf::new(DIRECT_IO_ALIGNMENT);
    let expected = len.min(DIRECT_IO_ALIGNMENT as u64);
    let read = file.read_at(probe.as_mut_slice(), 0).ok()?;
    (read as u64 == expected).then_some(file)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(clippy::unnecessary_wraps)] // the twin below has no flag to give
const fn direct_flag() -> Option<OFlags> {
    Some(OFlags::DIRECT)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn direct_flag() -> Option<OFlags> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_file_of_absurd_size_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read_limited(&path, CONFIG_LIMIT).unwrap_err().to_string();
        let expected = "expected at most 16777216 bytes, found 1099511627776";
        assert_eq!(error, format!("{}: {expected}", path.display()));
    }

    /// Either way the bytes are the file's. `.ci/run` shows which way it was.
    #[test]
    fn reads_are_direct_where_the_file_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard");
        let bytes: Vec<u8> = (0..3 * DIRECT_IO_ALIGNMENT)
            .map(|i| (i % 251) as u8)
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = ReadFile::open_direct(&path).unwrap();
        println!("direct reads: {}", if file.is_direct() { "yes" } else { "no" });
        let mut buf = AlignedBuf::default();
        let start = DIRECT_IO_ALIGNMENT;
        file.read_aligned(start as u64, start, &mut buf).unwrap();
        assert_eq!(buf.as_slice(), &bytes[start..2 * start]);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let error = ReadFile::open(dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("{}: expected a regular file", dir.path().display()));
        assert!(read_limited(&dir.path().join("none"), 1).unwrap().is_none());
        assert!(read_required(&dir.path().join("none"), 1).is_err());
    }
    #[test]
    fn a_directory_is_cleared_but_for_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("bundle/deep")).unwrap();
        for name in ["kept", "other", "bundle/deep/kept"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        clear(dir.path(), "kept").unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(std::fs::read(path("kept")).unwrap(), b"kept");
    }
}
