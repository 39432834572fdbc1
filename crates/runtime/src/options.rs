//! How to run a model, and what else the program takes.

use crate::block::kv::CacheTypes;
use crate::text::Tokenizer;

/// An allowance for the program itself, its stacks and its allocator. The command line tool with a
/// small tokenizer peaks at 12 MiB on 64-bit Linux; a large tokenizer's share is the caller's to add.
pub const PROGRAM_BYTES: u64 = 20 << 20;

/// What a program takes while it loads a tokenizer, besides what the latter says.
pub const LOADING_BYTES: u64 = 16 << 20;

/// What a thread takes of its stack and of the allocator, generously.
pub const THREAD_BYTES: u64 = 128 << 10;

/// What a program takes with a tokenizer besides a runtime: [`Options::reserved`].
pub fn reserved(tokenizer: &Tokenizer) -> u64 {
    PROGRAM_BYTES + tokenizer.held_bytes()
}

/// What it took at once while it loaded the tokenizer: [`Options::loading`].
pub fn loading(tokenizer: &Tokenizer) -> u64 {
    LOADING_BYTES + tokenizer.loading_bytes()
}

/// What a program takes with a tokenizer, kept once the tokenizer is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerMemory {
    /// [`reserved`].
    pub reserved: u64,
    /// [`loading`].
    pub loading: u64,
}

impl TokenizerMemory {
    /// Of a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self { reserved: reserved(tokenizer), loading: loading(tokenizer) }
    }
}

/// Tokens of a prompt that are computed together where memory allows: more are little faster.
pub const CHUNK: usize = 128;

/// Whether experts of the next layer are guessed and read while nothing else is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LookAhead {
    /// Never.
    Off,
    /// For every token that is decoded.
    On,
    /// While it makes tokens faster.
    #[default]
    Auto,
}

/// How to run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes that the process may take in all; no limit when absent.
    pub memory: Option<u64>,
    /// Bytes that the process takes besides this runtime: at least [`PROGRAM_BYTES`], more with a
    /// large tokenizer.
    pub reserved: u64,
    /// Bytes that the process took at once before this runtime, to load its tokenizer: no budget below works.
    pub loading: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Positions that there is room for.
    pub context: usize,
    /// Tokens of a prompt that are computed together at most; fewer where memory is short, up to four times as
    /// many where every chunk reads its experts from disk.
    pub chunk: usize,
    /// How keys and values are kept.
    pub cache: CacheTypes,
    /// Tokens that are guessed and tried behind the next one, at most; fewer where memory is short.
    pub draft: usize,
    /// Whether experts are read before their layer has picked them.
    pub look_ahead: LookAhead,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: None,
            reserved: PROGRAM_BYTES,
            loading: 0,
            threads: 1,
            context: 4096,
            chunk: CHUNK,
            cache: CacheTypes::default(),
            draft: 0,
            look_ahead: LookAhead::default(),
        }
    }
}
