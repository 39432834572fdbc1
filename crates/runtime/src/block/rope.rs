//! Rotary positions.

use std::f64::consts::PI;

use shardwright_format::model::{Pairing, RopeScaling, RopeSpec};

use crate::error::{Result, RuntimeError};

/// Cosines and sines of the angles at some positions, `[positions, rotary_dim / 2]` each.
#[derive(Debug, Default)]
pub struct Rotation {
    key: Option<(RopeSpec, (usize, usize, usize))>,
    head_dim: usize,
    half: usize,
    pairing: Pairing,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Prepares `count` positions from `first`; nothing to do when they are there already.
    ///
    /// # Errors
    /// Positions beyond the original context of a rotation that changes with the length of the text.
    pub fn set(
        &mut self,
        spec: &RopeSpec,
        head_dim: usize,
        first: usize,
        count: usize,
    ) -> Result<()> {
        if let RopeScaling::Dynamic { original_max_position_embeddings: most } = spec.scaling
            && first + count > most as usize
        {
            return Err(RuntimeError::Stretched { position: first.max(most as usize), most });
        }
        let key = (head_dim, first, count);
        if self
            .key
            .as_ref()
            .is_some_and(|(own, at)| own == spec && *at == key)
        {
            return Ok(());
        }
        let width = spec.width(head_dim as u32) as usize;
        let scale = attention_factor(&spec.scaling);
        (self.head_dim, self.half, self.pairing) = (head_dim, width.div_ceil(2), spec.pairing);
        self.cos.clear();
        self.sin.clear();
        let (mut at, mut pairs) = (None, Vec::new());
        for position in first..first + count {
            let stretch = Stretch::new(&spec.scaling, position);
            if at != Some(stretch) {
                (at, pairs) = (Some(stretch), frequencies(spec, width, stretch));
            }
            for frequency in &pairs {
                // The angle rounds to f32, as in the models' training.
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(libm::cos(angle) as f32 * scale);
                self.sin.push(libm::sin(angle) as f32 * scale);
            }
        }
        self.key = Some((spec.clone(), key));
        Ok(())
    }

    /// Rotates every head of `x: [heads, head_dim]` to position `first + index`; what lies beyond
    /// its rotary values stays.
    pub fn apply(&self, index: usize, x: &mut [f32]) {
        let range = index * self.half..(index + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        for head in x.chunks_exact_mut(self.head_dim) {
            let head = &mut head[..2 * self.half];
            match self.pairing {
                Pairing::Half => {
                    let (a, b) = head.split_at_mut(self.half);
                    for i in 0..self.half {
                        (a[i], b[i]) = turned(a[i], b[i], cos[i], sin[i]);
                    }
                }
                Pairing::Interleaved => {
                    let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                    for ([a, b], (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                        (*a, *b) = turned(*a, *b, *cos, *sin);
                    }
                }
            }
        }
    }
}

fn turned(x: f32, y: f32, cos: f32, sin: f32) -> (f32, f32) {
    (x * cos - y * sin, y * cos + x * sin)
}

/// Which factors of `LongRoPE` a position has. A position's rotation depends on it alone, so that a text
/// does not depend on what is computed together. A model that takes tokens one by one has it so in
/// transformers too; given a text that goes beyond the original context at once, that takes the long
/// factors for all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stretch {
    /// Within the original context, and all positions of other rotations.
    Within,
    Beyond,
}

impl Stretch {
    const fn new(scaling: &RopeScaling, position: usize) -> Self {
        match scaling {
            RopeScaling::Longrope { original_max_position_embeddings: original, .. }
                if position >= *original as usize =>
            {
                Self::Beyond
            }
            _ => Self::Within,
        }
    }
}

/// Radians per position of each pair: `theta^(-2i / rotary_dim)`, scaled.
fn frequencies(spec: &RopeSpec, rotary_dim: usize, stretch: Stretch) -> Vec<f32> {
    let pairs = (0..rotary_dim).step_by(2);
    let plain = pairs.map(|i| libm::pow(f64::from(spec.theta), -(i as f64) / rotary_dim as f64));
    let ramp = Ramp::new(spec, rotary_dim);
    plain
        .enumerate()
        .map(|(i, f)| {
            (scaled(f, &spec.scaling, ramp.kept(i)) / divisor(&spec.scaling, i, stretch)) as f32
        })
        .collect()
}

/// What `LongRoPE` divides the frequency of pair `i` by (arXiv 2402.13753).
fn divisor(scaling: &RopeScaling, i: usize, stretch: Stretch) -> f64 {
    let RopeScaling::Longrope { short_factor, long_factor, .. } = scaling else { return 1.0 };
    f64::from(match stretch {
        Stretch::Within => short_factor[i],
        Stretch::Beyond => long_factor[i],
    })
}

/// What YaRN and `LongRoPE` scale rotated values by.
const fn attention_factor(scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::Yarn { attention_factor, .. }
        | RopeScaling::Longrope { attention_factor, .. } => attention_factor,
        _ => 1.0,
    }
}

/// YaRN's ramp: pairs before `low` are kept, those from `high` on are divided.
struct Ramp {
    low: f64,
    high: f64,
}

impl Ramp {
    fn new(spec: &RopeSpec, rotary_dim: usize) -> Self {
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            original_max_position_embeddings: original,
            truncate,
            ..
        } = spec.scaling
        else {
            return Self { low: 0.0, high: 0.0 };
        };
        let dim = rotary_dim as f64;
        // The pair that turns this often in the original context.
        let pair = |turns: f32| {
            let wavelength = f64::from(original) / (f64::from(turns) * 2.0 * PI);
            dim * libm::log(wavelength) / (2.0 * libm::log(f64::from(spec.theta)))
        };
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // As the reference code does, lest the ramp have no width.
        Self { low, high: if low == high { high + 0.001 } else { high } }
    }

    /// Share of pair `i`'s frequency that is kept.
    fn kept(&self, i: usize) -> f64 {
        1.0 - ((i as f64 - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// The `llama3` formula is that of Llama 3.1's reference code; `kept` is YaRN's ramp.
fn scaled(frequency: f64, scaling: &RopeScaling, kept: f64) -> f64 {
    match *scaling {
        RopeScaling::None | RopeScaling::Longrope { .. } | RopeScaling::Dynamic { .. } => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Yarn { factor, .. } => frequency * (kept + (1.0 - kept) / f64::from(factor)),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            // Full turns of this pair within the original context.
            let turns = f64::from(original_max_position_embeddings) * frequency / (2.0 * PI);
            // Without a ramp between them (Llama 4) the two meet at a step.
            let kept = if low == high && turns == low {
                1.0
            } else {
                ((turns - low) / (high - low)).clamp(0.0, 1.0)
            };
            frequency * (kept + (1.0 - kept) / f64::from(factor))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(scaled(1.0, &scaling, 1.0), 1.0);
        let long = 2.0 * PI / 10_000.0;
        assert_eq!(scaled(long, &scaling, 1.0), long / 8.0);
        // Two turns and a half: half-way between the two.
        let middle = 2.5 * 2.0 * PI / 8192.0;
        assert!((scaled(middle, &scaling, 1.0) / middle - 0.5625).abs() < 1e-12);
    }

    #[test]
    fn rotation_keeps_lengths_and_position_zero() {
        let spec = RopeSpec {
            theta: 10000.0,
            scaling: RopeScaling::None,
            rotary_dim: None,
            pairing: Pairing::Half,
        };
        let mut rotation = Rotation::default();
        rotation.set(&spec, 4, 0, 3).unwrap();
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rotation.apply(0, &mut x);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
        rotation.apply(2, &mut x);
        assert!((x.iter().map(|x| x * x).sum::<f32>() - 30.0).abs() < 1e-4);
        assert!((x[0] - (2f32.cos() - 3.0 * 2f32.sin())).abs() < 1e-6);
    }

    #[test]
    fn a_position_is_rotated_alike_whatever_goes_with_it() {
        let scaling = RopeScaling::Longrope {
            short_factor: vec![1.0, 2.0],
            long_factor: vec![3.0, 5.0],
            original_max_position_embeddings: 5,
            attention_factor: 1.5,
        };
        let spec = RopeSpec { theta: 10.0, scaling, rotary_dim: None, pairing: Pairing::Half };
        let mut together = Rotation::default();
        together.set(&spec, 4, 0, 9).unwrap();
        let mut alone = Rotation::default();
        for position in 0..9 {
            alone.set(&spec, 4, position, 1).unwrap();
            let (mut a, mut b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]);
            together.apply(position, &mut a);
            alone.apply(0, &mut b);
            assert_eq!(a, b, "{position}");
            let factor = if position < 5 { 1.0 } else { 3.0 };
            let (sin, cos) = (position as f32 / factor).sin_cos();
            assert!((a[0] - 1.5 * (cos - 3.0 * sin)).abs() < 1e-5, "{position}: {a:?}");
        }
    }
}
