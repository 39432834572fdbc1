//! Rotary positions.

use std::f64::consts::PI;

use shardwright_format::model::{RopeScaling, RopeSpec};

/// Cosines and sines of the angles at some positions, `[positions, head_dim / 2]` each.
#[derive(Debug, Default)]
pub struct Rotation {
    key: Option<(RopeSpec, usize, usize, usize)>,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Prepares `count` positions from `first`; nothing to do when they are there already.
    pub fn set(&mut self, spec: &RopeSpec, head_dim: usize, first: usize, count: usize) {
        let key = Some((*spec, head_dim, first, count));
        if self.key == key {
            return;
        }
        let frequencies = frequencies(spec, head_dim);
        self.half = frequencies.len();
        self.cos.clear();
        self.sin.clear();
        for position in first..first + count {
            for frequency in &frequencies {
                // The angle rounds to f32, as in the models' training.
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
        self.key = key;
    }

    /// Rotates every head of `x: [heads, head_dim]` to position `first + index`; element `i` pairs
    /// with `i + head_dim / 2`.
    pub fn apply(&self, index: usize, x: &mut [f32]) {
        let range = index * self.half..(index + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        for head in x.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for i in 0..self.half {
                let (x, y) = (a[i], b[i]);
                a[i] = x * cos[i] - y * sin[i];
                b[i] = y * cos[i] + x * sin[i];
            }
        }
    }
}

/// Radians per position of each pair: `theta^(-2i / head_dim)`, scaled.
fn frequencies(spec: &RopeSpec, head_dim: usize) -> Vec<f32> {
    let pairs = (0..head_dim).step_by(2);
    let plain = pairs.map(|i| f64::from(spec.theta).powf(-(i as f64) / head_dim as f64));
    plain.map(|f| scaled(f, &spec.scaling) as f32).collect()
}

/// The `llama3` formula is that of Llama 3.1's reference code.
fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            // Full turns of this pair within the original context.
            let turns = f64::from(original_max_position_embeddings) * frequency / (2.0 * PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
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
        assert_eq!(scaled(1.0, &scaling), 1.0);
        let long = 2.0 * PI / 10_000.0;
        assert_eq!(scaled(long, &scaling), long / 8.0);
        // Two turns and a half: half-way between the two.
        let middle = 2.5 * 2.0 * PI / 8192.0;
        assert!((scaled(middle, &scaling) / middle - 0.5625).abs() < 1e-12);
    }

    #[test]
    fn rotation_keeps_lengths_and_position_zero() {
        let spec = RopeSpec { theta: 10000.0, scaling: RopeScaling::None };
        let mut rotation = Rotation::default();
        rotation.set(&spec, 4, 0, 3);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rotation.apply(0, &mut x);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
        rotation.apply(2, &mut x);
        assert!((x.iter().map(|x| x * x).sum::<f32>() - 30.0).abs() < 1e-4);
        assert!((x[0] - (2f32.cos() - 3.0 * 2f32.sin())).abs() < 1e-6);
    }
}
