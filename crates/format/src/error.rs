//! Why an input was refused. Each variant says where, what was expected and what was found.

use std::path::{Path, PathBuf};

use crate::refusal::Refusal;

/// Why a checkpoint, table or bundle was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its word.
        source: std::io::Error,
    },
    /// An earlier run was interrupted, and what it left lies where this one would begin.
    #[error("{}: is what an interrupted run left", path.display())]
    Unfinished {
        /// What it left.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        detail: Box<Refusal>,
    },
    /// A tensor is not what it should be.
    #[error("{}: tensor `{tensor}`: {detail}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Expected and found.
        detail: Box<Refusal>,
    },
}

impl FormatError {
    /// A refusal by the operating system at `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A file that is not what it should be.
    pub fn file(path: &Path, detail: impl Into<Refusal>) -> Self {
        Self::File { path: path.to_owned(), detail: Box::new(detail.into()) }
    }

    /// A tensor that is not what it should be.
    pub fn tensor(path: &Path, tensor: &str, detail: impl Into<Refusal>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            detail: Box::new(detail.into()),
        }
    }
}

/// What this crate's functions give.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
