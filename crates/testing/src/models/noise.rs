//! Random weights.

use std::cell::Cell;

use shardwright_format::TensorEntry;
use shardwright_quant::{Float, narrow};

/// Numbers that look random.
pub(super) struct Noise(Cell<u32>);

impl Noise {
    /// The same numbers every time.
    pub(super) const fn new() -> Self {
        Self(Cell::new(1))
    }

    /// Stores weights as `entry` says.
    pub(super) fn store(&self, entry: &TensorEntry, out: &mut [u8]) {
        let size = (entry.cols as f32).sqrt().recip();
        match entry.encoding.float() {
            // A vector multiplies or is added.
            Some(float) if entry.rows == 1 => self.floats(float, 1.0, out),
            Some(float) => self.floats(float, size, out),
            None => {
                let parts = entry.encoding.parts(entry.rows, entry.cols).unwrap();
                let (codes, scales) = out.split_at_mut(parts.weight as usize);
                codes.fill_with(|| self.next() as u8);
                self.floats(Float::Bf16, size, scales);
            }
        }
    }

    /// The upper half of the next state.
    fn next(&self) -> u16 {
        let state = self
            .0
            .get()
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.0.set(state);
        (state >> 16) as u16
    }

    /// Fills `out` with values of either sign, between half of `size` and all of it.
    pub(super) fn floats(&self, float: Float, size: f32, out: &mut [u8]) {
        let value = || {
            let (sign, x) = (self.next() & 1, f32::from(self.next()) / 65536.0);
            size * (0.5 + x / 2.0) * if sign == 0 { 1.0 } else { -1.0 }
        };
        let count = out.len() / float.size();
        let values: Vec<f32> = std::iter::repeat_with(value).take(count).collect();
        narrow(float, &values, out);
    }
}
