//! What the choice of points and signs promises.

use super::super::lanes::values;
use super::super::points::Metric;
use super::gaussian;
use crate::Backend;
use crate::blocks::Blocks;
use crate::ggml::points;
use crate::kernel::{Kernel, LANES, Simd};

/// Values of sixteen rows, and the product of their signs.
struct Choose<'a, const V: usize> {
    metric: &'a Metric<V>,
    grid: &'a [[f32; V]],
    levels: &'a [f32],
    z: &'a [[f32; LANES]; V],
    even: bool,
}

impl<const V: usize> Kernel for Choose<'_, V> {
    type Output = [[f32; LANES]; V];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut z = [s.splat(0.0); V];
        for (lanes, z) in z.iter_mut().zip(self.z) {
            *lanes = s.load(z);
        }
        let product = self.even.then_some(s.splat(1.0));
        let chosen = self.metric.choose(s, self.grid, self.levels, &z, product);
        chosen.values.map(|v| values(s, v))
    }
}

/// `Σ cost · r²` with the feedback between the columns.
fn cost<const V: usize>(
    feedback: &[[f32; V]; V],
    costs: &[f32; V],
    z: &[f32; V],
    q: &[f32; V],
) -> f64 {
    (0..V)
        .map(|k| {
            let before = (0..k).map(|j| f64::from(feedback[k][j]) * f64::from(z[j] - q[j]));
            let r = f64::from(z[k] - q[k]) + before.sum::<f64>();
            f64::from(costs[k]) * r * r
        })
        .sum()
}

/// Beside every point with every allowed set of signs.
fn check<const V: usize>(blocks: Blocks, spread: f32, at_most: f64) {
    let (kind, all) = (blocks.form().points.unwrap(), points(blocks));
    let grid = all.as_chunks::<V>().0;
    let (mut found, mut best) = (0.0, 0.0);
    for seed in 0..4 {
        let numbers = gaussian(V * V + V + V * LANES, seed + 1);
        let (mut feedback, mut costs) = ([[0.0; V]; V], [0.0; V]);
        for k in 0..V {
            for j in 0..k {
                feedback[k][j] = 0.3 * numbers[k * V + j];
            }
            costs[k] = 0.2 + numbers[V * V + k].abs();
        }
        let z: [[f32; LANES]; V] = std::array::from_fn(|i| {
            std::array::from_fn(|l| spread * numbers[V * V + V + i * LANES + l])
        });
        let metric = Metric::new(feedback, costs);
        let run = |backend: Backend| {
            let (metric, levels, even) = (&metric, kind.levels, kind.even);
            backend.run(Choose { metric, grid, levels, z: &z, even })
        };
        let chosen = run(Backend::detect());
        assert_eq!(chosen, run(Backend::Scalar), "{blocks:?}");
        for lane in 0..LANES {
            let row =
                |lines: &[[f32; LANES]; V]| std::array::from_fn::<_, V, _>(|i| lines[i][lane]);
            let (z, chosen) = (row(&z), row(&chosen));
            let minus = chosen.iter().filter(|q| **q < 0.0).count();
            assert!(!kind.even || minus.is_multiple_of(2), "{blocks:?}: {chosen:?}");
            let signs = (0..1_u32 << V).filter(|s| !kind.even || s.count_ones().is_multiple_of(2));
            let each = signs.flat_map(|signs| {
                grid.iter().map(move |point| {
                    std::array::from_fn(|i| if signs >> i & 1 == 0 { point[i] } else { -point[i] })
                })
            });
            let tried = each.map(|q| cost(&feedback, &costs, &z, &q));
            best += tried.fold(f64::INFINITY, f64::min);
            found += cost(&feedback, &costs, &z, &chosen);
        }
    }
    assert!(found < at_most * best, "{blocks:?}: {found} {best}");
}

#[test]
fn the_choice_is_almost_the_best() {
    check::<4>(Blocks::Iq3S, 7.0, 1.05);
    check::<8>(Blocks::Iq2Xxs, 20.0, 1.1);
}
