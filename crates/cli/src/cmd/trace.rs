//! `inspect --trace`: what a run found in memory, and what it would have found with other room.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use shardwright_runtime::ahead::Guesses;
use shardwright_runtime::replay::{Bought, Rates, Recorded, Replay};
use shardwright_runtime::trace::Header;

use crate::bytes;
use crate::failure::Failure;
use crate::output::{Output, Table};

/// What `inspect --trace` prints.
#[derive(Serialize)]
struct Report {
    trace: Header,
    recorded: Recorded,
    /// Of the run itself; none without experts.
    hit_rate: Option<f64>,
    rates: Vec<Rates>,
    bought: Bought,
}

/// Runs the command.
///
/// # Errors
/// A file that is no trace.
pub fn run(path: &Path, output: Output) -> Result<(), Failure> {
    let replay = Replay::read(path)?;
    let Recorded { hits, reads, .. } = replay.recorded;
    let asked = hits.saturating_add(reads);
    let rates = replay.rates()?;
    let curve: Vec<(usize, f64)> = rates
        .iter()
        .map(|rates| (rates.slots, rates.in_use))
        .collect();
    let report = Report {
        hit_rate: (asked > 0).then(|| hits as f64 / asked as f64),
        bought: Bought::new(&curve),
        rates,
        recorded: replay.recorded,
        trace: replay.header,
    };
    output.report(&report, &report.text())
}

/// What memory buys on a trace, in a line: `memory` says what room for some experts takes.
pub fn line(bought: Bought, memory: impl Fn(usize) -> u64) -> String {
    let shown = |slots| format!("{} ({slots} experts)", bytes::memory(memory(slots)));
    let Bought { floor, knee, ceiling } = bought;
    format!(
        "on this trace: floor {}, knee {}, ceiling {}\n",
        shown(floor),
        shown(knee),
        shown(ceiling)
    )
}

/// What became of experts that were read ahead.
pub fn guesses(guesses: Guesses) -> String {
    let Guesses { used, late, wasted, .. } = guesses;
    format!("{used} used, {late} late, {wasted} wasted")
}

impl Report {
    fn text(&self) -> String {
        let Header { model_type, layers, experts, picks, slots, .. } = &self.trace;
        let Recorded { passes, tokens, bytes: read, seconds, .. } = self.recorded;
        let mut out = format!(
            "trace of {model_type}: {layers} layers, at most {experts} experts and {picks} picks in each\n\
             {tokens} tokens in {passes} passes, with room for {slots} experts: read {} in {seconds:.2} s",
            bytes::disk(read)
        );
        if let Some(rate) = self.hit_rate {
            let _ = write!(out, ", {:.1} % of experts in memory", 100.0 * rate);
        }
        let ahead = self.recorded.ahead;
        if ahead.issued > 0 {
            let _ = write!(out, "\n{} experts read ahead: {}", ahead.issued, guesses(ahead));
        }
        let mut table =
            Table::new(&[">experts", ">memory", ">in use", ">LRU", ">LFU", ">best possible"]);
        for rates in &self.rates {
            let share = |rate: f64| format!("{:.1} %", 100.0 * rate);
            table.row([
                rates.slots.to_string(),
                bytes::memory(rates.memory_bytes),
                share(rates.in_use),
                share(rates.lru),
                share(rates.lfu),
                share(rates.best),
            ]);
        }
        let bought = line(self.bought, |slots| self.trace.memory(slots));
        format!("{out}\n\n{table}\n{bought}")
    }
}
