//! Tensors that hold the rows of several roles, or of all experts: where each part lies.

use super::claim::Claim;
use super::table::{FusedRow, Layout, unit_of};
use crate::checkpoint::TensorInfo;
use crate::model::ModelSpec;
use crate::shapes::TensorShape;
use crate::unit::SourceView;

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
    pub(super) fn layouts(&self, spec: &ModelSpec) -> Result<Vec<Layout>, String> {
        let parts = self.parts(spec)?;
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
            return Err(format!("expected shape {expected}, found {:?}", self.info.shape));
        }
        Ok(fitting)
    }

    /// The one layout among those that its shape allows, with the help of the tensors beside it:
    /// a layer's fused tensors are stored alike.
    ///
    /// # Errors
    /// When more than one remains.
    pub(super) fn choose(&self, own: &[Layout], beside: &[Vec<Layout>]) -> Result<Layout, String> {
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
            )),
        }
    }

    /// The parts with the units and roles they belong to.
    ///
    /// # Errors
    /// When the model has no such parts.
    pub(super) fn claims(&self, spec: &ModelSpec, layout: Layout) -> Result<Vec<Claim>, String> {
        let parts = self.parts(spec)?;
        let (mut row_stride, col_stride) = match layout {
            _ if parts.vectors => (1, 1),
            Layout::OutIn => (parts.cols, 1),
            Layout::InOut => (1, parts.rows),
        };
        let next = row_stride;
        let turns = parts.shapes.len() as u64;
        if self.row.interleaved {
            row_stride *= turns;
        }
        let expert_stride = if parts.experts.is_some() { parts.rows * parts.cols } else { 0 };
        let mut claims = Vec::new();
        let mut first_row = 0;
        for shape in &parts.shapes {
            // A vector's values are the rows of a column.
            let (row_stride, col_stride) =
                if parts.vectors { (shape.cols, row_stride) } else { (row_stride, col_stride) };
            let template = SourceView {
                tensor: self.name.to_owned(),
                dtype: self.info.dtype,
                shape: self.info.shape.clone(),
                start: first_row * next,
                row_stride,
                col_stride,
                expert_stride,
                decoder: self.info.decoder.clone(),
            };
            first_row += match self.row.interleaved {
                true => 1,
                false if parts.vectors => shape.cols,
                false => shape.rows,
            };
            for expert in 0..parts.experts.unwrap_or(1) as u32 {
                let unit = unit_of(shape.role, self.layer, expert);
                claims.push(Claim { unit, shape: *shape, template: template.clone() });
            }
        }
        Ok(claims)
    }

    fn parts(&self, spec: &ModelSpec) -> Result<Parts, String> {
        let of_role = |&role| {
            let unit = unit_of(role, self.layer, 0);
            let shape = spec
                .tensors(unit)
                .into_iter()
                .find(|shape| shape.role == role);
            shape.ok_or_else(|| format!("the configuration has no {role} in {unit}"))
        };
        let shapes: Vec<_> = self
            .row
            .roles
            .iter()
            .map(of_role)
            .collect::<Result<_, _>>()?;
        let [first, ..] = &shapes[..] else { return Err("the table gives it no role".to_owned()) };
        let (role, vectors) = (first.role, first.rows == 1);
        let cols = if vectors { 1 } else { first.cols };
        let same = |shape: &TensorShape| if vectors { shape.rows == 1 } else { shape.cols == cols };
        if !shapes.iter().all(same) {
            return Err("its roles have different numbers of columns".to_owned());
        }
        let experts = || {
            spec.layers
                .get(self.layer as usize)
                .map(|l| u64::from(l.num_experts()))
        };
        Ok(Parts {
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
}

impl Parts {
    fn shape(&self, layout: Layout) -> Vec<u64> {
        let (rows, cols) = (self.rows, self.cols);
        let dims = match layout {
            _ if self.vectors => vec![rows],
            Layout::OutIn => vec![rows, cols],
            Layout::InOut => vec![cols, rows],
        };
        self.experts.into_iter().chain(dims).collect()
    }
}
