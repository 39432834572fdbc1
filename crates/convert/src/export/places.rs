//! Where the tensors of a model lie in a checkpoint of plain floats.

use shardwright_format::arch::Arch;
use shardwright_format::model::{LayerSpec, Mixer};
use shardwright_format::unit::TensorEntry;
use shardwright_format::{Decoder, ModelSpec, Role, SourceView, Unit};

/// What names of the text model begin with in transformers' wrapper of Qwen3.5.
const WRAPPER: &str = "model.language_model.";

/// What decides the names that transformers has for a model's tensors.
pub(super) struct Places {
    arch: Option<Arch>,
    /// Whether the model has gated delta nets.
    delta_nets: bool,
}

impl Places {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        let delta = |layer: &LayerSpec| matches!(layer.mixer, Mixer::DeltaNet(_));
        let delta_nets = spec.layers.iter().any(delta);
        Self { arch: Arch::builtin(&spec.model_type), delta_nets }
    }

    /// The place of a tensor of a unit.
    pub(super) fn view(&self, unit: Unit, entry: &TensorEntry) -> SourceView {
        let mut view = unquantized(entry.in_unit(unit).source);
        if entry.role == Role::DeltaConv && view.shape == [entry.rows, entry.cols, 1] {
            // So MLX turns it, and where it does norms have one added, which they have not here. The
            // order of values is the same.
            view.shape = vec![entry.rows, 1, entry.cols];
        }
        if self.delta_nets {
            view.tensor = unwrapped(&view.tensor);
        }
        if matches!(unit, Unit::Expert { .. }) { self.unstacked(unit, entry, view) } else { view }
    }

    /// GGUF and MLX stack one matrix of all experts under a name that ends in `.weight`; transformers
    /// has a tensor for each expert instead.
    fn unstacked(&self, unit: Unit, entry: &TensorEntry, view: SourceView) -> SourceView {
        let stack = [entry.rows, entry.cols];
        let stacked = view.tensor.ends_with(".weight") && view.shape.get(1..) == Some(&stack[..]);
        // A table's names are those of the text model alone; those beside it say whether it is wrapped.
        let wrapped = |name: String| {
            if view.tensor.starts_with(WRAPPER) {
                name.replacen("model.", WRAPPER, 1)
            } else {
                name
            }
        };
        let name = || {
            self.arch
                .as_ref()?
                .tensor_name(unit, entry.role)
                .map(wrapped)
        };
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

/// The name of a tensor of Qwen3.5, whose wrapper MLX has the other way round.
fn unwrapped(name: &str) -> String {
    match name.strip_prefix("language_model.") {
        Some(inner) => match inner.strip_prefix("model.") {
            Some(rest) => format!("{WRAPPER}{rest}"),
            None => inner.to_owned(),
        },
        None => name.to_owned(),
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
