//! What can be checked of a model that keeps no record of its own bytes: its headers, which opening it has
//! read, the shapes of its tensors, and that every weight is a number.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{TensorEntry, Unit};

use crate::check::finding::{Finding, Kind};
use crate::check::hashing::pool;
use crate::check::values;
use crate::error::Result;
use crate::monitor::{Meter, Monitor, Stage};

/// Values read at once, per thread.
const TILE: u64 = 1 << 18;

/// What was checked of a model that is no bundle. That its bytes are those its maker wrote cannot be: it
/// holds no hash that says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Its weight files.
    pub files: Vec<ModelFile>,
    /// Tensors of the text model, each of the shape that the configuration asks for.
    pub tensors: u64,
    /// Their weights, all of them read.
    pub weights: u64,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

/// A weight file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Its path in the model's directory.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Structure {
    /// What the headers say. Opening the model has compared every shape with its configuration.
    ///
    /// # Errors
    /// Layouts that cannot be made.
    pub(crate) fn new(weights: &Weights) -> Result<Self> {
        let mut found = Self { files: files(weights), ..Self::default() };
        for unit in weights.spec().units() {
            for entry in weights.layout(unit)?.tensors.iter() {
                found.tensors += 1;
                found.weights += entry.rows * entry.cols;
            }
        }
        Ok(found)
    }

    /// Reads every weight of the text model and adds a finding for each tensor that has one which is
    /// infinite or not a number.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(crate) fn read_all(
        &mut self,
        weights: &Weights,
        threads: usize,
        monitor: &Monitor<'_>,
    ) -> Result<()> {
        let mut tensors = Vec::new();
        for unit in weights.spec().units() {
            let layout = weights.layout(unit)?;
            tensors.extend(layout.tensors.iter().map(|entry| (unit, entry.clone())));
        }
        let meter = Meter::new(monitor, Stage::Finite, self.weights);
        let check = |(unit, entry): &(Unit, TensorEntry)| not_finite(weights, *unit, entry, &meter);
        let checked = || tensors.par_iter().map(check).collect::<Result<Vec<_>>>();
        let found = pool(threads)?.install(checked)?;
        self.findings.extend(found.into_iter().flatten());
        Ok(())
    }
}

/// The weight files of a model.
pub(crate) fn files(weights: &Weights) -> Vec<ModelFile> {
    let Some((checkpoint, _)) = weights.checkpoint() else { return Vec::new() };
    let files = checkpoint.files().iter();
    files
        .map(|f| ModelFile { path: f.name.clone(), bytes: f.file.len() })
        .collect()
}

/// The first value of a tensor that is infinite or not a number.
fn not_finite(
    weights: &Weights,
    unit: Unit,
    entry: &TensorEntry,
    meter: &Meter<'_>,
) -> Result<Option<Finding>> {
    let block = entry.encoding.row_block();
    let step = (TILE / entry.cols.max(1) / block).max(1) * block;
    let tiles: Vec<u64> = (0..entry.rows.div_ceil(step)).collect();
    let look = |(bytes, values): &mut (AlignedBuf, Vec<f32>), tile: &u64| {
        let rows = tile * step..((tile + 1) * step).min(entry.rows);
        values::read(weights, (unit, entry), &rows, bytes, values)?;
        meter.add((rows.end - rows.start) * entry.cols)?;
        let wrong = values.iter().position(|value| !value.is_finite());
        Ok(wrong.map(|at| (rows.start * entry.cols + at as u64, values[at])))
    };
    let found = tiles.par_iter().map_init(Default::default, look);
    let found = found.collect::<Result<Vec<_>>>()?;
    let finding = |(at, value): (u64, f32)| {
        let place = format!("row {}, column {}", at / entry.cols, at % entry.cols);
        let finding = Finding::new(Kind::NotFinite, place).expected("finite weights", value);
        finding.shard(unit).role(entry.role)
    };
    Ok(found.into_iter().flatten().next().map(finding))
}
