//! Calibration: a text goes through the model layer by layer while it is converted, so that codes
//! are chosen by what their errors cost.

pub(crate) mod collect;
pub(crate) mod fit;
pub(crate) mod hessian;
pub(crate) mod imatrix;
pub(crate) mod objectives;
pub(crate) mod observe;
pub(crate) mod saved;
pub(crate) mod statistics;
pub(crate) mod streams;

use std::path::Path;
use std::sync::Arc;

use shardwright_format::manifest::{self, LineHashes};
use shardwright_format::weights::Weights;
use shardwright_runtime::text::Tokenizer;

use crate::error::{ConvertError, Result};
pub use observe::{Keep, Observation, observe};
pub use saved::SavedStatistics;

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
}

impl Corpus {
    /// The first `limit` tokens of `text`, as many as make whole windows.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer, a text shorter than a window.
    pub fn new(
        original: Arc<Weights>,
        (path, text): (&Path, &str),
        limit: usize,
        window: usize,
    ) -> Result<Self> {
        let mut tokens = Tokenizer::open(&original)?.encode(text, false)?;
        let found = tokens.len().min(limit);
        tokens.truncate(found - found % window);
        if tokens.is_empty() {
            let path = path.display();
            return Err(ConvertError::Plan(format!(
                "{path}: expected at least {window} tokens, one window, found {found}"
            )));
        }
        let record = manifest::Calibration {
            text_blake3: Some(blake3::hash(text.as_bytes()).into()),
            tokens: tokens.len() as u64,
            window: window as u32,
            statistics_blake3: None,
            line_hashes: LineHashes::from_text(text),
        };
        Ok(Self { original, tokens, window, record })
    }
}
