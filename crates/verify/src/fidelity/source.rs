//! Is the checkpoint the one that the bundle was made from?

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use shardwright_format::Bundle;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::{FileEntry, FileKind, SourceFile};

use crate::error::Result;
use crate::finding::{Finding, Kind};
use crate::hashing::hash_file;
use crate::monitor::{Meter, Monitor, Stage};

pub(super) struct Check<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) hash_weights: bool,
}

impl Check<'_> {
    /// Compares the weight files with the manifest's record of them, and the bundle's copies with
    /// the files that they were copied from.
    pub(super) fn run(&self, monitor: &Monitor<'_>) -> Result<Vec<Finding>> {
        let files = &self.checkpoint.files();
        let copies: BTreeSet<_> = self.checkpoint.copies()?.into_iter().collect();
        let total = files.iter().map(|f| f.file.len()).sum();
        let meter =
            Meter::new(monitor, Stage::Checkpoint, if self.hash_weights { total } else { 0 });
        let mut findings = self.weights(&meter)?;
        findings.extend(self.copies(&copies, monitor)?);
        Ok(findings)
    }

    fn weights(&self, meter: &Meter<'_>) -> Result<Vec<Finding>> {
        let record = &self.bundle.manifest().checkpoint.files;
        let recorded: BTreeMap<_, _> = record.iter().map(|f| (f.name.as_str(), f)).collect();
        let files: BTreeMap<_, _> = self
            .checkpoint
            .files()
            .iter()
            .map(|f| (f.name.as_str(), f))
            .collect();
        let finding = |name: &str, what: &str| Finding::file(Kind::Checkpoint, name, what);
        let missing = recorded
            .keys()
            .filter(|name| !files.contains_key(**name))
            .map(|name| {
                finding(name, "checkpoint file").expected("as recorded in the manifest", "none")
            });
        let unknown = files
            .keys()
            .filter(|name| !recorded.contains_key(**name))
            .map(|name| {
                finding(name, "checkpoint file").expected("none in the manifest's record", "one")
            });
        let mut findings: Vec<_> = missing.chain(unknown).collect();
        let shared: Vec<_> = files
            .values()
            .filter_map(|f| Some((*f, *recorded.get(f.name.as_str())?)))
            .collect();
        let checked = shared.par_iter().map(|(file, record)| {
            if file.file.len() != record.size {
                let size = finding(&record.name, "checkpoint file: size");
                return Ok(Some(size.expected(record.size, file.file.len())));
            }
            if self.hash_weights { self.hash(record, meter) } else { Ok(None) }
        });
        findings.extend(checked.collect::<Result<Vec<_>>>()?.into_iter().flatten());
        Ok(findings)
    }

    fn hash(&self, record: &SourceFile, meter: &Meter<'_>) -> Result<Option<Finding>> {
        let (found, _) = hash_file(&self.checkpoint.root().join(&record.name), meter)?;
        let finding = || Finding::file(Kind::Checkpoint, &record.name, "checkpoint file: BLAKE3");
        Ok((found != record.blake3).then(|| finding().expected(record.blake3, found)))
    }

    fn copies(&self, there: &BTreeSet<String>, monitor: &Monitor<'_>) -> Result<Vec<Finding>> {
        let copied = |f: &&FileEntry| f.kind == FileKind::Copy;
        let copied: Vec<_> = self.bundle.manifest().files.iter().filter(copied).collect();
        let meter = Meter::new(monitor, Stage::Checkpoint, copied.iter().map(|f| f.size).sum());
        let mut findings = Vec::new();
        for entry in &copied {
            let finding = |what: &str| Finding::file(Kind::Checkpoint, &entry.path, what);
            if !there.contains(&entry.path) {
                findings.push(
                    finding("copy").expected("a file of the checkpoint", "none by that name"),
                );
                continue;
            }
            let hash = match self.checkpoint.made(&entry.path) {
                Some(made) => blake3::hash(made).into(),
                None => hash_file(&self.checkpoint.root().join(&entry.path), &meter)?.0,
            };
            if hash != entry.blake3 {
                findings
                    .push(finding("copy: BLAKE3 in the checkpoint").expected(entry.blake3, hash));
            }
        }
        let have: BTreeSet<_> = copied.iter().map(|f| f.path.as_str()).collect();
        for path in there.iter().filter(|path| !have.contains(path.as_str())) {
            let finding = Finding::file(Kind::Checkpoint, path, "copy");
            findings.push(finding.expected("one in the bundle", "none"));
        }
        Ok(findings)
    }
}
