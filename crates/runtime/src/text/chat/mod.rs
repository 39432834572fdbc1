//! Conversations as a model was trained to see them: its chat template, found and rendered.
//!
//! Source of what a template may use: transformers, `utils/chat_template_utils.py`.

mod date;
mod found;
mod json;
mod methods;
mod render;
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use shardwright_format::weights::Weights;

use self::found::Found;
use self::render::Renderer;
use super::tokenizer::Tokenizer;
use crate::error::{Result, RuntimeError};

/// What is asked and answered to see what a template puts before an answer.
const QUESTION: &str = "question";
const ANSWER: &str = "0answer0";
/// What templates call the token that a text ends with.
const END: &str = "eos_token";

/// What somebody says in a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// A model's chat template, with the special tokens that it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    found: Found,
    renderer: Renderer,
}

impl ChatTemplate {
    /// The template beside a model's tokenizer, or in its GGUF file; none where there is none.
    ///
    /// # Errors
    /// A file that is no template, and what the operating system refuses.
    pub fn find(weights: &Weights) -> Result<Option<Self>> {
        found::find(weights)?.map(Self::compiled).transpose()
    }

    /// The template `source`, with special tokens by what it calls them; errors name `path`.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn parse(path: &Path, source: &str, tokens: BTreeMap<String, String>) -> Result<Self> {
        Self::compiled(Found { path: path.to_owned(), source: source.to_owned(), tokens })
    }

    fn compiled(found: Found) -> Result<Self> {
        let renderer = Renderer::new(&found.source)
            .map_err(|detail| RuntimeError::template(&found.path, detail))?;
        Ok(Self { found, renderer })
    }

    /// Whether a model has one, sound or not.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn exists(weights: &Weights) -> Result<bool> {
        Ok(found::find(weights)?.is_some())
    }

    /// The conversation as text, up to where the model's next turn begins. A template that asks for
    /// the date is told that of `now`, in UTC.
    ///
    /// # Errors
    /// A conversation that the template refuses, a template that does not end or makes too much.
    pub fn render(&self, messages: &[Message], now: SystemTime) -> Result<String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let rendered = self.renderer.render(messages, &self.found.tokens, now);
        rendered.map_err(|detail| RuntimeError::template(&self.found.path, detail))
    }

    /// What a model that thinks aside writes before its answer: the tokens that the template puts between
    /// where a turn begins and what was answered, where special ones begin and end them
    /// (`<|channel|>final<|message|>`); none for other models, whose turns are answers from the first
    /// token on, and for templates that refuse so short a conversation.
    pub fn answer_opening(&self, tokenizer: &Tokenizer, now: SystemTime) -> Vec<u32> {
        self.opening(tokenizer, now).unwrap_or_default()
    }

    fn opening(&self, tokenizer: &Tokenizer, now: SystemTime) -> Option<Vec<u32>> {
        let asked = [Message::new("user", QUESTION), Message::new("assistant", ANSWER)];
        let begun = self.render(&asked[..1], now).ok()?;
        let answered = self.render(&asked, now).ok()?;
        // Both begin alike, up to the turn's own beginning; what follows stands before the answer.
        let (before, _) = answered.strip_prefix(&begun)?.split_once(ANSWER)?;
        let tokens = tokenizer.encode(before, false).ok()?;
        let special = |token: Option<&u32>| {
            token.is_some_and(|token| {
                tokenizer
                    .decode(&[*token])
                    .is_ok_and(|text| text.is_empty())
            })
        };
        let several = tokens.len() > 1 && special(tokens.first()) && special(tokens.last());
        several.then_some(tokens)
    }

    /// Whether both make the same text of every conversation, which the same token ends: of the same source, but for
    /// line ends behind all of it where these do not show.
    pub fn same(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.found, &other.found);
        let read = |name: &&str| *name == END || ours.source.contains(*name);
        let mut read = found::TOKENS.into_iter().filter(read);
        let [a, b] = [ours, theirs].map(|found| found.source.trim_end_matches(['\r', '\n']));
        read.all(|name| ours.tokens.get(name) == theirs.tokens.get(name))
            && a == b
            && (ours.source == theirs.source
                || self.asked().is_some_and(|text| other.asked() == Some(text)))
    }

    /// What becomes of one question, at no time of today.
    fn asked(&self) -> Option<String> {
        self.render(&[Message::new("user", QUESTION)], UNIX_EPOCH)
            .ok()
    }

    /// The token that the tokenizer's configuration says a text ends with, which ends a turn too.
    pub fn end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        tokenizer.token(self.found.tokens.get(END)?)
    }
}
