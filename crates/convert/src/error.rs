//! Why a recipe, a plan or a conversion was refused.

use std::path::PathBuf;

use shardwright_format::FormatError;

use crate::recipe::RecipeError;

/// Why nothing was planned, converted or exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A checkpoint, a bundle or the operating system.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model, computed for calibration.
    #[error(transparent)]
    Runtime(#[from] shardwright_runtime::RuntimeError),
    /// A recipe that does not fit the checkpoint, or an option that cannot be.
    #[error("{0}")]
    Plan(String),
    /// The output cannot be written.
    #[error("{}: {detail}", path.display())]
    Output {
        /// The directory.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// A partial conversion of something else.
    #[error("{}: cannot resume: {detail}", path.display())]
    Resume {
        /// The directory of the partial conversion.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// The caller asked to stop, and nothing is kept.
    #[error("stopped")]
    Stopped,
    /// The caller asked to stop.
    #[error("stopped after {done} of {total} shards; --resume continues from {}", path.display())]
    Cancelled {
        /// Shards that are complete.
        done: usize,
        /// Shards in all.
        total: usize,
        /// What `--resume` continues from.
        path: PathBuf,
    },
}

/// What this crate's functions give.
pub type Result<T, E = ConvertError> = std::result::Result<T, E>;
