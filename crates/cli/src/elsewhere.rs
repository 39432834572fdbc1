//! Models that are not on this machine.

use std::path::{Path, PathBuf};

use shardwright_format::checkpoint::Checkpoint;

use crate::failure::Failure;
#[cfg(feature = "remote")]
use crate::say;

/// A model elsewhere, opened.
pub struct Elsewhere {
    pub checkpoint: Checkpoint,
    pub keeper: Keeper,
}

/// Keeps what is read of a model in this machine's cache, if that is wanted.
#[cfg(feature = "remote")]
pub struct Keeper(Option<Box<shardwright_remote::Staged>>);

#[cfg(not(feature = "remote"))]
pub struct Keeper(());

impl Keeper {
    /// Completes what is kept and says where; none where nothing is kept.
    ///
    /// # Errors
    /// As [`shardwright_remote::Staged::finish_keeping`].
    #[cfg(feature = "remote")]
    pub fn finish(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(staged) = &self.0 else { return Ok(None) };
        Ok(staged.finish_keeping()?)
    }

    /// As the other `finish`, in a program without it.
    #[cfg(not(feature = "remote"))]
    pub fn finish(&self) -> Result<Option<PathBuf>, Failure> {
        let Self(()) = self;
        Ok(None)
    }
}

/// Opens a model elsewhere, and keeps what is read of it if `keep`; none for a path of this machine.
///
/// # Errors
/// A location or a server that gives no model.
#[cfg(feature = "remote")]
pub fn open(path: &Path, keep: bool) -> Result<Option<Elsewhere>, Failure> {
    use shardwright_remote::{Location, Patience, RemoteModel};
    if !Location::is_remote(path) {
        return Ok(None);
    }
    let location = Location::parse(&path.to_string_lossy())?;
    let staged = match shardwright_remote::open(&location, Patience::default(), keep)? {
        RemoteModel::Cached(folder) => {
            let checkpoint = Checkpoint::open(&folder)?;
            return Ok(Some(Elsewhere { checkpoint, keeper: Keeper(None) }));
        }
        RemoteModel::Ranged(staged) => staged,
    };
    let (folder, location) = (staged.folder().display(), staged.location().to_string());
    say::stand_for(folder.to_string(), location.trim_end_matches('/').to_owned());
    let checkpoint = staged.checkpoint()?;
    Ok(Some(Elsewhere { checkpoint, keeper: Keeper(keep.then_some(staged)) }))
}

/// As the other `open`, in a program without it.
#[cfg(not(feature = "remote"))]
pub fn open(path: &Path, _keep: bool) -> Result<Option<Elsewhere>, Failure> {
    if !is_remote(path) {
        return Ok(None);
    }
    let message =
        format!("{}: this program was built without the feature `remote`", path.display());
    Err(Failure::new(message).help("fetch the model and name its directory"))
}

/// Whether a path is a location elsewhere.
pub fn is_remote(path: &Path) -> bool {
    #[cfg(feature = "remote")]
    return shardwright_remote::Location::is_remote(path);
    #[cfg(not(feature = "remote"))]
    path.to_string_lossy().contains("://")
}
