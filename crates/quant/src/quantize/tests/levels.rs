//! What codes of uneven levels promise.

use super::super::lanes::{Weighted, Weights, values};
use super::super::levels::{choose, nearest_level};
use super::gaussian;
use crate::Backend;
use crate::blocks::Blocks;
use crate::encoding::Float;
use crate::kernel::{Kernel, LANES, Simd};

/// Code and level of every value, sixteen at a time.
struct Nearest<'a>(&'a [f32]);

impl Kernel for Nearest<'_> {
    type Output = Vec<[f32; 2]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let levels = Blocks::Iq4Nl.form().levels.unwrap();
        let mut found = Vec::new();
        for x in self.0.as_chunks::<LANES>().0 {
            let (codes, levels) = nearest_level(s, levels, s.load(x));
            found.extend(
                values(s, codes)
                    .into_iter()
                    .zip(values(s, levels))
                    .map(|(c, l)| [c, l]),
            );
        }
        found
    }
}

/// Scale and cost of sixteen groups.
struct Chosen<'a>(&'a [[f32; LANES]], &'a [[f32; LANES]]);

impl Kernel for Chosen<'_> {
    type Output = [[f32; LANES]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let levels = Blocks::Iq4Nl.form().levels.unwrap();
        let x = Weighted { tile: self.0, weights: Weights(Some(self.1)) };
        match choose(s, levels, Float::F32, x, true) {
            Ok(found) => [values(s, found.scale), values(s, found.cost)],
            Err(_) => [[f32::NAN; LANES]; 2],
        }
    }
}

/// The level with the least distance, by trying each.
fn by_hand(x: f32) -> (usize, f32) {
    let form = Blocks::Iq4Nl.form();
    let distance = |code: u8| (f64::from(x) - f64::from(form.level(code))).abs();
    let codes = 0..16_u8;
    let best = codes
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
        .unwrap();
    (usize::from(best), form.level(best))
}

#[test]
fn the_nearest_level_is_found_on_every_backend() {
    let mut x: Vec<f32> = gaussian(1008, 1).into_iter().map(|x| 60.0 * x).collect();
    // Beyond the ends, and as near to one level as to the next.
    x.extend([-1e4, -127.0, -115.5, -4.5, 0.0, -0.0, 1.0, 7.0, 101.0, 113.0, 114.0, 1e4]);
    x.extend([19.0, -16.0, 31.5, -28.5]);
    for backend in Backend::available() {
        for ([code, level], x) in backend.run(Nearest(&x)).into_iter().zip(&x) {
            let (at, value) = by_hand(*x);
            assert_eq!((code, level), (at as f32, value), "{x} {}", backend.name());
        }
    }
}

/// Beside a thousand scales around it, each tried.
#[test]
fn the_search_finds_almost_the_best_scale() {
    let tile = |seed| {
        let x = gaussian(32 * LANES, seed);
        x.as_chunks::<LANES>().0.to_vec()
    };
    let mut weights = tile(8);
    weights.as_flattened_mut().iter_mut().for_each(|w| *w *= *w);
    let (mut found, mut best) = (0.0, 0.0);
    for seed in 0..16 {
        let tile = tile(100 + seed);
        let [scales, costs] = Backend::detect().run(Chosen(&tile, &weights));
        for lane in 0..LANES {
            let cost = |scale: f64| -> f64 {
                let of = |(x, w): (&[f32; LANES], &[f32; LANES])| {
                    let exact = f64::from(x[lane]) / scale;
                    let error = (exact - f64::from(by_hand(exact as f32).1)) * scale;
                    f64::from(w[lane]) * error * error
                };
                tile.iter().zip(&weights).map(of).sum()
            };
            let own = cost(f64::from(scales[lane]));
            assert!((f64::from(costs[lane]) - own).abs() <= 1e-3 * own, "{own} {costs:?}");
            let tried =
                (1..=1000).map(|i| cost(f64::from(scales[lane]) * (0.3 + 2e-3 * f64::from(i))));
            (found, best) = (found + own, best + tried.fold(f64::INFINITY, f64::min));
        }
    }
    assert!(found < 1.05 * best, "{found} {best}");
}
