//! A checkpoint as a source of weights for a runtime: unit by unit, as a bundle would give them.

use std::ops::Range;

use shardwright_quant::Encoding;

use super::Checkpoint;
use super::view::{Place, fetch_from, read_view};
use crate::arch::{Inventory, SourceTensor};
use crate::error::{FormatError, Result};
use crate::io::AlignedBuf;
use crate::layout::{Unplaced, place_dense};
use crate::unit::{TensorEntry, Unit, UnitLayout};

/// A checkpoint and what its tensors are for.
#[derive(Debug)]
pub struct CheckpointWeights {
    checkpoint: Checkpoint,
    inventory: Inventory,
}

impl CheckpointWeights {
    /// Joins a checkpoint with the inventory made from it.
    pub const fn new(checkpoint: Checkpoint, inventory: Inventory) -> Self {
        Self { checkpoint, inventory }
    }

    /// Some of its layers as a model of their own.
    ///
    /// # Errors
    /// Layers that the model does not have.
    pub fn excerpt(self, layers: Range<u32>) -> Result<Self> {
        let Self { mut checkpoint, inventory } = self;
        let inventory = inventory.excerpt(&mut checkpoint, layers)?;
        Ok(Self { checkpoint, inventory })
    }

    /// The checkpoint.
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What its tensors are for.
    pub const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The tensors of `unit` in order of use, in the dtypes of the checkpoint.
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn layout(&self, unit: Unit) -> Result<UnitLayout> {
        let tensors = self
            .sources(unit)?
            .iter()
            .map(SourceTensor::unplaced)
            .collect();
        place_dense(tensors).map_err(|e| self.refused(unit, e))
    }

    /// Makes `buf` hold the bytes of `unit` as [`Self::layout`] places them; what lies between
    /// tensors is unspecified.
    ///
    /// # Errors
    /// A unit that the model does not have, and what the operating system refuses.
    pub fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<UnitLayout> {
        let layout = self.layout(unit)?;
        buf.resize(layout.len as usize);
        for entry in layout.tensors.iter() {
            let place = Place::new(&self.checkpoint, &entry.source, 0..entry.rows, entry.cols)?;
            let start = entry.offset as usize;
            let out = &mut buf.as_mut_slice()[start..start + place.byte_len()];
            place.read(out, &mut fetch_from(&self.checkpoint))?;
        }
        Ok(layout)
    }

    /// Makes `buf` hold some rows of one tensor, packed.
    ///
    /// # Errors
    /// Rows outside it, and what the operating system refuses.
    pub fn read_rows(
        &self,
        entry: &TensorEntry,
        rows: Range<u64>,
        buf: &mut AlignedBuf,
    ) -> Result<()> {
        read_view(&self.checkpoint, &entry.source, rows, entry.cols, buf)
    }

    fn sources(&self, unit: Unit) -> Result<&[SourceTensor]> {
        let text = self.inventory.units.get(&unit);
        let sources = text.or_else(|| self.inventory.parts.get(&unit).map(|part| &part.tensors));
        let sources = sources.map(Vec::as_slice);
        sources.ok_or_else(|| self.refused(unit, "the model has no such unit"))
    }

    fn refused(&self, unit: Unit, detail: impl std::fmt::Display) -> FormatError {
        FormatError::file(self.checkpoint.root(), format!("{unit}: {detail}"))
    }
}

impl SourceTensor {
    /// The tensor stored as it is in the checkpoint.
    fn unplaced(&self) -> Unplaced {
        Unplaced {
            role: self.role,
            encoding: Encoding::from(self.view.dtype),
            rows: self.rows,
            cols: self.cols,
            source: self.view.clone(),
        }
    }
}
