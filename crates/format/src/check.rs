//! Shards held to their hashes as they are read.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::error::{FormatError, Result};
use crate::manifest::Hash;
use crate::refusal::mismatch;
use crate::unit::Unit;

/// Which shards were held to their hashes, and what that took. Any thread may read.
#[derive(Debug, Default)]
pub struct Checks {
    sound: Mutex<HashSet<Unit>>,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

/// What was checked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Checked {
    /// Shards whose bytes were those that the manifest has the hash of.
    pub shards: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Seconds that it took, of all threads that read together.
    pub seconds: f64,
}

impl Checks {
    /// Holds the bytes of a unit's shard, in the file `path`, to their hash, unless they were before.
    ///
    /// # Errors
    /// Other bytes than those that were written.
    pub fn check(&self, path: &Path, unit: Unit, expected: Hash, bytes: &[u8]) -> Result<()> {
        let sound = || self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        if sound().contains(&unit) {
            return Ok(());
        }
        let started = Instant::now();
        let found = Hash::from(blake3::hash(bytes));
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if found != expected {
            let (expected, found) = (String::from(expected), String::from(found));
            let detail = mismatch(expected, found).at(format_args!("{unit}: BLAKE3"));
            return Err(FormatError::file(path, detail));
        }
        sound().insert(unit);
        Ok(())
    }

    /// What was checked so far.
    pub fn checked(&self) -> Checked {
        Checked {
            shards: self
                .sound
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len() as u64,
            bytes: self.bytes.load(Ordering::Relaxed),
            seconds: self.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}
