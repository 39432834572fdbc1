//! Packs a bundle into one file.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{
    Course, HEAD_LEN, Header, PIECE_LEN, PackOptions, PackSummary, Result, check_free, lock,
    packed_signature, put_signature, signature,
};
use crate::bundle::manifest_bytes;
use crate::error::FormatError;
use crate::io::partial_path;
use crate::manifest::{FileEntry, Hash, Manifest, SIGNATURE_FILE};
use crate::refusal::mismatch;
use crate::writer::publish;

/// Zstandard's default: stronger levels gain little on packed codes.
const LEVEL: i32 = 3;

/// Packs the bundle `dir` into the file `out`. The bytes do not depend on threads or interruptions.
///
/// # Errors
/// A directory that is no bundle, a file of it whose size or hash is not the manifest's, an output
/// that exists, a stop, and what the operating system refuses.
pub fn pack(dir: &Path, out: &Path, options: &PackOptions<'_>) -> Result<PackSummary> {
    let partial = partial_path(out);
    check_free(out, &partial, options.resume)?;
    let (path, bytes) = manifest_bytes(dir)?;
    let signature = signature(&dir.join(SIGNATURE_FILE))?;
    let manifest = Manifest::from_bytes(&path, &bytes)?;
    let manifest_len = bytes.len() as u64;
    let total = manifest_len + manifest.files.iter().map(|f| f.size).sum::<u64>();
    let mut course = Course { options, partial: &partial, total, done: 0, kept: 0 };
    let mut packer = Packer::open(&partial, Header { manifest_len })?;
    packer.add(&path, &mut &bytes[..], manifest_len, &mut course)?;
    for entry in &manifest.files {
        packer.add_file(&dir.join(&entry.path), entry, &mut course)?;
    }
    let packed_bytes = packer.finish()?;
    publish(&partial, out)?;
    put_signature(signature.as_deref(), &packed_signature(out))?;
    Ok(PackSummary { bundle_bytes: total, packed_bytes, kept_bytes: course.kept })
}

/// The packed file in the making.
struct Packer {
    path: PathBuf,
    file: File,
    /// What an interrupted run left, from `len` on, as long as it is what this run would write.
    left: Option<BufReader<File>>,
    /// Bytes that are written and right.
    len: u64,
    /// Of those bytes.
    hasher: blake3::Hasher,
}

impl Packer {
    fn open(path: &Path, header: Header) -> Result<Self, FormatError> {
        let io = |e| FormatError::io(path, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(io)?;
        lock(&file, path)?;
        let (expected, mut found) = (header.to_bytes(), Vec::new());
        let mut left = BufReader::new(File::open(path).map_err(io)?);
        left.by_ref()
            .take(expected.len() as u64)
            .read_to_end(&mut found)
            .map_err(io)?;
        let left = (found == expected).then_some(left);
        if left.is_none() {
            file.set_len(0).map_err(io)?;
            file.write_all(&expected).map_err(io)?;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&expected);
        Ok(Self { path: path.to_owned(), file, left, len: expected.len() as u64, hasher })
    }

    /// Adds a file of the bundle, which must be what the manifest says.
    fn add_file(
        &mut self,
        path: &Path,
        entry: &FileEntry,
        course: &mut Course<'_>,
    ) -> Result<(), super::PackError> {
        let io = |e| FormatError::io(path, e);
        let refuse =
            |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
                FormatError::file(path, mismatch(expected, found).at(what))
            };
        let metadata = path.symlink_metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(FormatError::file(path, "expected a regular file").into());
        }
        if metadata.len() != entry.size {
            return Err(refuse("bytes", &entry.size, &metadata.len()).into());
        }
        let mut file = File::open(path).map_err(io)?;
        let found = self.add(path, &mut file, entry.size, course)?;
        if found != entry.blake3 {
            return Err(refuse("BLAKE3", &entry.blake3, &found).into());
        }
        Ok(())
    }

    /// Adds `len` bytes of `from`, a piece for each thread at a time; gives their hash.
    fn add(
        &mut self,
        path: &Path,
        from: &mut dyn Read,
        len: u64,
        course: &mut Course<'_>,
    ) -> Result<Hash> {
        let threads = course.options.threads.max(1) as u64;
        let mut whole = blake3::Hasher::new();
        let mut left = len;
        while left > 0 {
            let mut batch = Vec::new();
            for _ in 0..threads.min(left.div_ceil(PIECE_LEN as u64)) {
                let mut raw = vec![0; left.min(PIECE_LEN as u64) as usize];
                from.read_exact(&mut raw)
                    .map_err(|e| FormatError::io(path, e))?;
                whole.update(&raw);
                left -= raw.len() as u64;
                batch.push(raw);
            }
            self.add_pieces(&batch, course)?;
        }
        Ok(whole.finalize().into())
    }

    /// Adds pieces that follow one another: those that are there already are kept.
    fn add_pieces(&mut self, batch: &[Vec<u8>], course: &mut Course<'_>) -> Result<()> {
        let mut first = 0;
        while first < batch.len() && self.keep(&batch[first])? {
            course.advance(batch[first].len(), true)?;
            first += 1;
        }
        let batch = &batch[first..];
        let mut packed: Vec<std::io::Result<Vec<u8>>> = Vec::new();
        packed.resize_with(batch.len(), || Ok(Vec::new()));
        // Each piece is compressed alone, so who does it does not show in the bytes.
        std::thread::scope(|scope| {
            for (raw, out) in batch.iter().zip(&mut packed) {
                scope.spawn(move || *out = piece(raw));
            }
        });
        for (raw, packed) in batch.iter().zip(packed) {
            let io = |e| FormatError::io(&self.path, e);
            let packed = packed.map_err(io)?;
            self.file.write_all(&packed).map_err(io)?;
            self.hasher.update(&packed);
            self.len += packed.len() as u64;
            course.advance(raw.len(), false)?;
        }
        Ok(())
    }

    /// Whether the next piece that an interrupted run left is that of `raw`. The first that is not
    /// is cut off with all that follow it.
    fn keep(&mut self, raw: &[u8]) -> Result<bool, FormatError> {
        let Some(left) = &mut self.left else { return Ok(false) };
        if let Some(found) = next_piece(left, raw) {
            self.hasher.update(&found);
            self.len += found.len() as u64;
            return Ok(true);
        }
        self.cut()?;
        Ok(false)
    }

    /// Cuts off what follows the bytes that are right.
    fn cut(&mut self) -> Result<(), FormatError> {
        self.left = None;
        let cut = self
            .file
            .set_len(self.len)
            .and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
        cut.map_err(|e| FormatError::io(&self.path, e))?;
        Ok(())
    }

    /// Writes the hash of everything after it, durably; gives the file's length.
    fn finish(mut self) -> Result<u64, FormatError> {
        self.cut()?;
        let hash = self.hasher.finalize();
        let written = self.file.write_all(hash.as_bytes());
        let synced = written.and_then(|()| self.file.sync_all());
        synced.map_err(|e| FormatError::io(&self.path, e))?;
        Ok(self.len + 32)
    }
}

/// A piece with its head. Bytes that do not get shorter are stored as they are.
fn piece(raw: &[u8]) -> std::io::Result<Vec<u8>> {
    let packed = zstd::bulk::compress(raw, LEVEL)?;
    let stored = if packed.len() < raw.len() { &packed } else { raw };
    let mut piece = Vec::with_capacity(HEAD_LEN + stored.len());
    piece.extend((stored.len() as u32).to_le_bytes());
    piece.extend(blake3::hash(raw).as_bytes());
    piece.extend(stored);
    Ok(piece)
}

/// The piece that `left` goes on with, if it is whole and unpacks to `raw`.
fn next_piece(left: &mut BufReader<File>, raw: &[u8]) -> Option<Vec<u8>> {
    let mut piece = vec![0; HEAD_LEN];
    left.read_exact(&mut piece).ok()?;
    let len = u32::from_le_bytes(piece[..4].try_into().ok()?) as usize;
    if len > raw.len() || piece[4..] != *blake3::hash(raw).as_bytes() {
        return None;
    }
    piece.resize(HEAD_LEN + len, 0);
    left.read_exact(&mut piece[HEAD_LEN..]).ok()?;
    let mut found = Vec::new();
    super::packed::decode(&piece[HEAD_LEN..], raw.len(), &mut found).ok()?;
    (found == raw).then_some(piece)
}
