//! Where a runtime's weights come from: a bundle or a checkpoint, behind the same calls.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::arch::Inventory;
use crate::bundle::Bundle;
use crate::checkpoint::{Checkpoint, CheckpointWeights};
use crate::error::Result;
use crate::io::AlignedBuf;
use crate::model::ModelSpec;
use crate::unit::{TensorEntry, Unit, UnitLayout};

/// A model's weights, read unit by unit.
#[derive(Debug)]
pub enum Weights {
    /// Quantized, from shards.
    Bundle(Bundle),
    /// As they were, from checkpoint files.
    Checkpoint(CheckpointWeights),
}

impl Weights {
    /// Opens a bundle, or a checkpoint if `dir` has no manifest.
    ///
    /// # Errors
    /// What either refuses.
    pub fn open(dir: &Path) -> Result<Self> {
        if Bundle::is_bundle(dir) {
            return Ok(Self::Bundle(Bundle::open(dir)?));
        }
        let checkpoint = Checkpoint::open(dir)?;
        let inventory = Inventory::new(&checkpoint, None)?;
        Ok(Self::Checkpoint(CheckpointWeights::new(checkpoint, inventory)))
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            Self::Bundle(bundle) => &bundle.manifest().model,
            Self::Checkpoint(weights) => &weights.inventory().spec,
        }
    }

    /// A unit's tensors.
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn layout(&self, unit: Unit) -> Result<UnitLayout> {
        match self {
            Self::Bundle(bundle) => bundle.layout(unit),
            Self::Checkpoint(weights) => weights.layout(unit),
        }
    }

    /// Bytes that reading a unit takes from its file.
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn stored_len(&self, unit: Unit) -> Result<u64> {
        match self {
            Self::Bundle(bundle) => bundle.stored_len(unit),
            Self::Checkpoint(weights) => Ok(weights.layout(unit)?.len),
        }
    }

    /// Reads a unit into `buf`, laid out as [`Self::layout`] says.
    ///
    /// # Errors
    /// What the operating system refuses; damaged bytes.
    pub fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<()> {
        match self {
            Self::Bundle(bundle) => bundle.read(unit, buf),
            Self::Checkpoint(weights) => weights.read(unit, buf),
        }
    }

    /// Reads some rows of one tensor: a matrix of their own, `weight | scales | biases`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_rows(
        &self,
        unit: Unit,
        entry: &TensorEntry,
        rows: Range<u64>,
        buf: &mut AlignedBuf,
    ) -> Result<()> {
        match self {
            Self::Bundle(bundle) => bundle.read_rows(unit, entry, rows, buf),
            Self::Checkpoint(weights) => weights.read_rows(entry, rows, buf),
        }
    }

    /// Whether units are read past the page cache.
    pub fn is_direct(&self) -> bool {
        match self {
            Self::Bundle(bundle) => bundle.is_direct(),
            Self::Checkpoint(_) => false,
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        match self {
            Self::Bundle(bundle) => bundle.root(),
            Self::Checkpoint(weights) => weights.checkpoint().root(),
        }
    }

    /// Where the tokenizer should lie.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.root().join("tokenizer.json")
    }
}
