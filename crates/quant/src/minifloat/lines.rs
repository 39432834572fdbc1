//! Small floats as values, sixteen columns at a time, in whatever registers the CPU has: what [`crate::float8`] gives,
//! but for the sign of a zero of 4 bits, times their scale.

use crate::kernel::{LANES, Simd};

/// Small floats, 32 of them in `BYTES`.
pub trait Small<const BYTES: usize> {
    /// 32 columns, whose halves have a scale each.
    fn lines<S: Simd>(s: S, block: &[u8; BYTES], scales: [f32; 2]) -> [S::F; 2];
}

/// 4 bits.
pub struct E2m1;
/// 8 bits, `MANTISSA` of them behind the point: 3 for E4M3, 2 for E5M2.
pub struct Bytes<const MANTISSA: u32>;

impl Small<16> for E2m1 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 16], [low, high]: [f32; 2]) -> [S::F; 2] {
        let codes = s.load_i8(block);
        [s.scaled_e2m1(codes, low), s.scaled_e2m1(s.shr(codes, 4), high)]
    }
}

impl<const MANTISSA: u32> Small<32> for Bytes<MANTISSA> {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 32], scales: [f32; 2]) -> [S::F; 2] {
        let halves = block.as_chunks::<LANES>().0;
        let low = s.floats_of_bytes::<MANTISSA>(&halves[0]);
        let high = s.floats_of_bytes::<MANTISSA>(&halves[1]);
        [s.mul(low, s.splat(scales[0])), s.mul(high, s.splat(scales[1]))]
    }
}

#[cfg(test)]
mod tests {
    use crate::dtype::ScaleType;
    use crate::encoding::Encoding;
    use crate::float8::{f4_e2m1, f8_e4m3, f8_e5m2, f8_e8m0};
    use crate::kernel::Backend;
    use crate::matrix::Matrix;
    use crate::minifloat::{Element, Minifloat};

    const SCALE: f32 = 1.0 / 3.0;

    /// What every pattern of an element stands for on every backend, in groups of 32.
    fn all(element: Element, weight: &[u8], value: impl Fn(usize) -> f32) {
        let encoding = Minifloat::new(element, 32, ScaleType::F32).map(Encoding::Minifloat);
        let (encoding, cols) = (encoding.unwrap(), weight.len() * 8 / usize::from(element.bits()));
        let scales = SCALE.to_le_bytes().repeat(cols / 32);
        let bytes = [weight, &scales].concat();
        let matrix = Matrix::new(encoding, 1, cols, &bytes).unwrap();
        for backend in Backend::available() {
            let mut found = vec![0.0; cols];
            matrix.dequantize(backend, 0..1, &mut found);
            for (col, found) in found.into_iter().enumerate() {
                let expected = value(col) * SCALE;
                let equal = found == expected || found.is_nan() && expected.is_nan();
                assert!(equal, "{element:?} {col} on {}: {found} {expected}", backend.name());
            }
        }
    }

    #[test]
    fn every_power_is_what_its_byte_stands_for() {
        let bytes: Vec<u8> = (0..=255).collect();
        // 1.0 in E4M3, 32 of them to a power.
        let stored = [[0x38; 32 * 256].as_slice(), &bytes].concat();
        let encoding = Encoding::Minifloat(Minifloat::MXFP8);
        let matrix = Matrix::new(encoding, 1, 32 * 256, &stored).unwrap();
        for backend in Backend::available() {
            let mut found = vec![0.0; 32 * 256];
            matrix.dequantize(backend, 0..1, &mut found);
            for (col, found) in found.into_iter().enumerate() {
                let expected = f8_e8m0(bytes[col / 32]);
                let equal = found == expected || found.is_nan() && expected.is_nan();
                assert!(equal, "byte {} on {}: {found}", col / 32, backend.name());
            }
        }
    }

    #[test]
    fn every_pattern_is_what_it_stands_for() {
        let bytes: Vec<u8> = (0..=255).collect();
        all(Element::E4m3, &bytes, |col| f8_e4m3(col as u8));
        all(Element::E5m2, &bytes, |col| f8_e5m2(col as u8));
        // Codes 0 to 15 in the lower halves, 15 to 0 in the upper ones.
        let fours: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let code = |col: usize| if col < 16 { col as u8 } else { (31 - col) as u8 };
        all(Element::E2m1, &fours, |col| f4_e2m1(code(col)));
    }
}
