//! Vectors as a KV cache keeps them: floats, or blocks of codes as ggml defines them.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::encoding::Float;
use crate::float::{F16, Stored, half, narrow, padded};
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::trellis::rotate::hadamard;

/// Values of a block.
pub const BLOCK: usize = 2 * LANES;

/// How a KV cache keeps values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// As computed.
    F32,
    /// 16 bits, of which eleven are precision.
    F16,
    /// 16 bits, of which eight are precision.
    Bf16,
    /// Blocks of 32 codes of 8 bits and a scale in `f16`.
    Q8_0,
    /// Blocks of 32 codes of 4 bits and a scale in `f16`.
    Q4_0,
}

impl CacheType {
    /// Every type, the largest first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// The name in options and reports: `f32`, `f16`, `bf16`, `q8_0`, `q4_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Bytes of a block.
    const fn block_len(self) -> usize {
        match self {
            Self::F32 => 4 * BLOCK,
            Self::F16 | Self::Bf16 => 2 * BLOCK,
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_0 => 2 + BLOCK / 2,
        }
    }

    /// The type of floats, where it is one; the others have blocks.
    const fn float(self) -> Option<Float> {
        match self {
            Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            Self::Q8_0 | Self::Q4_0 => None,
        }
    }
}

/// Where the values of a vector lie: first those of its type, behind them the rest in `f16`. Types with
/// blocks have a rest where the length is no multiple of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorLayout {
    dtype: CacheType,
    /// Values of the type; with blocks a multiple of 32.
    main: usize,
    /// Values in `f16` behind them.
    rest: usize,
}

impl VectorLayout {
    /// For `len` values, of which the last `apart` are not for blocks.
    ///
    /// # Panics
    /// When there are more apart than in all.
    pub const fn new(dtype: CacheType, len: usize, apart: usize) -> Self {
        if dtype.float().is_none() {
            let main = (len - apart) / BLOCK * BLOCK;
            return Self { dtype, main, rest: len - main };
        }
        Self { dtype, main: len, rest: 0 }
    }

    /// The type of all but the rest.
    pub const fn dtype(self) -> CacheType {
        self.dtype
    }

    /// Values.
    #[allow(clippy::len_without_is_empty)] // vectors of no values are of no use
    pub const fn len(self) -> usize {
        self.main + self.rest
    }

    /// Bytes.
    pub const fn byte_len(self) -> usize {
        self.main_bytes() + 2 * self.rest
    }

    /// Bytes of the floats that [`attend`](crate::attend) makes of such vectors, 32 positions at a time.
    pub const fn decoded_byte_len(self) -> usize {
        if self.dtype.float().is_some() { 0 } else { 32 * 4 * self.len() }
    }

    /// Values before the rest.
    #[cfg(test)]
    pub(crate) const fn main(self) -> usize {
        self.main
    }

    /// Bytes before the rest.
    pub(crate) const fn main_bytes(self) -> usize {
        // Half a block of floats is as good as a whole one.
        self.main * self.dtype.block_len() / BLOCK
    }

    /// Rounds `x` to `out`: floats to nearest, blocks as gguf-py does (`gguf/quants.py`), to the bit. A
    /// block with a value that is not finite has no value that is.
    ///
    /// # Panics
    /// When the lengths are not those of the layout.
    pub fn write(self, x: &[f32], out: &mut [u8]) {
        let (main, rest) = x.split_at(self.main);
        let (out, end) = out.split_at_mut(self.main_bytes());
        match self.dtype {
            CacheType::F32 => narrow(Float::F32, main, out),
            CacheType::F16 => narrow(Float::F16, main, out),
            CacheType::Bf16 => narrow(Float::Bf16, main, out),
            CacheType::Q8_0 => blocks(main, out, write_q8_0),
            CacheType::Q4_0 => blocks(main, out, write_q4_0),
        }
        narrow(Float::F16, rest, end);
    }

    /// Spreads what is large in a vector over all that goes into blocks, before it is written: an
    /// orthonormal Hadamard transform. Products of two vectors stay what they were when both are rotated; a
    /// second rotation takes the first back. Floats are left as they are.
    pub fn rotate(self, x: &mut [f32]) {
        if self.dtype.float().is_none() && self.main > 0 {
            hadamard(&mut x[..self.main], 1 << self.main.trailing_zeros());
        }
    }
}

/// Vectors of one layout, `stride` bytes apart.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// How a vector lies.
    pub layout: VectorLayout,
    /// From the first vector on.
    pub bytes: &'a [u8],
    /// Bytes from one to the next.
    pub stride: usize,
}

impl Kept<'_> {
    /// Whether the two are the same vectors.
    pub(crate) fn is(&self, other: &Kept<'_>) -> bool {
        let same = |a: &[u8], b: &[u8]| std::ptr::eq(a, b);
        self.layout == other.layout && same(self.bytes, other.bytes) && self.stride == other.stride
    }
}

/// The bytes of a vector.
#[inline(always)]
pub fn vector(kept: Kept<'_>, row: usize) -> &[u8] {
    &kept.bytes[row * kept.stride..][..kept.layout.byte_len()]
}

/// Each block of `x` with `write`.
fn blocks<const SIZE: usize>(x: &[f32], out: &mut [u8], write: fn(&[f32; BLOCK], &mut [u8; SIZE])) {
    let out = out.as_chunks_mut().0;
    for (x, out) in x.as_chunks().0.iter().zip(out) {
        write(x, out);
    }
}

/// A scale and its inverse. Where a value of the block is not finite, the scale is not either.
fn scale(x: &[f32; BLOCK], scale: f32) -> ([u8; 2], f32) {
    let finite = x.iter().all(|x| x.is_finite());
    let kept = f16::from_f32(if finite { scale } else { f32::NAN });
    (kept.to_le_bytes(), if scale == 0.0 { 0.0 } else { 1.0 / scale })
}

fn write_q8_0(x: &[f32; BLOCK], out: &mut [u8; 34]) {
    let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let (kept, inverse) = scale(x, most / 127.0);
    let (d, codes) = out.split_at_mut(2);
    d.copy_from_slice(&kept);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (libm::roundf(x * inverse) as i8).cast_unsigned();
    }
}

fn write_q4_0(x: &[f32; BLOCK], out: &mut [u8; 18]) {
    // The first of the largest, with its sign: it becomes code 0, which is -8.
    let larger = |most: f32, x: &f32| if x.abs() > most.abs() { *x } else { most };
    let (kept, inverse) = scale(x, x.iter().fold(x[0], larger) / -8.0);
    let (d, codes) = out.split_at_mut(2);
    d.copy_from_slice(&kept);
    let (low, high) = x.split_at(BLOCK / 2);
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    for (codes, (low, high)) in codes.iter_mut().zip(low.iter().zip(high)) {
        *codes = code(*low) | code(*high) << 4;
    }
}

/// Vectors of floats, `stride` bytes apart.
#[derive(Clone, Copy)]
pub struct Floats<'a> {
    /// Their type.
    pub dtype: Float,
    bytes: &'a [u8],
    stride: usize,
    /// Bytes of a vector.
    len: usize,
}

impl<'a> Floats<'a> {
    /// The bytes of a vector.
    #[inline(always)]
    pub fn vector(self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.len]
    }
}

/// Makes floats of some vectors at a time, where they are blocks.
pub struct Decoder<'a> {
    kept: Kept<'a>,
    /// In `f32`.
    bytes: Vec<u8>,
    /// Which vectors they are: the first, the second, …
    rows: Vec<usize>,
}

impl<'a> Decoder<'a> {
    /// For some of these vectors.
    #[inline(always)]
    pub const fn new(kept: Kept<'a>) -> Self {
        Self { kept, bytes: Vec::new(), rows: Vec::new() }
    }

    /// Vectors `rows`, and their numbers in what is given.
    pub fn decode<'b>(
        &'b mut self,
        backend: Backend,
        rows: &'b [usize],
    ) -> (Floats<'b>, &'b [usize]) {
        let Kept { layout, bytes, stride } = self.kept;
        if let Some(dtype) = layout.dtype.float() {
            return (Floats { dtype, bytes, stride, len: layout.byte_len() }, rows);
        }
        let stride = 4 * layout.len();
        self.bytes.resize(rows.len() * stride, 0);
        backend.run(Decode { kept: self.kept, rows, out: &mut self.bytes });
        self.rows.clear();
        self.rows.extend(0..rows.len());
        (Floats { dtype: Float::F32, bytes: &self.bytes, stride, len: stride }, &self.rows)
    }
}

/// Writes the values of `rows` of vectors of blocks one after the other, in `f32`.
struct Decode<'a> {
    kept: Kept<'a>,
    rows: &'a [usize],
    out: &'a mut [u8],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kept, rows, out } = self;
        let layout = kept.layout;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(4 * layout.len())) {
            let (main, rest) = vector(kept, *row).split_at(layout.main_bytes());
            let (out, last) = out.split_at_mut(4 * layout.main);
            match layout.dtype {
                CacheType::Q8_0 => decode_q8_0(s, main, out),
                _ => decode_q4_0(s, main, out),
            }
            for (values, out) in rest.chunks(2 * LANES).zip(last.chunks_mut(4 * LANES)) {
                put(s, F16::load(s, &padded(values)), out);
            }
        }
    }
}

/// 1.5 · 2²³: a whole number below 2²² in its bits is added to it.
const WHOLE: f32 = 12_582_912.0;

#[inline(always)]
fn decode_q8_0<S: Simd>(s: S, blocks: &[u8], out: &mut [u8]) {
    let whole = s.splat_bits(WHOLE.to_bits());
    let blocks = blocks.as_chunks::<{ 2 + BLOCK }>().0;
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(4 * BLOCK)) {
        let d = half([block[0], block[1]]);
        // `(WHOLE + q) · d - WHOLE · d` is `q · d`, rounded once, and that is exact: 8 bits times 11.
        let (scale, less) = (s.splat(d), s.splat(-WHOLE * d));
        let codes = block[2..].as_chunks::<LANES>().0;
        for (codes, out) in codes.iter().zip(out.chunks_exact_mut(4 * LANES)) {
            let shifted = s.with_bits(s.add_bits(s.load_i8(codes), whole));
            put(s, s.mul_add(shifted, scale, less), out);
        }
    }
}

#[inline(always)]
fn decode_q4_0<S: Simd>(s: S, blocks: &[u8], out: &mut [u8]) {
    let (sixteen, fraction) = (s.splat_bits(16f32.to_bits()), s.splat_bits(15 << 19));
    let blocks = blocks.as_chunks::<{ 2 + BLOCK / 2 }>().0;
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(4 * BLOCK)) {
        let d = half([block[0], block[1]]);
        // A code in the highest bits of the fraction of 16 is added to it: `(16 + q) · d - 24 · d` is
        // `(q - 8) · d`, exactly.
        let (scale, less) = (s.splat(d), s.splat(-24.0 * d));
        let codes = s.load_i8(block.last_chunk().unwrap_or(&[0; LANES]));
        let (low, high) = out.split_at_mut(4 * LANES);
        for (shift, out) in [(19, low), (15, high)] {
            let value = s.or(s.and(s.shl(codes, shift), fraction), sixteen);
            put(s, s.mul_add(s.with_bits(value), scale, less), out);
        }
    }
}

/// The first lanes, as many as `out` takes.
#[inline(always)]
fn put<S: Simd>(s: S, v: S::F, out: &mut [u8]) {
    let mut line = [0.0; LANES];
    s.store(v, &mut line);
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(line) {
        *out = value.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_no_block_is_kept_in_sixteen_bits() {
        let sizes = |dtype, len, apart| {
            let layout = VectorLayout::new(dtype, len, apart);
            (layout.main, layout.rest, layout.byte_len())
        };
        assert_eq!(sizes(CacheType::Q8_0, 128, 0), (128, 0, 4 * 34));
        assert_eq!(sizes(CacheType::Q4_0, 80, 0), (64, 16, 2 * 18 + 32));
        assert_eq!(sizes(CacheType::Q8_0, 16, 0), (0, 16, 32));
        assert_eq!(sizes(CacheType::Q8_0, 576, 64), (512, 64, 16 * 34 + 128));
        assert_eq!(sizes(CacheType::F32, 576, 64), (576, 0, 4 * 576));
        assert_eq!(sizes(CacheType::Bf16, 21, 0), (21, 0, 42));
    }

    #[test]
    fn a_block_with_a_value_that_is_not_finite_has_none_that_is() {
        for dtype in [CacheType::Q8_0, CacheType::Q4_0] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let mut x = [1.0; BLOCK];
                x[17] = bad;
                let layout = VectorLayout::new(dtype, BLOCK, 0);
                let mut bytes = vec![0; layout.byte_len()];
                layout.write(&x, &mut bytes);
                assert!(!half([bytes[0], bytes[1]]).is_finite(), "{dtype:?} {bad}");
            }
        }
    }

    #[test]
    fn rotated_twice_is_as_before_and_spread_in_between() {
        let mut x = [0.0; 176];
        x[5] = 8.0;
        let layout = VectorLayout::new(CacheType::Q4_0, 176, 0);
        layout.rotate(&mut x);
        let largest = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        assert_eq!(largest, 8.0 / 32f32.sqrt(), "160 values in rotations of 32");
        layout.rotate(&mut x);
        assert!((x[5] - 8.0).abs() < 1e-6);
        let mut same = x;
        VectorLayout::new(CacheType::F16, 176, 0).rotate(&mut same);
        assert_eq!(same, x);
    }
}
