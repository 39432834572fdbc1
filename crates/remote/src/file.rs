//! One file elsewhere, read by ranges.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use shardwright_format::io::RemoteFile;
use url::Url;

use crate::chunks::{CHUNK, Chunks};
use crate::client::Client;
use crate::error::Result;
use crate::listing::RemoteEntry;

/// Bytes of a file's beginning that are fetched together: most headers of large models take more, those of
/// small ones less.
const HEAD: u64 = 64 << 10;
/// Shorter reads ask for what they need; longer ones for whole chunks.
const SHORT: usize = 256 << 10;
/// Chunks after the one at hand that are fetched ahead where a file is read in order.
const CHUNKS_AHEAD: u64 = 2;

/// What all files of a model share.
#[derive(Debug)]
pub struct Shared {
    pub client: Client,
    pub chunks: Chunks,
    /// Where files have their names; it goes when the last of them is closed.
    pub folder: tempfile::TempDir,
}

/// A file of weights elsewhere.
#[derive(Clone, Debug)]
pub struct RangedFile(Arc<Ranged>);

#[derive(Debug)]
struct Ranged {
    shared: Arc<Shared>,
    /// Its position among the model's files.
    number: usize,
    entry: RemoteEntry,
    head: OnceLock<Vec<u8>>,
    /// Where the hub led to.
    resolved: Mutex<Option<Url>>,
}

impl RangedFile {
    /// A file that is asked for through `shared`.
    pub fn new(shared: Arc<Shared>, number: usize, entry: RemoteEntry) -> Self {
        let (head, resolved) = (OnceLock::new(), Mutex::new(None));
        Self(Arc::new(Ranged { shared, number, entry, head, resolved }))
    }

    /// What it is.
    pub fn entry(&self) -> &RemoteEntry {
        &self.0.entry
    }

    /// Its first bytes, fetched once.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn head(&self) -> Result<&[u8]> {
        if let Some(head) = self.0.head.get() {
            return Ok(head);
        }
        let head = self.fetch(0..HEAD.min(self.0.entry.len))?;
        Ok(self.0.head.get_or_init(|| head))
    }

    fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let Ranged { shared, entry, resolved, .. } = &*self.0;
        shared
            .client
            .range(entry, range.start, &mut bytes, resolved)?;
        Ok(bytes)
    }

    fn chunk_range(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.0.entry.len)
    }

    fn chunk(&self, chunk: u64) -> Result<Arc<Vec<u8>>> {
        let fetch = || self.fetch(self.chunk_range(chunk));
        self.0.shared.chunks.get((self.0.number, chunk), fetch)
    }

    /// Begins to fetch a chunk if it lies in the file and nobody does already.
    fn fetch_ahead(&self, chunk: u64) {
        let key = (self.0.number, chunk);
        if chunk * CHUNK >= self.0.entry.len || !self.0.shared.chunks.begin_ahead(key) {
            return;
        }
        let file = self.clone();
        let fetch = move || {
            let bytes = file.fetch(file.chunk_range(chunk));
            file.0.shared.chunks.came(key, bytes);
        };
        if let Err(e) = std::thread::Builder::new().spawn(fetch) {
            let none = crate::RemoteError::server(&self.0.entry.name, e.to_string());
            self.0.shared.chunks.came(key, Err(none));
        }
    }

    /// Copies a range out of the chunks that it lies in.
    fn read_chunks(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let chunk = at / CHUNK;
            let in_order = chunk > 0
                && self
                    .0
                    .shared
                    .chunks
                    .held((self.0.number, chunk - 1))
                    .is_some();
            if in_order {
                (1..=CHUNKS_AHEAD).for_each(|next| self.fetch_ahead(chunk + next));
            }
            let bytes = self.chunk(chunk)?;
            let from = &bytes[(at - chunk * CHUNK) as usize..];
            let count = from.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        if end <= HEAD.min(self.0.entry.len) {
            out.copy_from_slice(&self.head()?[offset as usize..end as usize]);
            return Ok(());
        }
        let chunk = offset / CHUNK;
        let held = || self.0.shared.chunks.held((self.0.number, chunk));
        let whole = end <= self.chunk_range(chunk).end;
        if out.len() >= SHORT || (whole && held().is_some()) {
            return self.read_chunks(offset, out);
        }
        let Ranged { shared, entry, resolved, .. } = &*self.0;
        shared.client.range(entry, offset, out, resolved)
    }
}

impl RemoteFile for RangedFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.0.entry.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if out.is_empty() {
            return Ok(());
        }
        self.read(offset, out).map_err(std::io::Error::other)
    }

    fn will_need(&self, range: &Range<u64>) {
        if range.end.saturating_sub(range.start) < SHORT as u64 {
            return;
        }
        for chunk in range.start / CHUNK..range.end.div_ceil(CHUNK) {
            self.fetch_ahead(chunk);
        }
    }

    fn revision(&self) -> &str {
        &self.0.entry.revision
    }

    fn memory(&self) -> u64 {
        Chunks::MEMORY
    }
}
