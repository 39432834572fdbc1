//! Matrices of ours as blocks: which types hold every value of one exactly, and their bytes.

use std::ops::Range;

use half::f16;

use super::Ggml;
use crate::encoding::{Affine, Encoding, Float};
use crate::float::{narrow, widen};
use crate::kernel::Backend;
use crate::matrix::Matrix;
use crate::minifloat::Minifloat;
use crate::pack::unpack;

/// Values of the blocks that hold affine codes.
const BLOCK: usize = 32;

/// A group that no type holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unheld {
    /// Its row.
    pub row: usize,
    /// Its first column.
    pub col: usize,
    /// Its scale.
    pub scale: f32,
    /// Its bias.
    pub bias: f32,
}

impl Ggml {
    /// The types that may hold the values of a matrix in `encoding`, the smallest first: affine codes
    /// of up to 4 bits as such or about an integer zero, wider ones about a zero that leaves 8 bits
    /// with a sign; blocks as they are; small floats of MXFP4; floats in their own type or the widest.
    pub fn candidates(encoding: Encoding) -> Vec<Self> {
        let kinds: &[Self] = match encoding {
            Encoding::F32 => &[Self::F32],
            Encoding::F16 => &[Self::F16, Self::F32],
            Encoding::Bf16 => &[Self::Bf16, Self::F32],
            Encoding::Affine(affine) if affine.bits() <= 4 => &[Self::Q4_0, Self::Q4_1, Self::Q8_0],
            Encoding::Affine(_) => &[Self::Q8_0],
            Encoding::Ggml(blocks) => return vec![blocks.into()],
            Encoding::Minifloat(m) if m == Minifloat::MXFP4 => &[Self::Mxfp4],
            Encoding::Trellis(_) | Encoding::Minifloat(_) => &[],
        };
        kinds.to_vec()
    }

    /// Removes from `kinds`, some of the [`Self::candidates`] of a matrix, those that do not hold its
    /// `rows` exactly. Gives the group that removed the last.
    pub fn retain_exact(
        kinds: &mut Vec<Self>,
        matrix: &Matrix<'_>,
        rows: Range<usize>,
    ) -> Option<Unheld> {
        let Encoding::Affine(affine) = matrix.encoding() else { return None };
        let groups = matrix.cols() / affine.group_size();
        let first = rows.start * groups;
        for (at, (scale, bias)) in pairs(affine, matrix, rows).into_iter().enumerate() {
            kinds.retain(|kind| kind.holds(affine, scale, bias));
            if kinds.is_empty() {
                let (row, group) = ((first + at) / groups, (first + at) % groups);
                return Some(Unheld { row, col: group * affine.group_size(), scale, bias });
            }
        }
        None
    }

    /// Whether blocks of this type have the values `scale · q + bias` for every code `q`.
    fn holds(self, affine: Affine, scale: f32, bias: f32) -> bool {
        let max = i32::from(affine.max_code());
        let zero = affine.zero_code(scale, bias).map(i32::from);
        // Codes about their zero must fit between the least and the greatest of the type.
        let between = |least: i32, most: i32| zero.is_some_and(|z| least <= -z && max - z <= most);
        let held = match self {
            Self::Q4_0 => between(-8, 7),
            Self::Q4_1 => max < 16 && is_f16(bias),
            Self::Q8_0 => between(-128, 127),
            _ => false,
        };
        held && is_f16(scale)
    }

    /// Appends the blocks of `rows`, whose values this type holds.
    pub fn encode(self, matrix: &Matrix<'_>, rows: Range<usize>, out: &mut Vec<u8>) {
        match (self.float(), matrix.encoding()) {
            (None, Encoding::Affine(affine)) => self.encode_codes(affine, matrix, rows, out),
            (None, Encoding::Minifloat(_)) => {
                let codes = matrix.some_rows(matrix.weight(), rows.clone());
                let powers = matrix.some_rows(matrix.scales(), rows);
                for (codes, power) in codes.as_chunks::<16>().0.iter().zip(powers) {
                    out.push(*power);
                    out.extend(codes);
                }
            }
            (None, Encoding::Ggml(_)) => {
                out.extend_from_slice(matrix.some_rows(matrix.weight(), rows));
            }
            (float, _) => {
                let (dtype, start) = (float.unwrap_or(Float::F32), out.len());
                let mut values = vec![0.0; rows.len() * matrix.cols()];
                matrix.dequantize(Backend::detect(), rows, &mut values);
                out.resize(start + values.len() * dtype.size(), 0);
                narrow(dtype, &values, &mut out[start..]);
            }
        }
    }

    fn encode_codes(
        self,
        affine: Affine,
        matrix: &Matrix<'_>,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) {
        let row = matrix.cols() * usize::from(affine.bits()) / 8;
        let mut codes = vec![0; rows.len() * matrix.cols()];
        unpack(affine.bits(), &matrix.weight()[rows.start * row..rows.end * row], &mut codes);
        let groups = pairs(affine, matrix, rows).into_iter();
        for ((scale, bias), codes) in groups.zip(codes.chunks(affine.group_size())) {
            // A larger group is several blocks of the same scale.
            for codes in codes.as_chunks::<BLOCK>().0 {
                self.encode_block(affine, codes, (scale, bias), out);
            }
        }
    }

    fn encode_block(
        self,
        affine: Affine,
        codes: &[u8; BLOCK],
        (scale, bias): (f32, f32),
        out: &mut Vec<u8>,
    ) {
        let zero = affine.zero_code(scale, bias).map_or(0, i32::from);
        let about = |q: u8, middle: i32| (i32::from(q) - zero + middle) as u8;
        out.extend(f16::from_f32(scale).to_le_bytes());
        let halves = |out: &mut Vec<u8>, code: &dyn Fn(u8) -> u8| {
            out.extend((0..BLOCK / 2).map(|i| code(codes[i]) | code(codes[i + BLOCK / 2]) << 4));
        };
        match self {
            Self::Q4_0 => halves(out, &|q| about(q, 8)),
            Self::Q4_1 => {
                out.extend(f16::from_f32(bias).to_le_bytes());
                halves(out, &|q| q);
            }
            _ => out.extend(codes.map(|q| about(q, 0))),
        }
    }
}

/// Scale and bias of every group of `rows`.
fn pairs(affine: Affine, matrix: &Matrix<'_>, rows: Range<usize>) -> Vec<(f32, f32)> {
    let groups = matrix.cols() / affine.group_size();
    let [scales, biases] = [matrix.scales(), matrix.biases()].map(|part| {
        let mut values = vec![0.0; rows.len() * groups];
        widen(affine.scale_dtype(), matrix.some_rows(part, rows.clone()), &mut values);
        values
    });
    scales.into_iter().zip(biases).collect()
}

fn is_f16(value: f32) -> bool {
    value.is_finite() && f16::from_f32(value).to_f32() == value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Zeros;
    use crate::quantize::tests::{gaussian, kinds};
    use crate::quantize::{Job, Method, Objective, PartsMut, quantize};

    fn quantized(x: &[f32], cols: usize, affine: Affine, zeros: Zeros) -> Vec<u8> {
        let (rows, encoding) = (x.len() / cols, Encoding::Affine(affine));
        let total = encoding.parts(rows as u64, cols as u64).unwrap().total();
        let mut bytes = vec![0; total as usize];
        let out = PartsMut::split(encoding, rows, cols, &mut bytes).unwrap();
        let (backend, method, objective) = (Backend::detect(), Method::Search, Objective::Weights);
        quantize(&Job { backend, x, cols, encoding, method, zeros, objective }, out).unwrap();
        bytes
    }

    /// What a type holds is read back value for value, of all rows and of some.
    #[test]
    fn blocks_have_the_values_of_the_codes() {
        let cols = 256;
        let mut x = gaussian(cols * 7, 3);
        x.extend(kinds(cols).iter().map(|x| x * 0.1));
        for bits in Affine::BITS {
            for group in Affine::GROUP_SIZES {
                for (zeros, best) in [
                    (Zeros::Float, if bits <= 4 { Some(Ggml::Q4_1) } else { None }),
                    (Zeros::Integer, [None, Some(Ggml::Q4_0)][usize::from(bits < 4)]),
                    (Zeros::Symmetric, Some(if bits <= 4 { Ggml::Q4_0 } else { Ggml::Q8_0 })),
                ] {
                    let affine = Affine::new(bits, group, Float::F16).unwrap();
                    let encoding = Encoding::Affine(affine);
                    let bytes = quantized(&x, cols, affine, zeros);
                    let rows = x.len() / cols;
                    let matrix = Matrix::new(encoding, rows, cols, &bytes).unwrap();
                    let mut kinds = Ggml::candidates(encoding);
                    let unheld = Ggml::retain_exact(&mut kinds, &matrix, 0..rows);
                    assert_eq!(unheld.is_some(), kinds.is_empty());
                    if best.is_some() || zeros == Zeros::Float {
                        assert_eq!(kinds.first().copied(), best, "{affine:?} {zeros:?}");
                    }
                    for kind in kinds {
                        for some in [0..rows, 2..5] {
                            let mut blocks = Vec::new();
                            kind.encode(&matrix, some.clone(), &mut blocks);
                            let mut found = vec![0.0; some.len() * cols];
                            let mut expected = found.clone();
                            kind.decode(&blocks, &mut found);
                            matrix.dequantize(Backend::detect(), some, &mut expected);
                            assert_eq!(found, expected, "{affine:?} {zeros:?} {kind:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_half_precision_lacks_is_named() {
        let affine = Affine::new(4, 64, Float::Bf16).unwrap();
        let mut x = gaussian(64 * 20, 5);
        // Scales of bf16 below what f16 has.
        x[64 * 17..64 * 18].iter_mut().for_each(|x| *x *= 1e-9);
        let bytes = quantized(&x, 128, affine, Zeros::Float);
        let matrix = Matrix::new(Encoding::Affine(affine), 10, 128, &bytes).unwrap();
        let mut kinds = Ggml::candidates(matrix.encoding());
        let unheld = Ggml::retain_exact(&mut kinds, &matrix, 3..10).unwrap();
        assert_eq!((unheld.row, unheld.col), (8, 64));
    }
}
