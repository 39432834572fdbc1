//! Watches a layer and hands on what each unit's matrices are given, a batch of units at a time.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;

use shardwright_format::Unit;
use shardwright_format::model::LayerSpec;
use shardwright_format::weights::Weights;
use shardwright_quant::Columns;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Activations, Hook, InputSite, RuntimeError};

use super::hessian::FullSum;
use super::spares::Spares;
use super::statistics::{Hessian, InputKey, InputStats};

/// Rows that an expert is given at least; those that its router did not send count
/// [`EXTRA_WEIGHT`] of an average pick.
pub const LEAST_ROWS: usize = 256;
/// See [`LEAST_ROWS`].
const EXTRA_WEIGHT: f32 = 0.25;
/// Inputs whose Gram is kept; of more, only each one's own second moment is.
pub const GRAM_LIMIT: usize = 16 << 10;

/// Units of a layer and what their matrices are given.
pub struct InputBatch {
    /// Complete units.
    pub units: Vec<Unit>,
    /// Their inputs.
    pub inputs: InputStats,
}

/// Sums of one place.
pub enum HessianSum {
    Full(FullSum),
    Diagonal { sum: Vec<f64>, weight: f64 },
}

impl HessianSum {
    fn new(cols: usize, spares: &Spares) -> Self {
        if cols <= GRAM_LIMIT {
            return Self::Full(FullSum::in_buffer(cols, spares.take(cols * cols)));
        }
        Self::Diagonal { sum: vec![0.0; cols], weight: 0.0 }
    }

    /// Bytes in memory of a place with so many inputs.
    pub const fn byte_len(cols: usize) -> usize {
        if cols <= GRAM_LIMIT { FullSum::byte_len(cols) } else { 8 * cols }
    }

    fn add(&mut self, rows: &[f32], weights: &[f32], columns: &mut Columns) {
        match self {
            Self::Full(gram) => gram.add(rows, weights, columns),
            Self::Diagonal { sum, weight } => {
                for (row, x) in rows.chunks_exact(sum.len()).enumerate() {
                    let square = f64::from(weights.get(row).copied().unwrap_or(1.0)).powi(2);
                    *weight += square;
                    for (sum, x) in sum.iter_mut().zip(x) {
                        *sum += square * f64::from(*x).powi(2);
                    }
                }
            }
        }
    }

    fn into_hessian(self) -> Option<Hessian> {
        match self {
            Self::Full(gram) => gram.into_mean().map(Hessian::Full),
            Self::Diagonal { sum, weight } if weight > 0.0 => {
                Some(Hessian::Diagonal(sum.iter().map(|s| (s / weight) as f32).collect()))
            }
            Self::Diagonal { .. } => None,
        }
    }
}

/// Collects one layer.
struct Collector<'a> {
    layer: u32,
    /// Weight of a row that the router did not send.
    extra: f32,
    out: &'a SyncSender<InputBatch>,
    /// Where the memory of sums comes from.
    spares: &'a Spares,
    sums: BTreeMap<InputKey, HessianSum>,
    bytes: usize,
    /// Bytes of sums that are sent on.
    batch_bytes: usize,
    /// Rows as they are summed, for one sum after the other.
    columns: Columns,
    /// Complete units that wait.
    units: Vec<Unit>,
    current: Unit,
}

impl Collector<'_> {
    fn add(&mut self, activations: Activations<'_>) -> Result<(), RuntimeError> {
        let layer = self.layer;
        let unit = activations
            .expert
            .map_or(Unit::Layer(layer), |expert| Unit::Expert { layer, expert });
        if unit != self.current {
            self.units.push(std::mem::replace(&mut self.current, unit));
            if self.bytes >= self.batch_bytes {
                self.send()?;
            }
        }
        let key =
            InputKey { layer: Some(layer), expert: activations.expert, site: activations.site };
        let bytes = &mut self.bytes;
        let sum = self.sums.entry(key).or_insert_with(|| {
            *bytes += HessianSum::byte_len(activations.cols);
            HessianSum::new(activations.cols, self.spares)
        });
        let weight = |w: &f32| if *w == 0.0 { self.extra } else { *w };
        let weights: Vec<f32> = activations.weights.iter().map(weight).collect();
        sum.add(activations.rows, &weights, &mut self.columns);
        Ok(())
    }

    /// Hands on the complete units, those of the current one excepted.
    fn send(&mut self) -> Result<(), RuntimeError> {
        let sums = std::mem::take(&mut self.sums).into_iter();
        let inputs = sums.filter_map(|(key, sum)| Some((key, sum.into_hessian()?)));
        let batch = InputBatch { units: std::mem::take(&mut self.units), inputs: inputs.collect() };
        self.bytes = 0;
        // Nobody listens any more: the conversion has failed and says why.
        self.out.send(batch).map_err(|_| RuntimeError::HookGone)
    }
}

/// What of the inputs is collected.
#[derive(Clone, Copy, Debug)]
pub struct Collected {
    /// Of which layer.
    pub layer: u32,
    /// Of how many of its experts at most, those that the text uses most.
    pub most_experts: usize,
    /// About how many bytes of them are sent at a time.
    pub batch_bytes: usize,
}

/// Takes the stream through a layer as `original` has it and sends the units of the layer with their inputs; the
/// stream stays where it was. The memory of sums is taken from `spares` where some is left there.
///
/// # Errors
/// As [`LayerPass::observe`].
pub fn collect(
    stream: &mut LayerPass<'_>,
    original: &Weights,
    Collected { layer, most_experts, batch_bytes }: Collected,
    out: &SyncSender<InputBatch>,
    spares: &Spares,
) -> Result<(), RuntimeError> {
    let spec = &original.spec().layers[layer as usize];
    let mut collector = Collector {
        layer,
        extra: EXTRA_WEIGHT / picks(spec) as f32,
        out,
        spares,
        sums: BTreeMap::new(),
        bytes: 0,
        batch_bytes,
        columns: Columns::default(),
        units: Vec::new(),
        current: Unit::Layer(layer),
    };
    let mut show = |activations: Activations<'_>| collector.add(activations);
    stream.observe(original, Hook { least_rows: LEAST_ROWS, most_experts, show: &mut show })?;
    collector.units.push(collector.current);
    stream.install(|| collector.send())
}

/// Experts that a token is sent to; 1 without experts.
fn picks(spec: &LayerSpec) -> u32 {
    match &spec.ffn {
        shardwright_format::model::Ffn::Moe(moe) => moe.num_experts_per_tok.max(1),
        shardwright_format::model::Ffn::Dense(_) => 1,
    }
}

/// The inputs of the head, as rows after the final norm. The work is spread over the current pool.
pub fn head(rows: impl Iterator<Item = Vec<f32>>, cols: usize) -> InputStats {
    let mut sum = HessianSum::new(cols, &Spares::default());
    let mut columns = Columns::default();
    rows.for_each(|rows| sum.add(&rows, &[], &mut columns));
    let key = InputKey { layer: None, expert: None, site: InputSite::Head };
    sum.into_hessian()
        .map(|hessian| (key, hessian))
        .into_iter()
        .collect()
}
