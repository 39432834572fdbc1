//! What `run` says when it has ended.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use shardwright_format::check::Checked;
use shardwright_runtime::ahead::LookedAhead;
use shardwright_runtime::draft::Drafted;
use shardwright_runtime::replay::{Bought, Replay};
use shardwright_runtime::{CacheTypes, Mode, Stats};

use crate::args::DraftSource;
use crate::bytes;
use crate::cmd::trace;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::say;

/// Bytes that a replay takes for one of a trace, at most.
const REPLAYED: u64 = 4;

/// What `run` prints with `--json`.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) text: String,
    /// What the model said aside before it, names of parts in brackets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning: Option<String>,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) stopped: Stop,
    /// BLAKE3 of all logits, little-endian f32, in order: equal for equal runs, whatever was read
    /// from where.
    pub(super) logits_blake3: String,
    pub(super) open_seconds: f64,
    /// From the start to the first token that follows the prompt, with the time to open the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_token_seconds: Option<f64>,
    pub(super) prompt: Phase,
    pub(super) decode: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) draft: Option<Draft>,
    /// Experts that were read before their layer had picked them; none where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) look_ahead: Option<LookedAhead>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<Used>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<Traced>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checked: Option<Checked>,
    pub(super) memory: Memory,
    pub(super) direct_io: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stop {
    /// The tokens that were asked for are there.
    Tokens,
    /// There is no more room in `--context`.
    Context,
    /// The model ended its text.
    EndOfText,
    /// The user, or the reader of standard output, went away.
    Interrupted,
}

/// What the file of `--session` did.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Used {
    pub(super) file: String,
    /// Tokens of the prompt that were not computed again.
    pub(super) reused: usize,
    /// Whether it was written.
    pub(super) written: bool,
}

impl Used {
    fn line(&self) -> String {
        let written = if self.written { ", written" } else { "" };
        format!("{} tokens of the prompt were in {}{written}", self.reused, self.file)
    }
}

/// What was written to the file of `--trace`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Traced {
    pub(super) file: String,
    /// Layers of passes, a line each.
    pub(super) lines: u64,
    /// What memory would buy by it, in experts that there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    bought: Option<Bought>,
    /// The same as a line of text.
    #[serde(skip)]
    line: String,
    /// What the run held of weights and buffers.
    #[serde(skip)]
    room: u64,
}

impl Traced {
    pub(super) const fn new(file: String, lines: u64, room: u64) -> Self {
        Self { file, lines, bought: None, line: String::new(), room }
    }

    /// Replays it, if that takes no more than the run did: what that held has to be gone by now.
    fn replay(&mut self) -> Result<(), Failure> {
        let path = Path::new(&self.file);
        let len = path.metadata().map_or(u64::MAX, |file| file.len());
        if len.saturating_mul(REPLAYED) > self.room {
            return Ok(());
        }
        let replay = Replay::read(path)?;
        let bought = replay.bought()?;
        self.bought = Some(bought);
        self.line = trace::line(bought, |slots| replay.header.memory(slots));
        Ok(())
    }
}

/// What drafts did.
#[derive(Clone, Serialize)]
pub(super) struct Draft {
    pub(super) source: DraftSource,
    /// Whether memory has room to try any.
    pub(super) fits: bool,
    #[serde(flatten)]
    pub(super) drafted: Drafted,
}

impl Draft {
    fn line(&self) -> String {
        if !self.fits {
            return "none: this memory does not hold the experts of several tokens beside it"
                .to_owned();
        }
        let Drafted { offered, accepted, steps, declined } = self.drafted;
        let mut line = format!("{accepted} of {offered} tokens accepted in {steps} steps");
        if declined > 0 {
            let _ = write!(line, "; {declined} steps without, where drafts were slower");
        }
        line
    }
}

/// What a number of tokens took.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Phase {
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    pub(super) bytes_read: u64,
    pub(super) bytes_per_token: f64,
    pub(super) reads: u64,
    pub(super) cache_hits: u64,
    pub(super) cache_misses: u64,
    /// Share of experts found in memory; none without experts.
    pub(super) hit_rate: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Memory {
    pub(super) mode: Mode,
    pub(super) budget_bytes: Option<u64>,
    pub(super) planned_bytes: u64,
    pub(super) floor_bytes: u64,
    pub(super) resident_bytes: u64,
    /// How keys and values are kept.
    pub(super) cache: CacheTypes,
    /// What is remembered of all positions that there is room for.
    pub(super) state_bytes: u64,
    /// What each further position would take.
    pub(super) position_bytes: u64,
    /// Sizes that the file of `--memory-file` was read for after the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<u64>,
    pub(super) peak_bytes: Option<u64>,
}

impl Phase {
    pub(super) fn new(before: Stats, after: Stats, seconds: f64) -> Self {
        let tokens = after.tokens - before.tokens;
        let bytes_read = after.bytes_read - before.bytes_read;
        let cache_hits = after.cache_hits - before.cache_hits;
        let cache_misses = after.cache_misses - before.cache_misses;
        let reads = after.reads - before.reads;
        let measured = Self {
            tokens,
            seconds,
            bytes_read,
            reads,
            cache_hits,
            cache_misses,
            ..Self::default()
        };
        measured.with_rates()
    }

    /// What this and `other` took together.
    pub(super) fn joined(self, other: Self) -> Self {
        let sums = Self {
            tokens: self.tokens + other.tokens,
            seconds: self.seconds + other.seconds,
            bytes_read: self.bytes_read + other.bytes_read,
            reads: self.reads + other.reads,
            cache_hits: self.cache_hits + other.cache_hits,
            cache_misses: self.cache_misses + other.cache_misses,
            ..self
        };
        sums.with_rates()
    }

    fn with_rates(self) -> Self {
        let asked = self.cache_hits + self.cache_misses;
        Self {
            tokens_per_second: self.tokens as f64 / self.seconds.max(1e-9),
            bytes_per_token: self.bytes_read as f64 / self.tokens.max(1) as f64,
            hit_rate: (asked > 0).then(|| self.cache_hits as f64 / asked as f64),
            ..self
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{} tokens, {:.2} tokens/s", self.tokens, self.tokens_per_second);
        if self.bytes_read > 0 {
            let (all, each) =
                (bytes::disk(self.bytes_read), bytes::disk(self.bytes_per_token as u64));
            let _ = write!(line, ", read {all}, {each} per token");
        }
        if let Some(rate) = self.hit_rate {
            let _ = write!(line, ", {:.1} % of experts in memory", 100.0 * rate);
        }
        line
    }
}

/// What reading ahead brought.
fn ahead_line(ahead: &LookedAhead) -> String {
    let LookedAhead { tokens, stops, guesses } = *ahead;
    let (issued, what) = (guesses.issued, trace::guesses(guesses));
    let mut line = format!("{issued} experts read ahead in {tokens} tokens: {what}");
    match stops {
        0 => {}
        1 => line.push_str("; switched off where it did not pay"),
        _ => {
            let _ = write!(line, "; switched off {stops} times where it did not pay");
        }
    }
    line
}

/// The report to standard output with `--json`, to standard error otherwise.
pub(super) fn finish(report: Report, output: Output) -> Result<(), Failure> {
    let report = report.replayed()?;
    if output.json {
        return output.report(&report, "");
    }
    output::put(b"\n")?;
    report.statistics(output);
    Ok(())
}

impl Report {
    /// With what memory buys by the trace, if there is one.
    pub(super) fn replayed(mut self) -> Result<Self, Failure> {
        self.trace.as_mut().map_or(Ok(()), Traced::replay)?;
        Ok(self)
    }

    /// What everything took, to standard error.
    pub(super) fn statistics(&self, output: Output) {
        if output.quiet {
            return;
        }
        let memory = &self.memory;
        let mode = if memory.mode == Mode::Resident { "resident" } else { "streamed" };
        let io = if self.direct_io { "direct I/O" } else { "reads through the page cache" };
        let peak = memory
            .peak_bytes
            .map_or_else(String::new, |b| format!(", peak {}", bytes::memory(b)));
        say::line(&format!("prompt   {}", self.prompt.line()));
        if let Some(seconds) = self.first_token_seconds {
            let open = self.open_seconds;
            say::line(&format!(
                "first    token after {seconds:.2} s, {open:.2} of them to open the model"
            ));
        }
        say::line(&format!("decode   {}", self.decode.line()));
        if let Some(ahead) = &self.look_ahead {
            say::line(&format!("ahead    {}", ahead_line(ahead)));
        }
        if let Some(used) = &self.session {
            say::line(&format!("session  {}", used.line()));
        }
        if let Some(Traced { file, lines, line, .. }) = &self.trace {
            say::line(&format!(
                "trace    {lines} lines in {file}: `inspect --trace` says what other room would bring"
            ));
            if !line.is_empty() {
                say::line(line.trim_end());
            }
        }
        if let Some(draft) = &self.draft {
            say::line(&format!("draft    {}", draft.line()));
        }
        if let Some(Checked { shards, bytes: checked, seconds }) = self.checked {
            let size = bytes::disk(checked);
            say::line(&format!(
                "checked  {shards} shards, {size}, in {seconds:.2} s of the threads that read"
            ));
        }
        let CacheTypes { k, v } = memory.cache;
        say::line(&format!(
            "cache    keys in {}, values in {}: {} per position, {} with all else that layers remember",
            k.name(),
            v.name(),
            bytes::memory(memory.position_bytes),
            bytes::memory(memory.state_bytes),
        ));
        let planned = bytes::memory(memory.planned_bytes);
        say::line(&format!("memory   {mode}, planned {planned}{peak}; {io}"));
    }
}
