//! The layer that predicts a further token, in the part `mtp`: which rows of which tensor play which role.

use std::ops::Range;

use super::Arch;
use super::table::{HeadRow, Table, Target, unit_of};
use crate::model::{LayerSpec, Mixer, ModelSpec};
use crate::names::{fill, split};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::shapes::TensorShape;
use crate::unit::{TensorEntry, Unit, UnitLayout};

/// What the names of a layer's tensors begin with in the rows of a table.
const OWN: &str = "model.layers.0.";

/// A layer behind the last one that predicts the token after next: from the embedding of the next one and from
/// what the model gives after its final norm, each normed once more and both joined. Embedding and head are the
/// model's own (arXiv 2412.19437, 2.2).
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The layer as a model of one layer.
    pub spec: ModelSpec,
    /// Norm of the embedding, `[hidden_size]`: a tensor of the part, as the next ones.
    pub embedding_norm: TensorEntry,
    /// Norm of what the model gives, `[hidden_size]`.
    pub hidden_norm: TensorEntry,
    /// `[hidden_size, 2 * hidden_size]` of the two joined, the embedding first.
    pub projection: TensorEntry,
    /// Norm before the head, `[hidden_size]`.
    pub norm: TensorEntry,
    /// The layer's dense part.
    pub dense: Vec<Piece>,
    /// Each of its experts.
    pub experts: Vec<Vec<Piece>>,
}

/// The rows of a tensor that are one role's matrix.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What they are for.
    pub role: Role,
    /// The tensor, as the part has it.
    pub tensor: TensorEntry,
    /// Which of its rows.
    pub rows: Range<u64>,
}

impl Prediction {
    /// Finds the layer of a model among the tensors of its part `mtp`.
    ///
    /// # Errors
    /// An architecture whose layer is not described; a tensor that is missing or of another shape.
    pub fn new(model: &ModelSpec, part: &UnitLayout) -> Result<Self, Refusal> {
        let arch = Arch::builtin(&model.model_type);
        let unknown = || {
            mismatch("a model whose table describes them", format_args!("`{}`", model.model_type))
                .at("layers that predict further tokens")
        };
        let arch = arch.ok_or_else(unknown)?;
        let rows = arch.table.extras.iter();
        let row = rows
            .filter(|row| row.role == Role::Mtp)
            .find_map(|row| row.head.as_ref());
        let row = row.ok_or_else(unknown)?;
        let attends =
            |layer: &&LayerSpec| matches!(layer.mixer, Mixer::Attention(_) | Mixer::Latent(_));
        let layer = model
            .layers
            .iter()
            .rev()
            .find(attends)
            .ok_or_else(unknown)?;
        let spec = ModelSpec { layers: vec![layer.clone()], ..model.clone() };
        let found =
            Found { table: &arch.table, spec: &spec, row, part, count: model.layers.len() as u32 };
        let hidden = u64::from(spec.hidden_size);
        Ok(Self {
            embedding_norm: found.alone(&row.embedding_norm, [1, hidden])?,
            hidden_norm: found.alone(&row.hidden_norm, [1, hidden])?,
            projection: found.alone(&row.projection, [hidden, 2 * hidden])?,
            norm: found.alone(&row.norm, [1, hidden])?,
            dense: found.pieces(Unit::Layer(0))?,
            experts: (0..layer.num_experts())
                .map(|expert| found.pieces(Unit::Expert { layer: 0, expert }))
                .collect::<Result<_, _>>()?,
            spec,
        })
    }
}

/// The tensors of the part, and how their names are read.
struct Found<'a> {
    table: &'a Table,
    spec: &'a ModelSpec,
    row: &'a HeadRow,
    part: &'a UnitLayout,
    /// Layers of the model: the number of the one behind them.
    count: u32,
}

impl Found<'_> {
    /// A tensor that is there under a name of the table.
    fn alone(&self, name: &str, [rows, cols]: [u64; 2]) -> Result<TensorEntry, Refusal> {
        let name = fill(name, Unit::Layer(self.count));
        let mut all = self.part.tensors.iter();
        let found = all.find(|tensor| self.table.plain(&tensor.source.tensor) == name);
        let shown = found.map_or_else(|| "none".to_owned(), |t| format!("{} x {}", t.rows, t.cols));
        let fits = found.filter(|tensor| (tensor.rows, tensor.cols) == (rows, cols));
        fits.cloned().ok_or_else(|| {
            mismatch(format_args!("{rows} x {cols}"), shown).at(format_args!("`{name}`"))
        })
    }

    /// The tensors of a unit of the layer.
    fn pieces(&self, unit: Unit) -> Result<Vec<Piece>, Refusal> {
        let shapes = self.spec.tensors(unit);
        shapes.iter().map(|shape| self.piece(unit, shape)).collect()
    }

    fn piece(&self, unit: Unit, shape: &TensorShape) -> Result<Piece, Refusal> {
        let mut all = self.part.tensors.iter();
        let found =
            all.find_map(|tensor| Some((tensor, self.first_row(unit, shape.role, tensor)?)));
        let place = || format!("{unit} {} of the layer that predicts further tokens", shape.role);
        let (tensor, first) = found.ok_or_else(|| mismatch("a tensor", "none").at(place()))?;
        let rows = first..first + shape.rows;
        // What blocks of rows hold beside these would have to go with them.
        if tensor.cols != shape.cols || rows.end > tensor.rows || tensor.readable(&rows) != rows {
            let expected = format!("rows {first} to {} of {} values", rows.end, shape.cols);
            let found = format!("{} x {} in {}", tensor.rows, tensor.cols, tensor.encoding.label());
            return Err(mismatch(expected, found).at(place()));
        }
        Ok(Piece { role: shape.role, tensor: tensor.clone(), rows })
    }

    /// Where in a tensor the matrix of a unit with this role begins, if the tensor holds it.
    fn first_row(&self, unit: Unit, role: Role, tensor: &TensorEntry) -> Option<u64> {
        let name = self.table.plain(&tensor.source.tensor);
        let rest = name.strip_prefix(&fill(&self.row.layer, Unit::Layer(self.count)))?;
        let (pattern, [_, number]) = split(&format!("{OWN}{rest}"));
        match self.table.targets.get(&pattern?)? {
            Target::Role(own) => {
                let same = *own == role && unit_of(role, 0, number) == unit;
                same.then_some(0)
            }
            Target::Fused(row) => {
                let row = &self.table.fused[*row];
                let before = row.roles.iter().position(|own| *own == role)?;
                let each = |role: &Role| {
                    let shapes = self.spec.tensors(unit_of(*role, 0, 0));
                    shapes
                        .iter()
                        .find(|shape| shape.role == *role)
                        .map(|shape| shape.rows)
                };
                let rows: Vec<u64> = row.roles.iter().map(each).collect::<Option<_>>()?;
                let expert = match unit {
                    Unit::Expert { expert, .. } => u64::from(expert),
                    _ => 0,
                };
                let start: u64 = rows[..before].iter().sum();
                (!row.interleaved).then_some(expert * rows.iter().sum::<u64>() + start)
            }
            Target::Ignored(_) => None,
        }
    }
}
