//! What this machine does in a second, all threads together.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;
use shardwright_format::checkpoint::{Checkpoint, CheckpointFile};
use shardwright_quant::{
    Activations, Affine, Backend, Columns, Encoding, Float, HessianFactor, Job, Matrix, Objective,
    Outputs, PartsMut, QuantError, matmul, narrow, quantize, softmaxes,
};
use shardwright_runtime::thread_pool;

use super::work::How;
use crate::calibrate::hessian::FullSum;
use crate::calibrate::objectives::DAMPING;
use crate::error::Result;

/// Each rate is of so long a time at least.
const LEAST: Duration = Duration::from_millis(60);
/// Columns of the matrices that are tried; the cost of a weight is a line through what these two give.
const COLS: [usize; 2] = [256, 1024];
/// Rows that feedback goes through together.
const FEEDBACK_ROWS: usize = 256;
/// Rows of a matrix that is rounded without.
const PLAIN_ROWS: usize = 64;
/// Bytes of the source that are read at most.
const READ: u64 = 64 << 20;
/// Bytes that are read at a time.
const READ_BLOCK: usize = 4 << 20;
/// Rows of activations of a product: enough for values to be decoded once for many.
const TOKENS: usize = 256;

/// The machine at work.
pub struct Machine {
    pool: ThreadPool,
    threads: usize,
    backend: Backend,
}

impl Machine {
    /// With so many threads.
    ///
    /// # Errors
    /// Threads that the operating system refuses.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { pool: thread_pool(threads)?, threads, backend: Backend::detect() })
    }

    /// How often all threads together can do `once`, per second, each with buffers of its own that it keeps: memory that
    /// one thread gives back to the system stops the others.
    fn per_second<B, E: Send>(
        &self,
        buffers: impl Fn() -> B + Sync,
        once: impl Fn(&mut B) -> Result<(), E> + Sync,
    ) -> Result<f64, E> {
        // What is cold the first time is not counted.
        once(&mut buffers())?;
        let (done, begun) = (AtomicU32::new(0), Instant::now());
        self.pool.install(|| {
            (0..self.threads)
                .into_par_iter()
                .with_max_len(1)
                .try_for_each(|_| {
                    let mut own = buffers();
                    while begun.elapsed() < LEAST {
                        once(&mut own)?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
        })?;
        Ok(f64::from(done.into_inner()) / begun.elapsed().as_secs_f64())
    }

    /// As [`Self::per_second`], of what cannot fail.
    fn always<B>(&self, buffers: impl Fn() -> B + Sync, once: impl Fn(&mut B) + Sync) -> f64 {
        let done = self.per_second(buffers, |own| {
            once(own);
            Ok::<(), std::convert::Infallible>(())
        });
        match done {
            Ok(rate) => rate,
            Err(never) => match never {},
        }
    }

    /// Seconds of a weight that gets its code, and of each column of its matrix.
    ///
    /// # Errors
    /// An encoding that none of these matrices can have.
    pub fn rounding(&self, how: How) -> Result<(f64, f64), String> {
        let each = |cols| self.weight(how, cols).map_err(|e| e.to_string());
        let [narrow, wide] = COLS;
        if !how.feedback {
            return Ok((each(wide)?, 0.0));
        }
        let (from, to) = (each(narrow)?, each(wide)?);
        let column = ((to - from) / (wide - narrow) as f64).max(0.0);
        Ok((to - column * wide as f64, column))
    }

    /// Seconds of a weight in matrices of `cols` columns.
    fn weight(&self, how: How, cols: usize) -> Result<f64, QuantError> {
        let factor = how
            .feedback
            .then(|| HessianFactor::new(&gram(cols), cols, DAMPING, how.encoding));
        let factor = factor.transpose()?;
        let moments = vec![1.0; cols];
        let objective = match &factor {
            Some(factor) => Objective::Hessian(factor),
            None => Objective::Diagonal(&moments),
        };
        let rows = if how.feedback { FEEDBACK_ROWS } else { PLAIN_ROWS };
        let x = values(rows * cols);
        let job = Job {
            backend: self.backend,
            x: &x,
            cols,
            encoding: how.encoding,
            method: how.method.given(objective),
            zeros: how.zeros,
            objective,
        };
        let len = how.encoding.parts(rows as u64, cols as u64)?.total() as usize;
        let rate = self.per_second(
            || vec![0; len],
            |out| quantize(&job, PartsMut::split(how.encoding, rows, cols, out)?).map(drop),
        )?;
        Ok(1.0 / (rate * (rows * cols) as f64))
    }

    /// Multiply-adds of a text with matrices in 16 bits.
    pub fn products(&self) -> f64 {
        let (rows, cols) = (512, 1024);
        let mut bytes = vec![0; 2 * rows * cols];
        narrow(Float::Bf16, &values(rows * cols), &mut bytes);
        let mut x = Activations::new();
        x.set(self.backend, &values(TOKENS * cols), cols);
        let rate = self.always(
            || vec![0.0; TOKENS * rows],
            |out| {
                if let Ok(matrix) = Matrix::new(Encoding::Bf16, rows, cols, &bytes) {
                    matmul(&matrix, &x, 0..rows, Outputs::new(out, TOKENS));
                }
            },
        );
        rate * (TOKENS * rows * cols) as f64
    }

    /// Multiply-adds of inputs with themselves.
    pub fn outer(&self) -> f64 {
        let (rows, cols) = (256, 512);
        let x = values(rows * cols);
        let sums = || (FullSum::new(cols), Columns::default());
        let rate = self.always(sums, |(sum, columns)| sum.add(&x, &[], columns));
        rate * (rows * cols * cols) as f64 / 2.0
    }

    /// Cubes of columns of what is factored.
    ///
    /// # Errors
    /// What cannot be factored.
    pub fn factors(&self) -> Result<f64, String> {
        let cols = COLS[1];
        let gram = gram(cols);
        let codes = Affine::new(4, 64, Float::F16).map_err(|e| e.to_string())?;
        let codes = Encoding::Affine(codes);
        let once = |(): &mut ()| HessianFactor::new(&gram, cols, DAMPING, codes).map(drop);
        let rate = self.per_second(|| (), once);
        let rate = rate.map_err(|e| e.to_string())?;
        Ok(rate * (cols as f64).powi(3))
    }

    /// Pairs of logits.
    pub fn softmaxes(&self) -> f64 {
        let logits = values(1 << 16);
        let once = |(): &mut ()| {
            black_box(softmaxes(self.backend, &logits, &logits));
        };
        let rate = self.always(|| (), once);
        rate * logits.len() as f64
    }

    /// Bytes hashed.
    pub fn hashing(&self) -> f64 {
        let bytes = vec![7; 1 << 20];
        let once = |(): &mut ()| {
            black_box(blake3::hash(&bytes));
        };
        let rate = self.always(|| (), once);
        rate * bytes.len() as f64
    }
}

/// Values between -1 and 1, spread evenly: what they are matters little for how long they take.
fn values(count: usize) -> Vec<f32> {
    let step = |at: usize| (at.wrapping_mul(2_654_435_761) >> 8) % 2001;
    (0..count)
        .map(|at| step(at) as f32 / 1000.0 - 1.0)
        .collect()
}

/// A Gram whose neighbours have something in common.
fn gram(cols: usize) -> Vec<f32> {
    let mut gram = vec![0.0; cols * cols];
    for at in 0..cols {
        gram[at * cols + at] = 1.0;
        if at > 0 {
            gram[at * cols + at - 1] = 0.3;
            gram[(at - 1) * cols + at] = 0.3;
        }
    }
    gram
}

/// Bytes of a source's largest file that come in a second, read in order from its middle; none where it is elsewhere or
/// too small to tell.
///
/// # Errors
/// What the operating system refuses.
pub fn reading(checkpoint: &Checkpoint) -> Result<Option<f64>> {
    let largest = checkpoint.files().iter().max_by_key(|file| file.file.len());
    let local = |file: &&CheckpointFile| file.file.revision().is_none();
    let Some(CheckpointFile { file, .. }) = largest.filter(local) else { return Ok(None) };
    let (middle, most) = (file.len() / 2, READ.min(file.len() / 2));
    if most < READ_BLOCK as u64 {
        return Ok(None);
    }
    let (file, mut block) = (file.reopen()?, vec![0; READ_BLOCK]);
    let (begun, mut done) = (Instant::now(), 0);
    while done + READ_BLOCK as u64 <= most {
        file.read_at(middle + done, &mut block)?;
        done += READ_BLOCK as u64;
    }
    Ok(Some(done as f64 / begun.elapsed().as_secs_f64()))
}
