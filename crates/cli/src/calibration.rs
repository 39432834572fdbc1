//! What codes are chosen by: a text, or statistics of an earlier one.

use std::path::Path;
use std::sync::Arc;

use shardwright_convert::calibrate::{Corpus, SavedStatistics};
use shardwright_convert::{Calibration, Known};
use shardwright_format::manifest;
use shardwright_format::weights::Weights;
use shardwright_runtime::options::LOADING_BYTES;

use crate::args::{CalibrationArgs, CalibrationTextArgs};
use crate::failure::Failure;
use crate::say;

/// What the options name, opened.
#[derive(Debug)]
pub enum Opened {
    None,
    Statistics(Box<SavedStatistics>),
    Text(Box<Corpus>),
}

impl Opened {
    /// As the conversion takes it.
    pub const fn calibration(&self) -> Calibration<'_> {
        match self {
            Self::None => Calibration::None,
            Self::Statistics(statistics) => Calibration::Statistics(statistics),
            Self::Text(corpus) => Calibration::Text(corpus),
        }
    }

    /// What statistics hold.
    pub fn known(&self) -> Option<Known> {
        match self {
            Self::Statistics(statistics) => Some(statistics.known()),
            Self::None | Self::Text(_) => None,
        }
    }

    /// Bytes that the program took at once to read the text.
    pub fn reading_bytes(&self) -> u64 {
        match self {
            Self::Text(corpus) => LOADING_BYTES + corpus.tokenizer_bytes,
            Self::None | Self::Statistics(_) => 0,
        }
    }

    /// As the manifest says it.
    pub fn record(&self) -> Option<manifest::Calibration> {
        match self {
            Self::None => None,
            Self::Statistics(statistics) => Some(statistics.record.clone()),
            Self::Text(corpus) => Some(corpus.record.clone()),
        }
    }
}

/// Opens what the options name, for the checkpoint `source`.
///
/// # Errors
/// A text shorter than a window, statistics of another model, files that cannot be read.
pub fn open(source: &Arc<Weights>, args: &CalibrationArgs) -> Result<Opened, Failure> {
    match (&args.calibrate, &args.statistics) {
        (Some(text), _) => Ok(Opened::Text(Box::new(corpus(source, text, args.text)?))),
        (None, Some(file)) => {
            let statistics = SavedStatistics::read(file, source.spec())?;
            if let Some((_, inventory)) = source.checkpoint() {
                statistics.check(file, inventory)?;
            }
            Ok(Opened::Statistics(Box::new(statistics)))
        }
        (None, None) => Ok(Opened::None),
    }
}

/// The text's first windows, to go through `source`.
///
/// # Errors
/// As [`open`].
pub fn corpus(
    source: &Arc<Weights>,
    text: &Path,
    args: CalibrationTextArgs,
) -> Result<Corpus, Failure> {
    let (limit, window) = (args.calibration_tokens, args.calibration_window as usize);
    if limit < window {
        return Err(Failure::new(format!(
            "--calibration-tokens: expected at least {window}, one window, found {limit}"
        )));
    }
    let (corpus, note) = Corpus::new(Arc::clone(source), text, limit, window)?;
    if let Some(note) = note {
        say::line(&format!("note: {}: {note}", text.display()));
    }
    Ok(corpus)
}
