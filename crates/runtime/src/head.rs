//! The head: from the residual stream to logits.

use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};

use crate::block::ops::{cap, complete_norm, rms_norm, scale};
use crate::error::{Result, RuntimeError};
use crate::fetch::{Request, read};
use crate::linear::{Linear, Product};
use crate::threads::thread_pool;
use crate::view::Loaded;
use crate::vocab::head_location;

/// The final norm, `[hidden_size]`.
///
/// # Errors
/// What the disk refuses; a unit without it.
pub fn final_norm(weights: &Weights) -> Result<Vec<f32>> {
    let hidden = weights.spec().hidden_size as usize;
    let layout = weights.layout(Unit::Head)?;
    let entry = layout
        .find(Role::FinalNorm)
        .cloned()
        .ok_or_else(|| RuntimeError::Tensor {
            unit: Unit::Head,
            role: Role::FinalNorm,
            expected: format!("1 x {hidden}"),
            found: "none".to_owned(),
        })?;
    let request = Request::Rows(Unit::Head, entry, 0..1);
    let mut norm = read(weights, request, AlignedBuf::default())?
        .view()
        .vector(Role::FinalNorm, hidden)?;
    complete_norm(weights.spec().norm_plus_one, &mut norm);
    // What divides the logits may as well divide what the head is multiplied with.
    if let Some(divisor) = weights.spec().logits_scaling {
        scale(&mut norm, 1.0 / divisor);
    }
    Ok(norm)
}

/// Final norm and head, for many rows at a time. Holds the weights as they are stored.
#[derive(Debug)]
pub struct Head {
    norm: Vec<f32>,
    eps: f32,
    /// The unit that the matrix lies in.
    unit: Loaded,
    role: Role,
    vocab_size: usize,
    logits_cap: Option<f32>,
    pool: rayon::ThreadPool,
    linear: Linear,
    normed: Vec<f32>,
}

impl Head {
    /// Reads the head into memory.
    ///
    /// # Errors
    /// What the disk refuses; weights that are not what the spec says.
    pub fn new(weights: &Weights, threads: usize) -> Result<Self> {
        let spec = weights.spec();
        let (unit, role) = head_location(spec);
        let unit = read(weights, Request::Unit(unit), AlignedBuf::default())?;
        let (norm, vocab_size) = (final_norm(weights)?, spec.vocab_size as usize);
        unit.view().matrix(role, vocab_size, norm.len())?;
        Ok(Self {
            norm,
            eps: spec.rms_norm_eps,
            unit,
            role,
            vocab_size,
            logits_cap: spec.logits_cap,
            pool: thread_pool(threads)?,
            linear: Linear::new(),
            normed: Vec::new(),
        })
    }

    /// Logits `[n, vocab_size]` of the residual stream `hidden: [n, hidden_size]` after the last
    /// layer. Does not depend on the number of threads.
    ///
    /// # Errors
    /// Weights that are not what the spec says.
    ///
    /// # Panics
    /// When the lengths disagree.
    pub fn logits(&mut self, hidden: &[f32], n: usize, out: &mut [f32]) -> Result<()> {
        let Self { norm, eps, unit, role, vocab_size, logits_cap, pool, linear, normed } = self;
        assert_eq!(hidden.len(), n * norm.len(), "{n} rows of {} channels", norm.len());
        let matrix = unit.view().matrix(*role, *vocab_size, norm.len())?;
        pool.install(|| {
            rms_norm(linear.backend, hidden, norm, *eps, normed);
            linear.compute(vec![Product { matrix, x: normed, out: &mut *out }]);
        });
        cap(out, *logits_cap);
        Ok(())
    }

    /// What the head is multiplied with: `norm(hidden)`, `[n, hidden_size]` both.
    pub fn normed(&self, hidden: &[f32]) -> Vec<f32> {
        let mut normed = Vec::new();
        let backend = self.linear.backend;
        self.pool
            .install(|| rms_norm(backend, hidden, &self.norm, self.eps, &mut normed));
        normed
    }

    /// Values per row of the residual stream.
    pub const fn hidden_size(&self) -> usize {
        self.norm.len()
    }

    /// Values per row of the logits.
    pub const fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}
