//! A bundle on disk, opened and proven sound in structure.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check::Checks;
use crate::checkpoint::refuse_pointer;
use crate::error::{FormatError, Result};
use crate::io::{AlignedBuf, INDEX_LIMIT, ReadFile, read_limited};
use crate::manifest::{Extent, FileEntry, FileKind, MANIFEST_FILE, Manifest};
use crate::refusal::{Refusal, mismatch};
use crate::unit::{TensorEntry, Unit, UnitLayout};

/// A bundle whose manifest is valid and whose shard files have the stated sizes.
///
/// The bytes themselves are trusted only after `verify`.
#[derive(Debug)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
    files: BTreeMap<String, ReadFile>,
}

impl Bundle {
    /// Whether `dir` holds a manifest.
    pub fn is_bundle(dir: &Path) -> bool {
        dir.join(MANIFEST_FILE).is_file()
    }

    /// Opens a bundle for reads past the page cache where that works.
    ///
    /// # Errors
    /// A manifest that is missing, unreadable or invalid; a shard file that is missing or of
    /// another size than the manifest says.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        let mut files = BTreeMap::new();
        for entry in manifest.files.iter().filter(|f| f.kind == FileKind::Shards) {
            let path = dir.join(&entry.path);
            let file = ReadFile::open_direct(&path)?;
            if file.len() != entry.size {
                refuse_pointer(&ReadFile::open(&path)?)?;
                let detail = mismatch(format_args!("{} bytes", entry.size), file.len()).at("size");
                return Err(FormatError::file(&path, detail));
            }
            files.insert(entry.path.clone(), file);
        }
        Ok(Self { root: dir.to_owned(), manifest, files })
    }

    /// The bundle that `plan` describes, being written to `dir`: a shard can be read once it is
    /// there.
    ///
    /// # Errors
    /// A shard file that is missing.
    pub fn unfinished(dir: &Path, plan: Manifest) -> Result<Self> {
        let shards = plan.files.iter().filter(|f| f.kind == FileKind::Shards);
        let open = |f: &FileEntry| Ok((f.path.clone(), ReadFile::open(&dir.join(&f.path))?));
        let files = shards.map(open).collect::<Result<_>>()?;
        Ok(Self { root: dir.to_owned(), manifest: plan, files })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the bundle says of itself.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether every shard file can be read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.values().all(ReadFile::is_direct)
    }

    /// A unit's tensors.
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn layout(&self, unit: Unit) -> Result<UnitLayout> {
        Ok(self.locate(unit)?.layout)
    }

    /// Reads a unit into `buf` and gives its layout.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<UnitLayout> {
        let shard = self.locate(unit)?;
        let len = self.fits(unit, shard.extent.len)?;
        shard.file.read_aligned(shard.extent.offset, len, buf)?;
        Ok(shard.layout)
    }

    /// Holds what [`Self::read`] gave to its hash, unless `checks` has done so before.
    ///
    /// # Errors
    /// Other bytes than those that were written.
    pub fn check(&self, unit: Unit, bytes: &[u8], checks: &Checks) -> Result<()> {
        let Shard { file, extent, .. } = self.locate(unit)?;
        checks.check(file.path(), unit, extent.blake3, bytes)
    }

    /// Reads some rows of one tensor: a matrix of their own, `weight | scales | biases`.
    ///
    /// # Errors
    /// As [`Self::read`]; rows outside the tensor or that cannot be read alone, see
    /// [`TensorEntry::readable`].
    pub fn read_rows(
        &self,
        unit: Unit,
        entry: &TensorEntry,
        rows: Range<u64>,
        buf: &mut AlignedBuf,
    ) -> Result<()> {
        let shard = self.locate(unit)?;
        let parts = row_parts(entry, &rows).map_err(|detail| {
            FormatError::file(shard.file.path(), detail.at(format_args!("{unit} {}", entry.role)))
        })?;
        buf.resize(self.fits(unit, parts.iter().map(|part| part.end - part.start).sum())?);
        let mut out = buf.as_mut_slice();
        for part in parts {
            let (head, rest) = out.split_at_mut((part.end - part.start) as usize);
            shard.file.read_at(shard.extent.offset + part.start, head)?;
            out = rest;
        }
        Ok(())
    }

    fn fits(&self, unit: Unit, len: u64) -> Result<usize> {
        usize::try_from(len).map_err(|_| {
            FormatError::file(&self.root, format!("{unit}: {len} bytes do not fit in memory"))
        })
    }

    fn locate(&self, unit: Unit) -> Result<Shard<'_>> {
        let (name, extent, tensors) = self.find(unit).ok_or_else(|| self.missing(unit))?;
        let file = self.files.get(name).ok_or_else(|| {
            FormatError::file(&self.root.join(name), "is not a shard file of the bundle")
        })?;
        Ok(Shard { file, extent, layout: UnitLayout { tensors: tensors.clone(), len: extent.len } })
    }

    /// The file that holds a unit, and where.
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn place(&self, unit: Unit) -> Result<(&str, Extent)> {
        let found = self.find(unit).ok_or_else(|| self.missing(unit))?;
        Ok((found.0, found.1))
    }

    fn missing(&self, unit: Unit) -> FormatError {
        FormatError::file(&self.root.join(MANIFEST_FILE), format!("the model has no {unit}"))
    }

    /// File name, place and tensors of a unit.
    fn find(&self, unit: Unit) -> Option<(&str, Extent, &Arc<[TensorEntry]>)> {
        let manifest = &self.manifest;
        if let Unit::Expert { layer, expert } = unit {
            let (shards, extent) = manifest.expert(layer, expert)?;
            return Some((&shards.file, extent, &shards.tensors));
        }
        let shard = &manifest.dense[manifest.dense_position(unit)?];
        Some((&shard.file, shard.extent(), &shard.tensors))
    }
}

/// Where weight, scales and biases of `rows` lie in the unit.
fn row_parts(entry: &TensorEntry, rows: &Range<u64>) -> Result<[Range<u64>; 3], Refusal> {
    let outside = rows.start > rows.end || rows.end > entry.rows;
    if outside || entry.readable(rows) != *rows {
        let block = match entry.encoding.row_block() {
            1 => String::new(),
            block => format!(" in whole blocks of {block}"),
        };
        return Err(mismatch(
            format_args!("some of {}{block}", entry.rows),
            format_args!("{rows:?}"),
        )
        .at("rows"));
    }
    let shape = [entry.rows, entry.cols];
    let parts = entry
        .encoding
        .row_parts(shape, rows)
        .map_err(|e| e.to_string())?;
    Ok(parts.map(|part| entry.offset + part.start..entry.offset + part.end))
}

struct Shard<'a> {
    file: &'a ReadFile,
    extent: Extent,
    layout: UnitLayout,
}

/// Reads and validates a bundle's manifest.
///
/// # Errors
/// A manifest that is missing, unreadable or invalid.
pub fn read_manifest(dir: &Path) -> Result<Manifest> {
    let (path, bytes) = manifest_bytes(dir)?;
    Manifest::from_bytes(&path, &bytes)
}

/// Path and bytes of a bundle's manifest.
///
/// # Errors
/// A directory without one, and what the operating system refuses.
pub fn manifest_bytes(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let path = dir.join(MANIFEST_FILE);
    match read_limited(&path, INDEX_LIMIT)? {
        Some(bytes) => Ok((path, bytes)),
        None => Err(FormatError::file(dir, format!("is not a bundle: it has no {MANIFEST_FILE}"))),
    }
}
