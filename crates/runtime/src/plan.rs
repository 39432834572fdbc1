//! What a budget buys: which weights stay in memory and which are read again for every token.

mod working;

use serde::Serialize;
use shardwright_format::model::{Ffn, ModelSpec, MoeSpec};
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role, TensorEntry, Unit, UnitLayout};

use crate::block::kv::CacheTypes;
use crate::error::{Result, RuntimeError};
use crate::options::Options;
use crate::vocab::head_location;
pub(crate) use working::buffer;
pub use working::position_bytes;
use working::{Chunk, chunks, decoded, scratch, state};

/// What a prompt's chunks may take of what a budget has beyond the least: one part in this many.
const CHUNK_SHARE: u64 = 8;

/// Where experts are read for each chunk, one this many times as long is worth its memory.
const LONGER: usize = 4;

/// What the rings of longer chunks may take of the experts for good: one part in this many.
const RING_SHARE: u64 = 8;

/// Tokens of a prompt after which the experts that made way for its chunks are read again.
const PROMPT: f64 = 512.0;

/// Bytes of the head read at a time when it is not resident, at most.
const HEAD_CHUNK: u64 = 2 << 20;

/// Pieces of a head that is not resident, at least.
const HEAD_PIECES: u64 = 8;

/// Pieces of a streamed head in memory: one in use, one being read.
pub(crate) const HEAD_BUFFERS: usize = 2;

/// Dense layers in memory when not all are: one in use, one being read.
pub(crate) const DENSE_RING: usize = 2;

/// How the weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All in memory.
    Resident,
    /// Some read again for every token.
    Streamed,
}

/// What is kept in memory under a budget. All sizes in bytes.
///
/// The least that works is what one token needs: program, state and scratch; two dense layers (the one in use
/// and the next), or all when they are smaller; as many experts as a token visits in one layer; and
/// pieces of the head. Above it, memory goes first to what every token reads: the head, then dense
/// layers, spread evenly among the streamed ones so that reading never waits; the rest holds experts.
/// Up to an eighth of it is for computing tokens of a prompt together; the least computes them one by
/// one. Where experts are streamed, a longer chunk reads each for more tokens at once: where less is read
/// by that, buffers take the room of experts while a prompt is computed, down to what one token visits, and
/// give it back after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// How the weights are held.
    pub mode: Mode,
    /// What the process may take, if limited.
    pub budget: Option<u64>,
    /// The least budget that works.
    pub min_bytes: u64,
    /// The least budget under which nothing is read twice.
    pub resident: u64,
    /// What this plan takes.
    pub total: u64,
    /// Set aside for the program.
    pub reserved: u64,
    /// KV caches and other state.
    pub state: u64,
    /// What each further position adds to them, once sliding windows are full.
    pub position_bytes: u64,
    /// Activations and buffers that are not weights.
    pub scratch: u64,
    /// Tokens of a prompt that are computed together.
    pub chunk: usize,
    /// How many experts there is room for while some tokens are computed together: ascending by tokens, the
    /// first what is held while tokens are decoded, the last for [`Self::chunk`].
    pub rooms: Vec<ChunkRoom>,
    /// Tokens that are tried together behind the next one.
    pub draft: usize,
    /// The embedding is in memory; otherwise a row is read per token, with the rows it can only be
    /// read with.
    pub embedding_resident: bool,
    /// The head is in memory; otherwise it is read in pieces for every token.
    pub head_resident: bool,
    /// Per layer: its dense part stays in memory.
    pub dense_resident: Vec<bool>,
    /// Buffers through which the other dense parts pass.
    pub dense_ring: usize,
    /// Size of one of them.
    pub dense_buffer: u64,
    /// Experts held at a time.
    pub expert_slots: usize,
    /// Size of one of them: the largest expert.
    pub expert_slot: u64,
    /// What all experts take where they all stay: each its own size.
    pub experts_bytes: u64,
    /// Bytes of the weights that a token uses, in memory or not.
    pub bytes_per_token: u64,
    /// Bytes read for a token when no expert is in memory yet.
    pub cold_bytes_per_token: u64,
}

/// Experts that there is room for while some tokens are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChunkRoom {
    /// So many tokens, or fewer.
    pub tokens: usize,
    /// Experts held at a time.
    pub slots: usize,
}

impl MemoryPlan {
    /// The plan for weights that exist, those of a quantized checkpoint in its own codes.
    ///
    /// # Errors
    /// As [`Self::for_layouts`].
    pub fn new(weights: &Weights, options: &Options) -> Result<Self> {
        let weights = weights.clone().in_codes()?;
        let layout = |unit| weights.layout(unit);
        Self::for_layouts(weights.spec(), &layout, options)
    }

    /// The plan for a model whose units have the given layouts.
    ///
    /// # Errors
    /// A layout that cannot be had; a budget below the least that works.
    pub fn for_layouts(
        spec: &ModelSpec,
        layout: &dyn Fn(Unit) -> Result<UnitLayout, FormatError>,
        options: &Options,
    ) -> Result<Self> {
        let sizes = Sizes::new(spec, layout, options)?;
        let (least, all) = (sizes.least(), sizes.all());
        let resident = sizes.cost(all).max(options.loading);
        let min_bytes = sizes.cost(least).min(resident).max(options.loading);
        // Loading comes before there is a cache: what it takes at its peak bounds both from below.
        let (choice, longer) = match options.memory {
            Some(budget) if budget < min_bytes => {
                return Err(RuntimeError::Budget { budget, min_bytes });
            }
            Some(budget) if budget < resident => {
                // A longer chunk reads each expert for more tokens at once, but takes from the cache: a share.
                let chunk = sizes.chunk_within((budget - min_bytes) / CHUNK_SHARE);
                sizes.lengthen(sizes.spend(budget, Choice { chunk, ..least }))
            }
            budget => {
                let spare = budget.map_or(u64::MAX, |budget| budget - resident);
                (Choice { chunk: sizes.chunk_within(spare), ..all }, Vec::new())
            }
        };
        let position_bytes = position_bytes(spec, options.cache);
        let plan = sizes.describe(choice, options.memory, longer);
        Ok(Self { min_bytes, resident, position_bytes, ..plan })
    }

    /// The same with room for as many experts as `budget` leaves them, at least those that a token visits in a
    /// layer; all else stays as it is. Chunks of a prompt for which too little room is left grow shorter.
    #[must_use]
    pub fn resized(&self, spec: &ModelSpec, budget: u64) -> Self {
        let experts = spec.num_experts() as usize;
        let picks = spec.layers.iter().map(|layer| match &layer.ffn {
            Ffn::Moe(moe) => moe.num_experts_per_tok as usize,
            Ffn::Dense(_) => 0,
        });
        let least = picks.max().unwrap_or(0).min(self.expert_slots);
        let fixed = self.total - self.held_experts();
        let left = budget.saturating_sub(fixed).checked_div(self.expert_slot);
        let slots = left
            .map_or(0, |left| left.min(experts as u64) as usize)
            .max(least);
        let room = |room: &ChunkRoom| {
            let slots = (room.slots + slots)
                .checked_sub(self.expert_slots)?
                .min(experts);
            (slots >= least).then_some(ChunkRoom { slots, ..*room })
        };
        let rooms: Vec<ChunkRoom> = self.rooms.iter().map_while(room).collect();
        let mode = if slots < experts { Mode::Streamed } else { self.mode };
        let resized = Self { mode, expert_slots: slots, ..self.clone() };
        Self {
            budget: Some(budget),
            total: fixed + resized.held_experts(),
            chunk: rooms.last().map_or(self.chunk, |room| room.tokens),
            rooms,
            ..resized
        }
    }

    /// What the experts take that are held at a time.
    const fn held_experts(&self) -> u64 {
        match self.mode {
            Mode::Resident => self.experts_bytes,
            Mode::Streamed => self.expert_slots as u64 * self.expert_slot,
        }
    }

    /// The most positions, up to `most`, with which the least that works is within `budget`, for the model
    /// and the types of the cache that this plan was made for.
    pub fn positions_within(
        &self,
        spec: &ModelSpec,
        cache: CacheTypes,
        budget: u64,
        most: usize,
    ) -> usize {
        let spare = budget.saturating_sub(self.min_bytes - self.state);
        // More positions never take less.
        let (mut fit, mut past) = (0, most + 1);
        while fit + 1 < past {
            let middle = fit.midpoint(past);
            let fits = state(spec, cache, middle, 1) <= spare;
            *if fits { &mut fit } else { &mut past } = middle;
        }
        fit
    }
}

/// What to keep.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Choice {
    embedding: bool,
    head: bool,
    dense: usize,
    experts: u64,
    chunk: Chunk,
}

/// Sizes that a plan is made from, in bytes as they will lie in memory.
struct Sizes {
    reserved: u64,
    /// As long as tokens are computed one by one.
    state: u64,
    /// As long as tokens are computed one by one.
    scratch: u64,
    /// What more tokens together take, the most of them first.
    chunks: Vec<Chunk>,
    /// The same where every chunk reads its experts.
    longer: Vec<Chunk>,
    tied: bool,
    embedding: u64,
    /// What reading one row of it takes.
    embedding_row: u64,
    /// Final norm, and the head unless it is tied.
    head: u64,
    /// Through which the head passes when it is not resident.
    head_buffers: u64,
    dense: Vec<u64>,
    experts: u64,
    /// The largest of them.
    expert: u64,
    /// All of them together.
    experts_bytes: u64,
    /// Those of the layer that has most.
    layer_experts: u64,
    /// Layers that have some.
    routed_layers: u64,
    /// Experts that a token visits in one layer, at most.
    picks: u64,
    expert_bytes_per_token: u64,
}

impl Sizes {
    fn new(
        spec: &ModelSpec,
        layout: &dyn Fn(Unit) -> Result<UnitLayout, FormatError>,
        options: &Options,
    ) -> Result<Self> {
        let len = |unit| -> Result<u64> { Ok(layout(unit)?.len) };
        let embedding = layout(Unit::Embedding)?;
        let rows = embedding.find(Role::EmbedTokens);
        let embedding_row = rows.map_or(Ok(0), TensorEntry::row_len)?;
        let (head_unit, head_role) = head_location(spec);
        let chunk = head_chunk(&layout(head_unit)?, head_role)?.1;
        let mut sizes = Self {
            reserved: options.reserved,
            state: state(spec, options.cache, options.context, 1),
            scratch: scratch(spec, 1) + buffer(embedding_row) + decoded(spec, options),
            chunks: chunks(spec, options, 1),
            longer: chunks(spec, options, LONGER),
            tied: spec.tie_word_embeddings,
            embedding: buffer(embedding.len),
            embedding_row,
            head: buffer(len(Unit::Head)?),
            head_buffers: HEAD_BUFFERS as u64 * buffer(chunk),
            dense: Vec::with_capacity(spec.layers.len()),
            experts: 0,
            expert: 0,
            experts_bytes: 0,
            layer_experts: 0,
            routed_layers: 0,
            picks: 0,
            expert_bytes_per_token: 0,
        };
        for (layer, index) in spec.layers.iter().zip(0..) {
            sizes.dense.push(buffer(len(Unit::Layer(index))?));
            if let Ffn::Moe(moe) = &layer.ffn {
                sizes.add_experts(index, moe, &len)?;
            }
        }
        Ok(sizes)
    }

    fn add_experts(
        &mut self,
        layer: u32,
        moe: &MoeSpec,
        len: &dyn Fn(Unit) -> Result<u64>,
    ) -> Result<()> {
        let (experts, picks) = (moe.num_experts, u64::from(moe.num_experts_per_tok));
        let mut largest = 0;
        for expert in 0..experts {
            let len = len(Unit::Expert { layer, expert })?;
            largest = largest.max(len);
            self.experts_bytes = self.experts_bytes.saturating_add(buffer(len));
        }
        self.experts += u64::from(experts);
        self.expert = self.expert.max(buffer(largest));
        self.picks = self.picks.max(picks);
        self.routed_layers += 1;
        self.layer_experts = self.layer_experts.max(u64::from(experts));
        self.expert_bytes_per_token += largest * picks;
        Ok(())
    }

    fn largest_dense(&self) -> u64 {
        self.dense.iter().copied().max().unwrap_or(0)
    }

    /// What one token needs.
    fn least(&self) -> Choice {
        let (embedding, head, experts) = (false, false, self.picks);
        let least = Choice { embedding, head, dense: 0, experts, chunk: Chunk::ONE };
        // Few layers may take less when they all stay than the ring through which they would pass.
        let all = Choice { dense: self.dense.len(), ..least };
        if self.cost(all) <= self.cost(least) { all } else { least }
    }

    fn all(&self) -> Choice {
        let (dense, experts) = (self.dense.len(), self.experts);
        Choice { embedding: true, head: true, dense, experts, chunk: Chunk::ONE }
    }

    /// The most tokens together that take at most `bytes` more than one.
    fn chunk_within(&self, bytes: u64) -> Chunk {
        let fits = self.chunks.iter().find(|chunk| chunk.bytes <= bytes);
        fits.copied().unwrap_or(Chunk::ONE)
    }

    /// Spends `budget` on what saves most reading for a byte of memory.
    fn spend(&self, budget: u64, least: Choice) -> Choice {
        // Every token reads the whole head and all dense parts, but only some experts: bytes held of the first two
        // save as many per token, bytes of experts as often as they are hit. A row of the embedding is small.
        let fits = |choice: &Choice| self.cost(*choice) <= budget;
        let mut choice = Choice { head: true, ..least };
        if !fits(&choice) {
            choice = least;
        }
        let layers = (choice.dense..=self.dense.len()).rev();
        let dense = layers.map(|dense| Choice { dense, ..choice }).find(fits);
        choice = dense.unwrap_or(choice);
        let spare = budget.saturating_sub(self.cost(choice));
        let experts = choice.experts + spare.checked_div(self.expert).unwrap_or(0);
        choice.experts = experts.min(self.experts);
        let embedding = Choice { embedding: true, ..choice };
        if fits(&embedding) { embedding } else { choice }
    }

    /// What chunks may take of the room of streamed experts while a prompt is computed: all but that of the
    /// experts that one token visits, so that the next one is read while one computes. Gives what is left for
    /// decoding, and how many experts there is room for with each length of chunk, ascending.
    fn lengthen(&self, mut choice: Choice) -> (Choice, Vec<ChunkRoom>) {
        // A ring and buffers take whole experts, each of the two at most one more than both together.
        let (base, least) = (choice.chunk, self.picks.max(2) + 1);
        let slots = |bytes: u64| bytes.checked_div(self.expert).map_or(u64::MAX, |n| n + 1);
        let rings = |chunk: &Chunk| chunk.state.saturating_sub(base.state);
        let left = |chunk: &Chunk| {
            let taken = slots(chunk.bytes.saturating_sub(base.bytes));
            choice
                .experts
                .checked_sub(taken)
                .filter(|left| *left >= least)
        };
        let ring_fits =
            |chunk: &Chunk| rings(chunk) == 0 || slots(rings(chunk)) <= choice.experts / RING_SHARE;
        let longer = self
            .longer
            .iter()
            .filter(|chunk| chunk.tokens > base.tokens && ring_fits(chunk));
        let reads = longer.filter_map(|chunk| {
            let left = left(chunk)?;
            let again = (choice.experts - left) as f64 / (self.routed_layers as f64 * PROMPT);
            Some((chunk, self.reads(chunk.tokens, left) + again))
        });
        // The longest of those that read least.
        let least_read = reads.min_by(|(_, a), (_, b)| a.total_cmp(b));
        let Some((longest, reads)) = least_read else { return (choice, Vec::new()) };
        if reads >= self.reads(base.tokens, choice.experts) {
            return (choice, Vec::new());
        }
        // A ring is as long as the longest chunk needs it, whatever is computed.
        let ring = rings(longest);
        if ring > 0 {
            choice.experts -= slots(ring);
        }
        choice.chunk.bytes += ring;
        let room = |chunk: &Chunk| {
            let extra = (chunk.bytes - chunk.state).saturating_sub(base.bytes - base.state);
            ChunkRoom { tokens: chunk.tokens, slots: (choice.experts - slots(extra)) as usize }
        };
        let tokens = base.tokens + 1..=longest.tokens;
        let within = self
            .longer
            .iter()
            .filter(|chunk| tokens.contains(&chunk.tokens));
        (choice, within.rev().map(room).collect())
    }

    /// Experts that a token of a chunk of `tokens` reads in a layer with room for `slots`. Any expert is as
    /// likely to be picked as another, and those in memory are picked more often than that: one token finds all
    /// but the fourth power of the share that is not there, a long chunk all but that share, chunks between as
    /// 0044 measured it on a trained model.
    fn reads(&self, tokens: usize, slots: u64) -> f64 {
        let share = self.picks as f64 / self.layer_experts.max(1) as f64;
        let tokens = tokens as f64;
        let touched = self.layer_experts as f64 * (1.0 - (1.0 - share).powf(tokens));
        let missing = 1.0 - slots as f64 / self.experts.max(1) as f64;
        touched * missing.powf(1.0 + 3.3 * (-tokens / 40.0).exp()) / tokens
    }

    /// Whether everything stays in memory.
    fn is_complete(&self, choice: Choice) -> bool {
        Choice { chunk: Chunk::ONE, ..choice } == self.all()
    }

    /// Bytes that the process takes.
    fn cost(&self, choice: Choice) -> u64 {
        let embedding = choice.embedding || (choice.head && self.tied);
        let streamed = choice.dense < self.dense.len();
        let pinned = spread(choice.dense, self.dense.len());
        let dense = self
            .dense
            .iter()
            .zip(&pinned)
            .filter(|(_, pinned)| **pinned);
        [
            self.reserved
                .saturating_add(self.state)
                .saturating_add(self.scratch)
                .saturating_add(choice.chunk.bytes),
            if embedding { self.embedding } else { 0 },
            if choice.head { self.head } else { self.head_buffers },
            dense.map(|(len, _)| len).sum(),
            if streamed { DENSE_RING as u64 * self.largest_dense() } else { 0 },
            // Where experts come and go, any place must hold the largest.
            if self.is_complete(choice) {
                self.experts_bytes
            } else {
                choice.experts.saturating_mul(self.expert)
            },
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    fn describe(&self, choice: Choice, budget: Option<u64>, longer: Vec<ChunkRoom>) -> MemoryPlan {
        let pinned = spread(choice.dense, self.dense.len());
        let streamed = self
            .dense
            .iter()
            .zip(&pinned)
            .filter(|(_, pinned)| !**pinned);
        let head = if self.tied { self.embedding } else { self.head };
        let embedding = choice.embedding || (choice.head && self.tied);
        let complete = self.is_complete(choice);
        let experts = self.expert_bytes_per_token;
        let decoding = ChunkRoom { tokens: choice.chunk.tokens, slots: choice.experts as usize };
        MemoryPlan {
            mode: if complete { Mode::Resident } else { Mode::Streamed },
            budget,
            min_bytes: 0,
            resident: 0,
            total: self.cost(choice),
            reserved: self.reserved,
            state: self.state,
            position_bytes: 0,
            scratch: self.scratch + choice.chunk.bytes,
            chunk: longer.last().unwrap_or(&decoding).tokens,
            rooms: std::iter::once(decoding).chain(longer).collect(),
            draft: choice.chunk.draft,
            embedding_resident: embedding,
            head_resident: choice.head,
            dense_buffer: self.largest_dense(),
            dense_ring: if choice.dense < self.dense.len() { DENSE_RING } else { 0 },
            expert_slots: choice.experts as usize,
            expert_slot: self.expert,
            experts_bytes: self.experts_bytes,
            bytes_per_token: self.embedding_row + self.dense.iter().sum::<u64>() + experts + head,
            cold_bytes_per_token: if embedding { 0 } else { self.embedding_row }
                + streamed.map(|(len, _)| len).sum::<u64>()
                + if choice.experts == self.experts { 0 } else { experts }
                + if choice.head { 0 } else { head },
            dense_resident: pinned,
        }
    }
}

/// Rows of the head read at a time when it is streamed, and their bytes at most: whole blocks of
/// the rows that can only be read together.
pub(crate) fn head_chunk(layout: &UnitLayout, role: Role) -> Result<(u64, u64)> {
    let Some(entry) = layout.find(role) else { return Ok((1, 0)) };
    let (block, len) = (entry.encoding.row_block(), entry.row_len()?.max(1));
    let blocks = (HEAD_CHUNK / len)
        .min(entry.rows.div_ceil(block * HEAD_PIECES))
        .max(1);
    Ok((blocks * block, blocks * len))
}

/// `count` of `len` places, evenly spread.
fn spread(count: usize, len: usize) -> Vec<bool> {
    (0..len)
        .map(|i| (i + 1) * count / len > i * count / len)
        .collect()
}
