//! Opens a directory of `.safetensors` files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::file_names::CONFIG_NAME;
use super::files::{CheckpointFile, Files, StoredTensor};
use super::gguf::MAGIC;
use super::index::{INDEX_NAME, Index};
use super::{discover, header, names, wrong};
use crate::error::{FormatError, Result};
use crate::io::OpenFile;

/// Reads the configuration, the index if there is one, and every header.
pub(super) fn open(dir: &Path, open: OpenFile<'_>) -> Result<Files> {
    if let Some(wrong) = wrong::directory(dir).filter(|_| !dir.join(CONFIG_NAME).exists()) {
        return Err(FormatError::file(dir, wrong));
    }
    let mut opened = Files::of_directory(dir)?;
    let found = discover::find(dir)?;
    for name in found.names {
        opened.add_file(name, found.index.is_some(), open)?;
    }
    opened.check_rival(found.rival, open)?;
    opened.notes.extend(found.notes);
    let differences = found.index.and_then(|index| opened.differences(&index));
    opened.notes.extend(differences);
    let renamed = names::normalize(&mut opened.stored, opened.config.get("text_config").is_some());
    opened.notes.extend(renamed.notes);
    opened.first_names = renamed.in_files;
    opened.refuse_unmerged()?;
    Ok(opened)
}

/// Refuses a file of a checkpoint in place of its directory.
pub(super) fn refuse_one_of_several(path: &Path) -> Result<()> {
    let end = path.extension().and_then(|end| end.to_str());
    if !end.is_some_and(|end| ["safetensors", "json", "bin"].contains(&end)) || !path.is_file() {
        return Ok(());
    }
    let mut first = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    if read.is_ok() && (first == *MAGIC || wrong::is_older(&first)) {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let detail = format!("one file of a checkpoint: name its directory, {}", parent.display());
    Err(FormatError::file(path, detail))
}

impl Files {
    /// Opens one file and takes in its tensors.
    fn add_file(&mut self, name: String, indexed: bool, open: OpenFile<'_>) -> Result<()> {
        let path = self.root.join(&name);
        let file = open(&path).map_err(|e| match e {
            FormatError::Io { .. } if path.is_symlink() && !path.exists() => {
                FormatError::file(&path, wrong::LINK_TO_NOTHING)
            }
            FormatError::Io { source, .. } if indexed => {
                FormatError::file(&path, format!("named by {INDEX_NAME}: {source}"))
            }
            e => e,
        })?;
        let (header, header_len) = header::read(&file)?;
        let at = self.opened.len();
        self.opened
            .push(CheckpointFile { name, file, header_len, blake3: None });
        for (tensor, found) in header.tensors {
            let (offset, len) = (header_len + found.begin, found.end - found.begin);
            let stored =
                StoredTensor { file: at, dtype: found.dtype, shape: found.shape, offset, len };
            if !self.repeats(&path, &tensor, &stored)? {
                self.stored.insert(tensor, stored);
            }
        }
        Ok(())
    }

    /// Whether a file before holds the tensor too, with the same values; which of them is read does not
    /// matter then.
    ///
    /// # Errors
    /// Another type, shape or values there.
    fn repeats(&mut self, path: &Path, tensor: &str, stored: &StoredTensor) -> Result<bool> {
        let Some(other) = self.stored.get(tensor) else { return Ok(false) };
        let first = &self.opened[other.file].name;
        let alike = (other.dtype, &other.shape) == (stored.dtype, &stored.shape);
        let place = |held: &StoredTensor| (held.file, held.offset, held.len);
        if !alike || !self.same_range(place(other), self, place(stored))? {
            let detail = format!("`{first}` holds it too, with another type, shape or values");
            return Err(FormatError::tensor(path, tensor, detail));
        }
        let note = format!(
            "`{tensor}` is in several files with the same values: that of `{first}` is read"
        );
        if !self
            .notes
            .iter()
            .any(|note| note.contains(" is in several files "))
        {
            self.notes.push(note);
        }
        Ok(true)
    }

    /// Where the index and the files disagree, if they do. The files are right: what the model needs
    /// and they do not hold is missed later.
    fn differences(&self, index: &Index) -> Option<String> {
        let holder = |tensor: &String| {
            let stored = self.stored.get(tensor)?;
            Some(self.opened[stored.file].name.as_str())
        };
        let wrong = index.files.iter();
        let wrong = wrong.filter(|(tensor, file)| holder(tensor) != Some(file.as_str()));
        let unlisted = self.stored.keys();
        let unlisted = unlisted.filter(|tensor| !index.files.contains_key(*tensor));
        let odd: Vec<_> = wrong.map(|(tensor, _)| tensor).chain(unlisted).collect();
        let first = odd.first()?;
        let more = match odd.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        Some(format!(
            "{INDEX_NAME} does not place `{first}`{more} as the files do, which are right"
        ))
    }

    /// Refuses another complete set of files beside this one, unless it holds the same values.
    fn check_rival(&mut self, names: BTreeSet<String>, open: OpenFile<'_>) -> Result<()> {
        let Some(first) = names.first().cloned() else { return Ok(()) };
        let mut rival = Self::new(self.root.clone(), self.config_path.clone(), Value::Null);
        // What cannot be read is no model to confuse this one with.
        if names
            .into_iter()
            .any(|name| rival.add_file(name, false, open).is_err())
        {
            return Ok(());
        }
        let shared = self.stored.iter();
        let shared = shared.filter_map(|(name, a)| Some((name, a, rival.stored.get(name)?)));
        let shared: Vec<_> = shared.collect();
        if shared.len() * 2 < self.stored.len() {
            return Ok(());
        }
        for (name, a, b) in shared {
            let alike = (a.dtype, &a.shape) == (b.dtype, &b.shape);
            let (x, y) = ((a.file, a.offset, a.len), (b.file, b.offset, b.len));
            if !alike || !self.same_range(x, &rival, y)? {
                let detail = format!(
                    "two complete models that differ, `{}` and `{first}` (first in tensor `{name}`): \
                     keep one of them here",
                    self.opened[0].name
                );
                return Err(FormatError::file(&self.root, detail));
            }
        }
        self.notes.push(format!(
            "`{first}` holds the same weights as `{}` and is not read",
            self.opened[0].name
        ));
        Ok(())
    }

    /// Refuses weights that training left apart from those that they change.
    fn refuse_unmerged(&self) -> Result<()> {
        let mut names = self.stored.iter();
        let found = names.find_map(|(name, stored)| Some((name, stored, wrong::unmerged(name)?)));
        let Some((name, stored, what)) = found else { return Ok(()) };
        Err(FormatError::tensor(self.opened[stored.file].file.path(), name, what))
    }
}
