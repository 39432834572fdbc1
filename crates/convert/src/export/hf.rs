//! Hugging Face form: every weight dequantized, under the name, in the shape and in the place that it
//! has in a checkpoint of plain floats.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;
use shardwright_format::checkpoint::{CONFIG_NAME, write_view};
use shardwright_format::weights::Weights;

use super::companions::{copy, copy_companions, plain_config, write_json};
use super::places::Places;
use super::tensor_files::{Tensor, TensorFiles};
use super::told::quantized_before;
use super::walk::{Rows, each_rows, narrowed};
use super::{ExportDtype, ExportOptions, Exported};
use crate::error::{ConvertError, Result};

/// What a checkpoint's header says of who reads it.
const FORMAT: &str = "pt";

/// Writes a model as a checkpoint of plain floats into `dir`.
pub(super) fn write(weights: &Weights, dir: &Path, options: &ExportOptions) -> Result<Exported> {
    let places = Places::new(weights.spec());
    let (tensors, unquantized) = tensors(weights, &places, options.dtype)?;
    let files = TensorFiles::create(dir, &tensors, options.file_limit, FORMAT)?;
    each_rows(weights, weights.units(), options, &mut |rows| {
        write_rows(rows, &places, &files, options.dtype)
    })?;
    files.index(dir, false)?;
    copy_companions(weights, dir)?;
    let plain = unquantized.is_empty() && options.dtype == ExportDtype::Source;
    if plain {
        copy(weights, dir, CONFIG_NAME)?;
    } else {
        write_config(weights, dir, options.dtype)?;
    }
    let left_out = weights.ignored().to_vec();
    Ok(Exported { unquantized, left_out, ..Exported::default() })
}

/// Every tensor by name, and how the checkpoint held those that are floats only here.
fn tensors(
    weights: &Weights,
    places: &Places,
    dtype: ExportDtype,
) -> Result<(BTreeMap<String, Tensor>, BTreeSet<String>)> {
    let (mut tensors, mut unquantized) =
        (BTreeMap::<String, (Tensor, u64)>::new(), BTreeSet::new());
    for unit in weights.units() {
        for entry in weights.layout(unit)?.tensors.iter() {
            unquantized.extend(quantized_before(entry));
            let view = places.view(unit, entry);
            let dtype = dtype.for_source(view.dtype).into();
            let new = || (Tensor { dtype, shape: view.shape }, 0);
            tensors.entry(view.tensor).or_insert_with(new).1 += entry.rows * entry.cols;
        }
    }
    match tensors
        .iter()
        .find(|(_, (t, filled))| *filled != t.values())
    {
        None => Ok((
            tensors
                .into_iter()
                .map(|(name, (t, _))| (name, t))
                .collect(),
            unquantized,
        )),
        Some((name, (t, filled))) => Err(ConvertError::Plan(
            format!(
                "tensor `{name}`: expected {} values of shape {:?}, the model holds {filled}",
                t.values(),
                t.shape
            )
            .into(),
        )),
    }
}

/// Puts rows where they lie in their tensor.
fn write_rows(
    rows: &Rows<'_>,
    places: &Places,
    files: &TensorFiles,
    dtype: ExportDtype,
) -> Result<()> {
    let view = places.view(rows.unit, rows.entry);
    let dtype = dtype.for_source(view.dtype);
    let Some(to) = files.tensor(&view.tensor) else { return Ok(()) };
    let bytes = narrowed(dtype, &rows.values());
    Ok(write_view(&view, rows.range.clone(), &bytes, &to)?)
}

/// Writes `config.json` with the weights' new type, and without a word of codes.
fn write_config(weights: &Weights, dir: &Path, dtype: ExportDtype) -> Result<()> {
    let mut config = plain_config(weights)?;
    for place in ["", "/text_config"] {
        if dtype == ExportDtype::Source {
            continue;
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(value) = config.pointer_mut(&format!("{place}/{key}")) {
                *value = json!("float32");
            }
        }
    }
    write_json(&dir.join(CONFIG_NAME), &config)
}
