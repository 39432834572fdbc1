//! Why a model could not be run.

use std::path::{Path, PathBuf};

use shardwright_format::{FormatError, Refusal, Role, Unit};
use shardwright_quant::{EncodingError, MatrixError};

/// Why a model could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The weights could not be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An encoding cannot hold what it should.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// A tensor's bytes are not the matrix they should be.
    #[error("{unit}: {role}: {source}")]
    Matrix {
        /// Where the tensor lies.
        unit: Unit,
        /// What it is for.
        role: Role,
        /// Expected and found.
        source: MatrixError,
    },
    /// A tensor that the model needs is missing or of another shape.
    #[error("{unit}: {role}: expected {expected}, found {found}")]
    Tensor {
        /// Where the tensor should lie.
        unit: Unit,
        /// What it is for.
        role: Role,
        /// The shape that the model needs.
        expected: String,
        /// What there is.
        found: String,
    },
    /// What was remembered of the positions before is of another kind of layer.
    #[error("layer {layer}: its state is that of another kind of layer")]
    State {
        /// Which layer.
        layer: u32,
    },
    /// The budget is below what one token needs.
    #[error(
        "a memory budget of {budget} bytes is too small: this model needs at least {min_bytes}"
    )]
    Budget {
        /// Bytes allowed.
        budget: u64,
        /// The least that works.
        min_bytes: u64,
    },
    /// A token that the embedding has no row for.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab_size: u32,
    },
    /// Nothing to compute.
    #[error("expected at least one token, found none")]
    NoTokens,
    /// The KV cache is full.
    #[error("the context of {context} tokens is full")]
    Context {
        /// Positions that there is memory for.
        context: usize,
    },
    /// More positions than the model sees without choosing among them.
    #[error(
        "position {position}: expected at most {topk} positions, beyond which this model's indexer picks \
         those that are seen; the indexer is not part of this runtime"
    )]
    Indexer {
        /// The first that sees too many, from 0.
        position: usize,
        /// How many the indexer picks.
        topk: u32,
    },
    /// More positions than the rotation keeps its base for.
    #[error(
        "position {position}: expected at most {most} positions, beyond which this model's rotation \
         (rope_scaling: dynamic) changes with the length of the text"
    )]
    Stretched {
        /// The first beyond, from 0.
        position: usize,
        /// Positions of the original context.
        most: u32,
    },
    /// Tokens that are not whole windows.
    #[error("{tokens} tokens are not windows of {window}")]
    Windows {
        /// Tokens given.
        tokens: usize,
        /// Length of a window.
        window: usize,
    },
    /// A layer gave NaN or infinity: its weights are damaged or the arithmetic overflowed.
    #[error("layer {layer}: its output is not finite at token {token}, channel {channel}")]
    NotFinite {
        /// From 0.
        layer: u32,
        /// Row of the batch, or position.
        token: usize,
        /// Channel of the residual stream.
        channel: usize,
    },
    /// The head gave NaN or infinity: its weights are damaged.
    #[error("head: its output is not finite at position {position}, token {token}")]
    HeadNotFinite {
        /// Position in the text.
        position: usize,
        /// Row of the head.
        token: usize,
    },
    /// The tokenizer is missing or damaged.
    #[error("{}: {detail}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong, and what helps.
        detail: Refusal,
    },
    /// The chat template cannot be used, or not for this conversation.
    #[error("{}: {detail}", path.display())]
    Template {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        detail: Refusal,
    },
    /// A prompt's cache in a file cannot be used.
    #[error("{}: {detail}", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        detail: Refusal,
    },
    /// Threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(String),
    /// The threads that read weights ended before their time.
    #[error("the threads that read weights are gone")]
    ReaderGone,
    /// More experts are needed at once than there is room for.
    #[error("all {slots} places for experts are in use")]
    CacheFull {
        /// Experts that there is room for.
        slots: usize,
    },
    /// An earlier call failed; the reads that it waited for are lost.
    #[error("the runtime stopped at an earlier error")]
    Failed,
    /// Whoever asked for activations does not take them any more.
    #[error("nobody takes the activations any more")]
    HookGone,
    /// A thread that computed panicked.
    #[error("a thread of the computation panicked")]
    Panicked,
}

impl RuntimeError {
    pub(crate) fn tokenizer(path: &Path, detail: impl Into<Refusal>) -> Self {
        Self::Tokenizer { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn template(path: &Path, detail: impl Into<Refusal>) -> Self {
        Self::Template { path: path.to_owned(), detail: detail.into() }
    }
}

/// What this crate's functions give.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;
