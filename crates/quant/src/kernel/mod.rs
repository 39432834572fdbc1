//! Sixteen lanes of `f32` on every CPU, and the choice between CPUs.
//!
//! Algorithms are written once, generic over [`Simd`], and handed to [`Backend::run`] as a
//! [`Kernel`]. Every operation here is exact or rounds once as IEEE 754 says, so all backends
//! agree bit for bit; [`scalar`] is the definition.
//!
//! This module is the only unsafe code of the project, a few calls to the allocator (`heap`) included. A value of a backend's type is proof that
//! its instructions exist: only `run` makes one, after asking the CPU.

#![allow(unsafe_code)]
// A backend's file is a list of intrinsics; methods take the proof even where only callees use it.
#![allow(clippy::wildcard_imports, clippy::unused_self)]

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bytes;
mod heap;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod outputs;
mod scalar;
#[cfg(test)]
pub mod tests;

pub use heap::{return_free_pages, return_freed_memory};
pub use outputs::Outputs;

/// Lanes of every backend. A row of sixteen columns is one step of a dot product.
pub const LANES: usize = 16;

/// Where number `lane` of sixteen values `[16 / rows, rows]` lies once they are transposed, `[rows, 16 / rows]`.
pub const fn transposed(rows: usize, lane: usize) -> usize {
    lane % rows * (LANES / rows) + lane / rows
}

/// Sixteen values side by side.
pub type Line = [f32; LANES];

/// A line of each of `N` rows: what a step of a register tile reads. It begins with a cache line, for a
/// line that lies across two takes two reads.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lines<const N: usize>(pub [Line; N]);

impl<const N: usize> Lines<N> {
    /// Zeros.
    pub const ZERO: Self = Self([[0.0; LANES]; N]);

    /// `P` lines from `first` on, which are there. A count that the compiler does not know would keep a loop over them
    /// from its registers.
    #[inline(always)]
    fn part<const P: usize>(&self, first: usize) -> &[Line; P] {
        const { assert!(P <= N) };
        self.0[first.min(N - P)..].first_chunk().unwrap()
    }
}

/// Rows whose values a register tile takes one by one, each for all lanes.
pub const TILE_ROWS: usize = 6;

/// Lines of outputs in a register tile. Six times four sums, four lines and one value fill 29 of AVX-512's 32
/// registers: ten loads serve 24 multiply-adds.
pub const TILE_LINES: usize = 4;

/// The sums of a register tile: `[i][j]` is line `j` of the outputs of row `i`.
pub type Tile = [Lines<TILE_LINES>; TILE_ROWS];

/// The column of sixteen whose products each pass of a register tile adds up. Its inverse is itself: the bits of
/// one number are those of the other, reversed. So what [`Simd::sum`] adds comes one after the other.
pub const PASSES: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// Sums that wait for others while passes follow each other, and the last one.
pub type Waiting = [Tile; LANES.ilog2() as usize + 1];

/// No sums.
pub const NOTHING: Waiting = [[Lines::ZERO; TILE_ROWS]; LANES.ilog2() as usize + 1];

/// Which instructions the kernels use. The choice changes speed, never results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Plain Rust: the definition of every result.
    Scalar,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VBMI and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The vector unit of every 64-bit Arm core.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// A backend that this CPU does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected one of {known}, found `{0}`", name = Backend::VARIABLE, known = Backend::names())]
pub struct BackendError(String);

impl Backend {
    /// All backends of this architecture, slowest first.
    const ALL: &[Self] = &[
        Self::Scalar,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
    ];

    /// The environment variable that names a backend to use in place of the fastest: to test that
    /// results are the same.
    pub const VARIABLE: &str = "SHARDWRIGHT_BACKEND";

    /// The backend that [`Self::VARIABLE`] names, else the fastest of this CPU. The variable is read once.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Backend> = OnceLock::new();
        *DETECTED.get_or_init(|| match Self::chosen() {
            Ok(Some(backend)) => backend,
            _ => Self::available().pop().unwrap_or(Self::Scalar),
        })
    }

    /// The backend that [`Self::VARIABLE`] names, if it is set.
    ///
    /// # Errors
    /// The variable names no backend of this CPU.
    pub fn chosen() -> Result<Option<Self>, BackendError> {
        let Some(found) = std::env::var_os(Self::VARIABLE) else { return Ok(None) };
        let named = Self::available().into_iter().find(|b| found == b.name());
        let error = || BackendError(found.to_string_lossy().into_owned());
        named.map(Some).ok_or_else(error)
    }

    /// Every backend of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL
            .iter()
            .copied()
            .filter(|b| b.is_available())
            .collect()
    }

    /// The lower-case name used in reports: `scalar`, `avx2`, `avx512`, `neon`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
        }
    }

    /// The names of this CPU's backends, slowest first.
    fn names() -> String {
        let names: Vec<_> = Self::available().into_iter().map(Self::name).collect();
        names.join(", ")
    }

    fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::is_available(),
        }
    }

    /// Runs `kernel` with this backend's instructions.
    ///
    /// # Panics
    /// When the CPU lacks them: take backends from [`Self::detect`] or [`Self::available`].
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar => kernel.run(scalar::Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::run(kernel),
        }
    }
}

/// An algorithm over [`LANES`] lanes.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// The algorithm. Implementations and all they call are `#[inline(always)]`: only then does
    /// the compiler know the backend's instructions while it compiles them. So operations of [`Simd`] are
    /// called in loops, not in closures: those given to the standard library are functions of their own,
    /// in which each instruction would become a call.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// [`Simd::windows`] of one line after the other.
#[inline(always)]
fn each_windows<S: Simd, const BITS: usize>(s: S, codes: &[u8], behind: u64) -> [S::I; TILE_LINES] {
    let word = |at: usize| {
        codes[at..]
            .first_chunk()
            .copied()
            .map_or(0, u64::from_le_bytes)
    };
    let words = |line: usize| {
        let at = 2 * BITS * line;
        [word(at), if BITS == 4 { word(at + 4) } else { 0 }]
    };
    // Windows of the last line end behind its codes, which are the upper bits of their last word.
    let (last, own) = (word(8 * BITS - 8), 16 * BITS as u32);
    let last = match BITS {
        4 => [last, last >> 32 | behind << 32],
        _ => [last >> (64 - own) | behind << own, 0],
    };
    // No loop over lines: it would begin with lines of zeros.
    [
        s.windows::<BITS>(words(0)),
        s.windows::<BITS>(words(1)),
        s.windows::<BITS>(words(2)),
        s.windows::<BITS>(last),
    ]
}

/// What the codes of E2M1 stand for: `f4_e2m1`, but for the zero with a sign.
const E2M1: [f32; LANES] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice that and 128, whole numbers without a sign.
const TWICE_E2M1_AND_128: [u8; LANES] = {
    let (mut out, mut code) = ([0; LANES], 0);
    while code < LANES {
        out[code] = (2.0 * E2M1[code] + 128.0) as u8;
        code += 1;
    }
    out
};

/// Sixteen lanes. `F` holds `f32`, `I` holds `u32`.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `u32`.
    type I: Copy;

    /// Lines of a register tile at a time: as many as leave their sums in registers.
    const LINES_AT_ONCE: usize;

    /// Asks for the memory at `at`, which will be read soon. It reads nothing, so any address will do.
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }

    /// As [`Self::prefetch`], into the second cache.
    #[inline(always)]
    fn prefetch_second(self, at: *const u8) {
        let _ = at;
    }

    /// The same value in all lanes.
    fn splat(self, v: f32) -> Self::F;
    /// Lane `l` is `v[l]`.
    fn load(self, v: &[f32; LANES]) -> Self::F;
    /// `out[l]` is lane `l`.
    fn store(self, v: Self::F, out: &mut [f32; LANES]);
    /// Sixteen little-endian `f32`.
    fn load_f32(self, v: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian `f16`, widened.
    fn load_f16(self, v: &[u8; 32]) -> Self::F;
    /// Sixteen little-endian `bf16`, widened.
    fn load_bf16(self, v: &[u8; 32]) -> Self::F;
    /// Sixteen signed bytes, widened.
    fn load_i8(self, v: &[u8; LANES]) -> Self::I;
    /// 64 bytes, four in a lane, the first lowest: operations on lanes whose results are masked are operations on bytes.
    fn load_bytes(self, first: &[u8; 32], second: &[u8; 32]) -> Self::I;
    /// The inverse of [`Self::load_bytes`].
    fn store_bytes(self, v: Self::I, first: &mut [u8; 32], second: &mut [u8; 32]);
    /// Byte by byte what `table` has for it: bytes below 16.
    fn look_up(self, table: &[u8; 16], v: Self::I) -> Self::I;
    /// The 32 codes of a block of `BLOCK = 4 * BITS` bytes, first sixteen first.
    fn codes<const BITS: usize, const BLOCK: usize>(self, block: &[u8; BLOCK]) -> [Self::F; 2];

    /// What [`Self::decode`] needs to know of a group.
    #[inline(always)]
    fn grid<const BITS: usize>(self, scale: f32, bias: f32) -> [Self::F; 2] {
        [self.splat(scale), self.splat(bias)]
    }
    /// [`Self::grid`] of codes of 4 bits about 8.
    #[inline(always)]
    fn grid_about_eight(self, scale: f32) -> [Self::F; 2] {
        self.grid::<4>(scale, -8.0 * scale)
    }
    /// The 32 values `scale · code + bias` of a block, each rounded once, in the order of
    /// [`Self::arrange`].
    #[inline(always)]
    fn decode<const BITS: usize, const BLOCK: usize>(
        self,
        block: &[u8; BLOCK],
        [scale, bias]: [Self::F; 2],
    ) -> [Self::F; 2] {
        let [a, b] = self.codes::<BITS, BLOCK>(block);
        [self.mul_add(scale, a, bias), self.mul_add(scale, b, bias)]
    }
    /// Sixteen columns in the order in which this backend decodes codes of `BITS` bits: a backend may
    /// choose one that saves it a shuffle, as long as activations are brought into the same order.
    #[inline(always)]
    fn arrange<const BITS: usize>(self, v: Self::F) -> Self::F {
        v
    }
    /// The inverse of [`Self::arrange`].
    #[inline(always)]
    fn natural<const BITS: usize>(self, v: Self::F) -> Self::F {
        v
    }

    /// The values `scale · code + bias` of codes of four bits, each rounded once: of the lower halves of sixteen
    /// bytes by one [`Self::grid`], of the upper by another.
    #[inline(always)]
    fn nibbles(self, bytes: &[u8; LANES], low: [Self::F; 2], high: [Self::F; 2]) -> [Self::F; 2] {
        let (bytes, fifteen) = (self.load_i8(bytes), self.splat_bits(15));
        let lower = self.floats(self.and(bytes, fifteen));
        let upper = self.floats(self.and(self.shr(bytes, 4), fifteen));
        [self.mul_add(low[0], lower, low[1]), self.mul_add(high[0], upper, high[1])]
    }
    /// Floats of 8 bits, `MANTISSA` of them behind the point: 3 for E4M3, 2 for E5M2.
    #[inline(always)]
    fn floats_of_bytes<const MANTISSA: u32>(self, bytes: &[u8; LANES]) -> Self::F {
        bytes::floats_of_bytes::<Self, MANTISSA>(self, bytes)
    }
    /// Floats of four bits, the lowest of each lane, times `scale`, each rounded once; a zero with a sign is one
    /// without.
    #[inline(always)]
    fn scaled_e2m1(self, codes: Self::I, scale: f32) -> Self::F {
        let twice = self.look_up(&TWICE_E2M1_AND_128, self.and(codes, self.splat_bits(15)));
        // One and a half times 2^22: the last bit of such floats counts halves.
        let bits = self.and(twice, self.splat_bits(255));
        let bits = self.add_bits(bits, self.splat_bits(0x4ac0_0000));
        let value = self.sub(self.with_bits(bits), self.splat(6_291_456.0 + 64.0));
        self.mul(value, self.splat(scale))
    }
    /// Whole numbers with a sign, below 2^22, as floats.
    #[inline(always)]
    fn floats(self, v: Self::I) -> Self::F {
        // One and a half times 2^23: the last bit of such floats counts ones.
        let bits = self.add_bits(v, self.splat_bits(0x4b40_0000));
        self.sub(self.with_bits(bits), self.splat(12_582_912.0))
    }

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` when either is NaN or both are zero.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` when either is NaN or both are zero.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`.
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;

    /// Lane `l` is lane `l ^ D` of `v`, `D` a power of two below [`LANES`].
    fn swap<const D: usize>(self, v: Self::F) -> Self::F;

    /// Of two lines that are `D` apart, what a transposition exchanges: lanes `l` of `a` with `l & D` set, for lanes
    /// `l ^ D` of `b`.
    fn exchange<const D: usize>(self, a: Self::F, b: Self::F) -> [Self::F; 2];

    /// The same value in all lanes.
    fn splat_bits(self, v: u32) -> Self::I;
    /// Lane `l` is `v[l]`.
    fn load_bits(self, v: &[u32; LANES]) -> Self::I;
    /// The sixteen lowest bits of lane `l` are those of a stream from bit `BITS · l` on, `BITS` 2 to 4; what
    /// is above them means nothing. Given are the stream's bits from 0 and from 32 on.
    fn windows<const BITS: usize>(self, words: [u64; 2]) -> Self::I;
    /// [`Self::windows`] of four lines of rows, of their codes and the eight bytes behind these; in any order that
    /// [`Self::natural_rows`] undoes.
    #[inline(always)]
    fn four_windows<const BITS: usize>(self, codes: &[u8], behind: u64) -> [Self::I; TILE_LINES] {
        each_windows::<Self, BITS>(self, codes, behind)
    }
    /// Rows in the order of [`Self::four_windows`], brought into their own.
    #[inline(always)]
    fn natural_rows<const BITS: usize>(
        self,
        lines: [Self::F; TILE_LINES],
    ) -> [Self::F; TILE_LINES] {
        lines
    }
    /// `out[l]` is lane `l`.
    fn store_bits(self, v: Self::I, out: &mut [u32; LANES]);
    /// Lane `l` is `v[l % N]`, `N` 1, 2 or 4.
    fn repeat<const N: usize>(self, v: &[f32; N]) -> Self::F;
    /// Lane `l` is lane [`transposed`]`(16 / N, l)` of `v`, `N` 1, 2 or 4: what lay `N` lanes apart comes to lie side
    /// by side.
    fn regroup<const N: usize>(self, v: Self::F) -> Self::F;
    /// The bits of each `f32`.
    fn to_bits(self, v: Self::F) -> Self::I;
    /// The `f32` of these bits.
    fn with_bits(self, v: Self::I) -> Self::F;
    /// `a + b`, wrapping.
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn sub_bits(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a · b`, wrapping.
    fn mul_bits(self, a: Self::I, b: Self::I) -> Self::I;
    /// `sum` and the four bytes of each lane of `v`, wrapping.
    fn add_byte_sums(self, sum: Self::I, v: Self::I) -> Self::I;
    /// `a & b`.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << n`, `n < 32`.
    fn shl(self, a: Self::I, n: u32) -> Self::I;
    /// `a >> n`, `n < 32`.
    fn shr(self, a: Self::I, n: u32) -> Self::I;

    /// [`Self::sum`] of each of four.
    #[inline(always)]
    fn sum_four(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }

    /// A register tile whose lanes are outputs: `sums[i][j] += Σ x[k][i] · w[k][j]`, each lane one
    /// chain of fused multiply-adds in the order of `k`.
    #[inline(always)]
    fn chains(self, x: &[[f32; TILE_ROWS]], w: &[Lines<TILE_LINES>], sums: &mut Tile) {
        match Self::LINES_AT_ONCE {
            1 => self.chains_by::<1>(x, w, sums),
            _ => self.chains_by::<TILE_LINES>(x, w, sums),
        }
    }

    /// [`Self::chains`], `N` lines of outputs at a time. `N` divides [`TILE_LINES`].
    #[inline(always)]
    fn chains_by<const N: usize>(
        self,
        x: &[[f32; TILE_ROWS]],
        w: &[Lines<TILE_LINES>],
        sums: &mut Tile,
    ) {
        for first in (0..TILE_LINES).step_by(N) {
            let mut acc = [[self.splat(0.0); N]; TILE_ROWS];
            for (acc, sums) in acc.iter_mut().zip(&*sums) {
                for (acc, sum) in acc.iter_mut().zip(sums.part::<N>(first)) {
                    *acc = self.load(sum);
                }
            }
            let acc = self.tile(x, w, first, acc);
            for (acc, sums) in acc.iter().zip(&mut *sums) {
                for (acc, sum) in acc.iter().zip(&mut sums.0[first..]) {
                    self.store(*acc, sum);
                }
            }
        }
    }

    /// Pass `pass` of a product: [`Self::chains`] of the columns that it is for, of `lines` lines. Passes come in
    /// order. After the last one the end of `waiting` is [`Self::sum`] of the sixteen chains of each output.
    #[inline(always)]
    fn pass(
        self,
        x: &[[f32; TILE_ROWS]],
        w: &[Lines<TILE_LINES>],
        (pass, lines): (usize, usize),
        waiting: &mut Waiting,
    ) {
        // Few lines are not padded to four.
        match lines.min(Self::LINES_AT_ONCE) {
            1 => self.pass_by::<1>(x, w, (pass, lines), waiting),
            2 => self.pass_by::<2>(x, w, (pass, lines), waiting),
            _ => self.pass_by::<TILE_LINES>(x, w, (pass, lines), waiting),
        }
    }

    /// [`Self::pass`], `N` lines of outputs at a time.
    #[inline(always)]
    fn pass_by<const N: usize>(
        self,
        x: &[[f32; TILE_ROWS]],
        w: &[Lines<TILE_LINES>],
        (pass, lines): (usize, usize),
        waiting: &mut Waiting,
    ) {
        // As a binary counter carries: each sum waits for the one of as many passes that follows it.
        let (before, later) = waiting.split_at_mut(pass.trailing_ones() as usize);
        for first in (0..TILE_LINES).step_by(N) {
            if first >= lines {
                break;
            }
            let mut acc = self.tile(x, w, first, [[self.splat(0.0); N]; TILE_ROWS]);
            for before in &*before {
                for (acc, before) in acc.iter_mut().zip(before) {
                    for (acc, before) in acc.iter_mut().zip(before.part::<N>(first)) {
                        *acc = self.add(self.load(before), *acc);
                    }
                }
            }
            for (acc, sums) in acc.iter().zip(&mut later[0]) {
                for (acc, sum) in acc.iter().zip(&mut sums.0[first..]) {
                    self.store(*acc, sum);
                }
            }
        }
    }

    /// `acc[i][j] + Σ x[k][i] · w[k][first + j]`, in registers.
    #[inline(always)]
    fn tile<const N: usize>(
        self,
        x: &[[f32; TILE_ROWS]],
        w: &[Lines<TILE_LINES>],
        first: usize,
        mut acc: [[Self::F; N]; TILE_ROWS],
    ) -> [[Self::F; N]; TILE_ROWS] {
        for (x, w) in x.iter().zip(w) {
            let mut lines = [self.splat(0.0); N];
            for (line, w) in lines.iter_mut().zip(w.part::<N>(first)) {
                *line = self.load(w);
            }
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = self.splat(*x);
                for (acc, line) in acc.iter_mut().zip(lines) {
                    *acc = self.mul_add(line, x, *acc);
                }
            }
        }
        acc
    }

    /// Lane `l` of line `i` becomes lane `i` of line `l`.
    #[inline(always)]
    fn transpose(self, lines: &mut [Self::F; LANES]) {
        self.exchange_all::<8>(lines);
        self.exchange_all::<4>(lines);
        self.exchange_all::<2>(lines);
        self.exchange_all::<1>(lines);
    }

    /// [`Self::exchange`] of all lines that are `D` apart.
    #[inline(always)]
    fn exchange_all<const D: usize>(self, lines: &mut [Self::F; LANES]) {
        for i in 0..LANES {
            if i & D == 0 {
                [lines[i], lines[i + D]] = self.exchange::<D>(lines[i], lines[i + D]);
            }
        }
    }

    /// The sum of all lanes: halves are added, 16 to 8 to 4 to 2 to 1.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let v = self.add(v, self.swap::<8>(v));
        let v = self.add(v, self.swap::<4>(v));
        let v = self.add(v, self.swap::<2>(v));
        let v = self.add(v, self.swap::<1>(v));
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes[0]
    }
}
