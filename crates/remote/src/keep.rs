//! What is read of a hub's model, kept in this machine's cache as the hub's own client lays it out: content in
//! `blobs` by its hash, names in `snapshots/COMMIT` as links to it, branches and tags in `refs`
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use shardwright_format::FormatError;
use tempfile::NamedTempFile;

use crate::covered::Covered;
use crate::error::{RemoteError, Result};
use crate::listing::RemoteEntry;

/// Begins the names of files that are not complete. The hub's client takes `HASH.incomplete` for the beginning of a
/// file, which these are not.
const PARTIAL: &str = "shardwright-";
/// Bytes hashed at a time.
const HASHED: usize = 1 << 20;

/// A repository in the cache, at one commit.
#[derive(Debug)]
pub struct CacheFolder {
    /// `models--ORG--NAME`.
    folder: PathBuf,
    commit: String,
}

impl CacheFolder {
    /// Makes room for a commit of a repository.
    ///
    /// # Errors
    /// No place for a cache, and what the file system refuses.
    pub fn new(repository: &str, commit: &str) -> Result<Self> {
        let name = format!("hf://{repository}");
        if !is_hash(commit) {
            let detail = format!("expected a commit in the listing, found `{commit}`");
            return Err(RemoteError::server(&name, detail));
        }
        let folder = shardwright_format::checkpoint::repository_folder(Path::new(repository));
        let folder = folder.ok_or_else(|| {
            RemoteError::server(&name, "expected HF_HUB_CACHE, HF_HOME or HOME, found none of them")
        })?;
        Self::at(folder, commit)
    }

    /// At a folder of its own.
    pub(crate) fn at(folder: PathBuf, commit: &str) -> Result<Self> {
        for part in ["blobs", "refs", "snapshots"] {
            make(&folder.join(part))?;
        }
        Ok(Self { folder, commit: commit.to_owned() })
    }

    /// Where the model's names are.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    /// Where a file's content belongs.
    fn blob(&self, entry: &RemoteEntry) -> Result<PathBuf> {
        if !is_hash(&entry.revision) || entry.revision == self.commit {
            let detail = "expected the hash of its content in the listing, found none; without it \
                          the cache has no name for it";
            return Err(RemoteError::server(&entry.name, detail));
        }
        Ok(self.folder.join("blobs").join(&entry.revision))
    }

    /// Keeps a small file.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn keep(&self, entry: &RemoteEntry, bytes: &[u8]) -> Result<()> {
        let blob = self.blob(entry)?;
        if !blob.is_file() {
            let mut file = self.partial()?;
            file.write_all(bytes)
                .map_err(|e| FormatError::io(&blob, e))?;
            persist(file, &blob)?;
        }
        self.link(entry, &blob)
    }

    /// A file that its content comes to piece by piece; none where the cache has it.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn begin(&self, entry: &RemoteEntry) -> Result<Option<KeptFile>> {
        let blob = self.blob(entry)?;
        if blob.metadata().is_ok_and(|found| found.len() == entry.len) {
            self.link(entry, &blob)?;
            return Ok(None);
        }
        let file = Mutex::new(Some(self.partial()?));
        Ok(Some(KeptFile { blob, file, covered: Mutex::default() }))
    }

    fn partial(&self) -> Result<NamedTempFile> {
        let blobs = self.folder.join("blobs");
        // As any file that the hub's client makes: what the user's mask allows.
        let made = tempfile::Builder::new()
            .prefix(PARTIAL)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&blobs);
        made.map_err(|e| FormatError::io(&blobs, e).into())
    }

    /// Gives content its name. `../` as often as the name has folders leads back to the repository's.
    fn link(&self, entry: &RemoteEntry, blob: &Path) -> Result<()> {
        let path = self.snapshot().join(&entry.path);
        if path.exists() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&path);
        make(parent)?;
        let up = Path::new(&entry.path)
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .count();
        let back: PathBuf = std::iter::repeat_n("..", up + 1).collect();
        let target = back
            .join("blobs")
            .join(blob.file_name().unwrap_or_default());
        // A link to nothing may be there, of content that was removed.
        let _ = fs::remove_file(&path);
        symlink(target, &path).map_err(|e| FormatError::io(&path, e).into())
    }

    /// Lets a branch or tag name the commit.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn name(&self, revision: &str) -> Result<()> {
        if revision == self.commit || !shardwright_format::io::stays_inside(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make(path.parent().unwrap_or(&path))?;
        fs::write(&path, &self.commit).map_err(|e| FormatError::io(&path, e).into())
    }

    /// Names a file whose content is complete, and holds that to its hash.
    ///
    /// # Errors
    /// Content that is not what the hub lists, and what the file system refuses.
    pub fn finish(&self, entry: &RemoteEntry, kept: &KeptFile) -> Result<()> {
        let file = kept
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(file) = file else { return Ok(()) };
        // The hash of content in a repository's large files; that of a small one is of another kind.
        if entry.revision.len() == 64 {
            let found = sha256(file.path())?;
            if found != entry.revision {
                let detail =
                    format!("expected content of SHA-256 {}, found {found}", entry.revision);
                return Err(RemoteError::server(&entry.name, detail));
            }
        }
        persist(file, &kept.blob)?;
        self.link(entry, &kept.blob)
    }
}

/// A file of the cache that is not complete. Dropped before [`CacheFolder::finish`], nothing is left of it.
#[derive(Debug)]
pub struct KeptFile {
    blob: PathBuf,
    /// None when it has its name.
    file: Mutex<Option<NamedTempFile>>,
    covered: Mutex<Covered>,
}

impl KeptFile {
    /// Keeps bytes that came.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let opened = {
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(file) = file.as_ref() else { return Ok(()) };
            file.as_file().try_clone()
        };
        let written = opened.and_then(|file| file.write_all_at(bytes, offset));
        written.map_err(|e| FormatError::io(&self.blob, e))?;
        let mut covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.add(offset..offset + bytes.len() as u64);
        Ok(())
    }

    /// What has not come of `len` bytes.
    pub fn missing(&self, len: u64) -> Vec<Range<u64>> {
        let covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.missing(len)
    }
}

/// Whether a server's word can be a file's name: hashes are hexadecimal.
fn is_hash(word: &str) -> bool {
    !word.is_empty() && word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| FormatError::io(folder, e).into())
}

fn persist(file: NamedTempFile, blob: &Path) -> Result<()> {
    file.as_file()
        .sync_all()
        .map_err(|e| FormatError::io(blob, e))?;
    file.persist(blob)
        .map_err(|e| FormatError::io(blob, e.error))?;
    Ok(())
}

pub fn sha256(path: &Path) -> Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; HASHED]);
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => hash.update(&buffer[..count]),
            }
        }
    };
    read().map_err(|e| FormatError::io(path, e))?;
    let mut hex = String::with_capacity(64);
    for byte in hash.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}
