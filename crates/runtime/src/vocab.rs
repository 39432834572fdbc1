//! Matrices with a row per token of the vocabulary: the embedding, and the head where it is one.

use std::sync::Arc;

use shardwright_format::io::AlignedBuf;
use shardwright_format::model::ModelSpec;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, TensorEntry, Unit};
use shardwright_quant::{Backend, Matrix};

use crate::block::ops::scale;
use crate::error::{Result, RuntimeError};
use crate::fetch::{Request, read};
use crate::view::Loaded;

/// A `[vocab_size, hidden_size]` matrix, in memory or read by rows.
#[derive(Debug)]
pub struct VocabMatrix {
    /// The unit it lies in.
    pub unit: Unit,
    /// The matrix.
    pub entry: TensorEntry,
    /// The unit, where it is in memory.
    pub loaded: Option<Arc<Loaded>>,
}

impl VocabMatrix {
    /// The embedding.
    ///
    /// # Errors
    /// A unit that cannot be read; one without the tensor.
    pub fn embedding(weights: &Weights, resident: bool) -> Result<Self> {
        Self::new(weights, Unit::Embedding, Role::EmbedTokens, resident)
    }

    /// The head. A tied one in memory is `embedding` if that is there too.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn head(weights: &Weights, resident: bool, embedding: &Self) -> Result<Self> {
        let (unit, role) = head_location(weights.spec());
        match &embedding.loaded {
            Some(loaded) if resident && unit == Unit::Embedding => {
                Ok(Self { unit, entry: embedding.entry.clone(), loaded: Some(Arc::clone(loaded)) })
            }
            _ => Self::new(weights, unit, role, resident),
        }
    }

    /// The matrix with `role` in `unit`.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn new(weights: &Weights, unit: Unit, role: Role, resident: bool) -> Result<Self> {
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

    /// The rows of `tokens`, scaled where the model does so. What is not in memory is read into
    /// `buf`, at most `rows_at_once` rows at a time (or those that one can only be read with).
    ///
    /// # Errors
    /// A token outside the vocabulary; what the disk refuses.
    pub fn embed(
        &self,
        weights: &Weights,
        tokens: &[u32],
        rows_at_once: u64,
        buf: AlignedBuf,
    ) -> Result<Embedded> {
        let (spec, hidden) = (weights.spec(), self.entry.cols as usize);
        for token in tokens {
            check_token(spec, *token)?;
        }
        let x = vec![0.0; tokens.len() * hidden];
        let mut embedded = Embedded { x, reads: 0, bytes_read: 0, buf };
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_unstable_by_key(|i| tokens[*i]);
        let mut rest = &order[..];
        while let Some(&first) = rest.first() {
            // From the lowest row that is missing to the last that comes with the same read; rows
            // of one block come together, so that a token after it may be there already.
            let start = u64::from(tokens[first]);
            let row = |i: &usize| u64::from(tokens[*i]);
            let near = rest.partition_point(|i| row(i) < start.saturating_add(rows_at_once));
            let last = rest[..near].last().map_or(start, row);
            let rows = self.entry.readable(&(start..last + 1));
            let (here, after) = rest.split_at(rest.partition_point(|i| row(i) < rows.end));
            if let Some(loaded) = &self.loaded {
                let matrix = loaded.view().matrix(self.entry.role, self.rows(), hidden)?;
                look_up(&matrix, 0, tokens, here, &mut embedded.x);
            } else {
                let request = Request::Rows(self.unit, self.entry.clone(), rows.clone());
                let piece = read(weights, request, std::mem::take(&mut embedded.buf))?;
                let count = (rows.end - rows.start) as usize;
                let matrix = piece.view().matrix(self.entry.role, count, hidden)?;
                look_up(&matrix, rows.start as usize, tokens, here, &mut embedded.x);
                embedded.reads += 1;
                embedded.bytes_read += piece.layout.len;
                embedded.buf = piece.bytes;
            }
            rest = after;
        }
        if let Some(factor) = spec.embedding_multiplier {
            scale(&mut embedded.x, factor);
        }
        Ok(embedded)
    }

    /// Rows: the tokens of the vocabulary.
    pub const fn rows(&self) -> usize {
        self.entry.rows as usize
    }
}

/// Rows of an embedding.
#[derive(Debug)]
pub struct Embedded {
    /// `[tokens, hidden_size]`.
    pub x: Vec<f32>,
    /// Reads that they took.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// The buffer, for the next time.
    pub buf: AlignedBuf,
}

/// Fills rows `places` of `x` with their tokens' rows; `matrix` begins with row `first`.
fn look_up(matrix: &Matrix<'_>, first: usize, tokens: &[u32], places: &[usize], x: &mut [f32]) {
    let hidden = matrix.cols();
    for &place in places {
        let row = tokens[place] as usize - first;
        let out = &mut x[place * hidden..(place + 1) * hidden];
        matrix.dequantize(Backend::detect(), row..row + 1, out);
    }
}

/// Where the head's matrix lies.
pub const fn head_location(spec: &ModelSpec) -> (Unit, Role) {
    if spec.tie_word_embeddings {
        (Unit::Embedding, Role::EmbedTokens)
    } else {
        (Unit::Head, Role::LmHead)
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
