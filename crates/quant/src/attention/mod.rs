//! Attention of one position over the keys and values that are kept of those before it.

use std::ops::Range;

mod spans;

pub use spans::{Part, SPANS, Span, spans};

use crate::encoding::Float;
use crate::exp::exp;
use crate::float::{Bf16, F16, F32, Stored, padded};
use crate::kept::{Decoder, Floats, Kept};
use crate::kernel::{Backend, Kernel, LANES, Line, Simd};

/// Positions whose scores become weights together.
const BLOCK: usize = 2 * LANES;

/// Scores of a block, then its weights.
type Block = [[f32; LANES]; 2];

/// Heads of one position that share keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries, `[heads, key_dim]`.
    pub q: &'a [f32],
    /// How many heads.
    pub heads: usize,
    /// Keys: that of position `p` is vector `p % capacity`.
    pub keys: Kept<'a>,
    /// Values, likewise; of longer vectors the first are taken.
    pub values: Kept<'a>,
    /// Keys, and values.
    pub capacity: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scaled scores `s` become `cap · tanh(s / cap)`.
    pub cap: Option<f32>,
    /// Per head one more score, of no value.
    pub sinks: Option<&'a [f32]>,
}

/// `out = softmax(scale · q · keysᵀ) · values` over `positions`, `[heads, value_dim]`.
///
/// Positions are taken in [`spans`], and those of a span in blocks of 32 from its first. A block's scores
/// are dot products as [`dot`](fn@crate::dot) gives them; its weights are exponentials of the scores less
/// the highest so far, to 2e-7 of their value; they are added as sixteen lanes, and their values in the
/// order of the positions. What was added before fades when a higher score comes. Spans are joined in
/// their order in the same way. So the result depends on the query and the positions alone. Blocks of
/// codes are decoded once for all heads.
///
/// # Panics
/// When the shapes do not fit.
pub fn attend(
    backend: Backend,
    attention: Attention<'_>,
    positions: Range<usize>,
    out: &mut [f32],
) {
    let width = out.len() / attention.heads;
    assert!(out.len().is_multiple_of(attention.heads), "{} values of all heads", out.len());
    let mut parts = spans(attention, positions).map(|span| span.attend(backend, width));
    if let Some(mut all) = parts.next() {
        parts.for_each(|part| all.join(backend, &part));
        all.finish(out);
    }
}

/// Adds what `positions` give to a part, a block after the other. Up to four heads share the loads of keys and values.
fn attend_heads(backend: Backend, a: &Attention<'_>, positions: Range<usize>, part: &mut Part) {
    let Part { values: out, seen } = part;
    let width = out.len() / a.heads;
    let (mut keys, mut values) = (Decoder::new(a.keys), Decoder::new(a.values));
    let mut rows = [0; BLOCK];
    for start in positions.clone().step_by(BLOCK) {
        let count = BLOCK.min(positions.end - start);
        // Only where the ring begins anew is a division needed again: one for each would cost as much as its score.
        for (row, at) in rows[..count].iter_mut().zip(start % a.capacity..) {
            *row = if at < a.capacity { at } else { at % a.capacity };
        }
        let (keys, key_rows) = keys.decode(backend, &rows[..count]);
        let (values, value_rows) = if a.values.is(&a.keys) {
            (keys, key_rows)
        } else {
            values.decode(backend, &rows[..count])
        };
        let block = &Positions { keys, key_rows, values, value_rows };
        let heads = seen.chunks_mut(4).zip(out.chunks_mut(4 * width));
        for (first, (seen, out)) in (0..).step_by(4).zip(heads) {
            match seen.len() {
                1 => backend.run(SomeHeads::<1> { a, first, block, seen, out }),
                2 => backend.run(SomeHeads::<2> { a, first, block, seen, out }),
                3 => backend.run(SomeHeads::<3> { a, first, block, seen, out }),
                _ => backend.run(SomeHeads::<4> { a, first, block, seen, out }),
            }
        }
    }
}

/// Where the softmax of a head stands.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The highest score so far.
    highest: f32,
    /// The sum of all weights so far.
    sum: f32,
}

/// `e^x` as the weights of positions are.
#[inline(always)]
fn power<S: Simd>(s: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    s.store(exp(s, s.splat(x)), &mut lanes);
    lanes[0]
}

/// Floats of the positions of a block, and which vectors they are.
struct Positions<'a> {
    keys: Floats<'a>,
    key_rows: &'a [usize],
    values: Floats<'a>,
    value_rows: &'a [usize],
}

/// A block of positions taken into heads `first..first + H`: `seen` and `out` are theirs. Each number of heads is a
/// kernel of its own, for all that one calls is compiled into one function, and the time that takes grows faster than
/// what is in it.
struct SomeHeads<'a, const H: usize> {
    a: &'a Attention<'a>,
    first: usize,
    block: &'a Positions<'a>,
    seen: &'a mut [Seen],
    /// `[H, value_dim]`.
    out: &'a mut [f32],
}

impl<const H: usize> Kernel for SomeHeads<'_, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, first, block, seen, out } = self;
        let (dim, width) = (a.q.len() / a.heads, out.len() / H);
        let q: [&[f32]; H] = std::array::from_fn(|h| &a.q[(first + h) * dim..][..dim]);
        let mut weights: [Block; H] = [[[0.0; LANES]; 2]; H];
        let (keys, rows) = (block.keys, block.key_rows);
        match keys.dtype {
            Float::F32 => scores::<S, F32, H, _>(s, keys, q, rows, a.scale, &mut weights),
            Float::F16 => scores::<S, F16, H, _>(s, keys, q, rows, a.scale, &mut weights),
            Float::Bf16 => scores::<S, Bf16, H, _>(s, keys, q, rows, a.scale, &mut weights),
        }
        if let Some(cap) = a.cap {
            for scores in &mut weights {
                for score in &mut scores.as_flattened_mut()[..rows.len()] {
                    *score = cap * libm::tanhf(*score / cap);
                }
            }
        }
        // After each block `out` is the sum of e^(score - highest) · value over the positions so far, and
        // `sum` that of the weights alone. A higher score makes all that was added before smaller by one
        // factor, so no power is above 1.
        for h in 0..H {
            let (out, seen) = (&mut out[h * width..(h + 1) * width], &mut seen[h]);
            let top = seen.highest.max(maximum(s, &weights[h]));
            if top > seen.highest {
                let fade = power(s, seen.highest - top);
                seen.sum *= fade;
                for out in out {
                    *out *= fade;
                }
                seen.highest = top;
            }
            let [low, high] = &mut weights[h];
            let top = s.splat(top);
            let a = exp(s, s.sub(s.load(low), top));
            let b = exp(s, s.sub(s.load(high), top));
            s.store(a, low);
            s.store(b, high);
            seen.sum += s.sum(s.add(a, b));
        }
        let (values, rows) = (block.values, block.value_rows);
        match values.dtype {
            Float::F32 => mix::<S, F32, H, _>(s, values, &weights, rows, out),
            Float::F16 => mix::<S, F16, H, _>(s, values, &weights, rows, out),
            Float::Bf16 => mix::<S, Bf16, H, _>(s, values, &weights, rows, out),
        }
    }
}

/// Scores of the keys in `rows`; minus infinity, whose weight is 0, behind them.
#[inline(always)]
fn scores<S: Simd, T: Stored<SIZE>, const H: usize, const SIZE: usize>(
    s: S,
    kept: Floats<'_>,
    q: [&[f32]; H],
    rows: &[usize],
    scale: f32,
    out: &mut [Block; H],
) {
    for out in out.iter_mut() {
        out.as_flattened_mut()[rows.len()..].fill(f32::NEG_INFINITY);
    }
    let q = q.map(|q| q.as_chunks::<LANES>());
    // Four keys at a time share the loads of queries, and their lanes are added up together.
    let (fours, rest) = rows.as_chunks::<4>();
    for (i, four) in fours.iter().enumerate() {
        let keys = four.map(|row| kept.vector(row));
        let acc = products::<S, T, H, 4, SIZE>(s, q, keys);
        for h in 0..H {
            let sums = s.sum_four(acc[h]).map(|sum| sum * scale);
            out[h].as_flattened_mut()[4 * i..4 * i + 4].copy_from_slice(&sums);
        }
    }
    for (i, row) in (4 * fours.len()..).zip(rest) {
        let acc = products::<S, T, H, 1, SIZE>(s, q, [kept.vector(*row)]);
        for h in 0..H {
            out[h].as_flattened_mut()[i] = s.sum(acc[h][0]) * scale;
        }
    }
}

/// The lanes of the dot products of `H` queries with `N` keys, each in the order of a product alone.
#[inline(always)]
fn products<S: Simd, T: Stored<SIZE>, const H: usize, const N: usize, const SIZE: usize>(
    s: S,
    q: [(&[Line], &[f32]); H],
    keys: [&[u8]; N],
) -> [[S::F; N]; H] {
    let (mut acc, count) = ([[s.splat(0.0); N]; H], q[0].0.len());
    // One length for all, so that the loop asks nothing: questions would take as long as the products.
    let queries = q.map(|(lines, _)| &lines[..count]);
    let whole: [&[[u8; SIZE]]; N] = keys.map(|key| &key.as_chunks().0[..count]);
    for at in 0..count {
        let mut lines = [s.splat(0.0); N];
        for j in 0..N {
            lines[j] = T::load(s, &whole[j][at]);
        }
        for h in 0..H {
            let query = s.load(&queries[h][at]);
            for j in 0..N {
                acc[h][j] = s.mul_add(query, lines[j], acc[h][j]);
            }
        }
    }
    if !q[0].1.is_empty() {
        for j in 0..N {
            let last = load_line::<S, T, SIZE>(s, &keys[j][SIZE * count..]);
            for h in 0..H {
                acc[h][j] = s.mul_add(s.load(&padded(q[h].1)), last, acc[h][j]);
            }
        }
    }
    acc
}

/// The highest of a block's scores.
#[inline(always)]
fn maximum<S: Simd>(s: S, [low, high]: &Block) -> f32 {
    let mut top = s.max(s.load(low), s.load(high));
    top = s.max(top, s.swap::<8>(top));
    top = s.max(top, s.swap::<4>(top));
    top = s.max(top, s.swap::<2>(top));
    top = s.max(top, s.swap::<1>(top));
    let mut lanes = [0.0; LANES];
    s.store(top, &mut lanes);
    lanes[0]
}

/// `out += weights · values` for the values in `rows`, sixteen columns at a time.
#[inline(always)]
fn mix<S: Simd, T: Stored<SIZE>, const H: usize, const SIZE: usize>(
    s: S,
    kept: Floats<'_>,
    weights: &[Block; H],
    rows: &[usize],
    out: &mut [f32],
) {
    let width = out.len() / H;
    // Four lines of columns share a weight, and their sums overlap; what is left goes line by line.
    let whole = width / (4 * LANES) * (4 * LANES);
    for col in (0..whole).step_by(4 * LANES) {
        mix_lines::<S, T, H, 4, SIZE>(s, kept, weights, rows, col, out);
    }
    for col in (whole..width).step_by(LANES) {
        mix_lines::<S, T, H, 1, SIZE>(s, kept, weights, rows, col, out);
    }
}

/// [`mix`] for `N` lines of columns from `col` on, the last of which may end early.
#[inline(always)]
fn mix_lines<S: Simd, T: Stored<SIZE>, const H: usize, const N: usize, const SIZE: usize>(
    s: S,
    kept: Floats<'_>,
    weights: &[Block; H],
    rows: &[usize],
    col: usize,
    out: &mut [f32],
) {
    let width = out.len() / H;
    let end = width.min(col + N * LANES);
    let mut acc = [[s.splat(0.0); N]; H];
    for h in 0..H {
        for n in 0..N {
            acc[h][n] = s.load(&line(&out[h * width..][col + n * LANES..end]));
        }
    }
    for (i, row) in rows.iter().enumerate() {
        let values = &kept.vector(*row)[col / LANES * SIZE..end * (SIZE / LANES)];
        let mut lines = [s.splat(0.0); N];
        match values.as_chunks().0.first_chunk::<N>() {
            Some(whole) => {
                for n in 0..N {
                    lines[n] = T::load(s, &whole[n]);
                }
            }
            // One line, for of several all are whole.
            None => lines[0] = T::load(s, &padded(values)),
        }
        for h in 0..H {
            let weight = s.splat(weights[h].as_flattened()[i]);
            for n in 0..N {
                acc[h][n] = s.mul_add(weight, lines[n], acc[h][n]);
            }
        }
    }
    for h in 0..H {
        for n in 0..N {
            let out = &mut out[h * width..][col + n * LANES..end];
            if let Some(out) = out.first_chunk_mut() {
                s.store(acc[h][n], out);
            } else {
                let mut line = [0.0; LANES];
                s.store(acc[h][n], &mut line);
                out.copy_from_slice(&line[..out.len()]);
            }
        }
    }
}

/// Up to sixteen values of a stored type, zeros behind them.
#[inline(always)]
fn load_line<S: Simd, T: Stored<SIZE>, const SIZE: usize>(s: S, bytes: &[u8]) -> S::F {
    match bytes.first_chunk() {
        Some(line) => T::load(s, line),
        None => T::load(s, &padded(bytes)),
    }
}

/// Up to sixteen values, zeros behind them.
#[inline(always)]
fn line(values: &[f32]) -> [f32; LANES] {
    match values.first_chunk() {
        Some(line) => *line,
        None => padded(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::{CacheType, VectorLayout, vector};
    use crate::{Float, Ggml, widen};

    /// Numbers between -2 and 2.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Bytes between two vectors.
    const GAP: usize = 6;

    /// `count` vectors of a layout, with a gap behind each.
    fn written(layout: VectorLayout, count: usize, seed: u32) -> Vec<u8> {
        let mut bytes = vec![0xff; count * (layout.byte_len() + GAP)];
        let x = numbers(count * layout.len(), seed);
        let vectors = bytes.chunks_exact_mut(layout.byte_len() + GAP);
        for (x, bytes) in x.chunks_exact(layout.len()).zip(vectors) {
            layout.write(x, &mut bytes[..layout.byte_len()]);
        }
        bytes
    }

    /// The values of a vector, decoded as files of ggml are.
    fn values(kept: Kept<'_>, row: usize) -> Vec<f32> {
        let (layout, mut out) = (kept.layout, vec![0.0; kept.layout.len()]);
        let (main, rest) = vector(kept, row).split_at(layout.main_bytes());
        let (x, last) = out.split_at_mut(layout.main());
        match layout.dtype() {
            CacheType::F32 => widen(Float::F32, main, x),
            CacheType::F16 => widen(Float::F16, main, x),
            CacheType::Bf16 => widen(Float::Bf16, main, x),
            CacheType::Q8_0 => Ggml::Q8_0.decode(main, x),
            CacheType::Q4_0 => Ggml::Q4_0.decode(main, x),
        }
        widen(Float::F16, rest, last);
        out
    }

    /// As the definition of attention reads, in f64.
    fn reference(a: &Attention<'_>, positions: Range<usize>, width: usize) -> Vec<f64> {
        let dim = a.q.len() / a.heads;
        let mut out = Vec::new();
        let [keys, values] = [a.keys, a.values].map(|kept| {
            let rows = positions.clone().map(|p| values(kept, p % a.capacity));
            rows.collect::<Vec<_>>()
        });
        for (h, q) in a.q.chunks_exact(dim).enumerate() {
            let score = |key: &Vec<f32>| {
                let products = q.iter().zip(key);
                products
                    .map(|(q, k)| f64::from(*q) * f64::from(*k))
                    .sum::<f64>()
                    * f64::from(a.scale)
            };
            let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let sink = a.sinks.map_or(0.0, |sinks| f64::from(sinks[h]).exp());
            let sum = weights.iter().sum::<f64>() + sink;
            out.extend((0..width).map(|col| {
                let values = values.iter().map(|row| f64::from(row[col]));
                values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum
            }));
        }
        out
    }

    #[test]
    fn attention_is_what_its_formula_says_on_every_backend() {
        let capacity = 70;
        for (heads, dim, width, count) in
            [(1, 16, 16, 1), (3, 64, 64, 100), (4, 20, 9, 33), (7, 48, 32, 64), (9, 8, 8, 31)]
        {
            let (q, sinks) = (numbers(heads * dim, 3), numbers(heads, 4));
            for (k, key) in CacheType::ALL.into_iter().enumerate() {
                let value = CacheType::ALL[(2 * k + 3) % 5];
                let layouts =
                    [VectorLayout::new(key, dim, 0), VectorLayout::new(value, width + 2, 2)];
                let [keys, values] =
                    [written(layouts[0], capacity, 1), written(layouts[1], capacity, 2)];
                let kept = |i: usize, bytes| {
                    let layout: VectorLayout = layouts[i];
                    Kept { layout, bytes, stride: layout.byte_len() + GAP }
                };
                for sinks in [None, Some(&sinks[..])] {
                    let a = Attention {
                        q: &q,
                        heads,
                        keys: kept(0, &keys),
                        values: kept(1, &values),
                        capacity,
                        scale: 0.3,
                        cap: None,
                        sinks,
                    };
                    agrees(a, 5..5 + count.min(capacity), width);
                }
            }
        }
    }

    #[test]
    fn a_long_context_is_what_the_formula_says_too() {
        for (count, dtype, parts) in
            [(256, CacheType::F16, 1), (300, CacheType::F32, 2), (4_500, CacheType::Q8_0, SPANS)]
        {
            let layout = VectorLayout::new(dtype, 32, 0);
            let [keys, values] = [1, 2].map(|seed| written(layout, count, seed));
            let kept = |bytes| Kept { layout, bytes, stride: layout.byte_len() + GAP };
            let (q, sinks) = (numbers(3 * 32, 3), numbers(3, 4));
            let a = Attention {
                q: &q,
                heads: 3,
                keys: kept(&keys),
                values: kept(&values),
                capacity: count,
                scale: 0.3,
                cap: None,
                sinks: Some(&sinks),
            };
            assert_eq!(spans(a, 7..7 + count).count(), parts);
            agrees(a, 7..7 + count, 32);
        }
    }

    #[test]
    fn latents_are_keys_and_begin_with_values() {
        for dtype in CacheType::ALL {
            for (latent, rope) in [(96, 16), (48, 16), (512, 64)] {
                let layout = VectorLayout::new(dtype, latent + rope, rope);
                let bytes = written(layout, 40, 7);
                let kept = Kept { layout, bytes: &bytes, stride: layout.byte_len() + GAP };
                let q = numbers(2 * (latent + rope), 8);
                let (keys, values, sinks) = (kept, kept, None);
                let a = Attention {
                    q: &q,
                    heads: 2,
                    keys,
                    values,
                    capacity: 40,
                    scale: 0.05,
                    cap: None,
                    sinks,
                };
                agrees(a, 3..41, latent);
            }
        }
    }

    /// Holds the attention to its formula, and all backends to one result.
    #[track_caller]
    fn agrees(a: Attention<'_>, positions: Range<usize>, width: usize) {
        let expected = reference(&a, positions.clone(), width);
        let run = |backend| {
            let mut out = vec![f32::NAN; a.heads * width];
            attend(backend, a, positions.clone(), &mut out);
            out
        };
        let scalar = run(Backend::Scalar);
        let what = || format!("{:?} {:?} of {width}", a.keys.layout, a.values.layout);
        for (found, expected) in scalar.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 3e-6, "{}", what());
        }
        for backend in Backend::available() {
            assert_eq!(run(backend), scalar, "{backend:?}: {}", what());
        }
    }
}
