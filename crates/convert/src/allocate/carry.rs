//! How far an error in a layer's output reaches: its divergence at the end of the model beside its size,
//! measured at a few depths and interpolated between them.

/// Layers of a role whose errors are taken to the end of the model. The time of the probe grows with them and
/// with the depth, and no longer with its square.
pub const DEPTHS: usize = 8;

/// Of `layers`, ascending, at most [`DEPTHS`]: the first, the last, and others between, their distances growing
/// with depth. What an error in one of the first layers becomes can differ tenfold from one to the next; further up it
/// hardly does.
pub fn depths(layers: &[u32]) -> Vec<u32> {
    let last = layers.len().saturating_sub(1);
    if last < DEPTHS {
        return layers.to_vec();
    }
    let mut found = Vec::with_capacity(DEPTHS);
    for at in 0..DEPTHS {
        // By the square of their number, rounded; but each is a layer of its own.
        let all = (DEPTHS - 1) * (DEPTHS - 1);
        let square = (2 * at * at * last + all) / (2 * all);
        found.push(square.max(found.last().map_or(0, |before| before + 1)));
    }
    found.into_iter().map(|at| layers[at]).collect()
}

/// Mean over the tokens of the squared length of the difference of two streams `[tokens, hidden]`, beside
/// that of the first. Relative for each token: norms make of a token's stream its direction, and some
/// tokens' streams are a thousand times as long as others'.
pub fn relative_error(stream: &[f32], other: &[f32], hidden: usize) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let tokens = stream.chunks_exact(hidden).zip(other.chunks_exact(hidden));
    let each = tokens.map(|(a, b)| {
        let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        let length: f64 = a.iter().map(|a| square(*a)).sum();
        if error == 0.0 { 0.0 } else { error / length.max(f64::MIN_POSITIVE) }
    });
    let sum: f64 = each.sum();
    sum / (stream.len() / hidden).max(1) as f64
}

/// Divergence by error, of one role over the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carry {
    /// Layer and the logarithm of the ratio, ascending.
    points: Vec<(u32, f64)>,
}

impl Carry {
    /// Adds what was measured at a layer behind those added before; nothing is learnt where either is zero.
    pub fn add(&mut self, layer: u32, error: f64, divergence: f64) {
        if error > 0.0 && divergence > 0.0 {
            self.points.push((layer, (divergence / error).ln()));
        }
    }

    /// The divergence of an error of this size in a layer's output: between measured layers the ratio's
    /// logarithm is a straight line, beyond them it stays; 0 where nothing was measured.
    pub fn divergence(&self, layer: u32, error: f64) -> f64 {
        let behind = self.points.partition_point(|(at, _)| *at <= layer);
        let before = behind.checked_sub(1).and_then(|at| self.points.get(at));
        let ratio = match (before, self.points.get(behind)) {
            (Some((_, ratio)), None) | (None, Some((_, ratio))) => *ratio,
            (Some((a, from)), Some((b, to))) => {
                from + (to - from) * f64::from(layer - a) / f64::from(b - a)
            }
            (None, None) => return 0.0,
        };
        error * ratio.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_layers_are_all_measured_and_of_many_the_ends() {
        assert_eq!(depths(&[]), [0; 0]);
        assert_eq!(depths(&[3, 4, 9]), [3, 4, 9]);
        let many: Vec<u32> = (10..110).collect();
        let found = depths(&many);
        assert_eq!((found.len(), found[0], found[DEPTHS - 1]), (DEPTHS, 10, 109));
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(depths(&(0..18).collect::<Vec<_>>()), [0, 1, 2, 3, 6, 9, 12, 17]);
        let least: Vec<u32> = (0..9).collect();
        assert_eq!(depths(&least), [0, 1, 2, 3, 4, 5, 6, 8]);
    }

    #[test]
    fn errors_are_relative_to_each_token() {
        let (a, b) = ([3.0, 4.0, 300.0, 400.0], [3.0, 3.0, 300.0, 300.0]);
        assert!((relative_error(&a, &b, 2) - 0.04).abs() < 1e-12);
        assert_eq!(relative_error(&[0.0; 2], &[0.0; 2], 2), 0.0);
    }

    #[test]
    fn a_ratio_is_interpolated_by_its_logarithm() {
        let mut carry = Carry::default();
        assert_eq!(carry.divergence(3, 1.0), 0.0);
        for (layer, error, divergence) in [(2, 1.0, 8.0), (4, 0.0, 0.0), (6, 2.0, 1.0)] {
            carry.add(layer, error, divergence);
        }
        let expected = [(0, 8.0), (2, 8.0), (4, 2.0), (5, 1.0), (6, 0.5), (60, 0.5)];
        for (layer, ratio) in expected {
            let found = carry.divergence(layer, 10.0);
            assert!((found - 10.0 * ratio).abs() < 1e-9, "{layer}: {found}");
        }
    }
}
