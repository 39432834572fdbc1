//! A unit in memory, and the matrices in it.

use shardwright_format::io::AlignedBuf;
use shardwright_format::{Role, TensorEntry, Unit, UnitLayout};
use shardwright_quant::{Backend, Matrix};

use crate::error::{Result, RuntimeError};

/// Where each role's tensor stands in a unit's layout, found once when the unit is read.
#[derive(Debug)]
struct RoleIndex([u8; Role::ALL.len()]);

impl RoleIndex {
    /// No tensor with this role.
    const ABSENT: u8 = u8::MAX;

    fn new(tensors: &[TensorEntry]) -> Self {
        let mut index = [Self::ABSENT; Role::ALL.len()];
        // Backwards: of two tensors with one role the first counts. A unit has fewer tensors than
        // there are roles, which fit a byte.
        for (tensor, i) in tensors.iter().zip(0..Self::ABSENT).rev() {
            index[tensor.role as usize] = i;
        }
        Self(index)
    }

    fn find<'a>(&self, tensors: &'a [TensorEntry], role: Role) -> Option<&'a TensorEntry> {
        tensors.get(usize::from(self.0[role as usize]))
    }
}

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
    roles: RoleIndex,
}

impl Loaded {
    /// `bytes` of `unit`, laid out as `layout` says.
    pub fn new(unit: Unit, layout: UnitLayout, bytes: AlignedBuf) -> Self {
        let roles = RoleIndex::new(&layout.tensors);
        Self { unit, layout, first_row: None, bytes, roles }
    }

    /// The unit for computing with.
    pub fn view(&self) -> UnitView<'_> {
        let (tensors, bytes) = (&self.layout.tensors[..], self.bytes.as_slice());
        UnitView { unit: self.unit, tensors, roles: &self.roles, bytes }
    }
}

/// A borrowed unit.
#[derive(Clone, Copy, Debug)]
pub struct UnitView<'a> {
    unit: Unit,
    tensors: &'a [TensorEntry],
    roles: &'a RoleIndex,
    bytes: &'a [u8],
}

impl<'a> UnitView<'a> {
    /// The `rows × cols` matrix with a role.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or outside the bytes.
    pub fn matrix(&self, role: Role, rows: usize, cols: usize) -> Result<Matrix<'a>> {
        let mismatch = |found: String| {
            let expected = format!("{rows} x {cols}");
            RuntimeError::Tensor { unit: self.unit, role, expected, found }
        };
        let entry = self.roles.find(self.tensors, role);
        let entry = entry.ok_or_else(|| mismatch("no such tensor".to_owned()))?;
        if (entry.rows, entry.cols) != (rows as u64, cols as u64) {
            return Err(mismatch(format!("{} x {}", entry.rows, entry.cols)));
        }
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(entry.byte_len()?).unwrap_or(usize::MAX);
        let bytes = start
            .checked_add(len)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| mismatch("bytes outside the unit".to_owned()))?;
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
}
