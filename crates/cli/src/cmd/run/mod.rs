//! `run`: text from a bundle or a checkpoint, inside a memory budget.

mod aside;
mod chat;
mod drafting;
mod limit;
mod prompt;
mod report;
mod session;
mod stored;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shardwright_format::weights::Weights;
use shardwright_format::{prose, turns};
use shardwright_runtime::Options;
use shardwright_runtime::draft::DRAFT;
use shardwright_runtime::text::{ChatTemplate, Sampler, Sampling, Tokenizer};

use self::aside::Aside;
use self::chat::Conversation;
use self::drafting::Drafting;
use self::limit::Limit;
use self::session::{Limits, Session};
use self::stored::Stored;
use crate::args::{RunArgs, SamplingArgs};
use crate::engine;
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::inputs;
use crate::output::Output;
use crate::say;
use crate::signal;

/// Positions of a conversation unless `--context` says otherwise, fewer if the model knows fewer.
const CONVERSATION: usize = 4096;

/// Runs the command.
///
/// # Errors
/// A model, tokenizer or prompt that cannot be used; a budget below the floor.
pub fn run(args: &RunArgs, output: Output) -> Outcome {
    let stop = signal::stop_flag()?;
    let sampler = sampler(args)?;
    let asks = args.prompt.is_some() || args.prompt_file.is_some();
    if !asks && output.json {
        let help = "give the one turn with --prompt or --prompt-file";
        return Err(Failure::new("a conversation has no report for --json").help(help));
    }
    let limit = args.memory_file.as_deref().map(Limit::open).transpose()?;
    let (limit, memory) =
        limit.map_or((None, args.memory), |(limit, size)| (Some(limit), Some(size)));
    let weights = opened(args)?;
    let tokenizer = Tokenizer::open(&weights)?;
    let chat = args
        .chat
        .then(|| Conversation::open(&weights, &tokenizer, args.system.as_deref()));
    let task = Task { args, memory, limit, tokenizer: &tokenizer, sampler, stop: &stop, output };
    match chat.transpose()? {
        Some(chat) if !asks => task.converse(weights, chat)?,
        chat => task.once(weights, chat)?,
    }
    let stopped = stop.load(Ordering::Relaxed);
    Ok(if stopped { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The model, which checks what it reads if it should.
fn opened(args: &RunArgs) -> Result<Weights, Failure> {
    let weights = inputs::runnable(&args.model, &args.arch)?;
    if !args.check_reads {
        return Ok(weights);
    }
    weights.checking().ok_or_else(|| {
        let model = args.model.display();
        let message = format!("{model}: is no bundle: it has no hashes, which --check-reads needs");
        Failure::new(message).help("leave out --check-reads, or convert the model")
    })
}

/// What was asked for, and what does it.
struct Task<'a> {
    args: &'a RunArgs,
    /// What the process may take, if limited, and the file that says so.
    memory: Option<u64>,
    limit: Option<Limit>,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    stop: &'a AtomicBool,
    output: Output,
}

impl<'a> Task<'a> {
    /// One text after one prompt.
    fn once(self, weights: Weights, chat: Option<Conversation<'_>>) -> Result<(), Failure> {
        let (args, output, started) = (self.args, self.output, Instant::now());
        let ends = self.ends(&weights, chat.as_ref());
        let opening = chat.as_ref().map(Conversation::answer_opening);
        let (prompt, note) = match (chat, &args.prompt_file) {
            (Some(mut chat), file) => {
                let (text, note) = prompt::message(args.prompt.as_deref(), file.as_deref())?;
                (chat.ask(text)?, note)
            }
            (None, Some(file)) => prompt::tokens(self.tokenizer, file, args.context)?,
            (None, None) => {
                let text = args.prompt.as_deref().unwrap_or_default();
                (self.tokenizer.encode(text, true)?, prose::note(text))
            }
        };
        let options = self.options(&prompt)?;
        let mut notes = notes(&weights, args, &prompt);
        notes.extend(self.second_bos(&weights, &prompt)?);
        notes.extend(note.map(|note| format!("the prompt: {note}")));
        if !output.quiet && !output.json {
            for note in &notes {
                say::line(&format!("note: {note}"));
            }
        }
        let mut session = self.session(weights, &options, args.context, ends)?;
        let open_seconds = started.elapsed().as_secs_f64();
        session.save_prompt = true;
        session.aside = Aside::new(opening.unwrap_or_default());
        let (stopped, read, decoded) = session.turn(&prompt)?;
        session.end_trace()?;
        let mut report = session.report(prompt.len(), stopped, open_seconds, read, decoded);
        let first = (!report.tokens.is_empty()).then_some(open_seconds + read.seconds);
        report.first_token_seconds = first;
        report.notes.splice(0..0, notes);
        report::finish(report, output)
    }

    /// A conversation on standard input, a line for each turn.
    fn converse(self, weights: Weights, chat: Conversation<'_>) -> Result<(), Failure> {
        let (args, output, started) = (self.args, self.output, Instant::now());
        let known = weights.spec().max_position_embeddings as usize;
        let context = args.context.unwrap_or(CONVERSATION.min(known));
        let options = self.within(context);
        let (ends, stop) = (self.ends(&weights, Some(&chat)), self.stop);
        let mut session = self.session(weights, &options, Some(context), ends)?;
        session.aside = Aside::new(chat.answer_opening());
        let open_seconds = started.elapsed().as_secs_f64();
        chat.hold(session, context, stop, output, open_seconds)
    }

    /// What to say of a prompt that begins with two of the token that begins texts: that of the
    /// configuration, or the one that the tokenizer puts before any text.
    fn second_bos(&self, weights: &Weights, prompt: &[u32]) -> Result<Option<String>, Failure> {
        let added = self.tokenizer.encode("", true)?;
        let mut begins = weights.spec().bos_token_id.into_iter().chain(added);
        let two = begins.any(|bos| prompt.starts_with(&[bos, bos]));
        let note = "the prompt begins with two BOS tokens: the tokenizer adds one, leave out the typed one";
        Ok(two.then(|| note.to_owned()))
    }

    /// The tokens that end a text.
    fn ends(&self, weights: &Weights, chat: Option<&Conversation<'_>>) -> Vec<u32> {
        if self.args.sampling.ignore_eos {
            return Vec::new();
        }
        let mut ends = weights.spec().eos_token_ids.clone();
        // Without a generation_config.json, a configuration has one of those that end a turn.
        if ends.len() < 2 {
            ends.extend(turns::ends(|text| self.tokenizer.token(text)));
        }
        ends.extend(chat.and_then(Conversation::end));
        ends
    }

    /// How to run the model on a prompt.
    fn options(&self, prompt: &[u32]) -> Result<Options, Failure> {
        let args = self.args;
        if prompt.is_empty() {
            return Err(Failure::new("the prompt has no tokens: expected at least one"));
        }
        let context = args.context.unwrap_or(prompt.len() + args.new_tokens());
        if prompt.len() > context {
            let found = prompt.len();
            return Err(Failure::new(format!(
                "the prompt has {found} tokens: expected at most {context}, as --context says"
            )));
        }
        Ok(self.within(context))
    }

    fn within(&self, context: usize) -> Options {
        let args = self.args;
        let threads = args.threads.count();
        let options = engine::options(self.memory, threads, context, Some(self.tokenizer));
        let draft = if args.draft.is_some() { DRAFT } else { 0 };
        let (cache, look_ahead) = (args.cache.into(), args.ahead.into());
        Options { cache, draft, look_ahead, ..options }
    }

    fn session(
        self,
        weights: Weights,
        options: &Options,
        context: Option<usize>,
        ends: Vec<u32>,
    ) -> Result<Session<'a>, Failure> {
        let limits = Limits { tokens: self.args.new_tokens(), context, ends };
        let file = self.args.session.as_deref();
        let stored = file
            .map(|file| Stored::open(file, &weights, options.cache))
            .transpose()?;
        let mut options = *options;
        let draft = self.args.draft.as_ref();
        let draft =
            draft.map(|source| Drafting::open(source, &self.args.model, &weights, &mut options));
        let draft = draft.transpose()?;
        let mut runtime = engine::open(weights, &options)?;
        if let Some(draft) = &draft {
            draft.join(&mut runtime)?;
        }
        let Self { args, limit, tokenizer, sampler, stop, output, .. } = self;
        let mut session = Session::new(runtime, tokenizer, sampler, limits, stop, output);
        session.stored = stored;
        session.limit = limit;
        if let Some(file) = &args.trace {
            session.begin_trace(file)?;
        }
        session.draft = draft;
        Ok(session)
    }
}

/// What may surprise in a prompt for a model, a line each.
fn notes(weights: &Weights, args: &RunArgs, prompt: &[u32]) -> Vec<String> {
    let mut notes = weights.notes().to_vec();
    let spec = weights.spec();
    let (longest, wanted) =
        (spec.max_position_embeddings as usize, prompt.len() + args.new_tokens());
    if wanted > longest {
        notes.push(format!(
            "prompt and new tokens reach {wanted} positions; the model knows {longest} \
             (max_position_embeddings)"
        ));
    }
    let long = spec
        .long_from()
        .filter(|first| prompt.len() > *first as usize);
    notes.extend(long.map(|first| {
        format!(
            "the prompt has {} positions, the original context {first} (longrope): positions from {first} on \
             are rotated by the long factors and those before by the short ones, as when the model itself \
             writes on; transformers' generate takes the long ones for all of such a prompt",
            prompt.len()
        )
    }));
    // A template that cannot be read is nobody's concern who does not ask for it.
    if !args.chat && ChatTemplate::exists(weights).unwrap_or_default() {
        notes.push(
            "the model has a chat template, and the prompt is given to it as it is: --chat uses the template"
                .to_owned(),
        );
    }
    notes
}

fn sampler(args: &RunArgs) -> Result<Sampler, Failure> {
    let SamplingArgs { temperature, top_k, top_p, seed, .. } = args.sampling;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    sampling
        .validate()
        .map_err(|detail| Failure::new(format!("--{detail}")))?;
    Ok(Sampler::new(sampling))
}
