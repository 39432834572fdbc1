//! How long a conversion takes on this machine: its work is counted from the plan, the machine's rates are measured in
//! a second or two on made-up weights.

mod rates;
pub(crate) mod work;

use serde::Serialize;
use shardwright_format::checkpoint::Checkpoint;

use crate::error::{ConvertError, Result};
use crate::plan::Plan;
use rates::Machine;
use work::Work;

/// What a conversion is expected to take, in seconds.
///
/// Reading goes on beside the rest: the whole takes as long as computing or as reading, whichever is longer. How fast
/// the bundle can be written is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ExpectedTime {
    /// Threads that the rates are of.
    pub threads: usize,
    /// The whole.
    pub seconds: f64,
    /// A text through the model and through what is made of it: products, attention, statistics.
    pub text_seconds: f64,
    /// Factors of the statistics.
    pub factor_seconds: f64,
    /// Choosing codes.
    pub rounding_seconds: f64,
    /// Hashing the source and the bundle.
    pub hashing_seconds: f64,
    /// Reading the source, as fast as a piece of it came; none where it is not on this machine.
    pub reading_seconds: Option<f64>,
}

/// Measures the machine and says what carrying out `plan` with a source takes.
///
/// # Errors
/// Threads and reads that the operating system refuses.
pub fn expected_time(plan: &Plan, source: &Checkpoint, threads: usize) -> Result<ExpectedTime> {
    let (work, machine) = (Work::new(plan), Machine::new(threads)?);
    let read = rates::reading(source)?;
    let mut rounding_seconds = 0.0;
    for (how, amount) in &work.rounding {
        let (weight, column) = machine.rounding(*how).map_err(ConvertError::plan)?;
        rounding_seconds += weight * amount.weights + column * amount.columns;
    }
    let text_seconds = if work.products > 0.0 {
        work.products / machine.products()
            + work.outer / machine.outer()
            + work.logits / machine.softmaxes()
    } else {
        0.0
    };
    let factor_seconds = if work.factors > 0.0 {
        work.factors / machine.factors().map_err(ConvertError::plan)?
    } else {
        0.0
    };
    let hashing_seconds = work.hashed / machine.hashing();
    let computing = text_seconds + factor_seconds + rounding_seconds + hashing_seconds;
    let reading_seconds = read.map(|rate| work.read / rate);
    Ok(ExpectedTime {
        threads,
        seconds: computing.max(reading_seconds.unwrap_or(0.0)),
        text_seconds,
        factor_seconds,
        rounding_seconds,
        hashing_seconds,
        reading_seconds,
    })
}
