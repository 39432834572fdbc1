//! Text to tokens and back, as a `tokenizer.json` says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use shardwright_format::checkpoint::{NamedToken, SpaceBefore, TOKENIZER_NAME, TokensBeside};
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::weights::Weights;
use tokenizers::{AddedToken, Model};

use super::cut::Cuts;
use super::guard::{check_charsmaps, guarded};
use super::model::{self, Inner};

use crate::error::{Result, RuntimeError};

/// Vocabularies in other forms, of which transformers makes a `tokenizer.json` where we do not, and what that
/// needs, to be put behind [`MAKE_TOKENIZER`].
const OTHER_FORMS: [(&str, &str); 6] = [
    ("tokenizer.model", ""),
    ("tiktoken.model", ""),
    ("spiece.model", ""),
    ("vocab.json", ""),
    ("vocab.txt", ""),
    // With mistral-common it writes the same form again.
    ("tekken.json", " (transformers 5.15 or later, where mistral-common is not installed)"),
];

/// The command that makes a `tokenizer.json` of another form, with DIR for the model's directory.
pub const MAKE_TOKENIZER: &str = "python -c \"from transformers import AutoTokenizer as T; \
                                  T.from_pretrained('DIR').save_pretrained('DIR')\"";

/// What to do where there is no tokenizer.
fn missing(weights: &Weights) -> String {
    let root = weights.root();
    let unread = weights
        .checkpoint()
        .and_then(|(checkpoint, _)| checkpoint.vocabulary());
    let unread = unread.and_then(|(name, why)| Some((format!("{name} ({})", why?), "")));
    let other = unread.or_else(|| other_form(|name| root.join(name).is_file()));
    other.map_or_else(
        || "no such file; copy the tokenizer.json of the original model there".to_owned(),
        |(name, needs)| {
            let make = MAKE_TOKENIZER.replace("DIR", &root.display().to_string());
            format!("no such file, only {name}: make it with {make}{needs}")
        },
    )
}

/// A token for the library.
fn added_token(token: &NamedToken) -> AddedToken {
    let NamedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
    AddedToken {
        content: content.clone(),
        single_word: *single_word,
        lstrip: *lstrip,
        rstrip: *rstrip,
        normalized: *normalized,
        special: *special,
    }
}

/// The first vocabulary in another form that is there, and what reading it needs.
pub fn other_form(there: impl Fn(&str) -> bool) -> Option<(String, &'static str)> {
    let found = OTHER_FORMS.into_iter().find(|(name, _)| there(name));
    found.map(|(name, needs)| (name.to_owned(), needs))
}

/// The tokenizer of a checkpoint or bundle.
#[derive(Debug)]
pub struct Tokenizer {
    pub(super) path: PathBuf,
    pub(super) inner: Inner,
    file_bytes: u64,
    /// Safe places, worked out when a text is first too long to tokenize at once.
    pub(super) safe: OnceLock<Option<Cuts>>,
}

impl Tokenizer {
    /// Reads the `tokenizer.json` of a model, or what a GGUF file or a vocabulary in another form says in its place.
    ///
    /// # Errors
    /// A file that is missing, too long or no tokenizer, and what to do about it.
    pub fn open(weights: &Weights) -> Result<Self> {
        let path = weights.root().join(TOKENIZER_NAME);
        let Some(json) = weights.companion(TOKENIZER_NAME, TOKENIZER_LIMIT)? else {
            return Err(RuntimeError::tokenizer(&path, missing(weights)));
        };
        Self::with(&path, &json, &weights.tokens_beside()?)
    }

    /// The tokenizer that a `tokenizer.json` describes, with the tokens that files beside it name and spaces where
    /// its class puts them; errors name `path`.
    ///
    /// # Errors
    /// As [`Self::parse`], and tokens that cannot be added.
    pub fn with(path: &Path, json: &[u8], beside: &TokensBeside) -> Result<Self> {
        let mut tokenizer = Self::read_json(path, json, beside.space)?;
        tokenizer.add(beside)?;
        Ok(tokenizer)
    }

    /// Adds what it lacks of the tokens that files beside it name, as transformers does.
    fn add(&mut self, beside: &TokensBeside) -> Result<()> {
        let known = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let known = known
            .values()
            .map(|token| (token.content.clone(), token.clone()));
        let mut known: HashMap<_, _> = known.collect();
        let mut missing = Vec::new();
        // What is there with the same flags stays as it is, and the library need not look at it again.
        for token in beside.numbered.iter().map(added_token) {
            if known.insert(token.content.clone(), token.clone()).as_ref() != Some(&token) {
                missing.push(token);
            }
        }
        for token in beside.named.iter().map(added_token) {
            if known.insert(token.content.clone(), token.clone()).is_none() {
                missing.push(token);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let added = guarded(|| self.inner.add_tokens(&missing));
        added.map(drop).ok_or_else(|| {
            let why = "the tokens that tokenizer_config.json adds are none that can be added";
            RuntimeError::tokenizer(&self.path, why.to_owned())
        })
    }

    /// The tokenizer that a `tokenizer.json` describes; errors name `path`.
    ///
    /// # Errors
    /// No tokenizer, or none that can be used.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        Self::read_json(path, json, None)
    }

    fn read_json(path: &Path, json: &[u8], space: Option<SpaceBefore>) -> Result<Self> {
        let model = || model::read(json, space);
        let read = check_charsmaps(json).map_err(|e| e.to_string());
        let read = read.and_then(|()| guarded(model).unwrap_or_else(unusable));
        let inner = read.map_err(|e| {
            let help = "copy the tokenizer.json of the original model there again";
            RuntimeError::tokenizer(path, format!("is not a usable tokenizer ({e}); {help}"))
        })?;
        Ok(Self {
            path: path.to_owned(),
            inner,
            file_bytes: json.len() as u64,
            safe: OnceLock::new(),
        })
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let decode = || self.inner.decode(tokens, true).map_err(|e| e.to_string());
        guarded(decode)
            .unwrap_or_else(unusable)
            .map_err(|e| self.undecodable(&e))
    }

    /// Bytes of memory that it takes, about.
    pub fn held_bytes(&self) -> u64 {
        model::held(&self.inner) as u64
    }

    /// Bytes that it took at once while it was read: its file, what it is now, and the lists of the file that
    /// the latter was made from.
    pub fn loading_bytes(&self) -> u64 {
        2 * self.file_bytes + self.held_bytes()
    }

    /// Tokens that it knows, added ones included.
    pub fn vocab_size(&self) -> usize {
        let model = self.inner.get_model();
        let added = self.inner.get_added_vocabulary().get_vocab().keys();
        model.get_vocab_size()
            + added
                .filter(|piece| model.token_to_id(piece).is_none())
                .count()
    }

    /// What a token stands for, as the vocabulary writes it; none for one that it does not have.
    pub fn piece(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The token that `piece` stands for, if it is one.
    pub fn token(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// How this one, of a model called `ours`, differs from another: the sizes, or the first token that stands
    /// for another piece.
    pub fn difference(&self, ours: &str, other: &Self, theirs: &str) -> Option<String> {
        let sizes @ (a, b) = (self.vocab_size(), other.vocab_size());
        let shown = |tokenizer: &Self, id| {
            tokenizer
                .piece(id)
                .map_or("nothing".to_owned(), |piece| format!("{piece:?}"))
        };
        let first = (0..a.max(b) as u32).find(|&id| self.piece(id) != other.piece(id));
        let first = first.map(|id| {
            format!("token {id} is {} in {ours}, {} in {theirs}", shown(self, id), shown(other, id))
        });
        if sizes.0 == sizes.1 {
            return first;
        }
        let first = first.map_or(String::new(), |first| format!("; {first}"));
        Some(format!("{a} tokens in {ours}, {b} in {theirs}{first}"))
    }

    /// Whether both make the same tokens of every text, however their files are written.
    pub fn same(&self, other: &Self) -> bool {
        guarded(|| model::same(&self.inner, &other.inner)).unwrap_or(false)
    }

    fn undecodable(&self, e: &str) -> RuntimeError {
        RuntimeError::tokenizer(&self.path, format!("cannot decode: {e}"))
    }
}

/// What is said of a tokenizer over which the library panicked.
pub(super) fn unusable<T>() -> Result<T, String> {
    Err("the tokenizer contradicts itself".to_owned())
}
