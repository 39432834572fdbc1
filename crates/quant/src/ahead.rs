//! Codes asked for before they are read.

use crate::kernel::Simd;

/// Matrix rows that a product with one row takes together, so that their sums overlap.
pub const ROWS: usize = 4;

/// How far ahead of the codes being read others are asked for, in bytes: a few hundred cycles of work. Rows
/// lie one after the other, but are read side by side, which the hardware's own reading ahead follows badly.
const AHEAD: usize = 4096;

/// Bytes that come with one request.
const CACHE_LINE: usize = 64;

/// Asks for `len` bytes from [`AHEAD`] bytes after `at` on, as far as there are any.
#[inline(always)]
pub fn ask<S: Simd>(s: S, bytes: &[u8], at: usize, len: usize) {
    let start = (at + AHEAD).min(bytes.len());
    for line in bytes[start..bytes.len().min(start + len)].chunks(CACHE_LINE) {
        s.prefetch(line.as_ptr());
    }
}
