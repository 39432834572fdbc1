//! A runtime within what the machine has.

use shardwright_format::weights::Weights;
use shardwright_runtime::options::{PROGRAM_BYTES, THREAD_BYTES, loading, reserved};
use shardwright_runtime::text::Tokenizer;
use shardwright_runtime::{MemoryPlan, Options, Runtime, RuntimeError};

use crate::bytes;
use crate::failure::Failure;
use crate::process;

/// Memory kept free of weights beside what the program holds when its tokenizer is loaded: stacks,
/// the text, and what the allocator does not give back.
const SLACK: u64 = 4 << 20;

/// The program's code in memory, at most. How much of it is there at a time is up to the page cache and differs
/// from run to run by MiB, so that it is not measured. Code that is not optimized is three times as large.
const CODE: u64 = if cfg!(debug_assertions) { 28 << 20 } else { 12 << 20 };

/// What the same program may take more another time: addresses and hashes are drawn anew.
const DRIFT: u64 = 1 << 20;

/// How to run a model here: within `memory`, or what the machine has free.
/// With a tokenizer, which is loaded by now: what it takes is reserved, and what loading it took is the
/// least that any budget must be.
pub fn options(
    memory: Option<u64>,
    threads: usize,
    context: usize,
    tokenizer: Option<&Tokenizer>,
) -> Options {
    let held = process::own_memory().map_or(0, |own| own + CODE + SLACK);
    let memory = memory.or_else(process::available_memory);
    let stated = tokenizer.map_or(PROGRAM_BYTES, reserved);
    let reserved = stated.max(held) + threads as u64 * THREAD_BYTES;
    // What `plan` says, unless it took more.
    let took = process::peak_memory().map_or(0, |peak| peak + DRIFT);
    let loading = tokenizer.map_or(0, loading).max(took);
    Options { memory, reserved, loading, threads, context, ..Options::default() }
}

/// Opens a runtime, unless the machine cannot hold it: swapping would be slower than streaming.
///
/// # Errors
/// A budget below the least that works, or above what is free; weights that cannot be read.
pub fn open(weights: Weights, options: &Options) -> Result<Runtime, Failure> {
    let plan = MemoryPlan::new(&weights, options).map_err(|e| explain(&e))?;
    match process::available_memory() {
        Some(available) if plan.total > available => {
            let (total, free) = (bytes::memory(plan.total), bytes::memory(available));
            let message = format!("this takes {total} of memory, and {free} are free");
            let least = bytes::memory(plan.min_bytes);
            Err(Failure::new(message).help(format!("a smaller --memory, at least {least}")))
        }
        _ => Runtime::open(weights, options).map_err(|e| explain(&e)),
    }
}

/// Why a model cannot be run, with what would do.
pub fn explain(error: &RuntimeError) -> Failure {
    let message = error.to_string();
    match error {
        RuntimeError::Budget { min_bytes, .. } => {
            let mib = min_bytes.div_ceil(1 << 20);
            Failure::new(message).help(format!("--memory {mib}MiB is enough"))
        }
        _ => Failure::new(message),
    }
}
