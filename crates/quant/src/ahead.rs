//! Codes asked for before they are read.

use crate::kernel::Simd;

/// Matrix rows that a product with one row takes together, so that their sums overlap.
pub const ROWS: usize = 4;

/// How far ahead of the codes being read others are asked for, in bytes: a few hundred cycles of work. Rows
/// lie one after the other, but are read side by side, which the hardware's own reading ahead follows badly.
const AHEAD: usize = 4096;

/// The same of values that take so few operations that memory is what they wait for: they come into the second cache,
/// which has room for more requests at a time than the first.
const EARLY: usize = 16384;

/// Bytes that come with one request.
const CACHE_LINE: usize = 64;

/// Asks for `len` bytes from [`AHEAD`] bytes after `at` on, or [`EARLY`]. Behind the end of `bytes` nobody reads what
/// comes, if anything does: asking whether there are any would take longer.
#[inline(always)]
pub fn ask<S: Simd>(s: S, early: bool, bytes: &[u8], at: usize, len: usize) {
    for line in (at..at + len).step_by(CACHE_LINE) {
        if early {
            s.prefetch_second(bytes.as_ptr().wrapping_add(line + EARLY));
        } else {
            s.prefetch(bytes.as_ptr().wrapping_add(line + AHEAD));
        }
    }
}
