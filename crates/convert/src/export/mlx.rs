//! A directory that mlx-lm loads as it is: affine codes copied, as their layout is MLX's own, and MXFP4 and MXFP8
//! put in its order, under the names, in the stacks and with the conventions that its `sanitize` leaves.

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::checkpoint::{CONFIG_NAME, Dtype, write_view};
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{Refusal, Role, SourceView, Unit, mismatch};
use shardwright_quant::foreign::neighbours;
use shardwright_quant::{Encoding, Float, Minifloat, Zeros};

use super::companions::{copy_companions, plain_config, write_json};
use super::mlx_config::{Codes, Modules, describe};
use super::mlx_places::{Family, Halves, MlxPlaces, Place};
use super::requantize::{Tally, encoded, stand_in};
use super::tensor_files::{Tensor, TensorFiles};
use super::told::{left_out, quantized_before};
use super::walk::{Rows, each_rows, narrowed};
use super::{ExportOptions, Exported};
use crate::error::{ConvertError, Remedy, Result};

/// What the headers say of who reads the files.
const FORMAT: &str = "mlx";

/// Writes a model as mlx-lm loads it into `dir`.
pub(super) fn write(weights: &Weights, dir: &Path, options: &ExportOptions) -> Result<Exported> {
    let mut config = plain_config(weights)?;
    let family = Family::named(config["model_type"].as_str().unwrap_or_default())?;
    let places = MlxPlaces::new(&family, weights.spec())?;
    let form = Form { weights, places: &places, options };
    let differences = places.differences()?;
    let (tensors, modules, told) = form.tensors()?;
    let files = TensorFiles::create(dir, &tensors, options.file_limit, FORMAT)?;
    let mut tally = Tally::default();
    let write = &mut |rows: &Rows<'_>| form.write(rows, &files, &mut tally);
    each_rows(weights, weights.spec().units(), options, write)?;
    files.index(dir, true)?;
    copy_companions(weights, dir)?;
    describe(&mut config, weights.spec(), &family, &modules);
    write_json(&dir.join(CONFIG_NAME), &config)?;
    Ok(Exported { differences, requantized: tally.finish(), ..told })
}

/// A tensor of the export that holds rows of one of the model's.
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
}

/// A model and the form that it gets.
struct Form<'a> {
    weights: &'a Weights,
    places: &'a MlxPlaces<'a>,
    options: &'a ExportOptions,
}

impl Form<'_> {
    /// Every tensor of the export, the encodings of modules in codes, and what there is to tell.
    ///
    /// # Errors
    /// What MLX cannot hold as it is: the tensor, and the option that avoids it.
    fn tensors(&self) -> Result<(BTreeMap<String, Tensor>, Modules, Exported)> {
        let (mut tensors, mut modules) = (BTreeMap::<String, Tensor>::new(), Modules::default());
        let reason = "mlx-lm has the text model alone";
        let left_out = left_out(self.weights, reason)?;
        let mut told = Exported { left_out, ..Exported::default() };
        // Weights that units of the model give a tensor, and those that it has.
        let mut filled = BTreeMap::<String, [u64; 2]>::new();
        for unit in self.weights.spec().units() {
            for entry in self.weights.layout(unit)?.tensors.iter() {
                self.check(unit, entry)?;
                let pieces = self.pieces(unit, entry)?;
                if let Some(codes) = Codes::new(self.held(entry)) {
                    modules.add(&pieces[0].name, codes, entry.rows * entry.cols);
                } else {
                    told.unquantized.extend(quantized_before(entry));
                }
                if let [piece, ..] = &pieces[..] {
                    let place = self.places.place(unit, entry)?;
                    let all = place.shape.iter().product();
                    filled.entry(piece.name.clone()).or_insert([0, all])[0] +=
                        entry.rows * entry.cols;
                }
                for piece in pieces {
                    self.add(&mut tensors, piece, unit, entry)?;
                }
            }
        }
        if let Some((name, [found, all])) = filled.iter().find(|(_, [found, all])| found != all) {
            let detail =
                format!("tensor `{name}`: expected {all} weights, the model holds {found}");
            return Err(ConvertError::plan(detail));
        }
        Ok((tensors, modules, told))
    }

    /// Adds a tensor of the export, or more rows of one.
    fn add(
        &self,
        tensors: &mut BTreeMap<String, Tensor>,
        piece: Piece,
        unit: Unit,
        entry: &TensorEntry,
    ) -> Result<()> {
        let Piece { name, dtype, shape } = piece;
        let found = tensors
            .entry(name.clone())
            .or_insert_with(|| Tensor { dtype, shape: shape.clone() });
        if (found.dtype, &found.shape) == (dtype, &shape) {
            return Ok(());
        }
        let label = entry.encoding.label();
        let detail = mismatch(format_args!("all parts of `{name}` stored alike"), label);
        Err(self.refused(unit, entry, detail, Remedy::OneEncoding))
    }

    fn refused(
        &self,
        unit: Unit,
        entry: &TensorEntry,
        detail: impl Into<Refusal>,
        remedy: Remedy,
    ) -> ConvertError {
        let detail = detail.into().at(format_args!("{unit} {}", entry.role));
        ConvertError::NotHeld { path: self.weights.root().to_owned(), detail, remedy }
    }

    /// Whether MLX holds a tensor as it is; if not, what it would have to be.
    fn holds(&self, entry: &TensorEntry) -> Result<(), &'static str> {
        let floats_only = self.places.family.float_roles().contains(&entry.role);
        let known = Codes::new(entry.encoding).is_some();
        match entry.encoding.float() {
            None if known && floats_only && entry.role == Role::KvBProj => {
                Err("expected floats, as mlx-lm keeps half of it transposed")
            }
            None if known && floats_only => Err("expected floats, as mlx-lm has no codes there"),
            None if !known => Err("expected floats, affine codes, MXFP4 or MXFP8, which MLX has"),
            _ => Ok(()),
        }
    }

    /// How the export holds a tensor.
    fn held(&self, entry: &TensorEntry) -> Encoding {
        let floats_only = self.places.family.float_roles().contains(&entry.role);
        match self.holds(entry) {
            Ok(()) => entry.encoding,
            Err(_) => stand_in(entry, floats_only),
        }
    }

    /// Refuses a tensor that MLX cannot hold as it is, unless it may be stored anew.
    fn check(&self, unit: Unit, entry: &TensorEntry) -> Result<()> {
        match self.holds(entry) {
            Err(detail) if !self.options.requantize => {
                let detail = format!("{detail}, found {}", entry.encoding.label());
                Err(self.refused(unit, entry, detail, Remedy::EngineLimits))
            }
            _ => Ok(()),
        }
    }

    /// The tensors of the export that hold one of the model's, in the order of its parts.
    fn pieces(&self, unit: Unit, entry: &TensorEntry) -> Result<Vec<Piece>> {
        let dtype = self.float(entry);
        if let Some(halves) = self.places.halves(unit, entry)? {
            let piece =
                |place: Place| Piece { name: place.name, dtype: dtype.into(), shape: place.shape };
            return Ok(vec![piece(halves.keys), piece(halves.values)]);
        }
        let place = self.places.place(unit, entry)?;
        let held = self.held(entry);
        if held.float().is_some() {
            return Ok(vec![Piece { name: place.name, dtype: dtype.into(), shape: place.shape }]);
        }
        let Some(module) = place.name.strip_suffix(".weight").map(str::to_owned) else {
            let detail = mismatch(format_args!("floats in `{}`", place.name), "codes");
            return Err(self.refused(unit, entry, detail, Remedy::EngineLimits));
        };
        Ok(code_pieces(&module, &place.shape, held))
    }

    /// The type of a tensor that is floats in the export.
    fn float(&self, entry: &TensorEntry) -> Float {
        let stored = self.held(entry).float().unwrap_or(Float::F32);
        // One more than a value of 16 bits is seldom one itself.
        if self.places.family.raises(entry.role) {
            self.options.dtype.for_source(stored)
        } else {
            stored
        }
    }

    /// Puts rows where they lie.
    fn write(&self, rows: &Rows<'_>, files: &TensorFiles, tally: &mut Tally) -> Result<()> {
        let (unit, entry) = (rows.unit, rows.entry);
        let (anew, raised, ordered);
        let mut parts = rows.parts();
        let held = self.held(entry);
        if held != entry.encoding {
            anew = encoded(rows, (held, Zeros::Float), tally)?;
            parts = [&anew[0], &anew[1], &anew[2]];
        }
        if held == Encoding::Minifloat(Minifloat::MXFP4) {
            ordered = neighbours(parts[0]);
            parts[0] = &ordered;
        }
        if let Some(halves) = self.places.halves(unit, entry)? {
            return write_halves(rows, &halves, parts[0], files);
        }
        if self.places.family.raises(entry.role) {
            let values: Vec<_> = rows.values().iter().map(|value| value + 1.0).collect();
            raised = narrowed(self.float(entry), &values);
            parts[0] = &raised;
        }
        let first = self.places.place(unit, entry)?.first + rows.range.start;
        let count = rows.range.end - rows.range.start;
        for (piece, bytes) in self.pieces(unit, entry)?.iter().zip(parts) {
            let Some(to) = files.tensor(&piece.name) else { continue };
            let row = bytes.len() as u64 / count.max(1) / to.size as u64;
            to.write(first * row, bytes)?;
        }
        Ok(())
    }
}

/// Puts rows of `kv_b_proj` into its halves: per head first those of keys, which are columns there,
/// then those of values.
fn write_halves(rows: &Rows<'_>, halves: &Halves, bytes: &[u8], files: &TensorFiles) -> Result<()> {
    let entry = rows.entry;
    let (Some(keys), Some(values)) =
        (files.tensor(&halves.keys.name), files.tensor(&halves.values.name))
    else {
        return Ok(());
    };
    let row = bytes.len() / (rows.range.end - rows.range.start).max(1) as usize;
    let of_head = halves.key_rows + halves.value_rows;
    let mut at = rows.range.start;
    while at < rows.range.end {
        let (head, within) = (at / of_head, at % of_head);
        let is_key = within < halves.key_rows;
        let end = if is_key { halves.key_rows } else { of_head };
        let next = (at - within + end).min(rows.range.end);
        let from = (at - rows.range.start) as usize * row;
        let some = &bytes[from..(next - rows.range.start) as usize * row];
        if is_key {
            let start = head * halves.key_rows * entry.cols;
            let view = SourceView {
                start,
                row_stride: 1,
                col_stride: halves.key_rows,
                ..SourceView::whole(String::new(), Float::F32, Vec::new(), entry.cols)
            };
            write_view(&view, within..within + (next - at), some, &keys)?;
        } else {
            let first = head * halves.value_rows + within - halves.key_rows;
            values.write(first * entry.cols, some)?;
        }
        at = next;
    }
    Ok(())
}

/// Words of codes, scales and, of affine ones, biases of a module whose weight has `shape`, in codes that MLX has.
pub(super) fn code_pieces(module: &str, shape: &[u64], encoding: Encoding) -> Vec<Piece> {
    let (lead, cols) = shape.split_at(shape.len() - 1);
    let (bits, scale, group_size) = match encoding {
        Encoding::Affine(a) => (a.bits(), Dtype::Float(a.scale_dtype()), a.group_size()),
        Encoding::Minifloat(m) => (m.element().bits(), Dtype::U8, m.group_size()),
        _ => return Vec::new(),
    };
    let piece = |part: &str, dtype, cols: u64| {
        let (name, shape) = (format!("{module}.{part}"), [lead, &[cols]].concat());
        Piece { name, dtype, shape }
    };
    let groups = cols[0] / group_size as u64;
    let mut pieces = vec![
        piece("weight", Dtype::U32, cols[0] * u64::from(bits) / 32),
        piece("scales", scale, groups),
    ];
    if let Encoding::Affine(_) = encoding {
        pieces.push(piece("biases", scale, groups));
    }
    pieces
}
