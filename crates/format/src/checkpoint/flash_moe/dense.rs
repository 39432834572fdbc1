//! Everything but experts: `model_weights.json` lists what lies in one file, or in several as if they were one.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::{HALF_NAMES, LIST_NAME, WHOLE_NAME, object};
use crate::checkpoint::files::{CheckpointFile, Files, StoredTensor};
use crate::checkpoint::header::{byte_len, overflow, refuse_pointer};
use crate::dtype::{Dtype, unknown};
use crate::entries::Entries;
use crate::error::{FormatError, Result};
use crate::io::{INDEX_LIMIT, OpenFile, read_required, stays_inside};
use crate::refusal::{Refusal, mismatch};

/// The list. Other members repeat the configuration.
#[derive(Deserialize)]
struct List {
    tensors: Entries<Listed>,
    #[serde(default)]
    split: Option<Split>,
}

/// A tensor: its place in the whole.
#[derive(Deserialize)]
#[serde(expecting = "an object of a tensor")]
struct Listed {
    offset: u64,
    size: u64,
    shape: Vec<u64>,
    dtype: String,
}

/// The files that the whole is cut into, and the first byte of each.
#[derive(Deserialize)]
#[serde(expecting = "an object of files")]
struct Split {
    chunk_files: Vec<String>,
    split_offsets: Vec<u64>,
}

/// A file: its number among the checkpoint's, and the range of the whole that it holds.
struct Piece {
    file: usize,
    start: u64,
    end: u64,
}

/// Opens the files and takes in the listed tensors.
///
/// # Errors
/// A list or files that are not there or contradict each other; tensors that overlap.
pub(super) fn add(files: &mut Files, open: OpenFile<'_>) -> Result<()> {
    let path = files.root.join(LIST_NAME);
    let list: List = object(&path, &read_required(&path, INDEX_LIMIT)?)?;
    let pieces = pieces(files, list.split.as_ref(), open)?;
    let mut tensors = list.tensors.0;
    tensors.sort_by_key(|(_, listed)| (listed.offset, listed.size));
    let mut end = 0;
    for (name, listed) in tensors {
        let found = place(&pieces, &listed, end);
        let stored = found.map_err(|detail| FormatError::tensor(&path, &name, detail))?;
        end = listed.offset + listed.size;
        files.stored.insert(name, stored);
    }
    pieces
        .last()
        .map_or(Ok(()), |last| check_end(files, last, end))
}

/// Refuses a last file with more than the list says, which is another's then.
fn check_end(files: &Files, last: &Piece, end: u64) -> Result<()> {
    if last.end == end {
        return Ok(());
    }
    let (wanted, found) = (end.saturating_sub(last.start), last.end - last.start);
    let expected = format_args!("{wanted} bytes, where the last tensor of {LIST_NAME} ends");
    let path = files.opened[last.file].file.path();
    Err(FormatError::file(path, mismatch(expected, found)))
}

/// Opens the files, which together are the whole.
fn pieces(files: &mut Files, split: Option<&Split>, open: OpenFile<'_>) -> Result<Vec<Piece>> {
    let names = names(&files.root, split)?;
    let (mut pieces, mut start) = (Vec::new(), 0_u64);
    for name in names {
        let path = files.root.join(&name);
        let file = open(&path)?;
        refuse_pointer(&file)?;
        let end = start.checked_add(file.len());
        let end = end.ok_or_else(|| FormatError::file(&path, "its end leaves 64 bits"))?;
        pieces.push(Piece { file: files.opened.len(), start, end });
        files
            .opened
            .push(CheckpointFile { name, file, header_len: 0, blake3: None });
        start = end;
    }
    split.map_or(Ok(()), |split| check_starts(files, &pieces, &split.split_offsets))?;
    Ok(pieces)
}

/// Refuses files that begin elsewhere in the whole than the list says: one before is not the one that was listed.
fn check_starts(files: &Files, pieces: &[Piece], said: &[u64]) -> Result<()> {
    let path = files.root.join(LIST_NAME);
    let refused = |detail: Refusal| FormatError::file(&path, detail.at("`split_offsets`"));
    if said.len() != pieces.len() {
        return Err(refused(mismatch(format_args!("{} numbers", pieces.len()), said.len())));
    }
    let other = pieces
        .iter()
        .zip(said)
        .find(|(piece, said)| piece.start != **said);
    other.map_or(Ok(()), |(Piece { file, start, .. }, said)| {
        let name = &files.opened[*file].name;
        let expected = format_args!("{start} for `{name}`, where those before it end");
        Err(refused(mismatch(expected, said)))
    })
}

/// The names of the files.
fn names(root: &Path, split: Option<&Split>) -> Result<Vec<String>> {
    let there = |name: &str| root.join(name).exists();
    if there(WHOLE_NAME) && there(HALF_NAMES[0]) {
        let detail = format!("`{WHOLE_NAME}` and `{}`: keep the one that is meant", HALF_NAMES[0]);
        return Err(FormatError::file(root, detail));
    }
    let Some(split) = split else {
        let halves = !there(WHOLE_NAME) && there(HALF_NAMES[0]);
        let names = if halves { &HALF_NAMES[..] } else { &[WHOLE_NAME] };
        return Ok(names.iter().map(|name| (*name).to_owned()).collect());
    };
    let mut seen = BTreeSet::new();
    let mut names = split.chunk_files.iter().map(String::as_str);
    if let Some(name) = names.find(|name| !stays_inside(name) || !seen.insert(*name)) {
        let detail = mismatch("files in the folder, each once", format_args!("`{name}`"));
        return Err(FormatError::file(&root.join(LIST_NAME), detail.at("`chunk_files`")));
    }
    Ok(split.chunk_files.clone())
}

/// Where a listed tensor lies, behind one that ends at `before`.
fn place(pieces: &[Piece], listed: &Listed, before: u64) -> Result<StoredTensor, Refusal> {
    let Listed { offset, size: len, shape, dtype: label } = listed;
    let dtype = Dtype::parse(label).ok_or_else(|| unknown(label))?;
    let takes = byte_len(dtype, shape).ok_or_else(|| overflow(shape))?;
    if takes != *len {
        let expected = format_args!("size {takes}, as shape {shape:?} of {label} takes");
        return Err(mismatch(expected, len));
    }
    if *offset < before {
        let expected = format_args!("an offset of at least {before}, where the one before it ends");
        return Err(mismatch(expected, offset));
    }
    let end = offset.checked_add(*len).ok_or("its end leaves 64 bits")?;
    let piece = pieces.iter().rev().find(|piece| piece.start <= *offset);
    let Some(piece) = piece.filter(|piece| end <= piece.end) else {
        let last = piece.map_or(0, |piece| piece.end);
        let expected = format_args!("{len} bytes at {offset} in one file");
        return Err(mismatch(expected, format_args!("one that ends at {last}")));
    };
    let (file, offset, len, shape) = (piece.file, offset - piece.start, *len, shape.clone());
    Ok(StoredTensor { file, dtype, shape, offset, len })
}
