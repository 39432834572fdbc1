//! Codes as a bit stream: LSB first, continuous, in little-endian words.
//!
//! Code `i` occupies bits `i · bits .. (i + 1) · bits` of the stream; bit `k` of the stream is bit
//! `k % 8` of byte `k / 8`. This is MLX's layout: 3-bit codes lie eight in three bytes, 6-bit codes
//! four in three, and 2-, 4- and 8-bit codes never leave their byte.

/// Codes in one unit: eight codes fill `bits` whole bytes.
const UNIT: usize = 8;

/// Packs `codes`, each below `2^bits`, into `out`.
///
/// # Panics
/// When `bits` is not 1 to 8, `codes` is not a multiple of 8 long, or `out` does not hold exactly
/// `codes.len() / 8 * bits` bytes.
pub fn pack(bits: u8, codes: &[u8], out: &mut [u8]) {
    check(bits, codes.len(), out.len());
    for (codes, out) in codes
        .chunks_exact(UNIT)
        .zip(out.chunks_exact_mut(bits as usize))
    {
        let stream = codes
            .iter()
            .rev()
            .fold(0u64, |s, &code| s << bits | u64::from(code));
        out.copy_from_slice(&stream.to_le_bytes()[..bits as usize]);
    }
}

/// Unpacks `bytes` into one code per byte of `out`.
///
/// # Panics
/// As [`pack`].
pub fn unpack(bits: u8, bytes: &[u8], out: &mut [u8]) {
    check(bits, out.len(), bytes.len());
    let mask = u8::MAX >> (8 - bits);
    for (codes, bytes) in out
        .chunks_exact_mut(UNIT)
        .zip(bytes.chunks_exact(bits as usize))
    {
        let stream = bytes
            .iter()
            .rev()
            .fold(0u64, |s, &byte| s << 8 | u64::from(byte));
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (stream >> (i * bits as usize)) as u8 & mask;
        }
    }
}

fn check(bits: u8, codes: usize, bytes: usize) {
    assert!((1..=8).contains(&bits), "bits: expected 1 to 8, found {bits}");
    assert_eq!(codes % UNIT, 0, "codes come in units of {UNIT}");
    assert_eq!(bytes, codes / UNIT * bits as usize, "bytes of {codes} codes of {bits} bits");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_bits_lie_eight_in_three_bytes() {
        let mut out = [0; 3];
        pack(3, &[1, 2, 3, 4, 5, 6, 7, 0], &mut out);
        // From the right: 001, 010, then 011 across the first two bytes.
        assert_eq!(out, [0b1101_0001, 0b0101_1000, 0b0001_1111]);
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(
            bits in prop::sample::select(vec![2u8, 3, 4, 6, 8]),
            codes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let codes: Vec<u8> = codes.iter().flat_map(|c| [c & (u8::MAX >> (8 - bits)); 8]).collect();
            let mut bytes = vec![0; codes.len() / 8 * bits as usize];
            pack(bits, &codes, &mut bytes);
            let mut back = vec![0; codes.len()];
            unpack(bits, &bytes, &mut back);
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn pack_inverts_unpack(
            bits in prop::sample::select(vec![2u8, 3, 4, 6, 8]),
            seed in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = seed.repeat(bits as usize);
            let mut codes = vec![0; seed.len() * 8];
            unpack(bits, &bytes, &mut codes);
            let mut back = vec![0; bytes.len()];
            pack(bits, &codes, &mut back);
            prop_assert_eq!(back, bytes);
        }
    }
}
