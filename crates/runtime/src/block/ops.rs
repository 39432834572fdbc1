//! What is neither a matrix product nor attention. Powers, logarithms and angles come from a library of our
//! own language, not from the system's: the same bits everywhere.

use rayon::prelude::*;
use shardwright_quant::{Backend, dot};

/// Values below which a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 32 * 1024;

/// Threads among which work that takes each of some values once is shared.
pub fn threads_for(values: usize) -> usize {
    if values < WORTH_A_THREAD { 1 } else { rayon::current_num_threads() }
}

/// Calls `each` with stretches of whole rows of `x`, each `width` wide, and where in `x` they begin: one for
/// each thread of the current pool.
fn by_rows(x: &mut [f32], width: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    let threads = threads_for(x.len());
    if threads == 1 {
        return each(0, x);
    }
    let stretch = (x.len() / width).div_ceil(threads) * width;
    let stretches = x.par_chunks_mut(stretch).enumerate();
    stretches.for_each(|(i, rows)| each(i * stretch, rows));
}

/// `out = x / sqrt(mean(x²) + eps) * weight`, for each row of `x: [n, weight.len()]`.
pub fn rms_norm(backend: Backend, x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    by_rows(out, weight.len(), |at, out| {
        out.copy_from_slice(&x[at..][..out.len()]);
        norm_rows(backend, out, weight, eps);
    });
}

/// [`rms_norm`] on the rows where they lie.
pub fn rms_norm_in_place(backend: Backend, x: &mut [f32], weight: &[f32], eps: f32) {
    by_rows(x, weight.len(), |_, x| norm_rows(backend, x, weight, eps));
}

fn norm_rows(backend: Backend, x: &mut [f32], weight: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        let mean = dot(backend, row, row) / row.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter_mut()
            .zip(weight)
            .for_each(|(x, w)| *x = *x * scale * w);
    }
}

/// Turns a stored norm weight into the factor it stands for.
pub fn complete_norm(plus_one: bool, weight: &mut [f32]) {
    if plus_one {
        for w in weight {
            *w += 1.0;
        }
    }
}

/// `x / (1 + e^-x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + libm::expf(-x))
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

/// `ln(1 + e^x)`; `x` itself where nothing is lost.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { libm::log1pf(libm::expf(x)) }
}

/// `[heads, rows, dim]` to `[rows, heads, dim]`.
pub fn join_heads(by_head: &[f32], dim: usize, rows: usize, out: &mut [f32]) {
    let width = out.len() / rows.max(1);
    for (head, values) in by_head.chunks_exact(rows * dim).enumerate() {
        for (row, values) in values.chunks_exact(dim).enumerate() {
            out[row * width + head * dim..][..dim].copy_from_slice(values);
        }
    }
}

/// `gate = gelu(gate) * up`, gelu by its tanh approximation.
pub fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
    gate.iter_mut().zip(up).for_each(|(g, u)| {
        let x = *g;
        *g = 0.5 * x * (1.0 + libm::tanhf(ROOT * (x + 0.044_715 * x * x * x))) * u;
    });
}

/// `gate = max(gate, 0)² * up`.
pub fn relu2_mul(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| {
        let x = g.max(0.0);
        *g = x * x * u;
    });
}

/// `x = cap * tanh(x / cap)`, as it is without a cap.
pub fn cap(x: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        for x in x {
            *x = cap * libm::tanhf(*x / cap);
        }
    }
}

/// `gate = (up + 1) * gate * sigmoid(alpha * gate)`, gate at most `limit`, up within `±limit`.
pub fn clamped_swiglu(limit: f32, alpha: f32, gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| {
        let (x, u) = (g.min(limit), u.clamp(-limit, limit));
        *g = (u + 1.0) * (x * sigmoid(alpha * x));
    });
}

/// Turns scores into probabilities.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in x.iter_mut() {
        *x = libm::expf(*x - max);
        sum += *x;
    }
    let scale = 1.0 / sum;
    for x in x {
        *x *= scale;
    }
}

/// Adds `bias` to each row of `x: [n, bias.len()]`.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `x += factor * y`, as it is without a factor.
pub fn add_scaled(x: &mut [f32], factor: Option<f32>, y: &[f32]) {
    match factor {
        None => add(x, y),
        Some(factor) => by_rows(x, 1, |at, x| {
            x.iter_mut()
                .zip(&y[at..])
                .for_each(|(x, y)| *x += factor * y);
        }),
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    by_rows(x, 1, |at, x| x.iter_mut().zip(&y[at..]).for_each(|(x, y)| *x += y));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_a_distribution_even_for_large_scores() {
        let mut x = [1000.0, 1001.0, -1000.0];
        softmax(&mut x);
        assert!((x[1] / x[0] - std::f32::consts::E).abs() < 1e-5);
        assert_eq!(x[2], 0.0);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let mut out = Vec::new();
        rms_norm(Backend::detect(), &[3.0, 4.0, 0.0, 5.0], &[1.0, 2.0], 0.0, &mut out);
        let (a, b) = (12.5f32.sqrt(), 12.5f32.sqrt());
        let expected = [3.0 / a, 8.0 / a, 0.0, 10.0 / b];
        assert!(out.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{out:?}");
    }

    #[test]
    fn threads_change_no_bit() {
        let (width, eps, backend) = (112, 1e-5, Backend::detect());
        let x: Vec<f32> = (0..2 * WORTH_A_THREAD / width * width)
            .map(|i| (i as f32).sin())
            .collect();
        let weight = &x[7..7 + width];
        let pass = |threads| {
            let pool = crate::threads::thread_pool(threads).unwrap();
            pool.install(|| {
                let (mut normed, mut sum) = (Vec::new(), x.clone());
                rms_norm(backend, &x, weight, eps, &mut normed);
                rms_norm_in_place(backend, &mut sum, weight, eps);
                assert_eq!(sum, normed);
                add(&mut sum, &x);
                add_scaled(&mut sum, Some(0.3), &normed);
                sum
            })
        };
        let alone = pass(1);
        let first = alone[0].to_bits();
        let norm = {
            let mean = dot(backend, &x[..width], &x[..width]) / width as f32;
            x[0] * (1.0 / (mean + eps).sqrt()) * weight[0]
        };
        assert_eq!(first, (norm + x[0] + 0.3 * norm).to_bits());
        for threads in [2, 3, 5] {
            assert!(pass(threads) == alone, "{threads} threads");
        }
    }
}
