//! `run`: text from a bundle or a checkpoint, inside a memory budget.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use shardwright_format::prose;
use shardwright_format::weights::Weights;
use shardwright_runtime::text::{Sampler, Sampling, TextStream, Tokenizer};
use shardwright_runtime::{Mode, Options, Runtime, Stats};

use crate::args::{RunArgs, SamplingArgs};
use crate::bytes;
use crate::engine;
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::inputs;
use crate::output::{self, Output};
use crate::process;
use crate::progress::{Count, Stage};
use crate::signal;

/// What `run` prints with `--json`.
#[derive(Serialize)]
struct Report {
    text: String,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    stopped: Stop,
    /// BLAKE3 of all logits, little-endian f32, in order: equal for equal runs, whatever was read
    /// from where.
    logits_blake3: String,
    open_seconds: f64,
    prompt: Phase,
    decode: Phase,
    memory: Memory,
    direct_io: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stop {
    /// The tokens that were asked for are there.
    Tokens,
    /// There is no more room in `--context`.
    Context,
    /// The model ended its text.
    EndOfText,
    /// The user, or the reader of standard output, went away.
    Interrupted,
}

/// What a number of tokens took.
#[derive(Clone, Copy, Serialize)]
struct Phase {
    tokens: u64,
    seconds: f64,
    tokens_per_second: f64,
    bytes_read: u64,
    bytes_per_token: f64,
    reads: u64,
    cache_hits: u64,
    cache_misses: u64,
    /// Share of experts found in memory; none without experts.
    hit_rate: Option<f64>,
}

#[derive(Serialize)]
struct Memory {
    mode: Mode,
    budget_bytes: Option<u64>,
    planned_bytes: u64,
    floor_bytes: u64,
    resident_bytes: u64,
    peak_bytes: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// A model, tokenizer or prompt that cannot be used; a budget below the floor.
pub fn run(args: &RunArgs, output: Output) -> Outcome {
    let stop = signal::stop_flag()?;
    let started = Instant::now();
    let sampler = sampler(args)?;
    let weights = inputs::model(&args.model, &args.arch)?;
    let tokenizer = Tokenizer::open(&weights)?;
    let text = prompt_text(args)?;
    let prompt = tokenizer.encode(&text, true)?;
    let options = options(args, &prompt)?;
    let notes = notes(&weights, &text, &prompt, args.tokens);
    if !output.quiet && !output.json {
        for note in &notes {
            eprintln!("note: {note}");
        }
    }
    let runtime = engine::open(weights, &options)?;
    let mut session = Session {
        stream: TextStream::new(&tokenizer),
        sampler,
        logits: blake3::Hasher::new(),
        text: String::new(),
        tokens: Vec::new(),
        stop: &stop,
        output,
        runtime,
    };
    let open_seconds = started.elapsed().as_secs_f64();
    let prompt_phase = session.timed(|s| s.read_prompt(&prompt))?.1;
    let (stopped, decode) = session.timed(|s| s.generate(args))?;
    let mut report = session.report(&prompt, stopped, open_seconds, prompt_phase, decode);
    report.notes = notes;
    finish(&report, output)?;
    let stopped = stop.load(Ordering::Relaxed);
    Ok(if stopped { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn prompt_text(args: &RunArgs) -> Result<String, Failure> {
    let Some(path) = &args.prompt_file else { return Ok(args.prompt.clone().unwrap_or_default()) };
    let named = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).map_err(named)?;
    } else {
        bytes = std::fs::read(path).map_err(named)?;
    }
    Ok(prose::decode(path, bytes)?)
}

/// What may surprise in a prompt for a model, a line each.
fn notes(weights: &Weights, text: &str, prompt: &[u32], tokens: usize) -> Vec<String> {
    let mut notes = match weights.checkpoint() {
        Some((checkpoint, _)) => checkpoint.notes().to_vec(),
        None => Vec::new(),
    };
    let spec = weights.spec();
    let bos = spec
        .bos_token_id
        .filter(|bos| prompt.starts_with(&[*bos, *bos]));
    if bos.is_some() {
        notes.push(
            "the prompt begins with two BOS tokens: the tokenizer adds one, leave out the typed one"
                .to_owned(),
        );
    }
    let (longest, wanted) = (spec.max_position_embeddings as usize, prompt.len() + tokens);
    if wanted > longest {
        notes.push(format!(
            "prompt and new tokens reach {wanted} positions; the model knows {longest} \
             (max_position_embeddings)"
        ));
    }
    notes.extend(prose::note(text).map(|note| format!("the prompt: {note}")));
    notes
}

fn options(args: &RunArgs, prompt: &[u32]) -> Result<Options, Failure> {
    if prompt.is_empty() {
        return Err(Failure::new("the prompt has no tokens: expected at least one"));
    }
    let context = args.context.unwrap_or(prompt.len() + args.tokens);
    if prompt.len() > context {
        let found = prompt.len();
        return Err(Failure::new(format!(
            "the prompt has {found} tokens: expected at most {context}, as --context says"
        )));
    }
    Ok(engine::options(args.memory, args.threads.count(), context))
}

fn sampler(args: &RunArgs) -> Result<Sampler, Failure> {
    let SamplingArgs { temperature, top_k, top_p, seed, .. } = args.sampling;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    sampling
        .validate()
        .map_err(|detail| Failure::new(format!("--{detail}")))?;
    Ok(Sampler::new(sampling))
}

/// One text in the making.
struct Session<'a> {
    runtime: Runtime,
    stream: TextStream<'a>,
    sampler: Sampler,
    logits: blake3::Hasher,
    text: String,
    tokens: Vec<u32>,
    stop: &'a AtomicBool,
    output: Output,
}

impl Session<'_> {
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
        let stage = Stage::new(self.output, "reading the prompt", Count::Of("tokens"));
        let chunk = self.runtime.plan().chunk;
        let (rest, last) = prompt.split_at((prompt.len() - 1) / chunk * chunk);
        for (i, tokens) in rest.chunks(chunk).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.runtime.advance(tokens)?;
            stage.set(((i + 1) * chunk) as u64, prompt.len() as u64);
        }
        drop(stage);
        self.step(last)
    }

    /// Computes tokens and picks the next.
    fn step(&mut self, tokens: &[u32]) -> Result<(), Failure> {
        let logits = self.runtime.forward_all(tokens)?;
        for value in logits {
            self.logits.update(&value.to_le_bytes());
        }
        let next = self.sampler.next(logits);
        self.tokens.push(next);
        Ok(())
    }

    fn generate(&mut self, args: &RunArgs) -> Result<Stop, Failure> {
        let ends = self.runtime.spec().eos_token_ids.clone();
        let room = args
            .context
            .map_or(usize::MAX, |c| c - self.runtime.position() + 1);
        let wanted = args.tokens.min(room);
        if wanted == 0 {
            // The prompt was read for its logits alone.
            self.tokens.clear();
        }
        while let Some(&token) = self.tokens.last() {
            if self.tokens.len() > wanted {
                break;
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Stop::Interrupted);
            }
            if ends.contains(&token) && !args.sampling.ignore_eos {
                self.flush()?;
                return Ok(Stop::EndOfText);
            }
            let piece = self.stream.push(token)?;
            if !self.show(&piece)? {
                return Ok(Stop::Interrupted);
            }
            if self.tokens.len() == wanted {
                break;
            }
            self.step(&[token])?;
        }
        self.flush()?;
        Ok(if wanted < args.tokens { Stop::Context } else { Stop::Tokens })
    }

    /// What the tokenizer held back because it may not be whole.
    fn flush(&mut self) -> Result<(), Failure> {
        let rest = self.stream.finish()?;
        self.show(&rest).map(|_| ())
    }

    /// Adds to the text; `false` when nobody reads it any more.
    fn show(&mut self, piece: &str) -> Result<bool, Failure> {
        self.text.push_str(piece);
        if self.output.json { Ok(true) } else { output::put(piece.as_bytes()) }
    }

    fn report(
        self,
        prompt: &[u32],
        stopped: Stop,
        open_seconds: f64,
        prompt_phase: Phase,
        decode: Phase,
    ) -> Report {
        let plan = self.runtime.plan();
        Report {
            text: self.text,
            tokens: self.tokens,
            prompt_tokens: prompt.len(),
            stopped,
            logits_blake3: self.logits.finalize().to_hex().to_string(),
            open_seconds,
            prompt: prompt_phase,
            decode,
            memory: Memory {
                mode: plan.mode,
                budget_bytes: plan.budget,
                planned_bytes: plan.total,
                floor_bytes: plan.min_bytes,
                resident_bytes: plan.resident,
                peak_bytes: process::peak_memory(),
            },
            direct_io: self.runtime.weights().is_direct(),
            notes: Vec::new(),
        }
    }
}

impl Phase {
    fn new(before: Stats, after: Stats, seconds: f64) -> Self {
        let tokens = after.tokens - before.tokens;
        let bytes_read = after.bytes_read - before.bytes_read;
        let cache_hits = after.cache_hits - before.cache_hits;
        let cache_misses = after.cache_misses - before.cache_misses;
        let asked = cache_hits + cache_misses;
        Self {
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            bytes_read,
            bytes_per_token: bytes_read as f64 / tokens.max(1) as f64,
            reads: after.reads - before.reads,
            cache_hits,
            cache_misses,
            hit_rate: (asked > 0).then(|| cache_hits as f64 / asked as f64),
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

/// The report to standard output with `--json`, to standard error otherwise.
fn finish(report: &Report, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.report(report, "");
    }
    output::put(b"\n")?;
    if output.quiet {
        return Ok(());
    }
    let memory = &report.memory;
    let mode = if memory.mode == Mode::Resident { "resident" } else { "streamed" };
    let io = if report.direct_io { "direct I/O" } else { "reads through the page cache" };
    let peak = memory
        .peak_bytes
        .map_or_else(String::new, |b| format!(", peak {}", bytes::memory(b)));
    eprintln!("prompt   {}", report.prompt.line());
    eprintln!("decode   {}", report.decode.line());
    eprintln!("memory   {mode}, planned {}{peak}; {io}", bytes::memory(memory.planned_bytes));
    Ok(())
}
