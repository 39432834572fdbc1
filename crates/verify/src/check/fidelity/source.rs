//! Is the checkpoint the one that the bundle was made from?

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::{CONFIG_LIMIT, TOKENIZER_LIMIT, read_required};
use shardwright_format::manifest::{FileEntry, FileKind, SourceFile};
use shardwright_format::{Bundle, FormatError, written_json};

use super::meaning::{Meaning, matters};
use crate::check::finding::{Finding, Kind};
use crate::check::hashing::{hash_file, hash_path};
use crate::error::Result;
use crate::monitor::{Meter, Monitor, Stage};

pub(super) struct Check<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) hash_weights: bool,
    /// The checkpoint's files have the names and sizes of the manifest's record. Otherwise its tensors
    /// lie in other files, and their values decide.
    pub(super) same_files: bool,
    pub(super) meaning: Meaning<'a>,
}

impl Check<'_> {
    /// Compares the weight files with the manifest's record of them, and the bundle's copies with
    /// the files that they were copied from. Findings, and what differs and decides nothing.
    pub(super) fn run(&self, monitor: &Monitor<'_>) -> Result<(Vec<Finding>, Vec<String>)> {
        let copies: BTreeSet<_> = self.checkpoint.copies()?.into_iter().collect();
        let (mut findings, mut notes) = (Vec::new(), Vec::new());
        if self.same_files {
            findings.extend(self.weights(monitor)?);
        } else {
            notes.push(self.other_files());
        }
        for (path, finding) in self.copies(&copies, monitor)? {
            match self.note(&path, &finding) {
                Some(note) => notes.push(note),
                None => findings.push(finding),
            }
        }
        Ok((findings, notes))
    }

    /// What is to be noted of a file that differs and decides nothing.
    fn note(&self, path: &str, finding: &Finding) -> Option<String> {
        if !matters(path) {
            return Some(finding.to_string());
        }
        if self.same_json(path) {
            return Some(format!("{path}: the checkpoint's own says the same in other bytes"));
        }
        match self.is_sound(path) {
            Some(false) => None,
            Some(true) | None => self.meaning.note(path),
        }
    }

    /// Says that the tensors, each under its own name, lie in other files than were recorded.
    fn other_files(&self) -> String {
        let sum = |sizes: &mut dyn Iterator<Item = u64>| {
            sizes.fold((0, 0), |(files, bytes): (u64, u64), size| (files + 1, bytes + size))
        };
        let record = &self.bundle.manifest().checkpoint.files;
        let (files, bytes) = sum(&mut record.iter().map(|f| f.size));
        let (found, found_bytes) = sum(&mut self.checkpoint.files().iter().map(|f| f.file.len()));
        format!(
            "the checkpoint lies in {found} files of {found_bytes} bytes, not in the {files} files of \
             {bytes} bytes that are recorded: their hashes are not compared, the values of all tensors are"
        )
    }

    fn weights(&self, monitor: &Monitor<'_>) -> Result<Vec<Finding>> {
        if !self.hash_weights {
            return Ok(Vec::new());
        }
        let record = &self.bundle.manifest().checkpoint.files;
        let total = record.iter().map(|f| f.size).sum();
        let meter = Meter::new(monitor, Stage::Checkpoint, total);
        let checked = record.par_iter().map(|record| self.hash(record, &meter));
        let found = checked.collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn hash(&self, record: &SourceFile, meter: &Meter<'_>) -> Result<Option<Finding>> {
        let held = self
            .checkpoint
            .files()
            .iter()
            .find(|f| f.name == record.name);
        let missing = || FormatError::file(self.checkpoint.root(), format!("no {}", record.name));
        let (found, _) = hash_file(&held.ok_or_else(missing)?.file.reopen_direct()?, meter)?;
        let finding = || Finding::file(Kind::Checkpoint, &record.name, "checkpoint file: BLAKE3");
        Ok((found != record.blake3).then(|| finding().expected(record.blake3, found)))
    }

    /// Differences between the bundle's copies and the checkpoint's files, by path.
    fn copies(
        &self,
        there: &BTreeSet<String>,
        monitor: &Monitor<'_>,
    ) -> Result<Vec<(String, Finding)>> {
        let copied = |f: &&FileEntry| f.kind == FileKind::Copy;
        let copied: Vec<_> = self.bundle.manifest().files.iter().filter(copied).collect();
        let meter = Meter::new(monitor, Stage::Checkpoint, copied.iter().map(|f| f.size).sum());
        let mut findings = Vec::new();
        for entry in &copied {
            if let Some(finding) = self.copy(entry, there, &meter)? {
                findings.push((entry.path.clone(), finding));
            }
        }
        let have: BTreeSet<_> = copied.iter().map(|f| f.path.as_str()).collect();
        for path in there.iter().filter(|path| !have.contains(path.as_str())) {
            let finding = Finding::file(Kind::Checkpoint, path, "copy");
            findings.push((path.clone(), finding.expected("one in the bundle", "none")));
        }
        Ok(findings)
    }

    /// Whether the bundle's file is the one that the manifest names; none where it names none.
    fn is_sound(&self, path: &str) -> Option<bool> {
        let mut entries = self.bundle.manifest().files.iter();
        let entry = entries.find(|entry| entry.path == path)?;
        let found = read_required(&self.bundle.root().join(path), TOKENIZER_LIMIT);
        Some(found.is_ok_and(|bytes| entry.blake3 == blake3::hash(&bytes).into()))
    }

    /// Whether a copy, sound by the manifest, and the checkpoint's file of that name are JSON of one value: a
    /// tool that wrote it anew made no other model. What is too large to be a config is told by what comes of it.
    fn same_json(&self, path: &str) -> bool {
        let value = |bytes: Vec<u8>| written_json::parse(&bytes).ok();
        let json = Path::new(path).extension().is_some_and(|end| end == "json");
        let there = self.checkpoint.companion(path, CONFIG_LIMIT).ok().flatten();
        let there = there.filter(|_| json).and_then(value);
        let here = || read_required(&self.bundle.root().join(path), CONFIG_LIMIT).ok();
        there.is_some() && self.is_sound(path) == Some(true) && there == here().and_then(value)
    }

    fn copy(
        &self,
        entry: &FileEntry,
        there: &BTreeSet<String>,
        meter: &Meter<'_>,
    ) -> Result<Option<Finding>> {
        let finding = |what: &str| Finding::file(Kind::Checkpoint, &entry.path, what);
        if !there.contains(&entry.path) {
            let missing = finding("copy");
            return Ok(Some(missing.expected("a file of the checkpoint", "none by that name")));
        }
        let hash = match self.checkpoint.synthesized(&entry.path)? {
            Some(made) => blake3::hash(made).into(),
            None => hash_path(&self.checkpoint.root().join(&entry.path), meter)?.0,
        };
        let differs = finding("copy: BLAKE3 in the checkpoint");
        Ok((hash != entry.blake3).then(|| differs.expected(entry.blake3, hash)))
    }
}
