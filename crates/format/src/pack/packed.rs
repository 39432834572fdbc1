//! Reads a packed file, front to back, and believes nothing of it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{HEAD_LEN, HEADER_LEN, PACK_MAGIC, PACK_VERSION, PIECE_LEN};
use crate::error::{FormatError, Result};
use crate::io::{INDEX_LIMIT, ReadFile};
use crate::manifest::{FileEntry, MANIFEST_FILE, Manifest};
use crate::refusal::{Refusal, mismatch};

/// A packed file whose manifest is read and valid.
///
/// Memory is the manifest and two pieces.
#[derive(Debug)]
pub struct Packed {
    pieces: Pieces,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    len: u64,
}

impl Packed {
    /// Whether a file begins as a packed one does.
    pub fn is_packed(path: &Path) -> bool {
        let mut found = [0; PACK_MAGIC.len()];
        path.is_file()
            && File::open(path).is_ok_and(|mut file| file.read_exact(&mut found).is_ok())
            && found == *PACK_MAGIC
    }

    /// Opens a packed file and reads its manifest.
    ///
    /// # Errors
    /// A file that is not packed, damage as far as the manifest goes, and what the operating
    /// system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let len = ReadFile::open(path)?.len();
        let file = File::open(path).map_err(|e| FormatError::io(path, e))?;
        let (file, hasher) = (BufReader::with_capacity(PIECE_LEN, file), blake3::Hasher::new());
        let mut pieces = Pieces {
            path: path.to_owned(),
            file,
            at: 0,
            hasher,
            stored: Vec::new(),
            raw: Vec::new(),
        };
        let mut header = [0; HEADER_LEN];
        pieces.read(&mut header)?;
        let manifest_len = manifest_len(&header).map_err(|detail| pieces.refuse(detail))?;
        let mut manifest_bytes = Vec::new();
        pieces.file(MANIFEST_FILE, manifest_len, |_, bytes| {
            manifest_bytes.extend_from_slice(bytes);
            Ok::<_, FormatError>(())
        })?;
        let manifest = Manifest::from_bytes(&path.join(MANIFEST_FILE), &manifest_bytes)?;
        Ok(Self { pieces, manifest, manifest_bytes, len })
    }

    /// What the bundle says of itself.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of `manifest.json`.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// Bytes of the packed file.
    pub const fn byte_len(&self) -> u64 {
        self.len
    }

    /// Hands the bytes of every file to `take`, with their offset in it, in the manifest's order;
    /// an empty file once. What was handed over is right as far as its piece's hash tells; the file
    /// is when this returns.
    ///
    /// # Errors
    /// Any damage, and what `take` refuses.
    pub fn each<E: From<FormatError>>(
        self,
        mut take: impl FnMut(&FileEntry, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { mut pieces, manifest, .. } = self;
        for entry in &manifest.files {
            let mut whole = blake3::Hasher::new();
            if entry.size == 0 {
                take(entry, 0, &[])?;
            }
            pieces.file(&entry.path, entry.size, |offset, bytes| {
                whole.update(bytes);
                take(entry, offset, bytes)
            })?;
            let found = crate::manifest::Hash::from(whole.finalize());
            if found != entry.blake3 {
                let (path, expected) = (&entry.path, entry.blake3);
                let detail = mismatch(expected, found).at(format_args!("`{path}`: BLAKE3"));
                return Err(pieces.refuse(detail).into());
            }
        }
        Ok(pieces.end()?)
    }
}

/// The length of the manifest that a header states.
fn manifest_len(header: &[u8; HEADER_LEN]) -> Result<u64, Refusal> {
    let (magic, rest) = header.split_at(PACK_MAGIC.len());
    if magic != PACK_MAGIC {
        return Err("is not a packed bundle".into());
    }
    let number = |range: std::ops::Range<usize>| {
        let bytes = rest[range].iter().rev();
        bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (version, len) = (number(0..4), number(8..16));
    if version != u64::from(PACK_VERSION) {
        return Err(mismatch(PACK_VERSION, version).at("version"));
    }
    if len > INDEX_LIMIT {
        return Err(mismatch(format_args!("at most {INDEX_LIMIT} bytes"), len).at("manifest"));
    }
    Ok(len)
}

/// Pieces in their order.
#[derive(Debug)]
struct Pieces {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes read.
    at: u64,
    /// Of those bytes.
    hasher: blake3::Hasher,
    stored: Vec<u8>,
    raw: Vec<u8>,
}

impl Pieces {
    fn refuse(&self, detail: impl Into<Refusal>) -> FormatError {
        FormatError::file(&self.path, detail)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact(out) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let (at, len) = (self.at, out.len());
                let detail = format!("is cut short: expected {len} bytes from byte {at} on");
                return Err(self.refuse(detail));
            }
            Err(e) => return Err(FormatError::io(&self.path, e)),
        }
        self.at += out.len() as u64;
        self.hasher.update(out);
        Ok(())
    }

    /// Hands the `len` bytes of a file of the bundle over, a piece at a time.
    fn file<E: From<FormatError>>(
        &mut self,
        name: &str,
        len: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut offset = 0;
        while offset < len {
            let piece = (len - offset).min(PIECE_LEN as u64) as usize;
            self.piece(piece, name, offset)?;
            take(offset, &self.raw)?;
            offset += piece as u64;
        }
        Ok(())
    }

    /// Reads a piece of `len` bytes into `raw`. No length from the file is believed before it is
    /// found to be at most a piece's.
    fn piece(&mut self, len: usize, name: &str, offset: u64) -> Result<()> {
        let mut head = [0; HEAD_LEN];
        self.read(&mut head)?;
        let stored = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let place = format!("`{name}`: piece at byte {offset}");
        if stored > len {
            let detail = mismatch(format_args!("at most {len}"), stored)
                .at(format_args!("{place}: stored bytes"));
            return Err(self.refuse(detail));
        }
        let mut bytes = std::mem::take(&mut self.stored);
        bytes.resize(stored, 0);
        self.read(&mut bytes)?;
        let decoded = decode(&bytes, len, &mut self.raw);
        self.stored = bytes;
        decoded.map_err(|detail| self.refuse(detail.at(&place)))?;
        let found = blake3::hash(&self.raw);
        if found.as_bytes() != &head[4..] {
            let expected: [u8; 32] = std::array::from_fn(|i| head[4 + i]);
            let expected = blake3::Hash::from_bytes(expected);
            let detail = mismatch(expected, found).at(format_args!("{place}: BLAKE3"));
            return Err(self.refuse(detail));
        }
        Ok(())
    }

    /// Checks the hash of everything, which ends the file.
    fn end(mut self) -> Result<()> {
        let expected = self.hasher.finalize();
        let mut found = [0; 32];
        self.read(&mut found)?;
        if expected != found {
            let found = blake3::Hash::from_bytes(found);
            let detail = mismatch(expected, found).at("BLAKE3 at its end");
            return Err(self.refuse(detail));
        }
        let mut more = [0];
        match self.file.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => {
                Err(self.refuse(mismatch(format_args!("its end at byte {}", self.at), "more")))
            }
            Err(e) => Err(FormatError::io(&self.path, e)),
        }
    }
}

/// Decodes a piece of `len` bytes.
pub(super) fn decode(stored: &[u8], len: usize, raw: &mut Vec<u8>) -> Result<(), Refusal> {
    raw.clear();
    if stored.len() == len {
        raw.extend_from_slice(stored);
        return Ok(());
    }
    // Room for one frame of the length that the manifest gives, whatever the frame claims.
    raw.reserve(len);
    let written = zstd::bulk::Decompressor::new()
        .and_then(|mut decoder| decoder.decompress_to_buffer(stored, raw))
        .map_err(|e| format!("Zstandard frame: {e}"))?;
    if written != len {
        return Err(mismatch(format_args!("{len} bytes"), written).at("Zstandard frame"));
    }
    Ok(())
}
