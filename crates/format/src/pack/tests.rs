//! Packed and unpacked again: whole, damaged, and stopped anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::manifest::{FileKind, Manifest};

/// The next of a sequence of random numbers (`SplitMix64`).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A directory with a bundle of several pieces, some of which compress and some do not, and an
/// empty file. What its shards mean is nobody's business here.
struct Case {
    root: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let case = Self { root: tempfile::tempdir().unwrap() };
        let mut manifest = crate::manifest::tests::manifest();
        let more = [("a/empty", 0), ("a/random", 1 << 20), ("words", (2 << 20) + 77)];
        for (path, size) in more {
            let (path, blake3) = (path.to_owned(), crate::manifest::Hash::ZERO);
            let kind = FileKind::Copy;
            manifest
                .files
                .push(crate::manifest::FileEntry { path, kind, size, blake3 });
        }
        manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut seed = 7;
        for entry in &mut manifest.files {
            let random = |_| next(&mut seed) as u8;
            let bytes: Vec<u8> = match entry.path.as_str() {
                "words" => (0..entry.size)
                    .map(|i| b"a bundle "[i as usize % 9])
                    .collect(),
                _ => (0..entry.size).map(random).collect(),
            };
            let path = case.path("bundle").join(&entry.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &bytes).unwrap();
            entry.blake3 = blake3::hash(&bytes).into();
        }
        fs::write(case.path("bundle/manifest.json"), manifest.to_bytes()).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Packs the bundle, or unpacks it where `out` has no extension, until `count` pieces are
    /// done.
    fn run(&self, out: &str, resume: bool, threads: usize, count: usize) -> Result<PackSummary> {
        let cancel = AtomicBool::new(false);
        let pieces = std::cell::Cell::new(0);
        let progress = |_, _| {
            pieces.set(pieces.get() + 1);
            cancel.store(pieces.get() >= count, Ordering::Relaxed);
        };
        let options = PackOptions { threads, resume, cancel: &cancel, progress: &progress };
        if Path::new(out).extension().is_some() {
            pack(&self.path("bundle"), &self.path(out), &options)
        } else {
            unpack(&self.path("whole.pack"), &self.path(out), &options)
        }
    }

    fn whole(&self) -> Vec<u8> {
        self.run("whole.pack", false, 2, usize::MAX).unwrap();
        fs::read(self.path("whole.pack")).unwrap()
    }

    fn unpack(&self, out: &str) -> Result<PackSummary> {
        self.run(out, false, 1, usize::MAX)
    }
}

/// Every file below `dir` by its path.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(
                contents(&path).into_iter().map(|(below, bytes)| {
                    (Path::new(path.file_name().unwrap()).join(below), bytes)
                }),
            );
        } else {
            files.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    files
}

fn message(result: Result<PackSummary>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_unpacked_is_what_was_packed() {
    let case = Case::new();
    let packed = case.run("one.pack", false, 1, usize::MAX).unwrap();
    for threads in [2, 5] {
        case.run(&format!("{threads}.pack"), false, threads, usize::MAX)
            .unwrap();
        let many = fs::read(case.path(&format!("{threads}.pack"))).unwrap();
        assert!(many == fs::read(case.path("one.pack")).unwrap(), "{threads}");
    }
    fs::rename(case.path("one.pack"), case.path("whole.pack")).unwrap();
    let unpacked = case.unpack("out").unwrap();
    assert_eq!(packed, unpacked);
    assert_eq!(packed.packed_bytes, fs::metadata(case.path("whole.pack")).unwrap().len());
    let expected = contents(&case.path("bundle"));
    assert_eq!(packed.bundle_bytes, expected.values().map(|b| b.len() as u64).sum::<u64>());
    assert!(packed.packed_bytes < packed.bundle_bytes / 2, "{packed:?}");
    assert!(contents(&case.path("out")) == expected);
    assert!(!case.path("out.partial").exists() && !case.path("one.pack.partial").exists());
}

/// Whatever happens to a packed file, nothing wrong comes out of it.
#[test]
fn two_hundred_damaged_files_are_refused() {
    let case = Case::new();
    let whole = case.whole();
    let mut seed = 11;
    let mut at = |len: usize| (next(&mut seed) % len as u64) as usize;
    for number in 0..200 {
        let mut bytes = whole.clone();
        let place = at(whole.len());
        match number % 5 {
            0 | 1 => bytes[place] ^= 1 << (number % 8),
            2 => bytes.truncate(place),
            3 => bytes.insert(place, at(256) as u8),
            _ => drop(bytes.drain(place..(place + 1 + at(5000)).min(whole.len()))),
        }
        // An inserted byte may equal its neighbours.
        let same = bytes == whole;
        fs::write(case.path("whole.pack"), &bytes).unwrap();
        let out = format!("out{number}");
        let result = case.unpack(&out);
        assert_eq!(result.is_ok(), same, "{number} at {place}");
        assert_eq!(case.path(&out).exists(), same);
        if let Err(error) = result {
            let named = error
                .to_string()
                .starts_with(case.path("whole.pack").to_str().unwrap());
            assert!(
                named && matches!(error, PackError::Format(FormatError::File { .. })),
                "{error}"
            );
        }
        let _ = fs::remove_dir_all(case.path(&format!("{out}.partial")));
    }
}

#[test]
fn every_field_of_the_frame_around_the_pieces_is_checked() {
    let case = Case::new();
    let whole = case.whole();
    let name = case.path("whole.pack").display().to_string();
    let manifest_len = fs::metadata(case.path("bundle/manifest.json"))
        .unwrap()
        .len();
    let cases: [(usize, u8, String); 5] = [
        (3, 1, "is not a packed bundle".to_owned()),
        (16, 2, "version: expected 1, found 3".to_owned()),
        (
            31,
            1,
            format!(
                "manifest: expected at most 268435456 bytes, found {}",
                manifest_len + (1 << 56)
            ),
        ),
        (35, 0x80, "`manifest.json`: piece at byte 0: stored bytes: expected at most".to_owned()),
        (whole.len() - 1, 1, "BLAKE3 at its end: expected ".to_owned()),
    ];
    for (number, (at, flip, expected)) in cases.into_iter().enumerate() {
        let mut bytes = whole.clone();
        bytes[at] ^= flip;
        fs::write(case.path("whole.pack"), &bytes).unwrap();
        let found = message(case.unpack(&format!("out{number}")));
        assert!(found.starts_with(&format!("{name}: {expected}")), "{found}");
    }
    let mut bytes = whole.clone();
    bytes.push(0);
    fs::write(case.path("whole.pack"), &bytes).unwrap();
    let found = message(case.unpack("more"));
    assert_eq!(found, format!("{name}: expected its end at byte {}, found more", whole.len()));
}

/// Stops at each piece, and then leaves what a killed process may: a part of its last write.
#[test]
fn packing_goes_on_from_wherever_it_was_stopped() {
    let case = Case::new();
    let whole = case.whole();
    let mut seed = 3;
    for number in 0..20 {
        let count = 1 + number % 8;
        let stopped = case.run("out.pack", false, 1 + number % 3, count);
        let partial = case.path("out.pack.partial");
        if let Err(error) = stopped {
            assert!(matches!(error, PackError::Stopped { .. }), "{error}");
            let mut left = fs::read(&partial).unwrap();
            match number % 4 {
                0 => {}
                1 => left.truncate((next(&mut seed) % left.len() as u64) as usize),
                2 => left.extend([0; 100]),
                _ => *left.last_mut().unwrap() ^= 1,
            }
            fs::write(&partial, left).unwrap();
            let again = message(case.run("out.pack", false, 1, usize::MAX));
            let left = "is what an interrupted run left";
            assert_eq!(again, format!("{}: {left}", partial.display()));
            let done = case.run("out.pack", true, 2, usize::MAX).unwrap();
            assert!(number % 4 > 0 || done.kept_bytes > 0, "{number} {done:?}");
        }
        assert!(fs::read(case.path("out.pack")).unwrap() == whole, "{number}");
        assert!(!partial.exists());
        fs::remove_file(case.path("out.pack")).unwrap();
    }
}

#[test]
fn unpacking_goes_on_from_wherever_it_was_stopped() {
    let case = Case::new();
    case.whole();
    let expected = contents(&case.path("bundle"));
    for number in 0..20 {
        let stopped = case.run("out", false, 1, 1 + number % 9);
        let partial = case.path("out.partial");
        if let Err(error) = stopped {
            assert!(matches!(error, PackError::Stopped { .. }), "{error}");
            assert!(!case.path("out").exists());
            let made = contents(&partial);
            let (last, bytes) = made.iter().next_back().unwrap();
            let mut bytes = bytes.clone();
            match number % 3 {
                0 => {}
                1 => bytes.truncate(bytes.len() / 2),
                _ => bytes.fill(1),
            }
            fs::write(partial.join(last), bytes).unwrap();
            let done = case.run("out", true, 1, usize::MAX).unwrap();
            // The first file is empty.
            let nothing = number % 9 == 0;
            assert!(number % 3 > 0 || nothing || done.kept_bytes > 0, "{number} {done:?}");
        }
        assert!(contents(&case.path("out")) == expected, "{number}");
        assert!(!partial.exists());
        fs::remove_dir_all(case.path("out")).unwrap();
    }
}

#[test]
fn outputs_and_strangers_are_left_alone() {
    let case = Case::new();
    case.whole();
    let exists = "already exists; remove it or choose another name";
    let found = message(case.run("whole.pack", true, 1, usize::MAX));
    assert_eq!(found, format!("{}: {exists}", case.path("whole.pack").display()));
    let found = message(case.unpack("bundle"));
    assert_eq!(found, format!("{}: {exists}", case.path("bundle").display()));
    fs::create_dir_all(case.path("out.partial/a")).unwrap();
    fs::write(case.path("out.partial/a/note"), "").unwrap();
    let found = message(case.run("out", true, 1, usize::MAX));
    let stranger = case.path("out.partial/a/note");
    let detail = "is not of the bundle that is unpacked; remove it";
    assert_eq!(found, format!("{}: {detail}", stranger.display()));
}

#[test]
fn a_damaged_bundle_is_not_packed() {
    let case = Case::new();
    let words = case.path("bundle/words");
    let mut bytes = fs::read(&words).unwrap();
    bytes[5] ^= 1;
    fs::write(&words, &bytes).unwrap();
    let path = case.path("bundle/manifest.json");
    let manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    let expected = manifest.files.iter().find(|f| f.path == "words").unwrap();
    let found = message(case.run("out.pack", false, 1, usize::MAX));
    let (expected, hash) = (expected.blake3, blake3::hash(&bytes));
    let name = words.display();
    assert_eq!(found, format!("{name}: BLAKE3: expected {expected}, found {hash}"));
    assert!(!case.path("out.pack").exists());
    fs::write(&words, "short").unwrap();
    let found = message(case.run("out.pack", true, 1, usize::MAX));
    assert_eq!(found, format!("{name}: bytes: expected 2097229, found 5"));
}
