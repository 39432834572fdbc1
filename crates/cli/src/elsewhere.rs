//! Models that are not on this machine.

use std::path::Path;

use shardwright_format::checkpoint::Checkpoint;

use crate::failure::Failure;
#[cfg(feature = "remote")]
use crate::say;

/// Opens a model elsewhere; none for a path of this machine.
///
/// # Errors
/// A location or a server that gives no model.
#[cfg(feature = "remote")]
pub fn open(path: &Path) -> Result<Option<Checkpoint>, Failure> {
    use shardwright_remote::{Location, Patience, RemoteModel};
    if !Location::is_remote(path) {
        return Ok(None);
    }
    let location = Location::parse(&path.to_string_lossy())?;
    let staged = match shardwright_remote::open(&location, Patience::default())? {
        RemoteModel::Cached(folder) => return Ok(Some(Checkpoint::open(&folder)?)),
        RemoteModel::Ranged(staged) => staged,
    };
    let (folder, location) = (staged.folder().display(), staged.location().to_string());
    say::stand_for(folder.to_string(), location.trim_end_matches('/').to_owned());
    Ok(Some(staged.checkpoint()?))
}

/// As the other `open`, in a program without it.
#[cfg(not(feature = "remote"))]
pub fn open(path: &Path) -> Result<Option<Checkpoint>, Failure> {
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
