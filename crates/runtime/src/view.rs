//! A unit in memory, and the matrices in it.

use shardwright_format::io::AlignedBuf;
use shardwright_format::{Role, TensorEntry, Unit, UnitLayout};
use shardwright_quant::{Backend, Matrix};

use crate::error::{Result, RuntimeError};

/// A unit's bytes and what they mean.
#[derive(Debug)]
pub struct Loaded {
    /// Which unit.
    pub unit: Unit,
    /// Its tensors.
    pub layout: UnitLayout,
    /// The first of the rows in `bytes`, where they are only some rows of one tensor.
    pub first_row: Option<u64>,
    /// Its bytes.
    pub bytes: AlignedBuf,
}

impl Loaded {
    /// The unit for computing with.
    pub fn view(&self) -> UnitView<'_> {
        UnitView { unit: self.unit, tensors: &self.layout.tensors, bytes: self.bytes.as_slice() }
    }
}

/// A borrowed unit.
#[derive(Clone, Copy, Debug)]
pub struct UnitView<'a> {
    unit: Unit,
    tensors: &'a [TensorEntry],
    bytes: &'a [u8],
}

impl<'a> UnitView<'a> {
    /// The `rows × cols` matrix with a role.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or outside the bytes.
    pub fn matrix(&self, role: Role, rows: usize, cols: usize) -> Result<Matrix<'a>> {
        let entry = self.entry(role, rows, cols)?;
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(entry.byte_len()?).unwrap_or(usize::MAX);
        let bytes = start
            .checked_add(len)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| {
                self.mismatch(role, (rows, cols), "bytes outside the unit".to_owned())
            })?;
        Matrix::new(entry.encoding, rows, cols, bytes).map_err(|source| RuntimeError::Matrix {
            unit: self.unit,
            role,
            source,
        })
    }

    /// The vector with a role, as `f32`.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.matrix(role, 1, len)?
            .dequantize(Backend::detect(), 0..1, &mut values);
        Ok(values)
    }

    fn entry(&self, role: Role, rows: usize, cols: usize) -> Result<&'a TensorEntry> {
        let missing = || self.mismatch(role, (rows, cols), "no such tensor".to_owned());
        let entry = self
            .tensors
            .iter()
            .find(|t| t.role == role)
            .ok_or_else(missing)?;
        if (entry.rows, entry.cols) != (rows as u64, cols as u64) {
            let found = format!("{} x {}", entry.rows, entry.cols);
            return Err(self.mismatch(role, (rows, cols), found));
        }
        Ok(entry)
    }

    fn mismatch(&self, role: Role, (rows, cols): (usize, usize), found: String) -> RuntimeError {
        let expected = format!("{rows} x {cols}");
        RuntimeError::Tensor { unit: self.unit, role, expected, found }
    }
}
