//! How far a long check has come, and whether it should go on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Result, VerifyError};

/// A part of the verification that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Hashing the bundle; counts bytes.
    Integrity,
    /// Hashing the checkpoint; counts bytes.
    Checkpoint,
    /// Comparing tensors; counts bytes of the original.
    Fidelity,
    /// Looking for weights that are no numbers; counts weights.
    Finite,
    /// Running the models layer by layer; counts layers.
    Layers,
    /// Applying the heads; counts tokens.
    Heads,
}

/// How far a stage has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Units done; the stage says of what.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// Hears of progress, and says when to stop. Called from many threads.
#[derive(Clone, Copy)]
pub struct Monitor<'a> {
    /// Called after each piece of work.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Set to stop soon with [`VerifyError::Cancelled`].
    pub cancel: &'a AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Monitor<'static> {
    /// Tells nobody and never stops.
    pub const fn silent() -> Self {
        Self { progress: &|_| (), cancel: &NEVER }
    }
}

/// Counts one stage's work for a [`Monitor`].
pub(crate) struct Meter<'a> {
    monitor: Monitor<'a>,
    stage: Stage,
    done: AtomicU64,
    total: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(monitor: &Monitor<'a>, stage: Stage, total: u64) -> Self {
        Self { monitor: *monitor, stage, done: AtomicU64::new(0), total }
    }

    /// Counts `amount` more as done.
    ///
    /// # Errors
    /// [`VerifyError::Cancelled`] when the caller asked to stop.
    pub(crate) fn add(&self, amount: u64) -> Result<()> {
        if self.monitor.cancel.load(Ordering::Relaxed) {
            return Err(VerifyError::Cancelled);
        }
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        (self.monitor.progress)(Progress { stage: self.stage, done, total: self.total });
        Ok(())
    }
}
