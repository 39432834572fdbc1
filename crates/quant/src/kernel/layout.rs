//! Where the codes of a 32-code block lie, for backends that shuffle bytes into lanes.
//!
//! A block is `4 * BITS` bytes. Each half (16 codes) is found in one 8-byte load (16 bytes for
//! 6 and 8 bits) that stays inside the block; a code touches at most two neighbouring bytes.

use super::LANES;

/// Tables for codes of `BITS` bits.
pub struct Layout<const BITS: usize>;

impl<const BITS: usize> Layout<BITS> {
    /// Whether a half needs a 16-byte load.
    pub const WIDE: bool = BITS > 4;

    /// Byte offset of each half's load.
    pub const OFFSET: [usize; 2] = [
        0,
        match BITS {
            2 => 0,
            3 => 4,
            8 => 16,
            _ => 8,
        },
    ];

    /// Per half and lane, four indices into the load: the code's two bytes, then two zeros (`128`).
    pub const SHUFFLE: [[u8; 4 * LANES]; 2] = [Self::shuffle(0), Self::shuffle(1)];

    /// Per half and lane, how far the two bytes are shifted right.
    pub const SHIFT: [[u32; LANES]; 2] = [Self::shift(0), Self::shift(1)];

    const fn shuffle(half: usize) -> [u8; 4 * LANES] {
        let mut table = [128; 4 * LANES];
        let mut lane = 0;
        while lane < LANES {
            let bit = BITS * (half * LANES + lane);
            let byte = (bit / 8 - Self::OFFSET[half]) as u8;
            table[4 * lane] = byte;
            if bit % 8 + BITS > 8 {
                table[4 * lane + 1] = byte + 1;
            }
            lane += 1;
        }
        table
    }

    const fn shift(half: usize) -> [u32; LANES] {
        let mut table = [0; LANES];
        let mut lane = 0;
        while lane < LANES {
            table[lane] = (BITS * (half * LANES + lane) % 8) as u32;
            lane += 1;
        }
        table
    }
}

/// Where [`Simd::windows`](super::Simd::windows) finds its words in the bytes of both it is given: those of
/// the second begin four bytes later in the stream, and count for four bits only.
pub struct Windows<const BITS: usize>;

impl<const BITS: usize> Windows<BITS> {
    /// Per lane, the indices of four bytes; zeros (`128`) where there are none.
    pub const SHUFFLE: [u8; 4 * LANES] = {
        let mut table = [128; 4 * LANES];
        let mut i = 0;
        while i < 4 * LANES {
            let byte = BITS * (i / 4) / 8 + i % 4;
            if byte < 8 {
                table[i] = byte as u8;
            } else if BITS == 4 && byte < 12 {
                table[i] = byte as u8 + 4;
            }
            i += 1;
        }
        table
    };
}
