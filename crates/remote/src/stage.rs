//! A model elsewhere as a folder on this machine: small files are there, files with weights have their names and
//! lengths alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shardwright_format::FormatError;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::{ReadFile, TOKENIZER_LIMIT};
use tempfile::TempDir;

use crate::chunks::Chunks;
use crate::client::{Client, Patience};
use crate::error::{RemoteError, Result};
use crate::file::{RangedFile, Shared};
use crate::hub::Listing;
use crate::keep::CacheFolder;
use crate::listing::{RemoteEntry, Use};
use crate::location::Location;
use crate::{hub, s3, web};

/// Beginnings of files that are fetched at one time.
const HEADS_AT_ONCE: usize = 8;

/// A model elsewhere, found.
#[derive(Debug)]
pub enum RemoteModel {
    /// This machine's cache has it.
    Cached(PathBuf),
    /// It is read by ranges.
    Ranged(Box<Staged>),
}

/// Names and small files of a model whose weights are elsewhere.
#[derive(Debug)]
pub struct Staged {
    shared: Arc<Shared>,
    folder: Arc<TempDir>,
    /// By where they have their names.
    files: BTreeMap<PathBuf, RangedFile>,
    /// What to open: the folder, or the one file in it that is the model.
    path: PathBuf,
    location: Location,
    /// Where all that is read is kept, if it is.
    cache: Option<CacheFolder>,
}

/// Finds the model at a location and fetches what is small of it. With `keep`, what is read of a hub's model stays in
/// this machine's cache: see [`Staged::finish_keeping`].
///
/// # Errors
/// A place that is not there, that refuses, or that holds no model; a place other than the hub whose model is to be kept;
/// and what this machine refuses.
pub fn open(location: &Location, patience: Patience, keep: bool) -> Result<RemoteModel> {
    if keep && !matches!(location, Location::Hub { .. }) {
        let detail =
            "only models of the hub are kept: the cache has no place for others".to_owned();
        return Err(RemoteError::Location { location: location.to_string(), detail });
    }
    if let Some(path) = location.cached() {
        return Ok(RemoteModel::Cached(path));
    }
    let client = Client::new(patience)?;
    let mut cache = None;
    let entries = match location {
        Location::Hub { repository, revision, .. } => {
            let Listing { commit, entries } = hub::list(&client, repository, revision)?;
            if keep {
                cache = Some(CacheFolder::new(repository, &commit)?);
            }
            entries
        }
        Location::Web { directory, file } => web::list(&client, directory, file.as_deref())?,
        Location::S3 { bucket, prefix, .. } => s3::list(&client, bucket, prefix)?,
    };
    let staged = Staged::new(client, location.clone(), cache, entries)?;
    Ok(RemoteModel::Ranged(Box::new(staged)))
}

impl Location {
    /// Where this machine's cache has a model of the hub; it may have some files of it alone, which cannot be opened.
    fn cached(&self) -> Option<PathBuf> {
        let Self::Hub { repository, revision, file } = self else { return None };
        let folder = hub::cached(repository, revision)?;
        let path = file.iter().fold(folder, |at, file| at.join(file));
        Checkpoint::open(&path).is_ok().then_some(path)
    }

    /// The one file with weights that was asked for.
    fn file(&self) -> Option<&str> {
        match self {
            Self::Hub { file, .. } | Self::Web { file, .. } | Self::S3 { file, .. } => {
                file.as_deref()
            }
        }
    }
}

impl Staged {
    fn new(
        client: Client,
        location: Location,
        cache: Option<CacheFolder>,
        entries: Vec<RemoteEntry>,
    ) -> Result<Self> {
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("shardwright-").tempdir();
        let folder = folder.map_err(|e| FormatError::io(&temporary, e))?;
        let path = location
            .file()
            .map_or_else(|| folder.path().to_owned(), |file| folder.path().join(file));
        let shared = Arc::new(Shared { client, chunks: Chunks::default() });
        let (folder, files) = (Arc::new(folder), BTreeMap::new());
        let mut staged = Self { shared, folder, files, path, location, cache };
        for entry in entries {
            entry.check()?;
            match entry.usage(staged.location.file()) {
                Use::Unread => {}
                Use::Whole => staged.fetch(&entry)?,
                Use::Ranges => staged.reserve(entry)?,
            }
        }
        staged.fetch_heads()?;
        Ok(staged)
    }

    /// Makes room for a file's name.
    fn place(&self, entry: &RemoteEntry) -> Result<PathBuf> {
        let path = self.folder.path().join(&entry.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| FormatError::io(parent, e))?;
        }
        Ok(path)
    }

    /// Fetches a small file.
    fn fetch(&self, entry: &RemoteEntry) -> Result<()> {
        if entry.len > TOKENIZER_LIMIT {
            let detail = format!("expected at most {TOKENIZER_LIMIT} bytes, found {}", entry.len);
            return Err(RemoteError::server(&entry.name, detail));
        }
        let path = self.place(entry)?;
        let bytes = match &entry.content {
            Some(known) => known,
            None => &self.shared.client.all(entry)?,
        };
        std::fs::write(&path, bytes).map_err(|e| FormatError::io(&path, e))?;
        self.cache
            .as_ref()
            .map_or(Ok(()), |cache| cache.keep(entry, bytes))
    }

    /// Gives a file with weights its name and length, without a byte of it.
    fn reserve(&mut self, entry: RemoteEntry) -> Result<()> {
        let path = self.place(&entry)?;
        let made = File::create(&path).and_then(|file| file.set_len(entry.len));
        made.map_err(|e| FormatError::io(&path, e))?;
        let number = self.files.len();
        let (shared, folder) = (Arc::clone(&self.shared), Arc::clone(&self.folder));
        let kept = self.cache.as_ref().map(|cache| cache.begin(&entry));
        let kept = kept.transpose()?.flatten();
        self.files
            .insert(path, RangedFile::new(shared, folder, (number, entry), kept));
        Ok(())
    }

    /// Fetches the beginnings of all files with weights, some at a time: there lie their headers.
    fn fetch_heads(&self) -> Result<()> {
        let files: Vec<_> = self.files.values().collect();
        for files in files.chunks(HEADS_AT_ONCE) {
            std::thread::scope(|scope| {
                let heads: Vec<_> = files
                    .iter()
                    .map(|file| scope.spawn(|| file.fetch_head()))
                    .collect();
                heads.into_iter().try_for_each(|head| match head.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })?;
        }
        Ok(())
    }

    /// Where it is.
    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// The folder that has its names.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Fetches what was not read of the files with weights and gives all of them their names in this machine's cache,
    /// where the hub's client and other programs find them; says where. None where nothing is kept.
    ///
    /// # Errors
    /// What the server or this machine refuses, and content that is not what the hub lists.
    pub fn finish_keeping(&self) -> Result<Option<PathBuf>> {
        let (Some(cache), Location::Hub { revision, .. }) = (&self.cache, &self.location) else {
            return Ok(None);
        };
        self.files
            .values()
            .try_for_each(|file| file.finish(cache))?;
        cache.name(revision)?;
        Ok(Some(cache.snapshot()))
    }

    /// Opens it. The folder stays as long as the checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and what the server refuses.
    pub fn checkpoint(&self) -> Result<Checkpoint, FormatError> {
        Checkpoint::open_through(&self.path, &|path| match self.files.get(path) {
            Some(file) => Ok(ReadFile::remote(path, file.entry().len, Arc::new(file.clone()))),
            None => ReadFile::open(path),
        })
    }
}
