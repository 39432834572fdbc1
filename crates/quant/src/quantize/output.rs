//! What the error of stored weights does to the outputs, as far as an objective knows the inputs.

use super::{Job, Objective, PartsMut, QuantStats};
use crate::feedback::{HessianFactor, Product, Rows};
use crate::kernel::Backend;
use crate::matrix::Matrix;

/// Rows that are looked at together: sixteen strips share what is loaded of a factor.
pub const CHUNK: usize = 256;

/// Adds to `stats` what reading `out`, affine codes, does to the outputs.
pub fn measure(job: &Job<'_>, out: &PartsMut<'_>, stats: &mut QuantStats) {
    let Job { backend, x, cols, encoding, objective, .. } = *job;
    if matches!(objective, Objective::Weights) || x.is_empty() {
        return;
    }
    let rows = x.len() / cols;
    let parts = [&*out.weight, &*out.scales, &*out.biases];
    let mut values = vec![0.0; CHUNK.min(rows) * cols];
    for (i, x) in x.chunks(CHUNK * cols).enumerate() {
        let count = x.len() / cols;
        let few = |part: &[u8]| {
            let len = part.len() / rows;
            part[i * CHUNK * len..(i * CHUNK + count) * len].to_vec()
        };
        let bytes = parts.map(few).concat();
        let errors = &mut values[..x.len()];
        // The lengths were checked; codes of other lengths would have no values to compare.
        let Ok(matrix) = Matrix::new(encoding, count, cols, &bytes) else { return };
        matrix.dequantize(backend, 0..count, errors);
        errors.iter_mut().zip(x).for_each(|(v, x)| *v = x - *v);
        stats.output_error += energy(backend, errors, cols, objective);
        stats.output += energy(backend, x, cols, objective);
    }
}

/// `Σ X H Xᵀ`.
fn energy(backend: Backend, x: &[f32], cols: usize, objective: Objective<'_>) -> f64 {
    match objective {
        Objective::Weights => 0.0,
        Objective::Diagonal(moments) => x
            .chunks_exact(cols)
            .flat_map(|row| row.iter().zip(moments))
            .map(|(x, moment)| f64::from(*x) * f64::from(*x) * f64::from(*moment))
            .sum(),
        Objective::Hessian(feedback) => product_energy(backend, x, feedback),
    }
}

fn product_energy(backend: Backend, x: &[f32], feedback: &HessianFactor) -> f64 {
    let (mut rows, mut products) = (Rows::default(), Rows::default());
    rows.set(x, feedback.cols());
    backend.run(Product { feedback, x: &rows, y: &mut products });
    feedback.energy(&rows, &products)
}
