//! Floats of 8 bits and fewer, widened: exact.

/// `E4M3` of the OCP 8-bit floating point specification: bias 7, no infinities, `S.1111.111` is NaN.
pub fn f8_e4m3(byte: u8) -> f32 {
    match byte & 0x7f {
        0x7f => f32::NAN,
        _ => small(byte, 3, 7),
    }
}

/// `E5M2` of the same: as IEEE 754, bias 15, infinities and NaNs.
pub fn f8_e5m2(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    match byte & 0x7f {
        0x7c => sign * f32::INFINITY,
        0x7d..=0x7f => f32::NAN,
        _ => small(byte, 2, 15),
    }
}

/// `E8M0` of the OCP microscaling specification: `2^(byte - 127)`, 255 is NaN.
pub fn f8_e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The byte of a power of two from 2^-127 to 2^127, which [`f8_e8m0`] gives; of NaN and infinity 255.
pub const fn to_e8m0(power: f32) -> u8 {
    (power.to_bits() >> 23) as u8
}

/// `E2M1` of the same: the low four bits.
pub fn f4_e2m1(code: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// A finite value of sign, exponent and `mantissa` bits, subnormal where the exponent is zero.
fn small(byte: u8, mantissa: u32, bias: i32) -> f32 {
    let exponent = i32::from(byte & 0x7f) >> mantissa;
    let fraction = f32::from(byte & ((1 << mantissa) - 1));
    let (fraction, exponent) = match exponent {
        0 => (fraction, 1),
        _ => (fraction + (1 << mantissa) as f32, exponent),
    };
    let power = 127 + exponent - bias - mantissa.cast_signed();
    let value = fraction * f32::from_bits((power as u32) << 23);
    if byte & 0x80 == 0 { value } else { -value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_ends_and_between() {
        assert_eq!(f8_e4m3(0x7e), 448.0);
        assert_eq!(f8_e4m3(0x01), 1.0 / 512.0);
        assert_eq!(f8_e4m3(0x88), -1.0 / 64.0);
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
        assert_eq!(f8_e5m2(0x7b), 57344.0);
        assert_eq!(f8_e5m2(0x01), 1.0 / 65536.0);
        assert_eq!(f8_e5m2(0xfc), f32::NEG_INFINITY);
        assert!(f8_e5m2(0x7d).is_nan());
        assert_eq!(f8_e8m0(0).to_bits(), 1 << 22, "2^-127 is subnormal");
        assert_eq!((f8_e8m0(127), f8_e8m0(254)), (1.0, 2.0_f32.powi(127)));
        let back = |byte: u8| to_e8m0(f8_e8m0(byte)) == byte;
        assert!((0..=255).all(back), "every byte is made again");
        assert_eq!((f4_e2m1(7), f4_e2m1(0xf1)), (6.0, 0.5));
        assert_eq!(f4_e2m1(8).to_bits(), (-0.0_f32).to_bits());
    }
}
