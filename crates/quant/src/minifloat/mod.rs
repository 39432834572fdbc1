//! Floats of 4 and of 8 bits in groups of columns with a scale: what FP8, MXFP8, MXFP4 and NVFP4 checkpoints are made of.

pub mod lines;

use serde::{Deserialize, Serialize};

use crate::dtype::ScaleType;
use crate::float8::{f4_e2m1, f8_e4m3, f8_e5m2};
use crate::kernel::{LANES, Line};

/// A small float of the OCP microscaling specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// 4 bits: [`f4_e2m1`](crate::f4_e2m1).
    E2m1,
    /// 8 bits: [`f8_e4m3`](crate::f8_e4m3).
    E4m3,
    /// 8 bits: [`f8_e5m2`](crate::f8_e5m2).
    E5m2,
}

impl Element {
    /// Bits of one.
    pub const fn bits(self) -> u8 {
        match self {
            Self::E2m1 => 4,
            Self::E4m3 | Self::E5m2 => 8,
        }
    }

    /// What a code stands for.
    pub fn value(self, code: u8) -> f32 {
        match self {
            Self::E2m1 => f4_e2m1(code),
            Self::E4m3 => f8_e4m3(code),
            Self::E5m2 => f8_e5m2(code),
        }
    }

    /// Whether a code is infinite or no number.
    pub const fn is_wide(self, code: u8) -> bool {
        match self {
            Self::E2m1 => false,
            Self::E4m3 => code & 0x7f == 0x7f,
            Self::E5m2 => code & 0x7f >= 0x7c,
        }
    }

    /// The lower-case name: `e2m1`, `e4m3`, `e5m2`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::E2m1 => "e2m1",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
        }
    }
}

/// Small floats `v` that stand for `scale · v`, rounded once in 32 bits, with one scale for `group_size` columns of a row.
///
/// Those of 8 bits lie in the order of their columns. Of 32 columns of 4 bits, byte `i` has column `i` in its lower half
/// and column `16 + i` in its upper one. Scales follow, `[rows, groups]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Minifloat {
    element: Element,
    group_size: u16,
    scale_dtype: ScaleType,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    element: Element,
    group_size: u16,
    scale_dtype: ScaleType,
}

impl TryFrom<Fields> for Minifloat {
    type Error = String;
    fn try_from(Fields { element, group_size, scale_dtype }: Fields) -> Result<Self, String> {
        Self::new(element, group_size, scale_dtype)
            .ok_or_else(|| format!("group_size: expected 16, 32, 64 or 128, found {group_size}"))
    }
}

impl From<Minifloat> for Fields {
    fn from(m: Minifloat) -> Self {
        Self { element: m.element, group_size: m.group_size, scale_dtype: m.scale_dtype }
    }
}

/// Columns whose floats lie in one block of bytes.
const BLOCK: usize = 2 * LANES;

impl Minifloat {
    /// Group sizes that exist, largest first.
    pub const GROUP_SIZES: [u16; 4] = [128, 64, 32, 16];

    /// Those of MXFP4, whose scales are powers of two.
    pub const MXFP4: Self = Self::powers(Element::E2m1);
    /// Those of MXFP8, likewise.
    pub const MXFP8: Self = Self::powers(Element::E4m3);

    const fn powers(element: Element) -> Self {
        Self { element, group_size: 32, scale_dtype: ScaleType::E8m0 }
    }

    /// Small floats in groups; none of a size outside [`Self::GROUP_SIZES`].
    pub fn new(element: Element, group_size: u16, scale_dtype: ScaleType) -> Option<Self> {
        let known = Self::GROUP_SIZES.contains(&group_size);
        known.then_some(Self { element, group_size, scale_dtype })
    }

    /// What is scaled.
    pub const fn element(self) -> Element {
        self.element
    }

    /// Columns that share a scale.
    pub const fn group_size(self) -> usize {
        self.group_size as usize
    }

    /// Storage type of scales.
    pub const fn scale_dtype(self) -> ScaleType {
        self.scale_dtype
    }

    /// Columns of a row come in multiples of this.
    pub(crate) const fn columns_together(self) -> u16 {
        if self.group_size < BLOCK as u16 { BLOCK as u16 } else { self.group_size }
    }

    /// Its label in tables: `e4m3 g128 f32`.
    pub(crate) fn label(self) -> String {
        format!("{} g{} {}", self.element.name(), self.group_size, self.scale_dtype.name())
    }

    /// Blocks of 32 columns in sixteen groups.
    #[inline(always)]
    pub(crate) const fn blocks_of_sixteen(self) -> usize {
        LANES * self.group_size() / BLOCK
    }

    /// Of the scales of sixteen groups those of both halves of their block number `block`.
    #[inline(always)]
    pub(crate) const fn scales_of(self, scales: &Line, block: usize) -> [f32; 2] {
        let shift = self.group_size.trailing_zeros();
        let first = block * BLOCK;
        [scales[(first >> shift) % LANES], scales[((first + LANES) >> shift) % LANES]]
    }
}
