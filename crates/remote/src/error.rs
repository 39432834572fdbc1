//! Why a model elsewhere could not be read.

/// What went wrong with a file or a listing elsewhere. Names hold no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// A location that names no model.
    #[error("{location}: {detail}")]
    Location {
        /// As it was given.
        location: String,
        /// Expected and found.
        detail: String,
    },
    /// The server gave something else than was asked for, or nothing after several attempts.
    #[error("{name}: {detail}")]
    Server {
        /// The file or listing.
        name: String,
        /// Expected and found.
        detail: String,
    },
    /// The server gives it to nobody, or not to whoever asks so.
    #[error("{name}: the server refuses it (status {status})")]
    Denied {
        /// The file or listing.
        name: String,
        /// 401 or 403.
        status: u16,
    },
    /// The server shows a certificate that nobody who is trusted vouches for.
    #[error("{name}: {detail}")]
    Untrusted {
        /// The server.
        name: String,
        /// What is wrong with its certificate.
        detail: String,
    },
    /// There is no such file or repository.
    #[error("{name}: there is no such {what} (status 404)")]
    Missing {
        /// The file or listing.
        name: String,
        /// File, repository or bucket.
        what: &'static str,
    },
    /// Whoever called wants no network.
    #[error("{name}: not in the cache of this machine, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The repository.
        name: String,
    },
    /// What this machine refused.
    #[error(transparent)]
    Format(#[from] shardwright_format::FormatError),
}

impl RemoteError {
    /// An answer other than was asked for.
    pub(crate) fn server(name: &str, detail: impl Into<String>) -> Self {
        Self::Server { name: name.to_owned(), detail: detail.into() }
    }
}

/// What this crate's functions give.
pub type Result<T, E = RemoteError> = std::result::Result<T, E>;
