//! Why a verification could not run. What it finds is no error: see [`crate::Finding`].

use std::fmt;

use shardwright_format::FormatError;
use shardwright_runtime::RuntimeError;

/// Why a verification could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A bundle or checkpoint cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A model cannot be run.
    #[error("{model}: {source}")]
    Runtime {
        /// Which.
        model: Model,
        /// Why.
        source: RuntimeError,
    },
    /// Predictions that are infinite or not numbers.
    #[error("{0}: not finite")]
    NotFinite(String),
    /// The caller asked to stop.
    #[error("stopped before the end")]
    Cancelled,
    /// What was asked for cannot be done.
    #[error("{0}")]
    Invalid(String),
}

/// One of the two models of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The checkpoint.
    Original,
    /// The bundle.
    Candidate,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Original => "original",
            Self::Candidate => "candidate",
        })
    }
}

impl Model {
    /// Says whose error it was.
    pub(crate) fn failed(self) -> impl Fn(RuntimeError) -> VerifyError {
        move |source| VerifyError::Runtime { model: self, source }
    }
}

impl From<rayon::ThreadPoolBuildError> for VerifyError {
    fn from(e: rayon::ThreadPoolBuildError) -> Self {
        Self::Invalid(format!("threads: {e}"))
    }
}

/// What this crate's functions give.
pub type Result<T, E = VerifyError> = std::result::Result<T, E>;
