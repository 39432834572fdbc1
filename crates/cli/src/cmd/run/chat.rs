//! A conversation: what was said so far, in the model's own chat template.

use std::io::{IsTerminal, stdin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use shardwright_format::weights::Weights;
use shardwright_runtime::text::{ChatTemplate, Message, Tokenizer};

use super::report::{Phase, Stop};
use super::session::Session;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::say;

/// How often the wait for a line looks whether the user has stopped it.
const LOOK: Duration = Duration::from_millis(100);

/// What was said, and how the model wants to read it.
pub(super) struct Conversation<'a> {
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
    messages: Vec<Message>,
    /// When it began: a date in the template stays the same throughout.
    began: SystemTime,
}

impl<'a> Conversation<'a> {
    /// Nothing said yet, unless to the model about its task.
    pub(super) fn open(
        weights: &Weights,
        tokenizer: &'a Tokenizer,
        system: Option<&str>,
    ) -> Result<Self, Failure> {
        let Some(template) = ChatTemplate::find(weights)? else {
            let root = weights.root().display();
            let message = format!("{root}: the model has no chat template, which --chat needs");
            let help =
                "leave out --chat, or put the chat_template.jinja of the original model there";
            return Err(Failure::new(message).help(help));
        };
        let messages = system.map(|text| Message::new("system", text));
        let (messages, began) = (messages.into_iter().collect(), SystemTime::now());
        Ok(Self { template, tokenizer, messages, began })
    }

    /// The token that ends a turn, if the tokenizer's configuration names one.
    pub(super) fn end(&self) -> Option<u32> {
        self.template.end(self.tokenizer)
    }

    /// The tokens with which an answer begins after what the model thinks aside, if it does.
    pub(super) fn answer_opening(&self) -> Vec<u32> {
        self.template.answer_opening(self.tokenizer, self.began)
    }

    /// The tokens of all that was said, with `text` from the user, up to the model's turn. What the
    /// template writes is all there is: the tokenizer puts nothing around it.
    pub(super) fn ask(&mut self, text: impl Into<String>) -> Result<Vec<u32>, Failure> {
        self.messages.push(Message::new("user", text));
        let rendered = self.template.render(&self.messages, self.began)?;
        Ok(self.tokenizer.encode(&rendered, false)?)
    }

    /// Turn after turn until standard input ends or the user stops it.
    pub(super) fn hold(
        mut self,
        mut session: Session<'_>,
        context: usize,
        stop: &AtomicBool,
        output: Output,
        open_seconds: f64,
    ) -> Result<(), Failure> {
        let (mut read, mut decoded) = (Phase::default(), Phase::default());
        let mut last = (0, Stop::EndOfText);
        let lines = lines();
        while let Some(line) = next(&lines, stop, output)? {
            if line.trim().is_empty() {
                continue;
            }
            let prompt = self.ask(line)?;
            if prompt.len() > context {
                let found = prompt.len();
                let message =
                    format!("the conversation has {found} tokens: there is room for {context}");
                return Err(
                    Failure::new(message).help("begin a new one, or give a larger --context")
                );
            }
            let (stopped, of_read, of_decode) = session.turn(&prompt)?;
            output::put(b"\n")?;
            (read, decoded) = (read.joined(of_read), decoded.joined(of_decode));
            last = (prompt.len(), stopped);
            if matches!(stopped, Stop::Tokens | Stop::Context) && !output.quiet {
                say::line("note: the reply was cut short: -n and --context say how long it may be");
            }
            self.messages
                .push(Message::new("assistant", session.text()));
        }
        session.store()?;
        session.end_trace()?;
        session
            .report(last.0, last.1, open_seconds, read, decoded)
            .replayed()?
            .statistics(output);
        Ok(())
    }
}

/// Lines of standard input, read aside: a read that waits cannot be stopped.
fn lines() -> Receiver<std::io::Result<String>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in stdin().lines() {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The next line; none when there are no more, or the user stops.
fn next(
    lines: &Receiver<std::io::Result<String>>,
    stop: &AtomicBool,
    output: Output,
) -> Result<Option<String>, Failure> {
    if stdin().is_terminal() && !output.quiet {
        say::ask("> ");
    }
    while !stop.load(Ordering::Relaxed) {
        match lines.recv_timeout(LOOK) {
            Ok(line) => {
                let named = |e| Failure::new(format!("standard input: {e}"));
                return line.map(Some).map_err(named);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(None)
}
