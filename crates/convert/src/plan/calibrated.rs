//! What a conversion takes of memory while a text goes through the model, from what its code holds at once.

use std::collections::{BTreeMap, BTreeSet};

use shardwright_format::manifest::{Calibration, Manifest};
use shardwright_format::{ModelSpec, TensorEntry, Unit};
use shardwright_quant::{Encoding, KEPT_COLS, Method, product_bytes};

use super::resolve::Rounding;
use shardwright_runtime::PassRoom;

use crate::calibrate::collect::HessianSum;
use crate::calibrate::statistics::InputKey;
use crate::calibrate::streams::{LOGITS, compared, through_original};
use crate::convert::memory::{Buffers, books, search};

/// The program, and what the allocator keeps of freed memory: measured, as nothing else here. Code that was not
/// optimized takes more.
pub const PROGRAM: u64 = if cfg!(debug_assertions) { 36 << 20 } else { 23 << 20 };
/// Stack and allocator of a thread.
const THREAD: u64 = 128 << 10;
/// Pools of threads at once: of the original's stream, the bundle's, and of the conversion.
const POOLS: u64 = 3;
/// Bytes of a column of a chunk of rows that is rounded with feedback: the weights as they came, then
/// in strips, with feedback, their errors, and the factor's products.
const ROUNDED: u64 = 5 * 4 * 256;
/// Bytes of a column of the weights as they came, which a thread keeps up to [`KEPT_COLS`] columns; of all that it
/// rounds without rotation it keeps [`ROUNDED`].
const CAME: u64 = 4 * 256;
/// Bytes of a column of a tile of trellis codes that a thread keeps decoded, and of what it was decoded from.
const ROTATED: u64 = 4 * 4 * 256;
/// Units read ahead, and the one in use.
const READ: u64 = 3;

/// What a unit takes while it is watched and made.
#[derive(Clone, Copy, Default)]
struct UnitRoom {
    /// As the checkpoint has it.
    source: u64,
    /// Its largest tensor, as the checkpoint has it.
    tensor: u64,
    /// As the bundle has it.
    len: u64,
    /// Sums of the products of its inputs.
    sums: u64,
    /// The factors that are made of them.
    factors: u64,
    /// Columns of the widest matrix that is rounded with feedback.
    cols: u64,
    /// Bytes that a thread keeps of what it rounded in.
    kept: u64,
}

impl UnitRoom {
    /// What either takes at most.
    fn most(self, other: Self) -> Self {
        Self {
            source: self.source.max(other.source),
            tensor: self.tensor.max(other.tensor),
            len: self.len.max(other.len),
            sums: self.sums.max(other.sums),
            factors: self.factors.max(other.factors),
            cols: self.cols.max(other.cols),
            kept: self.kept.max(other.kept),
        }
    }

    /// `products`: whether those of all pairs of inputs are known.
    fn new(
        unit: Unit,
        len: u64,
        tensors: &[TensorEntry],
        methods: &[Rounding],
        products: bool,
    ) -> Self {
        let (mut room, mut sites) = (Self { len, ..Self::default() }, BTreeSet::new());
        for (entry, method) in tensors.iter().zip(methods) {
            let bytes = entry.rows * entry.cols * entry.source.dtype.size() as u64;
            room.source += bytes;
            room.tensor = room.tensor.max(bytes);
            let Some(key) = InputKey::for_tensor(unit, entry.role) else { continue };
            if sites.insert((key, None)) {
                room.sums += HessianSum::byte_len(entry.cols as usize) as u64;
            }
            let rotated = rotates(entry);
            let coded = entry.encoding.float().is_none();
            let rounded = rotated || (coded && products && method.method == Method::Gptq);
            if rounded && sites.insert((key, Some(rotated))) {
                room.factors += 4 * entry.cols * entry.cols;
            }
            if rounded {
                room.cols = room.cols.max(entry.cols);
                let kept = if rotated { CAME } else { ROUNDED } * entry.cols;
                let keeps = entry.cols <= KEPT_COLS as u64;
                room.kept = room.kept.max(if keeps { kept } else { 0 });
            }
        }
        room
    }

    /// What one thread holds that makes it.
    fn making(&self) -> u64 {
        let buffers = Buffers::DEFAULT;
        let record = if self.len <= buffers.record_limit { self.len } else { buffers.copy_block };
        let tile = self.tensor.min(buffers.source_tile);
        record + 2 * tile + 4 * buffers.weights_tile
    }
}

/// A layer and its experts.
#[derive(Clone, Copy, Default)]
struct LayerRoom {
    dense: UnitRoom,
    expert: UnitRoom,
    experts: u64,
}

impl LayerRoom {
    /// Beyond what both streams hold all the time: while the layer is watched, and while it is made.
    fn peak(&self, pass: &PassRoom, threads: u64) -> u64 {
        let Self { dense, expert, experts } = self;
        let (sums, factors) =
            (dense.sums + experts * expert.sums, dense.factors + experts * expert.factors);
        let limit = Buffers::DEFAULT.hessians as u64;
        // The original's copy of the layer, or the next one, and the one that is watched.
        let read = 2 * dense.source;
        let watching = pass.tried + pass.shown + read + READ * expert.source;
        let makers = threads.min((*experts).max(1));
        let making = makers * dense.making().max(expert.making())
            + threads * ROUNDED * dense.cols.max(expert.cols);
        if sums < limit {
            // One batch: it is made when all of it was seen.
            return (watching + sums).max(read + sums + factors + making);
        }
        // A batch is made while the next one is gathered.
        let batch = sums.min(limit + expert.sums);
        let factored = batch.min(factors);
        watching + 2 * batch + factored + making
    }
}

/// Bytes that the conversion of `manifest` holds at most while the text of its calibration goes through the
/// model; none without a text. `methods` are those of each unit's tensors, of expert 0 for all.
pub fn peak(
    manifest: &Manifest,
    methods: &BTreeMap<Unit, Vec<Rounding>>,
    source_bytes: u64,
    threads: usize,
) -> Option<u64> {
    // Statistics name the text that they are of, which does not go through the model again.
    let text = manifest.calibration.as_ref();
    let text = text.filter(|text| text.statistics_blake3.is_none())?;
    text.text_blake3?;
    let threads = threads as u64;
    let model = &manifest.model;
    let (tokens, window) = (text.tokens, u64::from(text.window));
    let room = |tokens| PassRoom::new(model, tokens, window, threads);
    let (pass, original) = (room(tokens), room(through_original(model, tokens, window)));
    let layers = layers(manifest, methods);
    let most = |of: &dyn Fn(&LayerRoom) -> u64| layers.values().map(of).max().unwrap_or(0);
    let layer = most(&|layer| layer.peak(&pass, threads));
    // What a stream's last layer leaves in its buffers is there to the end.
    let left = most(&|layer| if layer.experts > 0 { 0 } else { 2 * layer.dense.source });
    let kept = threads * most(&|layer| layer.dense.kept.max(layer.expert.kept));
    let tensors = manifest.tensors().map(|(.., tensor)| tensor);
    let rotated = tensors
        .filter(|tensor| rotates(tensor))
        .map(|tensor| tensor.cols)
        .max();
    let rotated = ROTATED * rotated.unwrap_or(0);
    let each = POOLS * THREAD + rotated + search(manifest);
    let base = PROGRAM + books(manifest, source_bytes) + threads * each;
    let both = pass.stream + pass.buffers + original.stream + original.buffers;
    let streams = both + again(model, text);
    let all = base + streams + kept + layer.max(left + head(manifest, text, threads));
    // Pages are whole, and small pieces lie between those that were freed.
    Some(all + all / 32)
}

/// Bytes of the stream in which the beginning of `text` goes through the original once more, where some of it did before
/// its embedding was made.
fn again(model: &ModelSpec, text: &Calibration) -> u64 {
    if !model.tie_word_embeddings {
        return 0;
    }
    4 * u64::from(model.hidden_size) * compared(text.tokens, u64::from(text.window))
}

/// What statistics of an earlier text hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Bytes of moments that are in memory all the time.
    pub held_bytes: u64,
    /// Whether products of all pairs of inputs are among those that are read when they are needed.
    pub products: bool,
    /// Inputs of which something is known.
    pub(crate) places: BTreeSet<InputKey>,
}

/// Bytes that choosing codes by `statistics` holds at most, beside what a conversion without them does: moments and
/// factors of as many units as there are threads, and what rows are rounded in.
pub fn known(
    manifest: &Manifest,
    methods: &BTreeMap<Unit, Vec<Rounding>>,
    statistics: &Known,
    threads: usize,
) -> u64 {
    let room = |unit, len, tensors: &[TensorEntry]| {
        let methods = methods.get(&unit).map_or(&[][..], Vec::as_slice);
        UnitRoom::new(unit, len, tensors, methods, statistics.products)
    };
    let dense = manifest.dense.iter();
    let dense = dense.map(|shard| (room(shard.unit, shard.len, &shard.tensors), 1));
    let experts = manifest
        .experts
        .iter()
        .map(|shards| (room(shards.first(), shards.len, &shards.tensors), shards.blake3.len()));
    let rooms: Vec<_> = dense.chain(experts).collect();
    // The largest at once, and of each the products that its widest factor is made of.
    let mut each: Vec<_> = rooms
        .iter()
        .flat_map(|(room, count)| {
            let bytes = room.factors + 4 * room.cols * room.cols;
            std::iter::repeat_n(bytes, (*count).min(threads))
        })
        .collect();
    each.sort_unstable_by(|a, b| b.cmp(a));
    let most = |of: &dyn Fn(&UnitRoom) -> u64| rooms.iter().map(|(r, _)| of(r)).max().unwrap_or(0);
    let worked = (ROUNDED + ROTATED) * most(&|room| room.cols) + most(&|room| room.kept);
    let all = each.iter().take(threads).sum::<u64>() + threads as u64 * worked;
    statistics.held_bytes + all + all / 32
}

fn layers(
    manifest: &Manifest,
    methods: &BTreeMap<Unit, Vec<Rounding>>,
) -> BTreeMap<u32, LayerRoom> {
    let mut layers = BTreeMap::<u32, LayerRoom>::new();
    let room = |unit, len, tensors: &[TensorEntry]| {
        let methods = methods.get(&unit).map_or(&[][..], Vec::as_slice);
        UnitRoom::new(unit, len, tensors, methods, true)
    };
    for shard in &manifest.dense {
        if let Unit::Layer(layer) = shard.unit {
            layers.entry(layer).or_default().dense = room(shard.unit, shard.len, &shard.tensors);
        }
    }
    for shards in &manifest.experts {
        let layer = layers.entry(shards.layer).or_default();
        layer.expert = layer
            .expert
            .most(room(shards.first(), shards.len, &shards.tensors));
        layer.experts += shards.blake3.len() as u64;
    }
    layers
}

/// What the predictions of both models take at the end: two heads, and logits of some tokens at a time.
fn head(manifest: &Manifest, text: &Calibration, threads: u64) -> u64 {
    let spec = &manifest.model;
    let (vocab, hidden) = (u64::from(spec.vocab_size), u64::from(spec.hidden_size));
    let unit = if spec.tie_word_embeddings { Unit::Embedding } else { Unit::Head };
    let Some(shard) = manifest.dense.iter().find(|shard| shard.unit == unit) else { return 0 };
    let source = |t: &TensorEntry| t.rows * t.cols * t.source.dtype.size() as u64;
    let both = shard.len + shard.tensors.iter().map(source).sum::<u64>();
    let rotated = if shard.tensors.iter().any(rotates) { 2 } else { 0 };
    let rows = (LOGITS as u64 / vocab.max(1)).max(1).min(text.tokens);
    let panels = threads * product_bytes(spec.hidden_size as usize) as u64;
    // Of each model: logits, and rows normed and prepared for the product.
    both + 2 * (4 * rows * (vocab + (3 + rotated) * hidden) + panels)
}

const fn rotates(tensor: &TensorEntry) -> bool {
    matches!(tensor.encoding, Encoding::Trellis(_))
}
