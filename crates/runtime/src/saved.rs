//! A prompt's cache in a file: tokens, what the layers remember of them and the logits after the last.
//!
//! ```text
//! magic                8 bytes
//! length of the header u64, little-endian
//! header               JSON: version, model, types of the cache, tokens
//! layers               as `block::saved` writes them
//! logits               [vocab_size], f32, little-endian
//! BLAKE3               of all that goes before, 32 bytes
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shardwright_format::io::replace;
use shardwright_format::{FormatError, Refusal, mismatch};

use crate::block::kv::CacheTypes;
use crate::error::{Result, RuntimeError};
use crate::token::Runtime;

const MAGIC: &[u8; 8] = b"swcache1";

/// Longer headers are refused unread: this holds millions of tokens.
const HEADER_LIMIT: u64 = 64 << 20;

/// What stands around the header: magic, length and hash.
const FRAME: u64 = 8 + 8 + HASH as u64;

const HASH: usize = 32;

/// Whose state a file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Of this program: another one may round otherwise.
    version: String,
    /// What tells the model from others.
    model: String,
    cache: CacheTypes,
    tokens: Vec<u32>,
}

/// A file whose hash is right and whose header is that of this model and cache.
#[derive(Debug)]
pub struct SavedPrompt {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes behind the header, the hash not included.
    body: u64,
    tokens: Vec<u32>,
}

impl SavedPrompt {
    /// Opens `path`; `None` where there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or of another model, version or type of cache.
    pub fn open(path: &Path, model: &str, cache: CacheTypes) -> Result<Option<Self>> {
        // Asked before opening: the open of a pipe waits for a writer that may never come.
        let metadata = match path.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|e| FormatError::io(path, e))?,
        };
        let refuse = |detail: Refusal| RuntimeError::Saved { path: path.to_owned(), detail };
        let no_file = || refuse("expected a session that `run --session` wrote".into());
        if !metadata.is_file() || metadata.len() < FRAME {
            return Err(no_file());
        }
        let file = File::open(path).map_err(|e| FormatError::io(path, e))?;
        let (mut file, len) = (BufReader::new(file), metadata.len());
        let read = read_header(&mut file, len).map_err(|e| FormatError::io(path, e))?;
        let (header, body) = match read {
            Found::Other => return Err(no_file()),
            Found::Damaged => {
                return Err(refuse("is damaged: its hash is not that of its bytes".into()));
            }
            Found::Header(header, body) => (header, body),
        };
        let header: Header = serde_json::from_slice(&header).map_err(|_| no_file())?;
        check(&header, model, cache).map_err(refuse)?;
        Ok(Some(Self { path: path.to_owned(), file, body, tokens: header.tokens }))
    }

    /// The tokens whose state it is.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Takes the first `kept` positions up into `runtime`, and the logits after the last where these are
    /// all; `false`, and nothing taken, where the layers cannot begin there.
    ///
    /// # Errors
    /// A file that cannot be read or is not what the model needs; logits that are not finite. What a layer
    /// remembers is found to be so by the next token.
    pub fn load(mut self, runtime: &mut Runtime, kept: usize) -> Result<bool> {
        let saved = self.tokens.len();
        if !runtime.can_take_up(saved, kept) {
            return Ok(false);
        }
        let expected = runtime.saved_len(saved);
        if self.body != expected {
            let detail = mismatch(format_args!("{expected} bytes of state"), self.body);
            return Err(RuntimeError::Saved { path: self.path, detail });
        }
        let loaded = runtime.take_up(saved, kept, &mut self.file);
        loaded.map_err(|e| FormatError::io(&self.path, e))?;
        let mut logits = runtime.last_logits().iter();
        if let Some(token) = logits.position(|logit| !logit.is_finite()) {
            let detail = format!("its logit of token {token} is not finite").into();
            return Err(RuntimeError::Saved { path: self.path, detail });
        }
        Ok(true)
    }
}

/// Writes the state of `runtime` after `tokens` to `path`, by way of a file beside it.
///
/// # Errors
/// What the operating system refuses.
///
/// # Panics
/// When `tokens` are not as many as the runtime has positions.
pub fn save(path: &Path, runtime: &Runtime, model: &str, tokens: &[u32]) -> Result<()> {
    assert_eq!(tokens.len(), runtime.position(), "a token for each position");
    let header = Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.to_owned(),
        cache: runtime.cache(),
        tokens: tokens.to_vec(),
    };
    let header = serde_json::to_vec(&header).map_err(|e| FormatError::file(path, e.to_string()))?;
    replace(path, |partial| {
        let write = || -> io::Result<()> {
            let mut out = Hashed::new(BufWriter::new(File::create(partial)?));
            out.write_all(MAGIC)?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            runtime.save(&mut out)?;
            let Hashed { mut inner, hasher } = out;
            inner.write_all(hasher.finalize().as_bytes())?;
            inner.into_inner()?.sync_all()
        };
        write().map_err(|e| FormatError::io(partial, e).into())
    })
}

/// What a file turned out to be.
enum Found {
    Other,
    Damaged,
    /// With the bytes of its header and the length of what follows.
    Header(Vec<u8>, u64),
}

/// Holds all of the file to its hash, then reads its header and stays behind it.
fn read_header(file: &mut BufReader<File>, len: u64) -> io::Result<Found> {
    let mut begin = [0; 16];
    file.read_exact(&mut begin)?;
    let length = begin[8..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if !begin.starts_with(MAGIC) {
        return Ok(Found::Other);
    }
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file.by_ref().take(len - HASH as u64), &mut hasher)?;
    let mut hash = [0; HASH];
    file.read_exact(&mut hash)?;
    if hasher.finalize() != hash || length > HEADER_LIMIT.min(len - FRAME) {
        return Ok(Found::Damaged);
    }
    file.seek(SeekFrom::Start(begin.len() as u64))?;
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    Ok(Found::Header(header, len - FRAME - length))
}

/// Says what of a header is not as it should be.
fn check(header: &Header, model: &str, cache: CacheTypes) -> Result<(), Refusal> {
    let version = env!("CARGO_PKG_VERSION");
    let types = |cache: CacheTypes| format!("{} and {}", cache.k.name(), cache.v.name());
    let (expected, found, what) = if header.version != version {
        (version, header.version.as_str(), "of version")
    } else if header.model != model {
        (model, header.model.as_str(), "of model")
    } else if header.cache != cache {
        (&*types(cache), &*types(header.cache), "with keys and values in")
    } else {
        return Ok(());
    };
    Err(mismatch(format_args!("a session {what} {expected}"), format_args!("one {what} {found}")))
}

/// Writes on, and hashes what goes by.
struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
