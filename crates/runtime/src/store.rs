//! Where a runtime's weights are: in memory, on their way, or on disk.

use std::collections::HashMap;
use std::sync::Arc;

use shardwright_format::Unit;
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;

use crate::cache::ExpertCache;
use crate::error::Result;
use crate::fetch::{Arrival, Fetcher, READERS, Request};
use crate::plan::{MemoryPlan, Mode};
use crate::view::{Loaded, UnitView};

/// What was read, and what did not have to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Those of experts among them that were picked before their reads began.
    pub expert_bytes: u64,
    /// Reads of units.
    pub reads: u64,
    /// Experts found in memory.
    pub cache_hits: u64,
    /// Experts that had to be read.
    pub cache_misses: u64,
    /// Experts that were read before anybody asked for them.
    pub ahead: Guesses,
}

/// Experts that were guessed and read before their layer had picked any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Guesses {
    /// Reads that were begun: the sum of the other three.
    pub issued: u64,
    /// Picked, and there in time.
    pub used: u64,
    /// Picked, and still on their way.
    pub late: u64,
    /// Not picked.
    pub wasted: u64,
}

impl Guesses {
    /// What came after `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            issued: self.issued - before.issued,
            used: self.used - before.used,
            late: self.late - before.late,
            wasted: self.wasted - before.wasted,
        }
    }

    /// This and `more`.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self {
            issued: self.issued + more.issued,
            used: self.used + more.used,
            late: self.late + more.late,
            wasted: self.wasted + more.wasted,
        }
    }
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
    /// Guesses at the experts of the next layer, as far as their reads may have begun.
    guesses: Vec<Unit>,
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
        // Where none leaves, each has a buffer of its own size.
        let slot = if plan.mode == Mode::Resident { 0 } else { plan.expert_slot as usize };
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
            guesses: Vec::new(),
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
            self.request(Request::Unit(unit), buf);
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
        self.prefetch(layer);
        loop {
            if let Some(loaded) = self.dense[layer].take() {
                self.prefetch_after(layer);
                return Ok(loaded);
            }
            self.wait()?;
        }
    }

    /// Takes back what [`Self::take_dense`] lent.
    pub fn return_dense(&mut self, layer: usize, loaded: Loaded) {
        if self.pinned[layer] {
            self.dense[layer] = Some(loaded);
            return;
        }
        self.free.push(loaded.bytes);
        self.prefetch_after(layer);
    }

    /// Has the next layer that is not pinned read, the first one following the last.
    fn prefetch_after(&mut self, layer: usize) {
        let layers = self.dense.len();
        let mut next = (1..layers).map(|i| (layer + i) % layers);
        if let Some(next) = next.find(|l| !self.pinned[*l]) {
            self.prefetch(next);
        }
    }

    /// Has a layer read unless it is here or coming, or there is no buffer.
    fn prefetch(&mut self, layer: usize) {
        if self.pinned[layer] || self.coming[layer] || self.dense[layer].is_some() {
            return;
        }
        let Some(buf) = self.free.pop() else { return };
        self.coming[layer] = true;
        self.request(Request::Unit(Unit::Layer(layer as u32)), buf);
    }

    /// Begins a token.
    pub fn begin_token(&mut self) {
        self.experts.begin_token();
    }

    /// Experts that there is room for.
    pub const fn expert_slots(&self) -> usize {
        self.experts.slots()
    }

    /// Makes room for `slots` experts; none that is needed may be on its way.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn resize_experts(&mut self, slots: usize) -> Result<()> {
        while self.experts.awaits_guess() {
            self.wait_for_one()?;
        }
        self.experts.resize(slots);
        Ok(())
    }

    /// Begins with the experts of a layer: those of the last one may leave, and guesses whose reads were not
    /// begun are none any more. Gives the experts whose reads were begun, ascending.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn begin_experts(&mut self) -> Result<Vec<u32>> {
        for (unit, buf) in self.fetcher.queue().take_back() {
            self.experts.forget(unit, Some(buf));
            self.guesses.retain(|guess| *guess != unit);
        }
        self.take_in()?;
        self.experts.begin_epoch();
        self.counts.ahead.issued += self.guesses.len() as u64;
        let begun = self.guesses.iter().filter_map(|unit| match unit {
            Unit::Expert { expert, .. } => Some(*expert),
            _ => None,
        });
        let mut begun: Vec<u32> = begun.collect();
        begun.sort_unstable();
        Ok(begun)
    }

    /// Where an expert is, if it is in memory or on its way: it stays until [`Self::release_expert`].
    pub fn hold_expert(&mut self, unit: Unit) -> Option<usize> {
        let place = self.experts.hold(unit)?;
        self.counts.cache_hits += 1;
        if let Some(guess) = self.guesses.iter().position(|guess| *guess == unit) {
            self.guesses.swap_remove(guess);
            let here = self.experts.get(place).is_some();
            let ahead = &mut self.counts.ahead;
            *if here { &mut ahead.used } else { &mut ahead.late } += 1;
        }
        Some(place)
    }

    /// Whatever was guessed and not held until now was guessed wrongly.
    pub fn end_guesses(&mut self) {
        self.counts.ahead.wasted += self.guesses.len() as u64;
        self.guesses.clear();
    }

    /// Has those of the first `ranks` of `likely`, the likeliest first, that are not in memory read while
    /// nothing else is to be read. At most `most` places of the cache are taken for that, and no expert leaves
    /// that is needed or likely.
    ///
    /// # Errors
    /// When an earlier read failed.
    pub fn guess_experts(&mut self, likely: &[Unit], ranks: usize, most: usize) -> Result<()> {
        for unit in likely.iter().take(ranks) {
            if self.experts.has(*unit) {
                continue;
            }
            let Some(buf) = self.experts.claim_guess(*unit, likely, most)? else { return Ok(()) };
            self.guesses.push(*unit);
            self.fetcher.queue().guess(*unit, buf);
        }
        Ok(())
    }

    /// A layer's dense part, if it is in memory.
    pub fn dense(&self, layer: usize) -> Option<&Loaded> {
        self.dense.get(layer)?.as_ref()
    }

    /// Finds an expert that is not in memory a place and has it read; nothing while those held take up
    /// all room.
    ///
    /// # Errors
    /// When an earlier read failed.
    pub fn request_expert(&mut self, unit: Unit) -> Result<Option<usize>> {
        let Some((place, buf)) = self.experts.claim(unit)? else { return Ok(None) };
        self.counts.cache_misses += 1;
        self.request(Request::Unit(unit), buf);
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
    pub fn request_piece(&self, request: Request, buf: AlignedBuf) {
        self.request(request, buf);
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
        self.take_in()
    }

    /// Takes in whatever has arrived.
    fn take_in(&mut self) -> Result<()> {
        while let Some(arrival) = self.fetcher.queue().poll()? {
            self.accept(arrival);
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<()> {
        let arrival = self.fetcher.queue().wait()?;
        self.accept(arrival);
        Ok(())
    }

    fn accept(&mut self, arrival: Arrival) {
        let (loaded, guess) = match arrival {
            Arrival::Read(loaded) => (loaded, false),
            Arrival::Guess(loaded) => (loaded, true),
            // Whoever waits for it by now is told why it cannot be read.
            Arrival::Lost(unit) if self.experts.has(unit) && !self.experts.is_guess(unit) => {
                return self.request(Request::Unit(unit), AlignedBuf::default());
            }
            Arrival::Lost(unit) => return self.experts.forget(unit, None),
        };
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
                self.counts.expert_bytes += if guess { 0 } else { loaded.layout.len };
                self.experts.insert(loaded);
            }
        }
    }

    fn request(&self, request: Request, buf: AlignedBuf) {
        self.fetcher.queue().request(request, buf);
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
