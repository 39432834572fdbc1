//! Blocks written: what [`super::Ggml::decode`] reads.

use half::f16;

use crate::blocks::Blocks;

/// A block before it is packed.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its codes, as many as the block has columns.
    pub codes: [u8; 256],
    /// The number of each group that the scale is multiplied with.
    pub factors: [i16; 16],
    /// The number of each group that the least value's scale is multiplied with.
    pub least: [u8; 16],
    /// The scale, which half precision holds.
    pub scale: f32,
    /// The scale of least values, which are subtracted; likewise.
    pub down: f32,
}

impl Block {
    /// Of zeros.
    pub const ZERO: Self =
        Self { codes: [0; 256], factors: [0; 16], least: [0; 16], scale: 0.0, down: 0.0 };

    /// Writes the block, as long as the type's are.
    pub fn store(&self, blocks: Blocks, out: &mut [u8]) {
        let mut to = Writer { out, at: 0 };
        let (scale, down) = (self.scale, self.down);
        let codes = &self.codes;
        match blocks {
            Blocks::Q4_0 | Blocks::Iq4Nl => to.half(scale).put(nibbles(codes)),
            Blocks::Q4_1 => to.half(scale).half(-down).put(nibbles(codes)),
            Blocks::Q5_0 => to.half(scale).put(fifths(codes)).put(nibbles(codes)),
            Blocks::Q5_1 => to
                .half(scale)
                .half(-down)
                .put(fifths(codes))
                .put(nibbles(codes)),
            Blocks::Q8_0 => to
                .half(scale)
                .put(std::array::from_fn::<_, 32, _>(|i| codes[i].wrapping_sub(128))),
            Blocks::Q2K => {
                let scales: [u8; 16] =
                    std::array::from_fn(|g| self.factors[g] as u8 | self.least[g] << 4);
                to.put(scales).put(pairs(codes, 0)).half(scale).half(down)
            }
            Blocks::Q3K => to
                .put(third_bits(codes))
                .put(pairs(codes, 0))
                .put(self.signed_sixes())
                .half(scale),
            Blocks::Q4K => to
                .half(scale)
                .half(down)
                .put(self.sixes())
                .put(fours(codes)),
            Blocks::Q5K => {
                let high: [u8; 32] = std::array::from_fn(|i| {
                    (0..8).fold(0, |high, g| high | (codes[g * 32 + i] >> 4) << g)
                });
                to.half(scale)
                    .half(down)
                    .put(self.sixes())
                    .put(high)
                    .put(fours(codes))
            }
            Blocks::Q6K => {
                let low: [u8; 128] = std::array::from_fn(|at| {
                    let i = at / 64 * 128 + at % 64;
                    codes[i] & 15 | (codes[i + 64] & 15) << 4
                });
                let scales: [u8; 16] = std::array::from_fn(|g| self.factors[g] as u8);
                to.put(low).put(pairs(codes, 4)).put(scales).half(scale)
            }
            Blocks::Iq4Xs => {
                let (high, low) = self.split_sixes();
                to.half(scale).put(high).put(low).put(eight_nibbles(codes))
            }
            // These are made of points: see [`PointBlock`].
            Blocks::Iq3S | Blocks::Iq3Xxs | Blocks::Iq2S | Blocks::Iq2Xs | Blocks::Iq2Xxs => {
                &mut to
            }
        };
    }

    /// Scales and least values of eight groups, six bits each.
    fn sixes(&self) -> [u8; 12] {
        let factor = |g: usize| self.factors[g] as u8;
        std::array::from_fn(|at| match at {
            0..4 => factor(at) | factor(at + 4) >> 4 << 6,
            4..8 => self.least[at - 4] | self.least[at] >> 4 << 6,
            _ => factor(at - 4) & 15 | (self.least[at - 4] & 15) << 4,
        })
    }

    /// Scales of sixteen groups, six bits each, 32 more than they are.
    fn signed_sixes(&self) -> [u8; 12] {
        let six = |g: usize| (self.factors[g] + 32) as u8;
        std::array::from_fn(|at| match at {
            0..8 => six(at) & 15 | (six(at + 8) & 15) << 4,
            _ => (0..4).fold(0, |bits, part| bits | six(part * 4 + at - 8) >> 4 << (2 * part)),
        })
    }

    /// Scales of eight groups, six bits each, 32 more than they are: the high two bits of all, the low four of all.
    fn split_sixes(&self) -> ([u8; 2], [u8; 4]) {
        let six = |g: usize| (self.factors[g] + 32) as u8;
        let high = (0..8).fold(0, |bits, g| bits | u16::from(six(g) >> 4) << (2 * g));
        (
            high.to_le_bytes(),
            std::array::from_fn(|at| six(2 * at) & 15 | (six(2 * at + 1) & 15) << 4),
        )
    }
}

/// A block of points before it is packed.
#[derive(Clone, Debug)]
pub struct PointBlock {
    /// Points of four columns, or the first 32 of eight.
    pub points: [u16; 64],
    /// Signs of eight columns each, set where a value is negative.
    pub signs: [u8; 32],
    /// Half of the odd number of each group, rounded down.
    pub halves: [u8; 16],
    /// The scale, which half precision holds.
    pub scale: f32,
}

impl PointBlock {
    /// Of the first point.
    pub const ZERO: Self = Self { points: [0; 64], signs: [0; 32], halves: [0; 16], scale: 0.0 };

    /// Writes the block, as long as the type's are.
    pub fn store(&self, blocks: Blocks, out: &mut [u8]) {
        let mut to = Writer { out, at: 0 };
        to.half(self.scale);
        let low = |i: usize| self.points[i] as u8;
        match blocks {
            Blocks::Iq3S => to
                .put(std::array::from_fn::<_, 64, _>(low))
                .put(self.high_bits::<8>(1))
                .put(self.signs)
                .put(self.scales::<4>()),
            Blocks::Iq2S => to
                .put(std::array::from_fn::<_, 32, _>(low))
                .put(self.signs)
                .put(self.high_bits::<8>(2))
                .put(self.scales::<8>()),
            Blocks::Iq2Xs => {
                let word = |i: usize| self.points[i] | u16::from(self.signs[i]) << 9;
                let bytes = |at: usize| word(at / 2).to_le_bytes()[at % 2];
                to.put(std::array::from_fn::<_, 64, _>(bytes))
                    .put(self.scales::<8>())
            }
            Blocks::Iq3Xxs => {
                to.put(std::array::from_fn::<_, 64, _>(low));
                (0..8).fold(&mut to, |to, g| to.put(self.signs_and_scale(g)))
            }
            Blocks::Iq2Xxs => (0..8).fold(&mut to, |to, g| {
                to.put(std::array::from_fn::<_, 4, _>(|i| low(4 * g + i)))
                    .put(self.signs_and_scale(g))
            }),
            _ => &mut to,
        };
    }

    /// The bits above eight of each point, `BITS` each.
    fn high_bits<const N: usize>(&self, bits: usize) -> [u8; N] {
        let each = 8 / bits;
        let high = |at: usize, i: usize| ((self.points[at * each + i] >> 8) as u8) << (i * bits);
        std::array::from_fn(|at| (0..each).fold(0, |byte, i| byte | high(at, i)))
    }

    /// Two groups' numbers in a byte.
    fn scales<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|at| self.halves[2 * at] | self.halves[2 * at + 1] << 4)
    }

    /// Seven signs of every eight of 32 columns, the last following from them, and the number of the group.
    fn signs_and_scale(&self, g: usize) -> [u8; 4] {
        let signs =
            (0..4).fold(0, |bits, i| bits | u32::from(self.signs[4 * g + i] & 127) << (7 * i));
        (signs | u32::from(self.halves[g]) << 28).to_le_bytes()
    }
}

/// The bytes of a block while they are filled.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) -> &mut Self {
        self.out[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
        self
    }

    fn half(&mut self, value: f32) -> &mut Self {
        self.put(f16::from_f32(value).to_le_bytes())
    }
}

/// 32 codes of 4 bits: the first half low, the second high.
fn nibbles(codes: &[u8; 256]) -> [u8; 16] {
    std::array::from_fn(|i| codes[i] & 15 | (codes[i + 16] & 15) << 4)
}

/// [`nibbles`] of every 32 of 256 codes.
fn eight_nibbles(codes: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|at| {
        let i = at / 16 * 32 + at % 16;
        codes[i] & 15 | (codes[i + 16] & 15) << 4
    })
}

/// The fifth bits of 32 codes.
fn fifths(codes: &[u8; 256]) -> [u8; 4] {
    let bits = (0..32).fold(0, |bits, i| bits | u32::from(codes[i] >> 4) << i);
    bits.to_le_bytes()
}

/// Two bits of each of 256 codes, those from `shift` on: see [`super::pair`].
fn pairs(codes: &[u8; 256], shift: u32) -> [u8; 64] {
    std::array::from_fn(|at| {
        let first = at / 32 * 128 + at % 32;
        (0..4).fold(0, |byte, part| byte | (codes[first + 32 * part] >> shift & 3) << (2 * part))
    })
}

/// The third bits of 256 codes, every 32nd in one byte.
fn third_bits(codes: &[u8; 256]) -> [u8; 32] {
    std::array::from_fn(|at| {
        (0..8).fold(0, |byte, part| byte | (codes[at + 32 * part] >> 2 & 1) << part)
    })
}

/// Four bits of each of 256 codes, 64 of them in 32 bytes.
fn fours(codes: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|at| {
        let i = at / 32 * 64 + at % 32;
        codes[i] & 15 | (codes[i + 32] & 15) << 4
    })
}

#[cfg(test)]
mod tests {
    use super::super::Ggml;
    use super::*;
    use crate::kernel::tests::noise;

    /// Any codes and numbers come back as `scale · level + bias`.
    #[test]
    fn what_is_stored_is_read_back() {
        for blocks in Blocks::ALL
            .into_iter()
            .filter(|b| b.form().points.is_none())
        {
            let form = blocks.form();
            let mut numbers = noise(600, 7).into_iter().map(|v| (v.abs() * 1e6) as u32);
            let mut next = |below: u32| numbers.next().unwrap() % below;
            let mut block = Block { scale: 0.25, down: 0.5, ..Block::ZERO };
            let (least, most) = form.factors;
            block.codes[..form.values].fill_with(|| next(1 + u32::from(form.max_code())) as u8);
            for g in 0..form.values / form.group {
                block.factors[g] = least + next((most - least + 1) as u32) as i16;
                block.least[g] = if form.is_nested() { next(1 + most as u32) as u8 } else { 1 };
            }
            let mut bytes = vec![0; form.bytes];
            block.store(blocks, &mut bytes);
            let mut found = vec![0.0; form.values];
            Ggml::from(blocks).decode(&bytes, &mut found);
            for (i, found) in found.iter().enumerate() {
                let g = i / form.group;
                let scale = block.scale * f32::from(block.factors[g]);
                let bias = match form.zero {
                    Some(zero) => -scale * f32::from(zero),
                    None => -block.down * f32::from(block.least[g]),
                };
                let expected = scale.mul_add(form.level(block.codes[i]), bias);
                assert_eq!(*found, expected, "{blocks:?} {i}");
            }
        }
    }

    /// Any points, signs and numbers come back as `scale · unit · number · level`, whatever else the block holds.
    #[test]
    fn points_that_are_stored_are_read_back() {
        let forms = Blocks::ALL
            .into_iter()
            .filter_map(|b| Some((b, b.form().points?)));
        for (blocks, kind) in forms {
            let (form, all) = (blocks.form(), super::super::points(blocks));
            let mut numbers = noise(600, 9).into_iter().map(|v| (v.abs() * 1e6) as usize);
            let mut next = |below: usize| numbers.next().unwrap() % below;
            let mut block = PointBlock { scale: 0.25, ..PointBlock::ZERO };
            let count = all.len() / kind.columns;
            block.points[..256 / kind.columns].fill_with(|| next(count) as u16);
            block.halves[..256 / form.group].fill_with(|| next(16) as u8);
            for signs in &mut block.signs {
                *signs = next(256) as u8;
                if kind.even && signs.count_ones() % 2 == 1 {
                    *signs ^= 128;
                }
            }
            let mut bytes = vec![0; form.bytes];
            block.store(blocks, &mut bytes);
            let mut found = vec![0.0; 256];
            Ggml::from(blocks).decode(&bytes, &mut found);
            for (i, found) in found.iter().enumerate() {
                let level = all
                    [usize::from(block.points[i / kind.columns]) * kind.columns + i % kind.columns];
                let factor = f32::from(2 * block.halves[i / form.group] + 1);
                let sign = if block.signs[i / 8] >> (i % 8) & 1 == 0 { 1.0 } else { -1.0 };
                assert_eq!(*found, 0.25 * kind.unit * factor * level * sign, "{blocks:?} {i}");
            }
        }
    }
}
