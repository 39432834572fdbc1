//! Blocks of codes as GGUF files have them: what each type is made of.

use serde::{Deserialize, Serialize};

/// A type of blocks: rows are cut into blocks of 32 or 256 columns, each with its scales and codes together.
///
/// The bytes are those of GGUF tensors: `docs/FORMAT.md`, section "Blocks".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub enum Blocks {
    /// 32 codes of 4 bits about 8, and a scale.
    Q4_0,
    /// 32 codes of 4 bits, a scale and a least value.
    Q4_1,
    /// 32 codes of 5 bits about 16, and a scale.
    Q5_0,
    /// 32 codes of 5 bits, a scale and a least value.
    Q5_1,
    /// 32 codes of 8 bits about 128, and a scale.
    Q8_0,
    /// 256 codes of 2 bits; scales and least values of 4 bits for every 16.
    Q2K,
    /// 256 codes of 3 bits about 4; scales of 6 bits with a sign for every 16.
    Q3K,
    /// 256 codes of 4 bits; scales and least values of 6 bits for every 32.
    Q4K,
    /// 256 codes of 5 bits; scales and least values of 6 bits for every 32.
    Q5K,
    /// 256 codes of 6 bits about 32; scales of 8 bits with a sign for every 16.
    Q6K,
    /// 32 codes of 4 bits for levels that are closest about zero, and a scale.
    Iq4Nl,
    /// 256 codes of 4 bits for the same levels; scales of 6 bits with a sign for every 32.
    Iq4Xs,
    /// 512 points for every four columns with signs; scales of 4 bits for every 32.
    Iq3S,
    /// 256 points for every four columns with an even number of signs; scales of 4 bits for every 32.
    Iq3Xxs,
    /// 1024 points for every eight columns with signs; scales of 4 bits for every 16.
    Iq2S,
    /// 512 points for every eight columns with an even number of signs; scales of 4 bits for every 16.
    Iq2Xs,
    /// 256 points for every eight columns with an even number of signs; scales of 4 bits for every 32.
    Iq2Xxs,
}

/// What the codes of `iq4_nl` and `iq4_xs` stand for: llama.cpp, `ggml/src/ggml-common.h`.
pub(crate) const SIXTEEN: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    r#type: String,
}

impl TryFrom<Fields> for Blocks {
    type Error = String;
    fn try_from(fields: Fields) -> Result<Self, String> {
        Self::from_name(&fields.r#type).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("type: expected one of {known}, found {}", fields.r#type)
        })
    }
}

impl From<Blocks> for Fields {
    fn from(blocks: Blocks) -> Self {
        Self { r#type: blocks.name().to_owned() }
    }
}

/// What the values of a block are made of: `scale · level + bias`, a scale and a bias for every group. The level of
/// a code is the code itself, where there are no others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// Bits of a code; of points, whole bits of a column.
    pub bits: u8,
    /// Columns of a block.
    pub values: usize,
    /// Columns that share a scale.
    pub group: usize,
    /// The level of each code, ascending, where these are not evenly spaced.
    pub levels: Option<&'static [i8; 16]>,
    /// What points, which stand for several columns at once, are made of; none where each column has a code.
    pub points: Option<Points>,
    /// The level for zero: the bias is `-zero · scale`. None where groups have a least value of their own.
    pub zero: Option<u8>,
    /// Least and greatest whole number that the block's scale is multiplied with; 1 where the group is the block.
    pub factors: (i16, i16),
    /// Bytes of a block.
    pub bytes: usize,
    /// Where in a block its numbers of half precision are.
    pub halves: &'static [usize],
}

/// Points of a grid, each for several columns. A group's number is odd, its value `scale · unit · factor · level`
/// with a sign for each column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Points {
    /// Columns of a point.
    pub columns: usize,
    /// What scales are counted in.
    pub unit: f32,
    /// The levels that points are made of, ascending.
    pub levels: &'static [f32],
    /// Whether the signs that are set in eight columns are an even number.
    pub even: bool,
}

/// Levels of `iq2` points.
pub(crate) const TWO: [f32; 3] = [8.0, 25.0, 43.0];
/// Levels of `iq3_xxs` points.
pub(crate) const THREE_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Levels of `iq3_s` points.
pub(crate) const THREE_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

impl Blocks {
    /// Every type.
    pub const ALL: [Self; 17] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Iq3S,
        Self::Iq3Xxs,
        Self::Iq2S,
        Self::Iq2Xs,
        Self::Iq2Xxs,
    ];

    /// Its name in manifests and recipes: that of ggml in lower case, `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
            Self::Iq3S => "iq3_s",
            Self::Iq3Xxs => "iq3_xxs",
            Self::Iq2S => "iq2_s",
            Self::Iq2Xs => "iq2_xs",
            Self::Iq2Xxs => "iq2_xxs",
        }
    }

    /// The type of a [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|blocks| blocks.name() == name)
    }

    /// What its values are made of.
    pub const fn form(self) -> Form {
        let (bits, group, zero, factors, bytes, halves): (_, _, _, _, _, &[usize]) = match self {
            Self::Q4_0 => (4, 32, Some(8), (1, 1), 18, &[0]),
            Self::Q4_1 => (4, 32, None, (1, 1), 20, &[0, 2]),
            Self::Q5_0 => (5, 32, Some(16), (1, 1), 22, &[0]),
            Self::Q5_1 => (5, 32, None, (1, 1), 24, &[0, 2]),
            Self::Q8_0 => (8, 32, Some(128), (1, 1), 34, &[0]),
            Self::Q2K => (2, 16, None, (0, 15), 84, &[80, 82]),
            Self::Q3K => (3, 16, Some(4), (-32, 31), 110, &[108]),
            Self::Q4K => (4, 32, None, (0, 63), 144, &[0, 2]),
            Self::Q5K => (5, 32, None, (0, 63), 176, &[0, 2]),
            Self::Q6K => (6, 16, Some(32), (-128, 127), 210, &[208]),
            Self::Iq4Nl => (4, 32, Some(0), (1, 1), 18, &[0]),
            Self::Iq4Xs => (4, 32, Some(0), (-32, 31), 136, &[0]),
            Self::Iq3S => (3, 32, Some(0), (1, 31), 110, &[0]),
            Self::Iq3Xxs => (3, 32, Some(0), (1, 31), 98, &[0]),
            Self::Iq2S => (2, 16, Some(0), (1, 31), 82, &[0]),
            Self::Iq2Xs => (2, 16, Some(0), (1, 31), 74, &[0]),
            Self::Iq2Xxs => (2, 32, Some(0), (1, 31), 66, &[0]),
        };
        let values = if factors.1 == 1 { group } else { 256 };
        let levels = match self {
            Self::Iq4Nl | Self::Iq4Xs => Some(&SIXTEEN),
            _ => None,
        };
        let points = self.points();
        Form { bits, values, group, levels, points, zero, factors, bytes, halves }
    }

    const fn points(self) -> Option<Points> {
        let (columns, unit, levels, even): (_, _, &[f32], _) = match self {
            Self::Iq3S => (4, 1.0, &THREE_S, false),
            Self::Iq3Xxs => (4, 0.25, &THREE_XXS, true),
            Self::Iq2S => (8, 0.125, &TWO, false),
            Self::Iq2Xs | Self::Iq2Xxs => (8, 0.125, &TWO, true),
            _ => return None,
        };
        Some(Points { columns, unit, levels, even })
    }

    /// The type whose blocks of 32 stand in for blocks of 256 where these do not divide a row, as llama.cpp
    /// has it; none for blocks of 32.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Q2K | Self::Q3K => Some(Self::Q4_0),
            Self::Q4K => Some(Self::Q5_0),
            Self::Q5K => Some(Self::Q5_1),
            Self::Q6K => Some(Self::Q8_0),
            Self::Iq4Xs | Self::Iq3S | Self::Iq3Xxs | Self::Iq2S | Self::Iq2Xs | Self::Iq2Xxs => {
                Some(Self::Iq4Nl)
            }
            _ => None,
        }
    }
}

impl Form {
    /// The largest code.
    pub const fn max_code(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// What a code stands for, before scale and bias.
    pub fn level(&self, code: u8) -> f32 {
        self.levels
            .map_or(f32::from(code), |levels| f32::from(levels[usize::from(code)]))
    }

    /// The largest magnitude that a level may have.
    pub fn largest_level(&self) -> f32 {
        if let Some(points) = self.points {
            return points.largest() * points.unit;
        }
        let levels = self.levels.into_iter().flatten();
        let largest = levels.map(|level| level.unsigned_abs()).max();
        f32::from(largest.unwrap_or(self.max_code()))
    }

    /// How many of the widest steps between levels make the range of all.
    pub fn widest_steps(&self) -> f32 {
        if let Some(points) = self.points {
            let steps = points.levels.windows(2).map(|pair| pair[1] - pair[0]);
            return 2.0 * points.largest() / steps.fold(2.0 * points.levels[0], f32::max);
        }
        let Some(levels) = self.levels else { return f32::from(self.max_code()) };
        let steps = levels
            .windows(2)
            .map(|pair| i16::from(pair[1]) - i16::from(pair[0]));
        let (range, widest) = steps.fold((0, 1), |(sum, most), step| (sum + step, most.max(step)));
        f32::from(range) / f32::from(widest)
    }

    /// How far the whole numbers of scales are apart.
    pub const fn factor_step(&self) -> u8 {
        if self.points.is_some() { 2 } else { 1 }
    }

    /// Bits of the affine codes that stand in for these: as many, or 6, since there are none of 5.
    pub const fn affine_bits(&self) -> u8 {
        if self.bits == 5 { 6 } else { self.bits }
    }

    /// Whether a block has several groups, whose scales are whole numbers of the block's.
    pub const fn is_nested(&self) -> bool {
        self.values > self.group
    }
}

impl Points {
    /// The largest level.
    pub fn largest(&self) -> f32 {
        self.levels[self.levels.len() - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_written_by_name_and_nothing_else_is_read() {
        for blocks in Blocks::ALL {
            let text = serde_json::to_string(&blocks).unwrap();
            assert_eq!(text, format!(r#"{{"type":"{}"}}"#, blocks.name()));
            assert_eq!(serde_json::from_str::<Blocks>(&text).unwrap(), blocks);
        }
        for (text, expected) in [
            (r#"{"type":"iq1_s"}"#, "type: expected one of q4_0, q4_1, "),
            (r#"{"type":"q4_k","bits":4}"#, "unknown field `bits`"),
            ("{}", "missing field `type`"),
        ] {
            let error = serde_json::from_str::<Blocks>(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
