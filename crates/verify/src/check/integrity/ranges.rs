//! Ranges of a file that is read in pieces.

/// The part of `start..end` that lies in `bytes`, which begin at `offset`.
pub(super) fn overlap(start: u64, end: u64, offset: u64, bytes: &[u8]) -> &[u8] {
    let clamp = |at: u64| at.saturating_sub(offset).min(bytes.len() as u64) as usize;
    &bytes[clamp(start)..clamp(end)]
}
