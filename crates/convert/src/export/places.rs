//! Where the tensors of a model lie in a checkpoint of plain floats.

use shardwright_format::arch::Arch;
use shardwright_format::unit::TensorEntry;
use shardwright_format::{Decoder, ModelSpec, SourceView, Unit};

/// Knows the names that transformers has for a model's tensors.
pub(super) struct Places(Option<Arch>);

impl Places {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        Self(Arch::builtin(&spec.model_type))
    }

    /// The place of a tensor of a unit.
    pub(super) fn view(&self, unit: Unit, entry: &TensorEntry) -> SourceView {
        let view = unquantized(entry.in_unit(unit).source);
        if matches!(unit, Unit::Expert { .. }) { self.unstacked(unit, entry, view) } else { view }
    }

    /// GGUF and MLX stack one matrix of all experts under a name that ends in `.weight`; transformers
    /// has a tensor for each expert instead.
    fn unstacked(&self, unit: Unit, entry: &TensorEntry, view: SourceView) -> SourceView {
        let stack = [entry.rows, entry.cols];
        let stacked = view.tensor.ends_with(".weight") && view.shape.get(1..) == Some(&stack[..]);
        let name = || self.0.as_ref()?.tensor_name(unit, entry.role);
        match stacked.then(name).flatten() {
            Some(tensor) => SourceView {
                tensor,
                shape: stack.to_vec(),
                start: 0,
                row_stride: entry.cols,
                col_stride: 1,
                ..view
            },
            None => view,
        }
    }
}

/// The view of a tensor in a checkpoint of plain floats. The experts of gpt-oss have inputs as rows
/// there, and a name of their own.
fn unquantized(view: SourceView) -> SourceView {
    let name = match &view.decoder {
        Some(Decoder::Mxfp4 { .. }) => view.tensor.strip_suffix("_blocks").map(str::to_owned),
        _ => None,
    };
    let (Some(tensor), [lead @ .., rows, cols]) = (name, &view.shape[..]) else { return view };
    let (rows, cols) = (*rows, (*cols).max(1));
    let matrix = rows * cols;
    SourceView {
        tensor,
        shape: [lead, &[cols, rows]].concat(),
        start: view.start / matrix * matrix + view.start % matrix / cols,
        row_stride: view.row_stride / cols,
        col_stride: rows,
        ..view
    }
}
