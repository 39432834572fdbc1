//! Where a runtime's weights come from: a bundle or a checkpoint, behind the same calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arch::Inventory;
use crate::bundle::Bundle;
use crate::census::Census;
use crate::checkpoint::{Checkpoint, CheckpointWeights};
use crate::error::{FormatError, Result};
use crate::io::AlignedBuf;
use crate::model::ModelSpec;
use crate::role::Role;
use crate::unit::{TensorEntry, Unit, UnitLayout};
use shardwright_quant::EncodingError;

/// A model's weights, read unit by unit.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a process has one or two
pub enum Weights {
    /// Quantized, from shards.
    Bundle(Bundle),
    /// As they were, from checkpoint files.
    Checkpoint(CheckpointWeights),
    /// Those of another source, some tensors put in place of its own.
    Overlay(Overlay),
}

/// Weights of which some tensors are others, as long as those and stored alike.
#[derive(Debug)]
pub struct Overlay {
    base: Arc<Weights>,
    /// Bytes of whole tensors, in the encoding that `base` has them in.
    tensors: BTreeMap<(Unit, Role), Vec<u8>>,
}

impl Overlay {
    /// `base` with `tensors` in place of its own.
    pub const fn new(base: Arc<Weights>, tensors: BTreeMap<(Unit, Role), Vec<u8>>) -> Self {
        Self { base, tensors }
    }

    /// Reads a unit and puts what replaces its tensors over them.
    fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<UnitLayout> {
        let layout = self.base.read(unit, buf)?;
        for entry in layout.tensors.iter() {
            let Some(bytes) = self.tensors.get(&(unit, entry.role)) else { continue };
            let place = buf.as_mut_slice().get_mut(entry.offset as usize..);
            let place = place.and_then(|place| place.get_mut(..bytes.len()));
            let wrong = || FormatError::file(self.base.root(), format!("{unit}: too short"));
            place.ok_or_else(wrong)?.copy_from_slice(bytes);
        }
        Ok(layout)
    }

    /// Reads rows of a tensor of plain floats, the only ones that this is used with.
    fn read_rows(
        &self,
        unit: Unit,
        entry: &TensorEntry,
        rows: Range<u64>,
        buf: &mut AlignedBuf,
    ) -> Result<()> {
        self.base.read_rows(unit, entry, rows.clone(), buf)?;
        let Some(bytes) = self.tensors.get(&(unit, entry.role)) else { return Ok(()) };
        let row = bytes.len() as u64 / entry.rows.max(1);
        let range = (rows.start * row) as usize..(rows.end * row) as usize;
        buf.as_mut_slice().copy_from_slice(&bytes[range]);
        Ok(())
    }
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

    /// The bundle, if it is one.
    pub const fn bundle(&self) -> Option<&Bundle> {
        match self {
            Self::Bundle(bundle) => Some(bundle),
            Self::Checkpoint(_) | Self::Overlay(_) => None,
        }
    }

    /// The checkpoint, if it is one.
    pub const fn checkpoint(&self) -> Option<&CheckpointWeights> {
        match self {
            Self::Checkpoint(weights) => Some(weights),
            Self::Bundle(_) | Self::Overlay(_) => None,
        }
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            Self::Bundle(bundle) => &bundle.manifest().model,
            Self::Checkpoint(weights) => &weights.inventory().spec,
            Self::Overlay(overlay) => overlay.base.spec(),
        }
    }

    /// The parts besides the text model, which no runtime reads.
    pub fn parts(&self) -> Vec<Unit> {
        match self {
            Self::Bundle(bundle) => bundle.manifest().parts().iter().map(|s| s.unit).collect(),
            Self::Checkpoint(weights) => weights.inventory().parts.keys().copied().collect(),
            Self::Overlay(overlay) => overlay.base.parts(),
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
            Self::Overlay(overlay) => overlay.base.layout(unit),
        }
    }

    /// How a tensor is stored, as a label for tables, and the bytes of files that hold it: its share
    /// of them where a checkpoint has it quantized together with others.
    ///
    /// # Errors
    /// When the encoding cannot hold the shape.
    pub fn stored_as(&self, tensor: &TensorEntry) -> Result<(String, u64), EncodingError> {
        let bytes = tensor.byte_len()?;
        if let (Self::Checkpoint(weights), Some(decoder)) = (self, &tensor.source.decoder) {
            let (checkpoint, count) = (weights.checkpoint(), tensor.rows * tensor.cols);
            let held = checkpoint.stored_bytes(&tensor.source, count);
            return Ok((decoder.label(), held.unwrap_or(bytes)));
        }
        Ok((tensor.encoding.label(), bytes))
    }

    /// What the tensors add up to.
    ///
    /// # Errors
    /// A tensor whose encoding cannot hold its shape.
    pub fn census(&self) -> Result<Census> {
        if let Self::Bundle(bundle) = self {
            return Ok(bundle.manifest().census());
        }
        let mut census = Census::default();
        for unit in self.spec().units().chain(self.parts()) {
            for tensor in self.layout(unit)?.tensors.iter() {
                let stored = self.stored_as(tensor);
                let refused = |e: EncodingError| FormatError::file(self.root(), e.to_string());
                let (label, bytes) = stored.map_err(refused)?;
                census.add(unit, 1, tensor, label, bytes);
            }
        }
        Ok(census)
    }

    /// Reads a unit into `buf` and gives its layout.
    ///
    /// # Errors
    /// What the operating system refuses; damaged bytes.
    pub fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<UnitLayout> {
        match self {
            Self::Bundle(bundle) => bundle.read(unit, buf),
            Self::Checkpoint(weights) => weights.read(unit, buf),
            Self::Overlay(overlay) => overlay.read(unit, buf),
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
            Self::Overlay(overlay) => overlay.read_rows(unit, entry, rows, buf),
        }
    }

    /// Whether a tensor is stored in codes, not as plain floats in whatever order.
    pub fn is_coded(&self, entry: &TensorEntry) -> bool {
        let decoder = entry.source.decoder.as_ref();
        match self {
            Self::Bundle(_) => entry.encoding.float().is_none(),
            Self::Checkpoint(_) => decoder.is_some_and(|decoder| !decoder.is_plain()),
            Self::Overlay(overlay) => overlay.base.is_coded(entry),
        }
    }

    /// Whether units are read past the page cache.
    pub fn is_direct(&self) -> bool {
        match self {
            Self::Bundle(bundle) => bundle.is_direct(),
            Self::Checkpoint(_) | Self::Overlay(_) => false,
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        match self {
            Self::Bundle(bundle) => bundle.root(),
            Self::Checkpoint(weights) => weights.checkpoint().root(),
            Self::Overlay(overlay) => overlay.base.root(),
        }
    }

    /// Where the tokenizer should lie.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.root().join("tokenizer.json")
    }
}
