//! Where the tensors of a model lie in a checkpoint of plain floats.

use shardwright_format::arch::Arch;
use shardwright_format::model::{LayerSpec, Mixer};
use shardwright_format::unit::TensorEntry;
use shardwright_format::{Decoder, ModelSpec, SourceView, Unit};

/// What names of the text model begin with in transformers' wrapper of Qwen3.5.
const WRAPPER: &str = "model.language_model.";

/// What decides the names that transformers has for a model's tensors.
pub(super) struct Places {
    spec: ModelSpec,
    arch: Option<Arch>,
    /// Whether the model has gated delta nets.
    delta_nets: bool,
}

impl Places {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        let delta = |layer: &LayerSpec| matches!(layer.mixer, Mixer::DeltaNet(_));
        let delta_nets = spec.layers.iter().any(delta);
        Self { spec: spec.clone(), arch: Arch::builtin(&spec.model_type), delta_nets }
    }

    /// The place of a tensor of a unit.
    pub(super) fn view(&self, unit: Unit, entry: &TensorEntry) -> SourceView {
        let source = entry.in_unit(unit).source;
        let origin = source.origin.clone();
        let mut view = unquantized(origin.map_or(source, |origin| *origin));
        if entry.role.is_convolution() && view.shape == [entry.rows, entry.cols, 1] {
            // So MLX turns it, and where it does norms have one added, which they have not here. The
            // order of values is the same.
            view.shape = vec![entry.rows, 1, entry.cols];
        }
        if self.delta_nets {
            view.tensor = unwrapped(&view.tensor);
        }
        if matches!(unit, Unit::Expert { .. }) { self.unstacked(unit, entry, view) } else { view }
    }

    /// GGUF and MLX stack one matrix, or one bias, of all experts under a name that ends in `.weight`
    /// or `.bias`; transformers has a tensor for each expert instead, or one of several matrices.
    fn unstacked(&self, unit: Unit, entry: &TensorEntry, view: SourceView) -> SourceView {
        let (rows, cols) = (entry.rows, entry.cols);
        let end = view.tensor.rsplit('.').next();
        let stacked = match (end, view.shape.get(1..)) {
            (Some("weight"), Some(shape)) => shape == [rows, cols],
            (Some("bias"), Some(shape)) => rows == 1 && shape == [cols],
            _ => false,
        };
        let Some(arch) = self.arch.as_ref().filter(|_| stacked) else { return view };
        let own = arch.own_place(&self.spec, unit, (entry.role, [rows, cols]), &view);
        own.unwrap_or(view)
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
