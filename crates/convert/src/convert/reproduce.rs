//! Units made again, to be compared with those of a bundle that somebody else made.

use std::sync::atomic::AtomicBool;

use shardwright_format::Unit;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::Hash;
use shardwright_runtime::thread_pool;

use super::memory::Buffers;
use super::sink::Sink;
use super::source::{Reader, Source};
use super::unit::TensorQuantizer;
use crate::calibrate::SavedStatistics;
use crate::calibrate::objectives::Objectives;
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// How units are made again.
#[derive(Clone, Copy, Debug)]
pub struct ReproduceOptions<'a> {
    /// Threads.
    pub threads: usize,
    /// What codes were chosen by besides the weights, if anything.
    pub statistics: Option<&'a SavedStatistics>,
    /// Set to stop.
    pub cancel: &'a AtomicBool,
}

/// Hashes of `units` as a conversion by `plan` would write them, in their order. Nothing is written. Memory
/// is that of the largest unit, and what quantizing takes. `progress` is told how many are done.
///
/// # Errors
/// A unit that the plan does not have, what a conversion refuses, a stop.
pub fn reproduce(
    plan: &Plan,
    checkpoint: &Checkpoint,
    units: &[Unit],
    options: &ReproduceOptions<'_>,
    progress: &dyn Fn(usize),
) -> Result<Vec<Hash>> {
    let buffers = Buffers::DEFAULT;
    let source = Source::new(checkpoint, &buffers)?;
    let pool = thread_pool(options.threads)?;
    let nothing = Objectives::default();
    let objectives = options
        .statistics
        .map_or(&nothing, |statistics| &statistics.objectives);
    let reader = Reader::new(&source);
    let mut quantizer =
        TensorQuantizer::new(reader, Some(objectives), &pool, buffers, options.cancel);
    let (mut hashes, mut record) = (Vec::with_capacity(units.len()), Vec::new());
    for unit in units {
        let planned = plan
            .planned(*unit)
            .ok_or_else(|| ConvertError::plan(format!("the plan has no {unit}")))?;
        // Zero where no tensor is, as in a bundle.
        record.clear();
        record.resize(planned.len as usize, 0);
        let made = quantizer.convert(&planned, &mut Sink::Record(&mut record))?;
        made.ok_or(ConvertError::Stopped)?;
        // Blocks of the source are hashed on the way and for nobody.
        drop(quantizer.reader.take_blocks());
        hashes.push(blake3::hash(&record).into());
        progress(hashes.len());
    }
    Ok(hashes)
}
