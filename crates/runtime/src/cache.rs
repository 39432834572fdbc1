//! Experts in memory: a fixed number of equal slots.

use std::collections::HashMap;

use shardwright_format::Unit;
use shardwright_format::io::AlignedBuf;

use crate::error::{Result, RuntimeError};
use crate::view::{Loaded, UnitView};

/// A place for one expert.
#[derive(Debug, Default)]
struct Slot {
    unit: Option<Unit>,
    /// Absent while it is being read.
    loaded: Option<Loaded>,
    /// The step that used it last.
    used: u64,
}

/// Experts in memory. The least recently used one makes room.
#[derive(Debug)]
pub struct ExpertCache {
    slots: Vec<Slot>,
    places: HashMap<Unit, usize>,
    slot_bytes: usize,
    step: u64,
}

/// What the cache says of an expert.
pub enum Lookup {
    /// It has a place, and is there or on its way.
    Held(usize),
    /// It has a place now, and must be read into this buffer.
    Missing(usize, AlignedBuf),
}

impl ExpertCache {
    /// Room for `slots` experts of at most `slot_bytes`.
    pub fn new(slots: usize, slot_bytes: usize) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(slots).collect();
        Self { slots, places: HashMap::new(), slot_bytes, step: 0 }
    }

    /// Begins a step: experts found from here to the next step are not evicted.
    pub const fn begin_step(&mut self) {
        self.step += 1;
    }

    /// Finds `unit` a place for this step.
    ///
    /// # Errors
    /// When every place is taken by this step, or an earlier read failed.
    pub fn find(&mut self, unit: Unit) -> Result<Lookup> {
        if let Some(&place) = self.places.get(&unit) {
            self.slots[place].used = self.step;
            return Ok(Lookup::Held(place));
        }
        let free = self.places.len();
        let place = if free < self.slots.len() { free } else { self.oldest()? };
        let slot = &mut self.slots[place];
        let buf = match (slot.unit.take(), slot.loaded.take()) {
            (None, _) => AlignedBuf::new(self.slot_bytes),
            (Some(evicted), Some(loaded)) => {
                self.places.remove(&evicted);
                loaded.bytes
            }
            (Some(_), None) => return Err(RuntimeError::Stopped),
        };
        *slot = Slot { unit: Some(unit), loaded: None, used: self.step };
        self.places.insert(unit, place);
        Ok(Lookup::Missing(place, buf))
    }

    /// Takes in what was read.
    pub fn insert(&mut self, loaded: Loaded) {
        if let Some(&place) = self.places.get(&loaded.unit) {
            self.slots[place].loaded = Some(loaded);
        }
    }

    /// The expert at `place`, unless it is still being read.
    pub fn get(&self, place: usize) -> Option<UnitView<'_>> {
        self.slots[place].loaded.as_ref().map(Loaded::view)
    }

    /// Bytes of the experts here.
    pub fn byte_len(&self) -> u64 {
        let loaded = self.slots.iter().filter_map(|slot| slot.loaded.as_ref());
        loaded.map(|loaded| loaded.bytes.len() as u64).sum()
    }

    fn oldest(&self) -> Result<usize> {
        let free = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.used < self.step);
        let oldest = free.min_by_key(|(_, slot)| slot.used);
        oldest.map(|(place, _)| place).ok_or(RuntimeError::Stopped)
    }
}
