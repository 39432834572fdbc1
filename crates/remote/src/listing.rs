//! What a place holds: names, lengths, revisions, and how a file is asked for.

use rusty_s3::{Bucket, Credentials, S3Action};
use shardwright_format::checkpoint::flash_moe;
use url::Url;

use crate::error::{RemoteError, Result};

/// How long a signed address holds.
pub const SIGNED_FOR: std::time::Duration = std::time::Duration::from_secs(3600);

/// A file elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteEntry {
    /// Path below the model's directory, with `/` between directories.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// What tells its bytes from others of the same name.
    pub revision: String,
    /// As messages name it.
    pub name: String,
    /// How it is asked for.
    pub address: Address,
    /// Its bytes, where finding the others took them.
    pub content: Option<Vec<u8>>,
}

/// How a file is asked for.
#[derive(Clone)]
pub enum Address {
    /// By its address, with a token if there is one; the hub's, whose revision is part of the address.
    Hub {
        /// Address of the file at one commit.
        url: Url,
        /// Sent to the hub, and to no host that it leads to.
        token: Option<String>,
    },
    /// By its address, where the server tells revisions by an entity tag or a date.
    Web {
        /// Address of the file.
        url: Url,
    },
    /// By an address that is signed each time.
    S3 {
        /// Where the bucket is.
        bucket: Box<Bucket>,
        /// Whose it is; none for a public one.
        credentials: Option<Box<Credentials>>,
        /// The object's name.
        key: String,
    },
}

/// Without tokens and keys.
impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { url, .. } | Self::Web { url } => write!(f, "{url}"),
            Self::S3 { bucket, key, .. } => write!(f, "s3://{}/{key}", bucket.name()),
        }
    }
}

impl Address {
    /// The address to ask at, and the token to show there.
    pub fn request(&self) -> (Url, Option<&str>) {
        match self {
            Self::Hub { url, token } => (url.clone(), token.as_deref()),
            Self::Web { url } => (url.clone(), None),
            Self::S3 { bucket, credentials, key } => (
                bucket
                    .get_object(credentials.as_deref(), key)
                    .sign(SIGNED_FOR),
                None,
            ),
        }
    }

    /// Whether the server's own entity tag is the revision.
    pub const fn tagged(&self) -> bool {
        !matches!(self, Self::Hub { .. })
    }
}

/// Endings of files with weights that are read by ranges.
const RANGED: [&str; 2] = [".safetensors", ".gguf"];
/// Endings of files with weights that are not read at all, and of pictures.
const UNREAD: [&str; 14] = [
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".npz",
    ".png",
    ".jpg",
    ".pdf",
];

/// What becomes of a file elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read by ranges.
    Ranges,
    /// Fetched whole.
    Whole,
    /// Not read.
    Unread,
}

impl RemoteEntry {
    /// What becomes of it, where `model` is the one file with weights that was asked for.
    pub fn usage(&self, model: Option<&str>) -> Use {
        let ends = |ends: &[&str]| ends.iter().any(|end| self.path.ends_with(end));
        match model {
            Some(model) if ends(&RANGED) && !same_model(model, &self.path) => Use::Unread,
            _ if ends(&RANGED) => Use::Ranges,
            None if flash_moe::holds_weights(&self.path) => Use::Ranges,
            _ if ends(&UNREAD) => Use::Unread,
            _ => Use::Whole,
        }
    }

    /// Refuses a name that would leave the model's directory.
    pub fn check(&self) -> Result<()> {
        if shardwright_format::io::stays_inside(&self.path) {
            return Ok(());
        }
        Err(RemoteError::server(&self.name, "expected a name that stays in the model's directory"))
    }
}

/// Whether a file is a model's, or another piece of it: `STEM-00001-of-00003.gguf`.
fn same_model(model: &str, path: &str) -> bool {
    let stem = |name: &str| match name.split_once("-of-") {
        Some((stem, rest)) => (
            stem.trim_end_matches(|c: char| c.is_ascii_digit())
                .to_owned(),
            rest.to_owned(),
        ),
        None => (name.to_owned(), String::new()),
    };
    stem(model) == stem(path)
}
