//! Calibration: a text goes through the model layer by layer while it is converted, so that codes
//! are chosen by what their errors cost.

pub(crate) mod collect;
pub(crate) mod fit;
pub(crate) mod hessian;
pub(crate) mod imatrix;
pub(crate) mod moments;
pub(crate) mod objectives;
pub(crate) mod observe;
pub(crate) mod saved;
pub(crate) mod spares;
pub(crate) mod statistics;
pub(crate) mod streams;
pub(crate) mod written;

use std::path::Path;
use std::sync::Arc;

use shardwright_format::manifest::{self, LineHashes, MAX_CALIBRATION_LINES};
use shardwright_format::mismatch;
use shardwright_format::prose::{Digest, Reader};
use shardwright_format::weights::Weights;
use shardwright_runtime::text::Tokenizer;

use crate::error::{ConvertError, Result};
pub use observe::Keep;
pub use saved::SavedStatistics;
pub use written::save_statistics;

/// Longest text that is read: a calibration takes a few megabytes.
const TEXT_LIMIT: u64 = 1 << 30;

/// A text to calibrate with, and the checkpoint to run it through.
#[derive(Debug)]
pub struct Corpus {
    /// The original, opened for reading unit by unit.
    pub original: Arc<Weights>,
    /// Whole windows.
    pub tokens: Vec<u32>,
    /// Tokens of a window; each starts from an empty context.
    pub window: usize,
    /// What the manifest says of it.
    pub record: manifest::Calibration,
    /// Bytes that its tokenizer took at once.
    pub tokenizer_bytes: u64,
}

impl Corpus {
    /// The first `limit` tokens of the text in the file `path`, as many as make whole windows; and why the text
    /// may surprise. The text is read through for its hashes, and none of it kept.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer, a text that cannot be read or is shorter than a window.
    pub fn new(
        original: Arc<Weights>,
        path: &Path,
        limit: usize,
        window: usize,
    ) -> Result<(Self, Option<&'static str>)> {
        let digest = Digest::read(path, TEXT_LIMIT, MAX_CALIBRATION_LINES)?;
        let (tokenizer, mut reader) = (Tokenizer::open(&original)?, Reader::open(path)?);
        let whole = limit - limit % window;
        let more = &mut |text: &mut String, bytes| reader.read(text, bytes);
        let mut tokens = tokenizer.read(more, whole, false)?;
        let found = tokens.len();
        tokens.truncate(found - found % window);
        if tokens.is_empty() {
            let path = path.display();
            return Err(ConvertError::Plan(
                mismatch(format_args!("at least {window} tokens, one window"), found).at(path),
            ));
        }
        let record = manifest::Calibration {
            text_blake3: Some(digest.blake3.into()),
            tokens: tokens.len() as u64,
            window: window as u32,
            statistics_blake3: None,
            line_hashes: LineHashes::from(digest.lines),
        };
        let tokenizer_bytes = tokenizer.loading_bytes();
        Ok((Self { original, tokens, window, record, tokenizer_bytes }, digest.note))
    }
}
