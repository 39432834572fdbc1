//! The time that reading, hashing and writing take by themselves: the floor under any conversion.
//!
//! `io_floor CHECKPOINT_DIR BUNDLE_DIR OUT_FILE [THREADS]` reads and hashes every weight file of
//! the checkpoint, hashes and writes as many bytes as the bundle has, syncs, and prints seconds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes read at a time.
const CHUNK: u64 = 8 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[allow(clippy::print_stdout)] // its result
fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, bundle, out, threads @ ..] = args.as_slice() else {
        return Err("usage: io_floor CHECKPOINT_DIR BUNDLE_DIR OUT_FILE [THREADS]".into());
    };
    let threads = threads.first().map_or(Ok(2), |t| t.parse())?;
    let sources = files(Path::new(checkpoint), "safetensors")?;
    let read: u64 = sources.iter().map(|(_, len)| len).sum();
    let written: u64 = files(Path::new(bundle), "bin")?
        .iter()
        .map(|(_, len)| len)
        .sum();
    let output = File::create(out)?;
    let start = Instant::now();
    copy(&sources, &output, written as f64 / read as f64, threads)?;
    output.sync_data()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"read\": {read}, \"written\": {written}, \"seconds\": {seconds:.2}}}");
    std::fs::remove_file(out)?;
    Ok(())
}

/// Files below `dir` with an extension, and their lengths.
fn files(dir: &Path, extension: &str) -> Result<Vec<(PathBuf, u64)>, Failure> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            let len = path.metadata()?.len();
            found.push((path, len));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads and hashes every chunk of `sources`; for each, hashes and writes `ratio` as many bytes.
fn copy(
    sources: &[(PathBuf, u64)],
    output: &File,
    ratio: f64,
    threads: usize,
) -> Result<(), Failure> {
    let chunks: Vec<(&Path, u64, u64)> = sources
        .iter()
        .flat_map(|(path, len)| {
            let offsets = (0..*len).step_by(CHUNK as usize);
            offsets.map(move |at| (path.as_path(), at, CHUNK.min(len - at)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Failure> {
        let mut buf = vec![0; CHUNK as usize];
        while let Some((i, &(path, at, len))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, chunks.get(i)?)))
        {
            let bytes = &mut buf[..len as usize];
            File::open(path)?.read_exact_at(bytes, at)?;
            std::hint::black_box(blake3::hash(bytes));
            let part = &bytes[..(len as f64 * ratio) as usize];
            std::hint::black_box(blake3::hash(part));
            output.write_all_at(part, (i as f64 * CHUNK as f64 * ratio) as u64)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().map_err(|_| "a worker panicked")?)
    })
}
