//! Where a runtime's weights are: in memory, on their way, or on disk.

use std::collections::HashMap;
use std::sync::Arc;

use shardwright_format::Unit;
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;

use crate::cache::ExpertCache;
use crate::error::Result;
use crate::fetch::{Fetcher, READERS, Request};
use crate::plan::MemoryPlan;
use crate::view::{Loaded, UnitView};

/// What was read, and what did not have to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Those of experts among them.
    pub expert_bytes: u64,
    /// Reads of units.
    pub reads: u64,
    /// Experts found in memory.
    pub cache_hits: u64,
    /// Experts that had to be read.
    pub cache_misses: u64,
}

/// Dense layers and experts. One reader for all of them, so that whatever arrives finds its place.
#[derive(Debug)]
pub struct Store {
    weights: Arc<Weights>,
    fetcher: Fetcher,
    /// Per layer: its dense part, when it is here and not lent out.
    dense: Vec<Option<Loaded>>,
    pinned: Vec<bool>,
    /// Per layer: its dense part is being read.
    coming: Vec<bool>,
    /// Buffers for dense parts that are not pinned.
    free: Vec<AlignedBuf>,
    experts: ExpertCache,
    /// Pieces of the head, by first row.
    pieces: HashMap<u64, Loaded>,
    /// What was read so far.
    pub counts: Counts,
}

impl Store {
    /// Room as `plan` says; reads what stays in memory.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn new(weights: &Arc<Weights>, plan: &MemoryPlan) -> Result<Self> {
        let layers = plan.dense_resident.len();
        let slot = plan.expert_slot as usize;
        let buffer = || AlignedBuf::new(plan.dense_buffer as usize);
        let mut store = Self {
            weights: Arc::clone(weights),
            fetcher: Fetcher::new(weights)?,
            dense: std::iter::repeat_with(|| None).take(layers).collect(),
            pinned: plan.dense_resident.clone(),
            coming: vec![false; layers],
            free: std::iter::repeat_with(buffer)
                .take(plan.dense_ring)
                .collect(),
            experts: ExpertCache::new(plan.expert_slots, slot),
            pieces: HashMap::new(),
            counts: Counts::default(),
        };
        store.fill(plan)?;
        store.counts = Counts::default();
        Ok(store)
    }

    /// Reads pinned layers and, when there is room for all, the experts.
    fn fill(&mut self, plan: &MemoryPlan) -> Result<()> {
        let weights = Arc::clone(&self.weights);
        let spec = weights.spec();
        let every = spec
            .layers
            .iter()
            .map(|l| l.num_experts() as usize)
            .sum::<usize>();
        let wanted = |unit: &Unit| match unit {
            Unit::Layer(layer) => plan.dense_resident[*layer as usize],
            Unit::Expert { .. } => plan.expert_slots >= every,
            _ => false,
        };
        let mut in_flight = 0;
        for unit in spec.units().filter(wanted) {
            let buf = match unit {
                Unit::Layer(_) => AlignedBuf::default(),
                _ => match self.experts.claim(unit)? {
                    Some((_, buf)) => buf,
                    None => continue,
                },
            };
            self.request(Request::Unit(unit), buf)?;
            in_flight += 1;
            if in_flight > READERS {
                self.wait_for_one()?;
                in_flight -= 1;
            }
        }
        (0..in_flight).try_for_each(|_| self.wait_for_one())
    }

    /// Lends out the dense part of a layer, once it is there, and has the next one read.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn take_dense(&mut self, layer: usize) -> Result<Loaded> {
        self.prefetch(layer)?;
        loop {
            if let Some(loaded) = self.dense[layer].take() {
                self.prefetch_after(layer)?;
                return Ok(loaded);
            }
            self.wait()?;
        }
    }

    /// Takes back what [`Self::take_dense`] lent.
    ///
    /// # Errors
    /// When the reader is gone.
    pub fn return_dense(&mut self, layer: usize, loaded: Loaded) -> Result<()> {
        if self.pinned[layer] {
            self.dense[layer] = Some(loaded);
            return Ok(());
        }
        self.free.push(loaded.bytes);
        self.prefetch_after(layer)
    }

    /// Has the next layer that is not pinned read, the first one following the last.
    fn prefetch_after(&mut self, layer: usize) -> Result<()> {
        let layers = self.dense.len();
        let next = (1..layers)
            .map(|i| (layer + i) % layers)
            .find(|l| !self.pinned[*l]);
        next.map_or(Ok(()), |next| self.prefetch(next))
    }

    /// Has a layer read unless it is here or coming, or there is no buffer.
    fn prefetch(&mut self, layer: usize) -> Result<()> {
        if self.pinned[layer] || self.coming[layer] || self.dense[layer].is_some() {
            return Ok(());
        }
        let Some(buf) = self.free.pop() else { return Ok(()) };
        self.coming[layer] = true;
        self.request(Request::Unit(Unit::Layer(layer as u32)), buf)
    }

    /// Begins a token.
    pub fn begin_token(&mut self) {
        self.experts.begin_token();
    }

    /// Experts that there is room for.
    pub const fn expert_slots(&self) -> usize {
        self.experts.slots()
    }

    /// Makes room for `slots` experts; nothing may be on its way.
    pub fn resize_experts(&mut self, slots: usize) {
        self.experts.resize(slots);
    }

    /// Begins with the experts of a layer: those of the last one may leave.
    pub const fn begin_experts(&mut self) {
        self.experts.begin_epoch();
    }

    /// Where an expert is, if it is in memory: it stays until [`Self::release_expert`].
    pub fn hold_expert(&mut self, unit: Unit) -> Option<usize> {
        let place = self.experts.hold(unit)?;
        self.counts.cache_hits += 1;
        Some(place)
    }

    /// Finds an expert that is not in memory a place and has it read; nothing while those held take up
    /// all room.
    ///
    /// # Errors
    /// When the reader is gone.
    pub fn request_expert(&mut self, unit: Unit) -> Result<Option<usize>> {
        let Some((place, buf)) = self.experts.claim(unit)? else { return Ok(None) };
        self.counts.cache_misses += 1;
        self.request(Request::Unit(unit), buf)?;
        Ok(Some(place))
    }

    /// Lets an expert leave when another needs its place.
    pub fn release_expert(&mut self, place: usize) {
        self.experts.release(place);
    }

    /// The expert at a place of [`Self::request_expert`], unless it is still being read.
    pub fn expert(&self, place: usize) -> Option<UnitView<'_>> {
        self.experts.get(place)
    }

    /// Begins to read rows of a table; [`Self::take_piece`] gives them.
    ///
    /// # Errors
    /// When the reader is gone.
    pub fn request_piece(&mut self, request: Request, buf: AlignedBuf) -> Result<()> {
        self.request(request, buf)
    }

    /// The rows from `first` on, once they are there.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn take_piece(&mut self, first: u64) -> Result<Loaded> {
        loop {
            if let Some(piece) = self.pieces.remove(&first) {
                return Ok(piece);
            }
            self.wait()?;
        }
    }

    /// Waits for one read and takes in whatever else has arrived.
    ///
    /// # Errors
    /// A read's error.
    pub fn wait(&mut self) -> Result<()> {
        self.wait_for_one()?;
        while let Some(loaded) = self.fetcher.queue().poll()? {
            self.accept(loaded);
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<()> {
        let loaded = self.fetcher.queue().wait()?;
        self.accept(loaded);
        Ok(())
    }

    fn accept(&mut self, loaded: Loaded) {
        self.counts.reads += 1;
        self.counts.bytes_read += loaded.layout.len;
        match (loaded.unit, loaded.first_row) {
            (_, Some(first)) => {
                self.pieces.insert(first, loaded);
            }
            (Unit::Layer(layer), None) => {
                self.coming[layer as usize] = false;
                self.dense[layer as usize] = Some(loaded);
            }
            (_, None) => {
                self.counts.expert_bytes += loaded.layout.len;
                self.experts.insert(loaded);
            }
        }
    }

    fn request(&self, request: Request, buf: AlignedBuf) -> Result<()> {
        self.fetcher.queue().request(request, buf)
    }

    /// Bytes of weights in memory or on their way there.
    pub fn byte_len(&self) -> u64 {
        let dense = self
            .dense
            .iter()
            .flatten()
            .map(|loaded| loaded.bytes.len() as u64);
        dense.sum::<u64>() + self.experts.byte_len()
    }
}
