//! One file elsewhere, read by ranges.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use shardwright_format::io::RemoteFile;
use tempfile::TempDir;
use url::Url;

use crate::chunks::{CHUNK, Chunks};
use crate::client::Client;
use crate::error::Result;
use crate::keep::{CacheFolder, KeptFile};
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
}

/// A file of weights elsewhere, as it is given to readers.
#[derive(Clone, Debug)]
pub struct RangedFile {
    ranged: Arc<Ranged>,
    /// Where files have their names. It goes with the last reader: threads that fetch ahead do not hold it, so
    /// that it never outlives the program.
    _folder: Arc<TempDir>,
}

/// What it takes to read the file.
#[derive(Debug)]
struct Ranged {
    shared: Arc<Shared>,
    /// Its position among the model's files.
    number: usize,
    entry: RemoteEntry,
    head: OnceLock<Vec<u8>>,
    /// Where the hub led to.
    resolved: Mutex<Option<Url>>,
    /// Where its bytes are kept, if they are.
    kept: Option<KeptFile>,
}

impl RangedFile {
    /// A file of the model whose names are in `folder`, with its position among them, asked for through `shared`.
    pub fn new(
        shared: Arc<Shared>,
        folder: Arc<TempDir>,
        (number, entry): (usize, RemoteEntry),
        kept: Option<KeptFile>,
    ) -> Self {
        let (head, resolved) = (OnceLock::new(), Mutex::new(None));
        let ranged = Arc::new(Ranged { shared, number, entry, head, resolved, kept });
        Self { ranged, _folder: folder }
    }

    /// What it is.
    pub fn entry(&self) -> &RemoteEntry {
        &self.ranged.entry
    }

    /// Fetches its first bytes, in which its header begins.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn fetch_head(&self) -> Result<()> {
        self.ranged.head().map(drop)
    }

    /// Completes what is kept of it.
    ///
    /// # Errors
    /// As [`CacheFolder::finish`], and what the server refuses.
    pub fn finish(&self, cache: &CacheFolder) -> Result<()> {
        let Ranged { entry, kept: Some(kept), .. } = &*self.ranged else { return Ok(()) };
        for missing in kept.missing(entry.len) {
            for start in missing.clone().step_by(CHUNK as usize) {
                self.ranged.fetch(start..(start + CHUNK).min(missing.end))?;
            }
        }
        cache.finish(entry, kept)
    }
}

impl Ranged {
    /// Its first bytes, fetched once.
    ///
    /// # Errors
    /// What the server refuses.
    fn head(&self) -> Result<&[u8]> {
        if let Some(head) = self.head.get() {
            return Ok(head);
        }
        let head = self.fetch(0..HEAD.min(self.entry.len))?;
        Ok(self.head.get_or_init(|| head))
    }

    fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.fetch_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn fetch_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let Self { shared, entry, resolved, kept, .. } = self;
        shared.client.range(entry, offset, out, resolved)?;
        kept.as_ref().map_or(Ok(()), |kept| kept.put(offset, out))
    }

    fn chunk_range(&self, chunk: u64) -> Range<u64> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.entry.len)
    }

    fn chunk(&self, chunk: u64) -> Result<Arc<Vec<u8>>> {
        let fetch = || self.fetch(self.chunk_range(chunk));
        self.shared.chunks.get((self.number, chunk), fetch)
    }

    /// Begins to fetch a chunk if it lies in the file and nobody does already.
    fn fetch_ahead(self: &Arc<Self>, chunk: u64) {
        let key = (self.number, chunk);
        if chunk * CHUNK >= self.entry.len || !self.shared.chunks.begin_ahead(key) {
            return;
        }
        let file = Arc::clone(self);
        let fetch = move || {
            let bytes = file.fetch(file.chunk_range(chunk));
            file.shared.chunks.came(key, bytes);
        };
        if let Err(e) = std::thread::Builder::new().spawn(fetch) {
            let none = crate::RemoteError::server(&self.entry.name, e.to_string());
            self.shared.chunks.came(key, Err(none));
        }
    }

    /// Copies a range out of the chunks that it lies in.
    fn read_chunks(self: &Arc<Self>, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let chunk = at / CHUNK;
            let held = |chunk| self.shared.chunks.held((self.number, chunk)).is_some();
            if chunk.checked_sub(1).is_some_and(held) {
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

    fn read(self: &Arc<Self>, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        if end <= HEAD.min(self.entry.len) {
            out.copy_from_slice(&self.head()?[offset as usize..end as usize]);
            return Ok(());
        }
        let chunk = offset / CHUNK;
        let begun = || self.shared.chunks.begun((self.number, chunk));
        let whole = end <= self.chunk_range(chunk).end;
        // What is coming is waited for: asked for by itself it would come twice.
        if out.len() >= SHORT || (whole && begun()) {
            return self.read_chunks(offset, out);
        }
        self.fetch_into(offset, out)
    }
}

impl RemoteFile for RangedFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.ranged.entry.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if out.is_empty() {
            return Ok(());
        }
        self.ranged.read(offset, out).map_err(std::io::Error::other)
    }

    fn will_need(&self, range: &Range<u64>) {
        if range.end.saturating_sub(range.start) < SHORT as u64 {
            return;
        }
        for chunk in range.start / CHUNK..range.end.div_ceil(CHUNK) {
            self.ranged.fetch_ahead(chunk);
        }
    }

    fn revision(&self) -> &str {
        &self.ranged.entry.revision
    }

    fn memory(&self) -> u64 {
        Chunks::MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Patience;
    use crate::listing::Address;
    use shardwright_testing::server::{Faults, Manner, Server};

    #[test]
    fn a_short_read_waits_for_a_chunk_that_is_coming() {
        // Nobody answers there: whatever is asked for by itself is an error.
        let address = Address::Web { url: Url::parse("http://127.0.0.1:1/m").unwrap() };
        let (path, revision) = ("m".to_owned(), "1".to_owned());
        let entry = RemoteEntry {
            path,
            len: CHUNK,
            revision,
            name: "m".to_owned(),
            address,
            content: None,
        };
        let client = Client::new(Patience { attempts: 1, ..Patience::default() }).unwrap();
        let shared = Arc::new(Shared { client, chunks: Chunks::default() });
        let folder = Arc::new(TempDir::new().unwrap());
        let file = RangedFile::new(Arc::clone(&shared), folder, (0, entry), None);
        let (at, mut alone) = (2 * HEAD, [0; 4]);
        assert!(file.read_at(at, &mut alone).is_err());
        assert!(shared.chunks.begin_ahead((0, 0)));
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut out = [0; 4];
                file.read_at(at, &mut out).map(|()| out)
            });
            // Time for the reader to get there; without it, it would find the chunk.
            std::thread::sleep(std::time::Duration::from_millis(50));
            shared.chunks.came((0, 0), Ok(vec![7; CHUNK as usize]));
            reader.join().unwrap()
        });
        assert_eq!(read.unwrap(), [7; 4]);
    }

    /// What nobody read is fetched when the file is finished, and it has its name then and not before.
    #[test]
    fn a_file_that_was_read_in_part_is_kept_whole() {
        let there = TempDir::new().unwrap();
        let bytes: Vec<u8> = (0..2 * CHUNK + 12_345)
            .map(|at| ((at * at) >> 7) as u8)
            .collect();
        std::fs::write(there.path().join("m"), &bytes).unwrap();
        let server = Server::start(there.path(), Manner::Web, Faults::default());
        let url = Url::parse(&format!("{}/m", server.address())).unwrap();
        let entry = RemoteEntry {
            path: "below/m".to_owned(),
            len: bytes.len() as u64,
            revision: crate::keep::sha256(&there.path().join("m")).unwrap(),
            name: "m".to_owned(),
            address: Address::Hub { url, token: None },
            content: None,
        };
        let cache = CacheFolder::at(there.path().join("cache"), "c0ffee").unwrap();
        let shared =
            Shared { client: Client::new(Patience::default()).unwrap(), chunks: Chunks::default() };
        let folder = Arc::new(TempDir::new().unwrap());
        let kept = cache.begin(&entry).unwrap();
        let file = RangedFile::new(Arc::new(shared), folder, (0, entry), kept);
        file.fetch_head().unwrap();
        let mut some = vec![0; SHORT];
        file.read_at(CHUNK + 5, &mut some).unwrap();
        let name = cache.snapshot().join("below/m");
        assert!(!name.exists());
        file.finish(&cache).unwrap();
        assert!(std::fs::read(&name).unwrap() == bytes);
        // Once more there is nothing to do.
        file.finish(&cache).unwrap();
        assert!(server.sent() < bytes.len() as u64 + HEAD + CHUNK);
    }
}
