//! Where tensors lie inside a unit: pure, checked arithmetic.

use shardwright_quant::EncodingError;

use crate::unit::{TensorEntry, UnitLayout};

/// Tensors of a dense unit start on multiples of this, so that they can be used where they lie.
pub const TENSOR_ALIGNMENT: u64 = 64;

/// Places the tensors of a dense unit in the given order, each on a [`TENSOR_ALIGNMENT`] boundary.
///
/// # Errors
/// When an encoding cannot hold a shape.
pub fn place_dense(tensors: Vec<TensorEntry>) -> Result<UnitLayout, EncodingError> {
    place(tensors, TENSOR_ALIGNMENT)
}

/// Places the tensors of an expert in the given order without gaps: the record is one read, and
/// with 4 bits, group 64 and bf16 scales it is the record of the flash-moe engines.
///
/// # Errors
/// When an encoding cannot hold a shape.
pub fn place_expert(tensors: Vec<TensorEntry>) -> Result<UnitLayout, EncodingError> {
    place(tensors, 1)
}

fn place(mut tensors: Vec<TensorEntry>, alignment: u64) -> Result<UnitLayout, EncodingError> {
    let mut len = 0u64;
    for tensor in &mut tensors {
        let (rows, cols) = (tensor.rows, tensor.cols);
        let overflow = || EncodingError::Overflow { rows, cols };
        tensor.offset = len
            .checked_next_multiple_of(alignment)
            .ok_or_else(overflow)?;
        let end = tensor.offset.checked_add(tensor.byte_len()?);
        len = end.ok_or_else(overflow)?;
    }
    Ok(UnitLayout { tensors: tensors.into(), len })
}
