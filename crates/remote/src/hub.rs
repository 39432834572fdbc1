//! The Hugging Face hub, or a server that answers as it does.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::client::Client;
use crate::environment::set;
use crate::error::{RemoteError, Result};
use crate::listing::{Address, RemoteEntry};

/// Longer listings are refused.
const LISTING_LIMIT: u64 = 64 << 20;
/// The hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// What the hub says of a repository (its `api/models`, with `blobs`).
#[derive(Deserialize)]
struct Repository {
    /// The commit.
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// What a repository holds at one commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit, as the server names it.
    pub commit: String,
    /// Its files.
    pub entries: Vec<RemoteEntry>,
}

/// The files of a repository at one commit.
///
/// # Errors
/// A repository that is not there or not for everybody, and a server that does not answer as the hub does.
pub fn list(client: &Client, repository: &str, revision: &str) -> Result<Listing> {
    let name = format!("hf://{repository}@{revision}");
    if set("HF_HUB_OFFLINE")
        .is_some_and(|value| !["0", "false", "no"].contains(&&*value.to_ascii_lowercase()))
    {
        return Err(RemoteError::Offline { name });
    }
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let endpoint = Url::parse(endpoint.trim_end_matches('/'))
        .map_err(|e| RemoteError::server(&name, format!("HF_ENDPOINT: {e}")))?;
    let token = token();
    let address = |path: &[&str]| {
        let mut url = endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            segments.extend(path.iter().flat_map(|part| part.split('/')));
        }
        url
    };
    // A revision is one segment here, however many slashes it has.
    let mut url = address(&["api/models", repository, "revision"]);
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.push(revision);
    }
    url.set_query(Some("blobs=true"));
    let found = client.whole(&name, (&url, token.as_deref()), LISTING_LIMIT)?;
    let missing = || RemoteError::Missing { name: name.clone(), what: "repository or revision" };
    let found: Repository = serde_json::from_slice(&found.ok_or_else(missing)?)
        .map_err(|e| RemoteError::server(&name, format!("expected a listing of the hub: {e}")))?;
    let entry = |sibling: Sibling| {
        let url = address(&[repository, "resolve", &found.sha, &sibling.rfilename]);
        let file = format!("hf://{repository}@{:.12}/{}", found.sha, sibling.rfilename);
        let len = sibling
            .size
            .ok_or_else(|| RemoteError::server(&file, "expected a size in the listing"))?;
        // Content itself where the hub knows its hash; else the commit.
        let content = sibling.lfs.and_then(|lfs| lfs.sha256).or(sibling.blob);
        Ok(RemoteEntry {
            revision: content.unwrap_or_else(|| found.sha.clone()),
            path: sibling.rfilename,
            len,
            name: file,
            address: Address::Hub { url, token: token.clone() },
            content: None,
        })
    };
    let entries: Result<_> = found.siblings.into_iter().map(entry).collect();
    Ok(Listing { commit: found.sha, entries: entries? })
}

/// The snapshot of a repository in this machine's cache, if it has one of this revision.
pub fn cached(repository: &str, revision: &str) -> Option<PathBuf> {
    shardwright_format::checkpoint::cached_snapshot(Path::new(repository), revision)
}

/// The user's token, where the ecosystem's tools keep it.
fn token() -> Option<String> {
    let home = || {
        let home = set("HF_HOME").map(PathBuf::from);
        home.or_else(|| Some(Path::new(&set("HOME")?).join(".cache/huggingface")))
    };
    let file = || {
        let path = set("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| Some(home()?.join("token")))?;
        std::fs::read_to_string(path).ok()
    };
    let token = set("HF_TOKEN").or_else(file)?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}
