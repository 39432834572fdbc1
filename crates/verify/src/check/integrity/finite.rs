//! Are stored scales, biases and plain values finite? Their bytes pass by anyway.

use shardwright_format::{Role, TensorEntry, Unit};
use shardwright_quant::{Element, Encoding, Float, Form, f8_e8m0, widen};

use super::ranges::overlap;
use crate::check::finding::{Finding, Kind};

/// Bytes `start..end` are floats of one tensor.
pub(super) struct FloatRun {
    pub(super) unit: Unit,
    role: Role,
    kind: Floating,
    start: u64,
    end: u64,
    /// Scales before the first bias; none in a plain tensor.
    scales: Option<u64>,
    /// Floats of a row, and what they are: columns or groups, or nothing where a row has one.
    per_row: (u64, Option<&'static str>),
}

/// What the bytes of a run are.
#[derive(Clone, Copy)]
enum Floating {
    /// Floats alone.
    Plain(Float),
    /// Blocks, in which floats lie among codes.
    Blocks(Form),
    /// Floats of 8 bits.
    Bytes(Element),
    /// Scales that are powers of two, a byte each.
    Powers,
}

impl Floating {
    /// Bytes of what is counted.
    const fn size(self) -> usize {
        match self {
            Self::Plain(float) => float.size(),
            Self::Blocks(form) => form.bytes,
            Self::Bytes(_) | Self::Powers => 1,
        }
    }
}

impl FloatRun {
    /// The floats of a unit's tensor, the unit starting at byte `base`.
    pub(super) fn from_entry(unit: Unit, base: u64, entry: &TensorEntry) -> Vec<Self> {
        let Ok(parts) = entry.encoding.parts(entry.rows, entry.cols) else { return Vec::new() };
        let start = base + entry.offset;
        let (end, role, scaled) = (start + parts.total(), entry.role, start + parts.weight);
        let run = |kind, start, end, scales, per_row| Self {
            unit,
            role,
            kind,
            start,
            end,
            scales,
            per_row,
        };
        let columns = (entry.cols, Some("column"));
        // Scales behind codes, and how many columns share one.
        let scales = |kind, count, group: usize| {
            let per_row = (entry.cols / group as u64, Some("group"));
            run(kind, scaled, end, Some(count), per_row)
        };
        match entry.encoding {
            Encoding::Affine(a) => {
                let count = parts.scales / a.scale_dtype().size() as u64;
                vec![scales(Floating::Plain(a.scale_dtype()), count, a.group_size())]
            }
            Encoding::Minifloat(m) => {
                let kind = m
                    .scale_dtype()
                    .float()
                    .map_or(Floating::Powers, Floating::Plain);
                let mut runs = vec![scales(kind, u64::MAX, m.group_size())];
                if m.element().bits() == 8 {
                    runs.push(run(Floating::Bytes(m.element()), start, scaled, None, columns));
                }
                runs
            }
            Encoding::Trellis(_) => {
                let kind = Floating::Plain(Float::Bf16);
                vec![run(kind, scaled, end, Some(entry.rows), (1, None))]
            }
            Encoding::Ggml(blocks) => {
                let form = blocks.form();
                let per_row = (entry.cols / form.values as u64, Some("block"));
                vec![run(Floating::Blocks(form), start, end, Some(u64::MAX), per_row)]
            }
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => {
                let kind = entry.encoding.float().map(Floating::Plain);
                let runs = kind.map(|kind| run(kind, start, end, None, columns));
                runs.into_iter().collect()
            }
        }
    }

    pub(super) const fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn finding(&self, file: &str, wrong: Wrong) -> Finding {
        let (index, part) = match (self.scales, wrong.value.is_finite()) {
            (None, _) => (wrong.index, "finite weights"),
            (Some(scales), false) if wrong.index < scales => (wrong.index, "a finite scale"),
            (Some(scales), true) if wrong.index < scales => (wrong.index, "a scale below 2^112"),
            (Some(scales), false) => (wrong.index - scales, "a finite bias"),
            (Some(scales), true) => (wrong.index - scales, "a bias below 2^112"),
        };
        let (per_row, what) = (self.per_row.0.max(1), self.per_row.1);
        let (row, index) = (index / per_row, index % per_row);
        let place = what.map_or(format!("row {row}"), |what| format!("row {row}, {what} {index}"));
        Finding::file(Kind::NotFinite, file, place)
            .expected(part, wrong.value)
            .shard(self.unit)
            .role(self.role)
    }
}

/// A float that is infinite, not a number, or makes infinite weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wrong {
    /// Its number within the run.
    index: u64,
    value: f32,
}

/// The first float of each run that is not finite.
pub(super) struct Floats<'a> {
    /// By offset, apart from each other.
    runs: &'a [FloatRun],
    /// The first run whose end has not passed.
    next: usize,
    pub(super) wrong: Vec<Option<Wrong>>,
}

impl<'a> Floats<'a> {
    pub(super) fn new(runs: &'a [FloatRun]) -> Self {
        Self { runs, next: 0, wrong: vec![None; runs.len()] }
    }

    /// Takes the bytes from `offset` on; must not cut a float.
    pub(super) fn update(&mut self, offset: u64, bytes: &[u8]) {
        let limit = offset + bytes.len() as u64;
        while let Some(run) = self.runs.get(self.next) {
            let part = overlap(run.start, run.end, offset, bytes);
            let before = run.start.max(offset) - run.start;
            let within = match run.kind {
                Floating::Blocks(form) => wrong_block(form, before, part),
                Floating::Plain(float) => first_wrong(float, run.scales.is_some(), part),
                Floating::Bytes(element) => wrong_byte(element, part),
                Floating::Powers => wrong_power(part),
            };
            // Blocks are counted from the first of all, which a part of one may not begin with.
            let first = match run.kind {
                Floating::Blocks(_) => 0,
                kind => before / kind.size() as u64,
            };
            let wrong = within.map(|(at, value)| (first + at, value));
            if let Some((index, value)) = wrong {
                self.wrong[self.next].get_or_insert(Wrong { index, value });
            }
            if run.end > limit {
                return;
            }
            self.next += 1;
        }
    }
}

/// The first float whose exponent is all ones, or, of scales and biases, large enough that weights
/// could come out infinite: 255 times 2^112, or 1024 times a trellis's, still fits in a binary32.
fn first_wrong(float: Float, scaled: bool, bytes: &[u8]) -> Option<(u64, f32)> {
    let most = if scaled { 0x7780 } else { 0x7f80 };
    let at = match float {
        Float::F32 => position(bytes, |b: [u8; 4]| {
            u32::from_le_bytes(b) & 0x7fff_ffff >= u32::from(most) << 16
        }),
        Float::F16 => position(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Float::Bf16 => position(bytes, |b| u16::from_le_bytes(b) & 0x7f80 >= most),
    }?;
    let mut value = [0.0];
    widen(float, &bytes[at * float.size()..][..float.size()], &mut value);
    Some((at as u64, value[0]))
}

/// The first byte that is infinite or no number.
fn wrong_byte(element: Element, bytes: &[u8]) -> Option<(u64, f32)> {
    let at = position(bytes, |[byte]: [u8; 1]| element.is_wide(byte))?;
    Some((at as u64, element.value(bytes[at])))
}

/// The first power of two, as [`f8_e8m0`] reads it, that is 2^112 or more or no number.
fn wrong_power(bytes: &[u8]) -> Option<(u64, f32)> {
    let at = position(bytes, |[byte]: [u8; 1]| byte >= 127 + 112)?;
    Some((at as u64, f8_e8m0(bytes[at])))
}

/// The first block with a scale whose exponent is all ones, in `bytes` from byte `before` of the blocks on.
fn wrong_block(form: Form, before: u64, bytes: &[u8]) -> Option<(u64, f32)> {
    let size = form.bytes as u64;
    let end = before + bytes.len() as u64;
    (before / size..end.div_ceil(size)).find_map(|block| {
        form.halves.iter().find_map(|half| {
            let at = usize::try_from((block * size + *half as u64).checked_sub(before)?).ok()?;
            let (_, value) = first_wrong(Float::F16, true, bytes.get(at..at + 2)?)?;
            Some((block, value))
        })
    })
}

/// Looks at all first, without a branch for each: nearly always none is wrong.
fn position<const N: usize>(bytes: &[u8], wrong: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (floats, _) = bytes.as_chunks::<N>();
    let any = floats.iter().fold(false, |any, b| any | wrong(*b));
    any.then(|| floats.iter().position(|b| wrong(*b)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_that_are_not_finite_are_told_by_their_exponent() {
        let one = |float: Float, value: f32| {
            let mut bytes = vec![0; 3 * float.size()];
            shardwright_quant::narrow(float, &[1.0, value, 0.0], &mut bytes);
            first_wrong(float, false, &bytes)
        };
        for float in [Float::F32, Float::F16, Float::Bf16] {
            assert_eq!(one(float, f32::INFINITY), Some((1, f32::INFINITY)));
            assert_eq!(one(float, f32::NEG_INFINITY), Some((1, f32::NEG_INFINITY)));
            assert!(one(float, f32::NAN).is_some_and(|(at, v)| at == 1 && v.is_nan()));
            assert_eq!(one(float, 65504.0), None);
        }
    }

    #[test]
    fn scales_that_could_make_infinite_weights_are_told() {
        let bytes = |bits: u16| bits.to_le_bytes();
        for (bits, wrong) in [(0x777f, false), (0x7780, true), (0xf780, true), (0x7f7f, true)] {
            let wide = [&[0, 0][..], &bytes(bits)].concat();
            for (float, bytes) in [(Float::Bf16, &bytes(bits)[..]), (Float::F32, &wide)] {
                assert_eq!(first_wrong(float, true, bytes).is_some(), wrong, "{bits:x}");
                assert_eq!(first_wrong(float, false, bytes), None);
            }
        }
        let largest = half_of(0x777f);
        assert!((largest * 255.0 + largest).is_finite() && (largest * 1024.0).is_finite());
    }

    fn half_of(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    #[test]
    fn scales_among_codes_are_found_wherever_bytes_are_cut() {
        for blocks in shardwright_quant::Blocks::ALL {
            let form = blocks.form();
            for half in form.halves {
                // Codes may be anything.
                let mut bytes = vec![0xff; 5 * form.bytes];
                for block in bytes.chunks_mut(form.bytes) {
                    form.halves.iter().for_each(|at| block[*at + 1] = 0x3c);
                }
                assert_eq!(wrong_block(form, 0, &bytes), None, "{blocks:?}");
                bytes[3 * form.bytes + half + 1] = 0x7c;
                for cut in (2..bytes.len()).step_by(2) {
                    let (first, second) = bytes.split_at(cut);
                    let found = wrong_block(form, 0, first)
                        .or_else(|| wrong_block(form, cut as u64, second));
                    assert_eq!(found.map(|(block, _)| block), Some(3), "{blocks:?} {cut}");
                }
            }
        }
    }

    #[test]
    fn small_floats_that_are_not_finite_are_told() {
        for (element, byte, wrong) in [
            (Element::E4m3, 0x7e, false),
            (Element::E4m3, 0xff, true),
            (Element::E5m2, 0x7b, false),
            (Element::E5m2, 0xfc, true),
        ] {
            let found = wrong_byte(element, &[0, byte, 0]);
            assert_eq!(
                found.map(|(at, value)| (at, value.is_finite())),
                wrong.then_some((1, false))
            );
        }
    }

    #[test]
    fn powers_that_could_make_infinite_weights_are_told() {
        assert_eq!(wrong_power(&[0, 127, 127 + 111]), None);
        assert_eq!(wrong_power(&[127, 127 + 112]), Some((1, 2.0_f32.powi(112))));
        assert!(wrong_power(&[255]).is_some_and(|(_, value)| value.is_nan()));
    }

    #[test]
    fn a_run_may_cross_blocks() {
        let run = |start, end| {
            let (unit, role, kind) = (Unit::Head, Role::FinalNorm, Floating::Plain(Float::Bf16));
            let per_row = (4, Some("column"));
            FloatRun { unit, role, kind, start, end, scales: None, per_row }
        };
        let runs = [run(4, 24), run(32, 40)];
        let mut bytes = [0xff; 48];
        bytes[4..24].fill(0);
        bytes[32..40].fill(0);
        bytes[18..20].copy_from_slice(&[0x80, 0xff]);
        for block in (2..=48).step_by(2) {
            let mut floats = Floats::new(&runs);
            for (i, bytes) in bytes.chunks(block).enumerate() {
                floats.update((i * block) as u64, bytes);
            }
            let wrong = Wrong { index: 7, value: f32::NEG_INFINITY };
            assert_eq!(floats.wrong, [Some(wrong), None], "{block}");
        }
    }
}
