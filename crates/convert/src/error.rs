//! Why a recipe, a plan or a conversion was refused.

use std::path::PathBuf;

use shardwright_format::{FormatError, Refusal};

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
    Plan(Refusal),
    /// A rule whose method looks at the inputs of matrices, of which nothing is known.
    #[error("recipe `{recipe}`: rule {rule} asks for {method}, which needs calibration")]
    NeedsCalibration {
        /// The recipe.
        recipe: String,
        /// The rule's position, and what it is about.
        rule: String,
        /// What it asks for.
        method: &'static str,
    },
    /// A total that even the smallest encodings pass.
    #[error("expected at least {least}, what the smallest encodings take, found {target}")]
    TargetTooSmall {
        /// What they take, with its unit.
        least: String,
        /// What was asked for, with its unit.
        target: String,
    },
    /// The output cannot be written.
    #[error("{}: {detail}", path.display())]
    Output {
        /// The directory.
        path: PathBuf,
        /// Why not.
        detail: Refusal,
    },
    /// A partial conversion of something else.
    #[error("{}: cannot resume: {detail}", path.display())]
    Resume {
        /// The directory of the partial conversion.
        path: PathBuf,
        /// What differs.
        detail: Refusal,
    },
    /// Parts that do not make a bundle.
    #[error("{}: cannot merge: {detail}", path.display())]
    Merge {
        /// The part, or the bundle to be.
        path: PathBuf,
        /// Why not.
        detail: Refusal,
    },
    /// A tensor that an exported form does not hold as the model does.
    #[error("{}: {detail}", path.display())]
    NotHeld {
        /// The model.
        path: PathBuf,
        /// The tensor, what was expected and what was found.
        detail: Refusal,
        /// What a conversion must do otherwise.
        remedy: Remedy,
    },
    /// The caller asked to stop, and nothing is kept.
    #[error("stopped")]
    Stopped,
    /// The caller asked to stop.
    #[error("stopped after {done} of {total} shards, which {} keeps", path.display())]
    Cancelled {
        /// Shards that are complete.
        done: usize,
        /// Shards in all.
        total: usize,
        /// What a resumed conversion continues from.
        path: PathBuf,
    },
}

/// How a conversion stores a tensor so that an exported form holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Within what the form's engine holds; or the export stores it anew.
    EngineLimits,
    /// In affine codes.
    AffineCodes,
    /// With scales and biases of 16 bits that have few exponents and many digits.
    HalfScales,
    /// With the middle code for zero.
    SymmetricZeros,
    /// With zeros among the codes, for compressed-tensors.
    WholeZeros,
    /// In floats, since the form has no module for it.
    Floats,
    /// Alike with the others that share a tensor in the form.
    OneEncoding,
    /// As flash-moe's kernels have all matrices.
    PackedExperts,
}

impl ConvertError {
    /// A recipe that does not fit, or an option that cannot be.
    pub(crate) fn plan(why: impl Into<Refusal>) -> Self {
        Self::Plan(why.into())
    }
}

/// What this crate's functions give.
pub type Result<T, E = ConvertError> = std::result::Result<T, E>;
