//! What lies in the bundle's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use shardwright_format::checkpoint::{clutter, clutter_directory, is_document};
use shardwright_format::manifest::{MANIFEST_FILE, SIGNATURE_FILE};
use shardwright_format::{FormatError, Manifest};

use crate::check::finding::{Finding, Kind};
use crate::error::Result;

/// What lies in the bundle's directory.
#[derive(Default)]
pub(super) struct Found {
    /// Regular files that the manifest names, with their sizes.
    pub(super) files: BTreeMap<String, u64>,
    /// Paths of the manifest where something else than a file lies.
    pub(super) strange: BTreeSet<String>,
    /// One for everything that should not be there.
    pub(super) findings: Vec<Finding>,
    /// What tools and repositories leave beside a bundle.
    pub(super) beside: Vec<String>,
}

/// Files of a folder of documents that are looked at.
const MOST_DOCUMENTS: usize = 1000;

/// Whether something in a bundle comes with every repository or from a tool, and neither weights nor tokens can
/// depend on it: hidden files and folders, as `.git`, `.gitattributes`, `.cache` and `.DS_Store`; documents and
/// pictures, or a folder of nothing else; or, anywhere, what an operating system or another tool leaves.
fn is_beside(dir: &Path, path: &str, kind: fs::FileType) -> bool {
    let root = !path.contains('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    let documents =
        || if kind.is_dir() { holds_documents(&dir.join(path)) } else { is_document(path) };
    let left = if kind.is_dir() { clutter_directory(last) } else { clutter(last) };
    left.is_some() || root && (path.starts_with('.') || documents())
}

/// Whether a folder holds documents and nothing else. One that cannot be read does not.
fn holds_documents(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let mut seen = 0;
    for entry in entries {
        seen += 1;
        let document = entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            entry.file_type().is_ok_and(|kind| kind.is_file())
                && (is_document(name) || clutter(name).is_some())
        });
        if !document || seen > MOST_DOCUMENTS {
            return false;
        }
    }
    seen > 0
}

/// Looks at every directory that a path of the manifest passes through; follows no link.
pub(super) fn walk(dir: &Path, manifest: &Manifest) -> Result<Found> {
    let files: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    let folders = files
        .iter()
        .flat_map(|path| path.match_indices('/').map(|(i, _)| &path[..i]));
    let named = Named { folders: folders.collect(), files };
    let mut found = Found::default();
    named.visit(dir, "", &mut found)?;
    Ok(found)
}

struct Named<'a> {
    files: BTreeSet<&'a str>,
    folders: BTreeSet<&'a str>,
}

impl Named<'_> {
    /// `folder` is empty or ends in `/`.
    fn visit(&self, dir: &Path, folder: &str, found: &mut Found) -> Result<()> {
        let at = dir.join(folder);
        let io = |e| FormatError::io(&at, e);
        let mut entries = fs::read_dir(&at)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = format!("{folder}{}", entry.file_name().to_string_lossy());
            let metadata = entry.metadata().map_err(io)?;
            let is_folder = self.folders.contains(path.as_str());
            if metadata.is_dir() && is_folder {
                self.visit(dir, &format!("{path}/"), found)?;
            } else if metadata.is_file() && self.files.contains(path.as_str()) {
                found.files.insert(path, metadata.len());
            } else if !(metadata.is_file() && [MANIFEST_FILE, SIGNATURE_FILE].contains(&&*path)) {
                self.refuse(dir, &path, metadata.file_type(), found);
            }
        }
        Ok(())
    }

    fn refuse(&self, dir: &Path, path: &str, kind: fs::FileType, found: &mut Found) {
        let what = match kind {
            kind if kind.is_symlink() => "a symbolic link",
            kind if kind.is_dir() => "a directory",
            kind if kind.is_file() => "a file",
            _ => "a device, pipe or socket",
        };
        let named = self.files.contains(path) || self.folders.contains(path);
        if !named && !kind.is_symlink() && is_beside(dir, path, kind) {
            found.beside.push(path.to_owned());
            return;
        }
        let expected = match () {
            () if self.files.contains(path) || path == MANIFEST_FILE => "a file",
            () if self.folders.contains(path) => "a directory",
            () => "nothing by that name in the manifest",
        };
        if expected == "a directory" {
            let prefix = format!("{path}/");
            let below = self.files.iter().filter(|file| file.starts_with(&prefix));
            found.strange.extend(below.map(|file| (*file).to_owned()));
        }
        found.strange.insert(path.to_owned());
        let finding = Finding::file(Kind::Extra, path, "directory entry");
        found.findings.push(finding.expected(expected, what));
    }
}
