//! Text from the reference runtime, inside a memory budget.

use std::sync::{Mutex, TryLockError};

use shardwright_format::Refusal;
use shardwright_quant::CacheType;
use shardwright_runtime::options::{THREAD_BYTES, loading, reserved};
use shardwright_runtime::text::{Sampler, Sampling, TextStream, Tokenizer};
use shardwright_runtime::{CacheTypes, Options, RuntimeError};

use crate::bundle::Bundle;
use crate::status::Failure;

/// Stands for a token where a callback is told of something else.
pub const NO_TOKEN: u32 = u32::MAX;
/// A request's flag: nothing is put around the prompt, which is whole as it is, such as a filled-in chat template.
pub const RAW_PROMPT: u32 = 1;
/// A request's flag: the text goes on behind a token that would end it.
pub const IGNORE_END: u32 = 2;

/// Positions where the caller does not say, fewer if the model knows fewer.
const CONTEXT: u32 = 4096;
/// More positions than any model has.
const MOST_CONTEXT: u32 = 1 << 24;
/// More threads than any machine that this runs on.
const MOST_THREADS: u32 = 1024;
/// As `shardwright run` keeps them unless told otherwise.
const CACHE: CacheTypes = CacheTypes { k: CacheType::F16, v: CacheType::F16 };

/// How to run a model; all zeros for what each says of 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Bytes that the library may take for the model, its tokenizer and threads included, and 20 MiB for what a program
    /// takes besides; 0 for no limit. Below what the whole model takes, weights are read again as they are needed.
    pub memory: u64,
    /// Threads that compute; 0 for one per core. No result depends on it.
    pub threads: u32,
    /// Positions of prompt and text together that there is room for; 0 for 4096, or fewer if the model knows fewer.
    pub context: u32,
    /// Not 0: every unit is held to its hash when it is first read.
    pub check_reads: u32,
}

/// What to generate; all zeros but `max_tokens` for the likeliest token each time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// Tokens, at most.
    pub max_tokens: u32,
    /// `SW_RAW_PROMPT`, `SW_IGNORE_END`, both or neither.
    pub flags: u32,
    /// Start of the random numbers; the same seed gives the same text.
    pub seed: u64,
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability; 0 or 1 for all.
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: u32,
}

/// Why a text ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// With a token that ends texts.
    #[default]
    EndOfText = 0,
    /// All tokens that were asked for are there.
    Tokens = 1,
    /// The context is full.
    Context = 2,
    /// The callback asked for it.
    Callback = 3,
}

/// What was generated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// Tokens of the prompt, those around it included.
    pub prompt_tokens: u32,
    /// Tokens of the text, the one that ended it not included.
    pub tokens: u32,
    /// Why it ended.
    pub stop: Stop,
}

/// A model that generates text. Calls take turns: one that comes while another is at work is refused.
#[derive(Debug)]
pub struct Runtime {
    model: Mutex<Model>,
}

#[derive(Debug)]
struct Model {
    runtime: shardwright_runtime::Runtime,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
    context: usize,
}

/// Who is shown a token and the text that it completes; no more of it where it says no.
pub type Emit<'a> = &'a mut dyn FnMut(u32, &str) -> bool;

impl Runtime {
    /// Reads the tokenizer and what stays in memory. The bundle may be closed then.
    ///
    /// # Errors
    /// Settings that mean nothing, a budget below the least that works, what cannot be read.
    pub fn open(bundle: &Bundle, settings: Settings) -> Result<Self, Failure> {
        let mut weights = bundle.weights().clone();
        if settings.check_reads != 0
            && let Some(checking) = weights.clone().checking()
        {
            weights = checking;
        }
        let spec = weights.spec();
        let ends = spec.eos_token_ids.clone();
        let known = spec.max_position_embeddings;
        let tokenizer = Tokenizer::open(&weights)?;
        let options = options(settings, known, &tokenizer)?;
        let runtime = shardwright_runtime::Runtime::open(weights, &options)?;
        let model = Model { runtime, tokenizer, ends, context: options.context };
        Ok(Self { model: Mutex::new(model) })
    }

    /// The text that follows `prompt`.
    ///
    /// # Errors
    /// [`Failure::Busy`] while another call is at work; a prompt that has no tokens or too many; what cannot be
    /// read or computed.
    pub fn generate(
        &self,
        prompt: &str,
        request: Request,
        emit: Emit<'_>,
    ) -> Result<Generated, Failure> {
        let mut model = self.model.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Failure::Busy,
            // A panic may have left anything behind.
            TryLockError::Poisoned(_) => RuntimeError::Failed.into(),
        })?;
        model.generate(prompt, request, emit)
    }
}

/// How the runtime here is told what `settings` say.
fn options(settings: Settings, known: u32, tokenizer: &Tokenizer) -> Result<Options, Failure> {
    let Settings { memory, threads, context, .. } = settings;
    at_most("threads", threads, MOST_THREADS)?;
    at_most("context", context, MOST_CONTEXT)?;
    let context = if context == 0 { CONTEXT.min(known) } else { context };
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    };
    Ok(Options {
        memory: (memory != 0).then_some(memory),
        reserved: reserved(tokenizer) + threads as u64 * THREAD_BYTES,
        loading: loading(tokenizer),
        threads,
        context: context as usize,
        cache: CACHE,
        ..Options::default()
    })
}

fn at_most(name: &'static str, found: u32, most: u32) -> Result<(), Failure> {
    if found <= most {
        return Ok(());
    }
    Err(Failure::Argument { name, detail: format!("expected at most {most}, found {found}") })
}

impl Request {
    fn sampler(&self) -> Result<Sampler, Failure> {
        let Self { temperature, top_k, top_p, seed, .. } = *self;
        let top_p = if top_p == 0.0 { 1.0 } else { top_p };
        let sampling = Sampling { temperature, top_k: top_k as usize, top_p, seed };
        let wrong = |e: Refusal| Failure::Argument { name: "request", detail: e.to_string() };
        sampling.validate().map_err(wrong)?;
        Ok(Sampler::new(sampling))
    }
}

impl Model {
    fn generate(
        &mut self,
        prompt: &str,
        request: Request,
        emit: Emit<'_>,
    ) -> Result<Generated, Failure> {
        let mut sampler = request.sampler()?;
        let prompt = self
            .tokenizer
            .encode(prompt, request.flags & RAW_PROMPT == 0)?;
        if prompt.is_empty() {
            let detail = "expected at least one token, found none".to_owned();
            return Err(Failure::Argument { name: "prompt", detail });
        }
        if prompt.len() > self.context {
            return Err(Failure::Prompt { found: prompt.len(), context: self.context });
        }
        let mut done = Generated { prompt_tokens: prompt.len() as u32, ..Generated::default() };
        self.runtime.reset();
        if !self.read(&prompt, emit)? {
            done.stop = Stop::Callback;
            return Ok(done);
        }
        (done.tokens, done.stop) = self.text(&mut sampler, request, emit)?;
        Ok(done)
    }

    /// Computes the prompt; `false` if it was stopped between two chunks.
    fn read(&mut self, prompt: &[u32], emit: Emit<'_>) -> Result<bool, Failure> {
        let chunk = self.runtime.plan().chunk;
        // The logits after the last token pick the first new one, so the last chunk is never empty.
        let (rest, last) = prompt.split_at((prompt.len() - 1) / chunk * chunk);
        for tokens in rest.chunks(chunk) {
            self.runtime.advance(tokens)?;
            if !emit(NO_TOKEN, "") {
                return Ok(false);
            }
        }
        self.runtime.forward_all(last)?;
        Ok(true)
    }

    /// Picks token after token, and shows each with the text that it completes.
    fn text(
        &mut self,
        sampler: &mut Sampler,
        request: Request,
        emit: Emit<'_>,
    ) -> Result<(u32, Stop), Failure> {
        let Self { runtime, tokenizer, ends, context } = self;
        let mut stream = TextStream::new(tokenizer);
        let (mut count, mut stop) = (0, Stop::Tokens);
        while count < request.max_tokens {
            let token = sampler.next(runtime.last_logits());
            if request.flags & IGNORE_END == 0 && ends.contains(&token) {
                stop = Stop::EndOfText;
                break;
            }
            count += 1;
            if !emit(token, &stream.push(token)?) {
                return Ok((count, Stop::Callback));
            }
            if count < request.max_tokens {
                // The last token is shown without being computed, so it needs no position.
                if runtime.position() == *context {
                    stop = Stop::Context;
                    break;
                }
                runtime.forward(token)?;
            }
        }
        // A character that was never completed.
        let rest = stream.finish()?;
        if !rest.is_empty() && !emit(NO_TOKEN, &rest) {
            stop = Stop::Callback;
        }
        Ok((count, stop))
    }
}
