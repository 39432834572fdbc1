//! Rows of a matrix in trellis codes: as values, and times a vector.
//!
//! The definition is [`decode`](super::stream::decode)'s; here sixteen states are computed at once.
//! Values are taken as whole numbers, 128 times too large, and the scales make up for it: products
//! with powers of two are exact.

use std::ops::Range;

use half::bf16;

use super::rotate::{Line, rotate_back, signs};
use super::stream::{CENTER, MULTIPLIER, UNIT, stream_len};
use crate::activations::Rotated;
use crate::encoding::Trellis;
use crate::kernel::{LANES, Lines, Outputs, Simd, TILE_LINES, TILE_ROWS};
use crate::matrix::Matrix;

/// Rows of a tile, as a length.
const TILE: usize = Trellis::TILE_ROWS as usize;

/// Rows of a step.
const STEP: usize = Trellis::ROW_STEP as usize;

/// Lines of the longest block of the rotation.
const LINES: usize = Trellis::MAX_ROTATION as usize / LANES;

/// A part of a tile: where its streams begin, one after the other for each column.
struct Part<'a> {
    streams: &'a [u8],
    /// Bytes of one column's stream.
    stream: usize,
    /// Rows within the tile.
    rows: Range<usize>,
    /// The first of them in the matrix.
    first: usize,
}

/// The tiles that `rows` touch, in order.
fn parts<'a>(
    m: &Matrix<'a>,
    trellis: Trellis,
    rows: Range<usize>,
) -> impl Iterator<Item = Part<'a>> {
    let (cols, all, weight) = (m.cols(), m.rows(), m.weight());
    (rows.start / TILE..rows.end.div_ceil(TILE)).map(move |tile| {
        let start = tile * TILE;
        let stream = stream_len(trellis, TILE.min(all - start));
        // Tiles before this one are whole: each column takes TILE * bits / 8 bytes.
        let offset = tile * stream_len(trellis, TILE) * cols;
        let first = rows.start.max(start);
        Part {
            streams: &weight[offset..offset + stream * cols],
            stream,
            rows: first - start..rows.end.min(start + TILE) - start,
            first,
        }
    })
}

/// The scale of a row, `bf16`, in units of whole-numbered values.
#[inline(always)]
fn scale(m: &Matrix<'_>, row: usize) -> f32 {
    let bytes = m.scales();
    bf16::from_le_bytes([bytes[2 * row], bytes[2 * row + 1]]).to_f32() * UNIT
}

/// The whole-numbered values of sixteen states, the lowest bits of `windows`.
#[inline(always)]
fn values<S: Simd>(s: S, trellis: Trellis, windows: S::I) -> S::F {
    // The bits of 2^23 + n are those of 2^23 with n in the lowest.
    const WHOLE: f32 = 8_388_608.0;
    let mask = s.splat_bits((1 << trellis.state_bits()) - 1);
    let products = s.mul_bits(s.and(windows, mask), s.splat_bits(MULTIPLIER));
    let sums = s.add_byte_sums(s.splat_bits(WHOLE.to_bits()), products);
    s.sub(s.with_bits(sums), s.splat(WHOLE + CENTER))
}

/// The values of `rows`, row-major: `D · H · value`, whose sums are whole numbers below 2²⁴ and so
/// exact, times `scale / sqrt(block)`.
#[inline(always)]
pub fn dequantize<S: Simd>(
    s: S,
    m: &Matrix<'_>,
    trellis: Trellis,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let mut out = out;
    for part in parts(m, trellis, rows) {
        let (tile, rest) = out.split_at_mut(part.rows.len() * m.cols());
        out = rest;
        match trellis.bits() {
            2 => dequantize_part::<S, 2>(s, m, trellis, &part, tile),
            3 => dequantize_part::<S, 3>(s, m, trellis, &part, tile),
            _ => dequantize_part::<S, 4>(s, m, trellis, &part, tile),
        }
    }
}

/// As [`dequantize`], block by block of the rotation, so that its streams stay in the cache.
#[inline(always)]
fn dequantize_part<S: Simd, const BITS: usize>(
    s: S,
    m: &Matrix<'_>,
    trellis: Trellis,
    part: &Part<'_>,
    out: &mut [f32],
) {
    let (cols, block) = (m.cols(), Trellis::rotation(m.cols()));
    let root = 1.0 / (block as f32).sqrt();
    let mut lines = [[Line::ZERO; LINES]; STEP];
    for (i, streams) in part.streams.chunks_exact(block * part.stream).enumerate() {
        let signs: [Line; LINES] = signs(block * i);
        for step in part.rows.start / STEP..part.rows.end.div_ceil(STEP) {
            for (line, streams) in streams.chunks_exact(LANES * part.stream).enumerate() {
                eight_rows::<S, BITS>(s, trellis, streams, step, line, &mut lines);
            }
            for (row, lines) in (STEP * step..).zip(&mut lines) {
                if part.rows.contains(&row) {
                    let row = row - part.rows.start;
                    let factor = scale(m, part.first + row) * root;
                    let out = &mut out[row * cols + block * i..][..block];
                    rotate_back(s, &mut lines[..block / LANES], &signs, factor, out);
                }
            }
        }
    }
}

/// The values of the rows of a step in sixteen columns, to line `line` of each row.
#[inline(always)]
fn eight_rows<S: Simd, const BITS: usize>(
    s: S,
    trellis: Trellis,
    streams: &[u8],
    step: usize,
    line: usize,
    lines: &mut [[Line; LINES]; STEP],
) {
    // A word holds the states that begin in its first 17 bits.
    let words = [columns(s, streams, BITS * step), columns(s, streams, BITS * step + 2)];
    for (row, lines) in lines.iter_mut().enumerate() {
        let bit = BITS * row;
        let windows =
            if bit <= 16 { s.shr(words[0], bit as u32) } else { s.shr(words[1], bit as u32 - 16) };
        s.store(values(s, trellis, windows), &mut lines[line].0);
    }
}

/// The little-endian words at byte `at` of sixteen cyclic streams.
#[inline(always)]
fn columns<S: Simd>(s: S, streams: &[u8], at: usize) -> S::I {
    let len = streams.len() / LANES;
    let mut words = [0; LANES];
    for (word, stream) in words.iter_mut().zip(streams.chunks_exact(len)) {
        *word = match stream.get(at..at + 4) {
            Some(bytes) => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            None => u32::from_le_bytes(std::array::from_fn(|i| stream[(at + i) % len])),
        };
    }
    s.load_bits(&words)
}

/// `out[i] = scale · Σ value · x` for rotated `x`: columns in order within a block of the rotation,
/// then blocks in order.
#[inline(always)]
pub fn matvec<S: Simd>(
    s: S,
    m: &Matrix<'_>,
    trellis: Trellis,
    x: &[f32],
    rows: Range<usize>,
    out: &mut [f32],
) {
    let mut out = out;
    for part in parts(m, trellis, rows) {
        let (tile, rest) = out.split_at_mut(part.rows.len());
        out = rest;
        let mut sums = [[0.0; LANES]; TILE / LANES];
        match trellis.bits() {
            2 => products::<S, 2>(s, trellis, &part, x, &mut sums),
            3 => products::<S, 3>(s, trellis, &part, x, &mut sums),
            _ => products::<S, 4>(s, trellis, &part, x, &mut sums),
        }
        let sums = &sums.as_flattened()[part.rows.clone()];
        for (row, (out, sum)) in tile.iter_mut().zip(sums).enumerate() {
            *out = sum * scale(m, part.first + row);
        }
    }
}

/// Adds the products of a part's rows to the `sums` of its tile.
#[inline(always)]
fn products<S: Simd, const BITS: usize>(
    s: S,
    trellis: Trellis,
    part: &Part<'_>,
    x: &[f32],
    sums: &mut [[f32; LANES]; TILE / LANES],
) {
    let block = Trellis::rotation(x.len());
    let lines = part.rows.start / LANES..part.rows.end.div_ceil(LANES);
    for (x, streams) in x
        .chunks_exact(block)
        .zip(part.streams.chunks_exact(block * part.stream))
    {
        // Four lines of rows at a time share `x`, and their sums overlap.
        for first in lines.clone().step_by(TILE_LINES) {
            let sums = &mut sums[first..lines.end.min(first + TILE_LINES)];
            let mut acc = [s.splat(0.0); TILE_LINES];
            for (x, stream) in x.iter().zip(streams.chunks_exact(part.stream)) {
                let x = s.splat(*x);
                let lines = four_lines::<S, BITS>(s, trellis, stream, first);
                for (acc, w) in acc.iter_mut().zip(lines) {
                    *acc = s.mul_add(w, x, *acc);
                }
            }
            for (sums, acc) in sums.iter_mut().zip(s.natural_rows::<BITS>(acc)) {
                s.store(s.add(s.load(sums), acc), sums);
            }
        }
    }
}

/// Brings lines of rows from the order of [`Simd::four_windows`] into their own.
#[inline(always)]
fn natural_rows<S: Simd, const BITS: usize>(s: S, lines: &mut Lines<TILE_LINES>) {
    let [a, b, c, d] = &mut lines.0;
    let [e, f, g, h] = s.natural_rows::<BITS>([s.load(a), s.load(b), s.load(c), s.load(d)]);
    s.store(e, a);
    s.store(f, b);
    s.store(g, c);
    s.store(h, d);
}

/// The values of rows `16 first ..` of one column of a tile, four lines of them, in the order of
/// [`Simd::four_windows`].
#[inline(always)]
fn four_lines<S: Simd, const BITS: usize>(
    s: S,
    trellis: Trellis,
    stream: &[u8],
    first: usize,
) -> [S::F; TILE_LINES] {
    let (at, len) = (2 * BITS * first, 2 * BITS * TILE_LINES);
    // Behind the stream's last byte comes its first.
    let next = if at + len == stream.len() { 0 } else { at + len };
    let behind = stream.get(next..).and_then(|bytes| bytes.first_chunk());
    let [a, b, c, d] = if let (Some(codes), Some(behind)) = (stream.get(at..at + len), behind) {
        s.four_windows::<BITS>(codes, u64::from_le_bytes(*behind))
    } else {
        let byte = |i| stream[(at + i) % stream.len()];
        let codes: [u8; 2 * 4 * TILE_LINES] = std::array::from_fn(byte);
        let behind = std::array::from_fn(|i| byte(len + i));
        s.four_windows::<BITS>(&codes[..len], u64::from_le_bytes(behind))
    };
    [values(s, trellis, a), values(s, trellis, b), values(s, trellis, c), values(s, trellis, d)]
}

/// [`matvec`] with many rows of `x`: the same sums, of values that are decoded once.
#[inline(always)]
pub fn matmul<S: Simd>(
    s: S,
    m: &Matrix<'_>,
    trellis: Trellis,
    x: &Rotated,
    rows: Range<usize>,
    mut out: Outputs<'_>,
) {
    for t in 0..out.n() {
        out.row(t).fill(0.0);
    }
    let start = rows.start;
    for part in parts(m, trellis, rows) {
        match trellis.bits() {
            2 => many_products::<S, 2>(s, m, trellis, &part, x, (start, &mut out)),
            3 => many_products::<S, 3>(s, m, trellis, &part, x, (start, &mut out)),
            _ => many_products::<S, 4>(s, m, trellis, &part, x, (start, &mut out)),
        }
        let (first, count) = (part.first, part.rows.len());
        for t in 0..out.n() {
            let outs = &mut out.row(t)[first - start..][..count];
            for (row, out) in (first..).zip(outs) {
                *out *= scale(m, row);
            }
        }
    }
}

/// Adds the products of a tile to the outputs, whose first column is row `start` of the matrix.
#[inline(always)]
fn many_products<S: Simd, const BITS: usize>(
    s: S,
    m: &Matrix<'_>,
    trellis: Trellis,
    part: &Part<'_>,
    x: &Rotated,
    (start, out): (usize, &mut Outputs<'_>),
) {
    let (cols, block) = (m.cols(), Trellis::rotation(m.cols()));
    let mut lines = vec![Lines::<TILE_LINES>::ZERO; block];
    let step = LANES * TILE_LINES;
    for (b, streams) in part.streams.chunks_exact(block * part.stream).enumerate() {
        for group in part.rows.start / step..part.rows.end.div_ceil(step) {
            for (lines, stream) in lines.iter_mut().zip(streams.chunks_exact(part.stream)) {
                let values = four_lines::<S, BITS>(s, trellis, stream, TILE_LINES * group);
                for (line, values) in lines.0.iter_mut().zip(values) {
                    s.store(values, line);
                }
            }
            // Rows of these lines that are asked for, and where the first of them goes.
            let rows = part.rows.start.max(group * step)..part.rows.end.min((group + 1) * step);
            let (skip, to) = (rows.start - group * step, part.first + rows.start - part.rows.start);
            for (i, x) in x.panels(cols).enumerate() {
                let mut sums = [Lines::<TILE_LINES>::ZERO; TILE_ROWS];
                s.chains(&x[b * block..][..block], &lines, &mut sums);
                for (t, sums) in (TILE_ROWS * i..out.n()).zip(&mut sums) {
                    natural_rows::<S, BITS>(s, sums);
                    let outs = &mut out.row(t)[to - start..][..rows.len()];
                    for (out, sum) in outs.iter_mut().zip(&sums.0.as_flattened()[skip..]) {
                        *out += sum;
                    }
                }
            }
        }
    }
}
