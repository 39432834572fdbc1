//! The embedding and the head: matrices with a row per token.

use std::ops::Range;
use std::sync::Arc;

use shardwright_format::io::AlignedBuf;
use shardwright_format::model::ModelSpec;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, TensorEntry, Unit};

use crate::block::ops::rms_norm;
use crate::block::ops::{complete_norm, scale};
use crate::error::{Result, RuntimeError};
use crate::fetch::{Request, read};
use crate::linear::Linear;
use crate::plan::head_place;
use crate::view::Loaded;

/// A `[vocab_size, hidden_size]` matrix, in memory or read by rows.
#[derive(Debug)]
pub struct Table {
    /// The unit it lies in.
    pub unit: Unit,
    /// The matrix.
    pub entry: TensorEntry,
    /// The unit, where it is in memory.
    pub loaded: Option<Arc<Loaded>>,
}

impl Table {
    /// The embedding.
    ///
    /// # Errors
    /// A unit that cannot be read; one without the tensor.
    pub fn embedding(weights: &Weights, resident: bool) -> Result<Self> {
        Self::new(weights, (Unit::Embedding, Role::EmbedTokens), resident)
    }

    /// The head. A tied one in memory is `embedding` if that is there too.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn head(weights: &Weights, resident: bool, embedding: &Self) -> Result<Self> {
        let (unit, role) = head_place(weights.spec());
        match &embedding.loaded {
            Some(loaded) if resident && unit == Unit::Embedding => {
                Ok(Self { unit, entry: embedding.entry.clone(), loaded: Some(Arc::clone(loaded)) })
            }
            _ => Self::new(weights, (unit, role), resident),
        }
    }

    fn new(weights: &Weights, (unit, role): (Unit, Role), resident: bool) -> Result<Self> {
        let spec = weights.spec();
        let layout = weights.layout(unit)?;
        let shape = (u64::from(spec.vocab_size), u64::from(spec.hidden_size));
        let entry = layout
            .find(role)
            .filter(|entry| (entry.rows, entry.cols) == shape);
        let Some(entry) = entry.cloned() else {
            let expected = format!("{} x {}", shape.0, shape.1);
            return Err(RuntimeError::Tensor { unit, role, expected, found: "none".to_owned() });
        };
        let loaded = if resident {
            Some(Arc::new(read(weights, Request::Unit(unit), AlignedBuf::default())?))
        } else {
            None
        };
        Ok(Self { unit, entry, loaded })
    }

    /// Bytes in memory.
    pub fn byte_len(&self) -> u64 {
        self.loaded
            .as_ref()
            .map_or(0, |loaded| loaded.bytes.len() as u64)
    }

    /// Some rows as a unit of their own, read from disk: rows that can be read alone, see
    /// [`TensorEntry::readable`].
    ///
    /// # Errors
    /// What the disk refuses; other rows.
    pub fn read_rows(
        &self,
        weights: &Weights,
        rows: Range<u64>,
        buf: AlignedBuf,
    ) -> Result<Loaded> {
        Ok(read(weights, Request::Rows(self.unit, self.entry.clone(), rows), buf)?)
    }
}

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
    table: Table,
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
        let table = Table::new(weights, head_place(weights.spec()), true)?;
        let pool = thread_pool(threads)?;
        let (norm, eps) = (final_norm(weights)?, weights.spec().rms_norm_eps);
        Ok(Self { norm, eps, table, pool, linear: Linear::new(), normed: Vec::new() })
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
        let Self { norm, eps, table, pool, linear, normed } = self;
        assert_eq!(hidden.len(), n * norm.len(), "{n} rows of {} channels", norm.len());
        let Some(loaded) = &table.loaded else { return Err(RuntimeError::Stopped) };
        let matrix =
            loaded
                .view()
                .matrix(table.entry.role, table.entry.rows as usize, norm.len())?;
        rms_norm(linear.backend, hidden, norm, *eps, normed);
        pool.install(|| linear.matmul(normed, n, &matrix, out));
        Ok(())
    }

    /// What the head is multiplied with: `norm(hidden)`, `[n, hidden_size]` both.
    pub fn normed(&self, hidden: &[f32]) -> Vec<f32> {
        let mut normed = Vec::new();
        rms_norm(self.linear.backend, hidden, &self.norm, self.eps, &mut normed);
        normed
    }

    /// Values per row of the residual stream.
    pub const fn hidden_size(&self) -> usize {
        self.norm.len()
    }

    /// Values per row of the logits.
    pub const fn vocab_size(&self) -> usize {
        self.table.entry.rows as usize
    }
}

/// Checks a token against the embedding's rows.
///
/// # Errors
/// A token outside the vocabulary.
pub fn check_token(spec: &ModelSpec, token: u32) -> Result<()> {
    let vocab_size = spec.vocab_size;
    if token < vocab_size { Ok(()) } else { Err(RuntimeError::Token { token, vocab_size }) }
}

/// Threads that compute.
///
/// # Errors
/// When the operating system has no more of them.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .map_err(|e| RuntimeError::Threads(e.to_string()))
}
