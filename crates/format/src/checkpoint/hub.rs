//! Models by the names that the Hugging Face hub and its cache give them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file_names::CONFIG_NAME;
use crate::io::read_limited;

/// Bytes of a file that names a commit, at most.
const LONGEST_COMMIT: u64 = 1024;

/// The directory of a model: `path` itself, the snapshot that a cache directory
/// (`models--org--name`) has of it, or for a repository's name (`org/name`) the one in the cache of
/// this machine. What is none of these stays as it is.
pub fn resolve(path: &Path) -> PathBuf {
    let cached = || repository_folder(path).or_else(|| old_folder(path));
    let folder = if path.exists() { Some(path.to_owned()) } else { cached() };
    folder
        .filter(|folder| !folder.join(CONFIG_NAME).exists())
        .and_then(|folder| snapshot(&folder))
        .unwrap_or_else(|| path.to_owned())
}

/// Whether a path could be the name of a repository.
pub fn is_repository(path: &Path) -> bool {
    let Some(name) = path.to_str() else { return false };
    let word = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    name.split_once('/')
        .is_some_and(|(org, name)| word(org) && word(name))
}

/// Where the cache of this machine has a repository (`org/name`), or would have it; none where there is no place for
/// a cache.
pub fn repository_folder(path: &Path) -> Option<PathBuf> {
    let name = path.to_str().filter(|_| is_repository(path))?;
    Some(cache()?.join(format!("models--{}", name.replace('/', "--"))))
}

/// The same of a name without an organization, which the first repositories had.
fn old_folder(path: &Path) -> Option<PathBuf> {
    let name = path.to_str()?;
    let folder = cache()?.join(format!("models--{name}"));
    (!name.contains('/') && folder.is_dir()).then_some(folder)
}

/// This machine's cache, by the variables that `huggingface_hub` reads, in their order.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(PathBuf::from);
    let expanded = |path: PathBuf| match path.strip_prefix("~") {
        Ok(rest) => home().map(|home| home.join(rest)),
        Err(_) => Some(path),
    };
    let own = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
    if let Some(own) = own {
        return expanded(PathBuf::from(own));
    }
    let of_users = || match set("XDG_CACHE_HOME") {
        Some(all) => Some(PathBuf::from(all)),
        None => Some(home()?.join(".cache")),
    };
    let all = match set("HF_HOME") {
        Some(all) => PathBuf::from(all),
        None => of_users()?.join("huggingface"),
    };
    expanded(all.join("hub"))
}

/// The snapshot of a repository (`org/name`) that the cache of this machine has of a branch, tag or commit.
pub fn cached_snapshot(repository: &Path, revision: &str) -> Option<PathBuf> {
    let folder = repository_folder(repository)?;
    let named = commit(&folder.join("refs").join(revision));
    let commit = named.as_deref().unwrap_or(revision);
    Some(folder.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir())
}

/// The commit that a file of a cache names.
fn commit(named: &Path) -> Option<String> {
    let text = String::from_utf8(read_limited(named, LONGEST_COMMIT).ok()??).ok()?;
    Some(text.trim().to_owned())
}

/// The snapshot that `refs/main` names, else the newest.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let named = commit(&folder.join("refs/main")).map(|revision| snapshots.join(revision));
    if let Some(named) = named.filter(|named| named.is_dir()) {
        return Some(named);
    }
    let age = |path: &PathBuf| {
        path.metadata()
            .and_then(|data| data.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let all = fs::read_dir(snapshots)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    all.filter(|path| path.is_dir())
        .max_by_key(|path| (age(path), path.clone()))
}
