//! Tensors that hold the rows of several roles, or of all experts: where each part lies.

use super::claim::Claim;
use super::table::{FusedRow, Layout, Table, unit_of};
use crate::checkpoint::TensorInfo;
use crate::model::ModelSpec;
use crate::names::fill;
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::shapes::TensorShape;
use crate::unit::{SourceView, Unit};

/// A fused tensor of one layer.
pub(super) struct Fused<'a> {
    pub(super) name: &'a str,
    pub(super) info: &'a TensorInfo,
    pub(super) row: &'a FusedRow,
    pub(super) layer: u32,
}

/// Its parts: `[experts] × ([sum of rows, cols] or [cols, sum of rows])`; for vectors
/// `[experts] × [sum of lengths]`, as if each were a column.
struct Parts {
    shapes: Vec<TensorShape>,
    vectors: bool,
    experts: Option<u64>,
    rows: u64,
    cols: u64,
}

impl Fused<'_> {
    /// The layouts that the tensor's shape allows.
    ///
    /// # Errors
    /// When it allows none: expected and found.
    pub(super) fn layouts(&self, spec: &ModelSpec) -> Result<Vec<Layout>, Refusal> {
        let parts = Parts::new(self.row, self.layer, spec)?;
        let stated = |layout: &Layout| self.row.layout.is_none_or(|stated| stated == *layout);
        let possible: Vec<_> = [Layout::OutIn, Layout::InOut]
            .into_iter()
            .filter(stated)
            .collect();
        let fits = |layout: &Layout| parts.shape(*layout) == self.info.shape;
        let fitting: Vec<_> = possible.iter().copied().filter(fits).collect();
        if fitting.is_empty() {
            let shapes: Vec<_> = possible
                .iter()
                .map(|l| format!("{:?}", parts.shape(*l)))
                .collect();
            let expected = shapes.join(" or ");
            return Err(mismatch(
                format_args!("shape {expected}"),
                format_args!("{:?}", self.info.shape),
            ));
        }
        Ok(fitting)
    }

    /// The one layout among those that its shape allows, with the help of the tensors beside it:
    /// a layer's fused tensors are stored alike.
    ///
    /// # Errors
    /// When more than one remains.
    pub(super) fn choose(&self, own: &[Layout], beside: &[Vec<Layout>]) -> Result<Layout, Refusal> {
        if let [only] = own {
            return Ok(*only);
        }
        let mut clear = beside
            .iter()
            .filter(|layouts| layouts.len() == 1)
            .map(|layouts| layouts[0]);
        match clear.next() {
            Some(layout) if clear.all(|other| other == layout) => Ok(layout),
            _ => Err(format!(
                "shape {:?} can be [.., out, in] as well as [.., in, out]: state \"layout\": \
                 \"out_in\" or \"in_out\" in its row under `fused` of the architecture's table",
                self.info.shape
            )
            .into()),
        }
    }

    /// The parts with the units and roles they belong to.
    ///
    /// # Errors
    /// When the model has no such parts.
    pub(super) fn claims(&self, spec: &ModelSpec, layout: Layout) -> Result<Vec<Claim>, Refusal> {
        let parts = Parts::new(self.row, self.layer, spec)?;
        let whole = self.info.view(self.name, 0);
        let mut claims = Vec::new();
        for (shape, template) in parts.templates(self.row, layout, &whole) {
            for expert in 0..parts.experts.unwrap_or(1) as u32 {
                let unit = unit_of(shape.role, self.layer, expert);
                claims.push(Claim { unit, shape, template: template.clone() });
            }
        }
        Ok(claims)
    }
}

/// Where the first of a table's fused rows with the role that is `wanted` has it, in the type of
/// `stored`.
pub(super) fn own_place(
    table: &Table,
    spec: &ModelSpec,
    (unit, role): (Unit, Role),
    stored: &SourceView,
    wanted: &dyn Fn(&FusedRow) -> bool,
) -> Option<SourceView> {
    let row = table
        .fused
        .iter()
        .find(|row| row.roles.contains(&role) && wanted(row))?;
    let parts = Parts::new(row, unit.layer()?, spec).ok()?;
    let layout = row.layout.unwrap_or(Layout::OutIn);
    let tensor = table.wrapped(fill(row.tensor.as_slice().first()?, unit), &stored.tensor);
    let whole = SourceView { tensor, shape: parts.shape(layout), ..stored.clone() };
    let mut templates = parts.templates(row, layout, &whole).into_iter();
    let (_, own) = templates.find(|(shape, _)| shape.role == role)?;
    Some(match unit {
        Unit::Expert { expert, .. } => own.of_expert(expert),
        _ => own,
    })
}

impl Parts {
    fn new(row: &FusedRow, layer: u32, spec: &ModelSpec) -> Result<Self, Refusal> {
        let of_role = |&role| {
            let unit = unit_of(role, layer, 0);
            let shape = spec
                .tensors(unit)
                .into_iter()
                .find(|shape| shape.role == role);
            shape.ok_or_else(|| format!("the configuration has no {role} in {unit}"))
        };
        let shapes: Vec<_> = row.roles.iter().map(of_role).collect::<Result<_, _>>()?;
        let [first, ..] = &shapes[..] else { return Err("the table gives it no role".into()) };
        let (role, vectors) = (first.role, first.rows == 1);
        let cols = if vectors { 1 } else { first.cols };
        let same = |shape: &TensorShape| if vectors { shape.rows == 1 } else { shape.cols == cols };
        if !shapes.iter().all(same) {
            return Err("its roles have different numbers of columns".into());
        }
        let experts = || {
            spec.layers
                .get(layer as usize)
                .map(|l| u64::from(l.num_experts()))
        };
        Ok(Self {
            rows: shapes
                .iter()
                .map(|shape| if vectors { shape.cols } else { shape.rows })
                .sum(),
            cols,
            vectors,
            experts: if role.is_expert() { experts() } else { None },
            shapes,
        })
    }

    fn shape(&self, layout: Layout) -> Vec<u64> {
        let (rows, cols) = (self.rows, self.cols);
        let dims = match layout {
            _ if self.vectors => vec![rows],
            Layout::OutIn => vec![rows, cols],
            Layout::InOut => vec![cols, rows],
        };
        self.experts.into_iter().chain(dims).collect()
    }

    /// Each part's place in the `whole` tensor, for all experts alike.
    fn templates(
        &self,
        row: &FusedRow,
        layout: Layout,
        whole: &SourceView,
    ) -> Vec<(TensorShape, SourceView)> {
        let (mut row_stride, col_stride) = match layout {
            _ if self.vectors => (1, 1),
            Layout::OutIn => (self.cols, 1),
            Layout::InOut => (1, self.rows),
        };
        let next = row_stride;
        if row.interleaved {
            row_stride *= self.shapes.len() as u64;
        }
        let expert_stride = if self.experts.is_some() { self.rows * self.cols } else { 0 };
        let mut first_row = 0;
        let template = |shape: &TensorShape| {
            // A vector's values are the rows of a column.
            let (row_stride, col_stride) =
                if self.vectors { (shape.cols, row_stride) } else { (row_stride, col_stride) };
            let start = first_row * next;
            first_row += match row.interleaved {
                true => 1,
                false if self.vectors => shape.cols,
                false => shape.rows,
            };
            let view = SourceView { start, row_stride, col_stride, expert_stride, ..whole.clone() };
            (*shape, view)
        };
        self.shapes.iter().map(template).collect()
    }
}
