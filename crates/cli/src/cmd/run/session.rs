//! The model at work on a prompt.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shardwright_runtime::Runtime;
use shardwright_runtime::draft::common;
use shardwright_runtime::text::{Sampler, TextStream, Tokenizer};
use shardwright_runtime::trace::{Header, TraceWriter};

use super::aside::{Aside, Step};
use super::drafting::Drafting;
use super::limit::Limit;
use super::report::{Memory, Phase, Report, Stop, Traced};
use super::stored::Stored;
use crate::failure::Failure;
use crate::inputs;
use crate::output::{self, Output};
use crate::process;
use crate::progress::{Count, Stage};
use crate::say;

/// Where a text ends.
#[derive(Debug)]
pub(super) struct Limits {
    /// Tokens to generate.
    pub(super) tokens: usize,
    /// Positions that there is room for, where that is fewer than the tokens need.
    pub(super) context: Option<usize>,
    /// Tokens that end it.
    pub(super) ends: Vec<u32>,
}

/// Texts in the making: one, or turn after turn of a conversation.
pub(super) struct Session<'a> {
    runtime: Runtime,
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    sampler: Sampler,
    limits: Limits,
    logits: blake3::Hasher,
    text: String,
    tokens: Vec<u32>,
    /// Tokens of all positions computed so far.
    computed: Vec<u32>,
    /// Positions after which the runtime's last logits stand.
    logits_at: usize,
    /// The file of `--session`.
    pub(super) stored: Option<Stored>,
    /// It is written when the prompt was read, and not at the end.
    pub(super) save_prompt: bool,
    /// The file of `--memory-file`.
    pub(super) limit: Option<Limit>,
    /// What is to be told of it, where standard output has a report.
    notes: Vec<String>,
    /// The file of `--trace`, and its name; what was written to it in the end.
    pub(super) trace: Option<(PathBuf, TraceWriter)>,
    traced: Option<Traced>,
    /// What drafts come from, where they were asked for.
    pub(super) draft: Option<Drafting>,
    /// What the model says aside before its answer, and whether it is there.
    pub(super) aside: Aside,
    /// That of the last turn.
    reasoning: String,
    stop: &'a AtomicBool,
    output: Output,
}

impl<'a> Session<'a> {
    /// Nothing yet.
    pub(super) fn new(
        runtime: Runtime,
        tokenizer: &'a Tokenizer,
        sampler: Sampler,
        limits: Limits,
        stop: &'a AtomicBool,
        output: Output,
    ) -> Self {
        Self {
            stream: TextStream::new(tokenizer),
            logits: blake3::Hasher::new(),
            text: String::new(),
            tokens: Vec::new(),
            computed: Vec::new(),
            logits_at: 0,
            stored: None,
            save_prompt: false,
            limit: None,
            notes: Vec::new(),
            trace: None,
            traced: None,
            draft: None,
            aside: Aside::new(Vec::new()),
            reasoning: String::new(),
            runtime,
            tokenizer,
            sampler,
            limits,
            stop,
            output,
        }
    }

    /// What the model says after `prompt`: why it ended, and what reading and generating took.
    pub(super) fn turn(&mut self, prompt: &[u32]) -> Result<(Stop, Phase, Phase), Failure> {
        let new = self.keep(prompt)?;
        self.stream = TextStream::new(self.tokenizer);
        self.text.clear();
        self.reasoning.clear();
        self.aside.begin();
        self.tokens.clear();
        let read = self
            .timed(|s| s.read_prompt(new).and_then(|()| s.prepare_draft()))?
            .1;
        if self.save_prompt && !self.tokens.is_empty() {
            self.store()?;
        }
        let (stopped, decoded) = self.timed(Self::generate)?;
        Ok((stopped, read, decoded))
    }

    /// What was computed stays as far as the prompt begins with it: the longest common beginning, if the
    /// layers can go back there. Gives the rest of the prompt; none of it where all logits are here.
    fn keep<'p>(&mut self, prompt: &'p [u32]) -> Result<&'p [u32], Failure> {
        if let Some(stored) = &mut self.stored {
            let whole = stored.load(&mut self.runtime, prompt, &mut self.computed)?;
            if whole {
                self.logits_at = prompt.len();
            }
        }
        let same = common(&self.computed, prompt);
        if same < prompt.len() || same < self.computed.len() || self.logits_at != same {
            // The logits after the last token of the prompt are computed with it.
            let kept = self.runtime.rewind(same.min(prompt.len() - 1));
            self.computed.truncate(kept);
        }
        Ok(&prompt[self.computed.len()..])
    }

    /// Writes what was computed to the file of `--session`, if there is one that does not hold it.
    pub(super) fn store(&mut self) -> Result<(), Failure> {
        match &mut self.stored {
            Some(stored) if self.logits_at == self.computed.len() => {
                stored.store(&self.runtime, &self.computed)
            }
            _ => Ok(()),
        }
    }

    /// Records what becomes of experts in `file`.
    pub(super) fn begin_trace(&mut self, file: &Path) -> Result<(), Failure> {
        inputs::check_parent(file)?;
        let Some(header) = Header::new(self.runtime.spec(), self.runtime.plan()) else {
            let model = self.runtime.weights().root().display();
            return Err(Failure::new(format!("{model}: has no experts, which --trace is about")));
        };
        self.trace = Some((file.to_owned(), TraceWriter::create(file, &header)?));
        self.runtime.watch_experts();
        Ok(())
    }

    /// Writes what became of experts since this was last called.
    fn record(&mut self) -> Result<(), Failure> {
        if let Some((_, trace)) = &mut self.trace {
            trace.write(&self.runtime.take_visits())?;
        }
        Ok(())
    }

    /// Takes in another size of memory, if the file of `--memory-file` was named again.
    fn adjust(&mut self) -> Result<(), Failure> {
        let Some(limit) = &mut self.limit else { return Ok(()) };
        match limit.adjust(&mut self.runtime)? {
            Some(line) if self.output.json => self.notes.push(line),
            Some(line) if !self.output.quiet => say::line(&format!("note: {line}")),
            _ => {}
        }
        Ok(())
    }

    /// Ends the trace, if there is one.
    pub(super) fn end_trace(&mut self) -> Result<(), Failure> {
        if let Some((file, trace)) = self.trace.take() {
            let lines = trace.finish()?;
            let plan = self.runtime.plan();
            let room = plan.total.saturating_sub(plan.reserved + plan.state);
            self.traced = Some(Traced::new(file.display().to_string(), lines, room));
        }
        Ok(())
    }

    /// The text of the last turn.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Runs a phase and says what it took.
    fn timed<T>(
        &mut self,
        phase: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<(T, Phase), Failure> {
        let (before, started) = (self.runtime.stats(), Instant::now());
        let result = phase(self)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok((result, Phase::new(before, self.runtime.stats(), seconds)))
    }

    /// The prompt, a chunk at a time; the logits after its last token pick the first new one.
    fn read_prompt(&mut self, prompt: &[u32]) -> Result<(), Failure> {
        if prompt.is_empty() {
            let next = pick(self.runtime.last_logits(), &mut self.logits, &mut self.sampler);
            self.tokens.push(next);
            return Ok(());
        }
        let stage = Stage::new(self.output, "reading the prompt", Count::Of("tokens"));
        let chunk = self.runtime.plan().chunk;
        let (rest, last) = prompt.split_at((prompt.len() - 1) / chunk * chunk);
        for (i, tokens) in rest.chunks(chunk).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.adjust()?;
            self.runtime.advance(tokens)?;
            self.record()?;
            self.computed.extend(tokens);
            stage.set(((i + 1) * chunk) as u64, prompt.len() as u64);
        }
        drop(stage);
        self.adjust()?;
        let logits = self.runtime.forward_all(last)?;
        self.computed.extend(last);
        self.logits_at = self.computed.len();
        self.tokens
            .push(pick(logits, &mut self.logits, &mut self.sampler));
        self.record()
    }

    /// The model that drafts, if there is one, reads the prompt too before anything is said.
    fn prepare_draft(&mut self) -> Result<(), Failure> {
        match &mut self.draft {
            Some(draft) if self.limits.tokens > 1 => draft.prepare(&self.computed),
            _ => Ok(()),
        }
    }

    /// Computes the last token, with a draft of at most `room` behind it, and picks what follows each
    /// token that stays: the same from the same logits in the same order, whatever was drafted. A draft
    /// ends where another token was picked, or one that ends the text.
    fn step(&mut self, last: u32, room: usize) -> Result<(), Failure> {
        self.adjust()?;
        let started = Instant::now();
        let (before, most) = (self.computed.len(), room.min(self.runtime.draft_room()));
        self.computed.push(last);
        if let Some(draft) = &mut self.draft {
            let draft = draft.propose(&mut self.runtime, &self.computed, most)?;
            self.computed.extend(draft);
        }
        let Self { runtime, logits: hasher, sampler, tokens, limits, computed, .. } = self;
        let tried = &computed[before..];
        let kept = runtime.forward_while(tried, |row, logits| {
            let next = pick(logits, hasher, sampler);
            tokens.push(next);
            tried.get(row + 1) == Some(&next) && !limits.ends.contains(&next)
        })?;
        let tried = tried.len();
        self.computed.truncate(before + kept);
        self.logits_at = before + kept;
        if let Some(draft) = &mut self.draft {
            draft
                .drafter
                .learn(tried, kept, started.elapsed().as_secs_f64());
        }
        self.record()
    }

    fn generate(&mut self) -> Result<Stop, Failure> {
        let room = self
            .limits
            .context
            .map_or(usize::MAX, |c| c - self.runtime.position() + 1);
        let wanted = self.limits.tokens.min(room);
        if wanted == 0 {
            // The prompt was read for its logits alone.
            self.tokens.clear();
        }
        for i in 0..wanted {
            if i > 0 && i == self.tokens.len() {
                self.step(self.tokens[i - 1], wanted - i - 1)?;
            }
            let Some(&token) = self.tokens.get(i) else { return Ok(Stop::Interrupted) };
            if self.stop.load(Ordering::Relaxed) {
                self.tokens.truncate(i + 1);
                return Ok(Stop::Interrupted);
            }
            if self.limits.ends.contains(&token) {
                self.flush()?;
                return Ok(Stop::EndOfText);
            }
            if !self.say(i, token)? {
                self.tokens.truncate(i + 1);
                return Ok(Stop::Interrupted);
            }
        }
        self.flush()?;
        Ok(if wanted < self.limits.tokens { Stop::Context } else { Stop::Tokens })
    }

    /// Adds the text of token number `i`, which may stand between parts of what is said aside; `false` when
    /// nobody reads it any more.
    fn say(&mut self, i: usize, token: u32) -> Result<bool, Failure> {
        let mark = match self.aside.take(&self.tokens[..=i]) {
            Step::Text => {
                let piece = self.stream.push(token)?;
                return self.show(&piece);
            }
            Step::Begins if self.reasoning.is_empty() => "[",
            Step::Begins => "\n[",
            Step::Named => "] ",
            Step::Answer => "]\n",
        };
        let rest = self.stream.finish()?;
        self.stream = TextStream::new(self.tokenizer);
        self.put_aside(&rest);
        self.put_aside(mark);
        Ok(true)
    }

    /// Says what is no answer, on standard error.
    fn put_aside(&mut self, piece: &str) {
        self.reasoning.push_str(piece);
        if !self.output.json && !self.output.quiet {
            say::part(piece);
        }
    }

    /// What the tokenizer held back because it may not be whole.
    fn flush(&mut self) -> Result<(), Failure> {
        let rest = self.stream.finish()?;
        self.show(&rest).map(|_| ())
    }

    /// Adds to the text; `false` when nobody reads it any more.
    fn show(&mut self, piece: &str) -> Result<bool, Failure> {
        if !self.aside.answering() {
            self.put_aside(piece);
            return Ok(true);
        }
        self.text.push_str(piece);
        if self.output.json { Ok(true) } else { output::made(piece) }
    }

    pub(super) fn report(
        self,
        prompt_tokens: usize,
        stopped: Stop,
        open_seconds: f64,
        prompt_phase: Phase,
        decode: Phase,
    ) -> Report {
        let (plan, ahead) = (self.runtime.plan(), self.runtime.stats().ahead);
        Report {
            text: self.text,
            reasoning: Some(self.reasoning).filter(|text| !text.is_empty()),
            tokens: self.tokens,
            prompt_tokens,
            stopped,
            logits_blake3: self.logits.finalize().to_hex().to_string(),
            open_seconds,
            first_token_seconds: None,
            prompt: prompt_phase,
            decode,
            draft: self.draft.map(Drafting::report),
            look_ahead: Some(ahead).filter(|ahead| ahead.tokens > 0),
            session: self.stored.map(Stored::used),
            trace: self.traced,
            checked: self.runtime.weights().checked(),
            memory: Memory {
                mode: plan.mode,
                budget_bytes: plan.budget,
                planned_bytes: plan.total,
                floor_bytes: plan.min_bytes,
                resident_bytes: plan.resident,
                cache: self.runtime.cache(),
                state_bytes: plan.state,
                position_bytes: plan.position_bytes,
                changes: self.limit.map(|limit| limit.changes),
                peak_bytes: process::peak_memory(),
            },
            direct_io: self.runtime.weights().is_direct(),
            notes: self.notes,
        }
    }
}

/// The token that follows `logits`, which are added to the hash of all.
fn pick(logits: &[f32], hasher: &mut blake3::Hasher, sampler: &mut Sampler) -> u32 {
    for value in logits {
        hasher.update(&value.to_le_bytes());
    }
    sampler.next(logits)
}
