//! Writes bundles: shard files of known sizes, filled in any order, and the manifest last.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, OFlags};

use crate::error::{FormatError, Result};
use crate::manifest::{FileKind, Hash, MANIFEST_FILE, Manifest};
use crate::treehash::{TreeHash, chaining_value};

/// Bytes read at a time when a file is hashed after it was written.
const HASH_LEN: usize = 1 << 20;

/// A bundle in the making: a directory that has no manifest yet.
///
/// Many threads write at once; a file's hash is collected from the blocks they report and from
/// the file itself for those they do not.
#[derive(Debug)]
pub struct BundleWriter {
    dir: PathBuf,
    alignment: u64,
    files: Vec<ShardFile>,
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// Made when the first block is reported, dropped when the file is complete.
    blocks: Mutex<Option<TreeHash>>,
    /// Whether some of it may not be on disk. A file is opened so: what an interrupted run wrote
    /// may still be in memory alone.
    dirty: AtomicBool,
}

impl BundleWriter {
    /// Creates the shard files of `manifest` in `dir`, or opens those that an interrupted run
    /// left, with their room reserved. Bytes that nobody writes are zero.
    ///
    /// # Errors
    /// What the operating system refuses, a full disk among it.
    pub fn create(dir: &Path, manifest: &Manifest) -> Result<Self> {
        make_dir(dir)?;
        let shards = manifest.files.iter().filter(|f| f.kind == FileKind::Shards);
        let open = |entry: &crate::manifest::FileEntry| {
            let path = dir.join(&entry.path);
            path.parent().map_or(Ok(()), make_dir)?;
            let file = reserve(&path, entry.size).map_err(|e| FormatError::io(&path, e))?;
            let (blocks, dirty) = (Mutex::default(), AtomicBool::new(true));
            Ok(ShardFile { path, file, size: entry.size, blocks, dirty })
        };
        let files: Result<Vec<_>> = shards.map(open).collect();
        Ok(Self { dir: dir.to_owned(), alignment: manifest.alignment, files: files? })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A shard file's number among the shard files of the manifest, which are sorted by path.
    pub fn file(&self, path: &str) -> Option<usize> {
        let path = self.dir.join(path);
        self.files.iter().position(|f| f.path == path)
    }

    /// Writes `bytes` at `offset` of a file.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write_at(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = &self.files[file];
        file.dirty.store(true, Ordering::Relaxed);
        file.file
            .write_all_at(bytes, offset)
            .map_err(|e| FormatError::io(&file.path, e))
    }

    /// Reads back from `offset` of a file.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn read_at(&self, file: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let file = &self.files[file];
        file.file
            .read_exact_at(out, offset)
            .map_err(|e| FormatError::io(&file.path, e))
    }

    /// Takes note of what `bytes` at `offset` of a file are: whole blocks of the alignment, so
    /// that the file need not be read again for its hash.
    pub fn hash_written(&self, file: usize, offset: u64, bytes: &[u8]) {
        let file = &self.files[file];
        let single = file.size <= self.alignment;
        if single || !offset.is_multiple_of(self.alignment) {
            return;
        }
        let first = offset / self.alignment;
        let block = self.alignment as usize;
        let whole =
            |part: &&[u8], at: u64| part.len() == block || at + part.len() as u64 == file.size;
        let values: Vec<_> = (first..)
            .zip(bytes.chunks(block))
            .filter(|(at, part)| whole(part, at * self.alignment))
            .map(|(at, part)| (at, chaining_value(part, at * self.alignment)))
            .collect();
        let mut blocks = lock(&file.blocks);
        let tree = blocks.get_or_insert_with(|| TreeHash::new(file.size, self.alignment));
        for (at, value) in values {
            tree.restore(at as usize, value);
        }
    }

    /// The hash of a file, of which blocks that were not noted are read.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn hash(&self, at: usize) -> Result<Hash> {
        let file = &self.files[at];
        let mut blocks = lock(&file.blocks);
        let mut tree = blocks
            .take()
            .unwrap_or_else(|| TreeHash::new(file.size, self.alignment));
        let step = (HASH_LEN as u64 / self.alignment).max(1) as usize;
        let mut buf = Vec::new();
        for first in (0..tree.num_blocks()).step_by(step) {
            let last = (first + step).min(tree.num_blocks()) - 1;
            if (first..=last).all(|block| tree.has(block)) {
                continue;
            }
            let (start, end) = (tree.block_range(first).start, tree.block_range(last).end);
            buf.resize((end - start) as usize, 0);
            self.read_at(at, start, &mut buf)?;
            tree.update(start, &buf);
        }
        let hash = tree.finalize().map(Hash::from);
        hash.ok_or_else(|| FormatError::file(&file.path, "its hash is incomplete"))
    }

    /// Puts on disk what was written since the last call, and lets the page cache forget it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn sync(&self) -> Result<()> {
        for file in &self.files {
            if file.dirty.swap(false, Ordering::Relaxed) {
                file.file
                    .sync_data()
                    .map_err(|e| FormatError::io(&file.path, e))?;
                forget(&file.file);
            }
        }
        Ok(())
    }

    /// Writes a small file, durably.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<Hash> {
        let path = self.dir.join(path);
        write_file(&path, bytes)?;
        Ok(blake3::hash(bytes).into())
    }

    /// Copies `source` to `path`, durably; gives size and hash of what was copied.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn copy(&self, source: &Path, path: &str) -> Result<(u64, Hash)> {
        let target = self.dir.join(path);
        target.parent().map_or(Ok(()), make_dir)?;
        // Not `fs::copy`: the permissions of the source are its owner's business.
        let mut from = File::open(source).map_err(|e| FormatError::io(source, e))?;
        let mut to = create(&target).map_err(|e| FormatError::io(&target, e))?;
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; HASH_LEN];
        loop {
            let read = from
                .read(&mut buf)
                .map_err(|e| FormatError::io(source, e))?;
            if read == 0 {
                break;
            }
            hasher.update(&buf[..read]);
            to.write_all(&buf[..read])
                .map_err(|e| FormatError::io(&target, e))?;
        }
        to.sync_all().map_err(|e| FormatError::io(&target, e))?;
        Ok((hasher.count(), hasher.finalize().into()))
    }

    /// Makes the files of `manifest` durable, besides which there must be none.
    ///
    /// # Errors
    /// A file that is not one of them, and what the operating system refuses.
    pub fn seal(&self, manifest: &Manifest) -> Result<()> {
        check_strangers(&self.dir, manifest)?;
        self.sync()?;
        let dirs = directories(manifest);
        dirs.iter()
            .try_for_each(|dir| sync_dir(&self.dir.join(dir)))
    }

    /// Validates the manifest, makes everything durable and writes the manifest last.
    ///
    /// # Errors
    /// A manifest that contradicts itself, and what the operating system refuses.
    pub fn finish(self, manifest: &Manifest) -> Result<()> {
        let path = self.dir.join(MANIFEST_FILE);
        manifest
            .validate()
            .map_err(|detail| FormatError::file(&path, detail))?;
        self.seal(manifest)?;
        write_file(&path, &manifest.to_bytes())?;
        sync_dir(&self.dir)
    }
}

/// Every directory between the bundle's own and one of its files, as paths from the bundle's.
pub(crate) fn directories(manifest: &Manifest) -> BTreeSet<&Path> {
    let ancestors = |file| Path::ancestors(file).skip(1);
    let files = manifest.files.iter().map(|f| Path::new(&f.path));
    files.flat_map(ancestors).collect()
}

/// Gives a finished directory its final name, which nothing may have.
///
/// # Errors
/// A name that is taken, and what the operating system refuses.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    rename_new(from, to).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => FormatError::file(to, "already exists"),
        _ => FormatError::io(to, e),
    })?;
    match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Renames in one step with the check that nothing has the new name: between two, somebody could make an
/// empty directory of it, which a rename replaces.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system, or a system, that has no such call.
        Err(Errno::INVAL | Errno::NOSYS) => rename_checked(from, to),
        done => Ok(done?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    rename_checked(from, to)
}

fn rename_checked(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.symlink_metadata().is_ok() {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(from, to)
}

/// Makes a directory's names durable.
///
/// # Errors
/// What the operating system refuses.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| FormatError::io(dir, e))
}

/// Refuses what lies in a bundle in the making and is none of its files: it would be published with them,
/// and what leads elsewhere written through.
///
/// # Errors
/// The first such thing, and what the operating system refuses.
pub fn check_strangers(dir: &Path, manifest: &Manifest) -> Result<()> {
    let files: BTreeSet<_> = manifest.files.iter().map(|f| Path::new(&f.path)).collect();
    let known = directories(manifest);
    let mut pending = vec![PathBuf::new()];
    while let Some(inside) = pending.pop() {
        let place = dir.join(&inside);
        let entries = match std::fs::read_dir(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|e| FormatError::io(&place, e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| FormatError::io(&place, e))?;
            let (path, name) = (entry.path(), inside.join(entry.file_name()));
            let kind = entry.file_type().map_err(|e| FormatError::io(&path, e))?;
            match () {
                () if kind.is_dir() && known.contains(&*name) => pending.push(name),
                () if kind.is_file()
                    && (files.contains(&*name) || name == Path::new(MANIFEST_FILE)) => {}
                () => {
                    let detail = "is no file of the bundle that is made here; remove it";
                    return Err(FormatError::file(&path, detail));
                }
            }
        }
    }
    Ok(())
}

/// A file of its own, empty: where a link lies, nothing is written.
fn create(path: &Path) -> std::io::Result<File> {
    owned().truncate(true).open(path)
}

/// Writes to a path itself, never to where a link there leads.
fn owned() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| FormatError::io(path, e))
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| FormatError::io(dir, e))
}

/// Opens a file of `size` bytes, zero where nothing was written, its room reserved if the file
/// system can.
fn reserve(path: &Path, size: u64) -> std::io::Result<File> {
    let file = owned().read(true).truncate(false).open(path)?;
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    match allocate(&file, size) {
        Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
        Ok(()) | Err(_) => file.set_len(size)?,
    }
    Ok(file)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn allocate(file: &File, size: u64) -> rustix::io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn allocate(_file: &File, _size: u64) -> rustix::io::Result<()> {
    Err(rustix::io::Errno::NOTSUP)
}

/// Clean pages of the file make room; a hint that may be ignored.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn forget(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn forget(_file: &File) {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{CheckpointRecord, FORMAT, FileEntry, VERSION};
    use crate::model::ModelSpec;

    /// One shard file in a directory of the bundle, and a copy two directories down.
    fn manifest() -> Manifest {
        let entry = |path: &str, kind| FileEntry {
            path: path.to_owned(),
            kind,
            size: 10,
            blake3: Hash::ZERO,
        };
        let model = ModelSpec {
            model_type: "llama".to_owned(),
            vocab_size: 1,
            hidden_size: 1,
            tie_word_embeddings: true,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 1,
            eos_token_ids: vec![],
            bos_token_id: None,
            layers: vec![],
            ..ModelSpec::default()
        };
        Manifest {
            blake3: Hash::ZERO,
            format: FORMAT.to_owned(),
            version: VERSION,
            generator: String::new(),
            alignment: 4096,
            model,
            recipe: serde_json::Value::Null,
            checkpoint: CheckpointRecord::default(),
            calibration: None,
            files: vec![entry("a/b/x.json", FileKind::Copy), entry("c/y.bin", FileKind::Shards)],
            dense: vec![],
            experts: vec![],
        }
    }

    #[test]
    fn what_may_not_be_on_disk_is_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let writer = BundleWriter::create(dir.path(), &manifest()).unwrap();
        let dirty = |writer: &BundleWriter| writer.files[0].dirty.load(Ordering::Relaxed);
        assert!(dirty(&writer));
        writer.sync().unwrap();
        assert!(!dirty(&writer));
        writer.write_at(0, 0, &[1]).unwrap();
        assert!(dirty(&writer));
    }

    #[test]
    fn a_name_that_is_taken_stays_so_even_an_empty_directorys() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("made")).unwrap();
        std::fs::write(path("made/x"), "x").unwrap();
        std::fs::create_dir(path("taken")).unwrap();
        for rename in [rename_new, rename_checked] {
            let error = rename(&path("made"), &path("taken")).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        }
        let error = publish(&path("made"), &path("taken")).unwrap_err();
        assert!(error.to_string().ends_with("taken: already exists"), "{error}");
        assert_eq!(std::fs::read_dir(path("taken")).unwrap().count(), 0);
        publish(&path("made"), &path("new")).unwrap();
        assert!(path("new/x").is_file());
    }

    #[test]
    fn every_directory_up_to_the_bundle_is_listed() {
        let manifest = manifest();
        let dirs: Vec<_> = directories(&manifest).into_iter().collect();
        assert_eq!(dirs, ["", "a", "a/b", "c"].map(Path::new));
    }
}
