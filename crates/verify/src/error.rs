//! Why a verification could not run. What it finds is no error: see [`crate::Finding`].

use std::path::PathBuf;

use shardwright_format::{FormatError, Refusal};
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
        /// What it is called.
        model: String,
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
    /// Parts of a verification do not go together.
    #[error("{}: cannot merge: {detail}", path.display())]
    Merge {
        /// The part.
        path: PathBuf,
        /// What it has that it should not, or has not.
        detail: Refusal,
    },
    /// A text is not the same tokens to two models, so that their predictions cannot be compared.
    #[error("tokenizers differ: {0}")]
    TokenizersDiffer(String),
}

impl VerifyError {
    /// Says whose error it was.
    pub(crate) fn of_model(name: &str) -> impl Fn(RuntimeError) -> Self {
        let model = name.to_owned();
        move |source| Self::Runtime { model: model.clone(), source }
    }

    /// Whether it is a model's values that are infinite or not numbers.
    pub(crate) const fn is_not_finite(&self) -> bool {
        let overflow = matches!(
            self,
            Self::Runtime {
                source: RuntimeError::NotFinite { .. } | RuntimeError::HeadNotFinite { .. },
                ..
            }
        );
        overflow || matches!(self, Self::NotFinite(_))
    }
}

impl From<rayon::ThreadPoolBuildError> for VerifyError {
    fn from(e: rayon::ThreadPoolBuildError) -> Self {
        Self::Invalid(format!("threads: {e}"))
    }
}

/// What this crate's functions give.
pub type Result<T, E = VerifyError> = std::result::Result<T, E>;
