//! Groups the stored tensors of a quantized checkpoint into tensors of weights.

mod bitnet;
mod compressed;
mod fp8;
mod ignore;
mod mlx;
mod modelopt;
mod mxfp4;
mod quark;
mod scheme;
mod setting;
mod transposed;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shardwright_quant::Float;

use super::files::{Files, StoredTensor, TensorInfo};
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::refusal::{Refusal, mismatch};
pub(in crate::checkpoint) use mlx::join_heads;
use scheme::Scheme;
pub use scheme::{QUANTIZATION_KEYS, describes_quantization};

/// What of a checkpoint is quantized and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantization {
    /// The `quant_method` of `config.json`, or `mlx`.
    pub method: String,
    /// Quantized tensors, by how they are decoded.
    pub tensors: BTreeMap<String, u64>,
    /// The modules that the configuration says are not quantized.
    pub ignore: Vec<String>,
    /// Matrices of plain floats that [`Self::ignore`] names, numbers in their names as `*`.
    pub kept: BTreeMap<String, u64>,
    /// Matrices of plain floats that it does not name.
    pub unnamed: BTreeMap<String, u64>,
    /// Entries of [`Self::ignore`] that are no pattern known here, and so were not held against
    /// any tensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// Tensors beside quantized ones that their values do not need, and why.
    #[serde(rename = "spare", skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary: BTreeMap<String, String>,
}

impl Quantization {
    /// Of tensors that say for themselves what is quantized; none if nothing is, or is set aside.
    pub(super) fn decoded(
        method: &str,
        tensors: &BTreeMap<String, TensorInfo>,
        auxiliary: BTreeMap<String, String>,
    ) -> Option<Self> {
        let mut counts = BTreeMap::new();
        for decoder in tensors.values().filter_map(|info| info.decoder.as_ref()) {
            *counts.entry(decoder.label()).or_insert(0) += 1;
        }
        let any = !counts.is_empty() || !auxiliary.is_empty();
        any.then(|| Self {
            method: method.to_owned(),
            tensors: counts,
            ignore: Vec::new(),
            kept: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            unread: Vec::new(),
            auxiliary,
        })
    }
}

/// The tensors of weights of a checkpoint, and what of them is quantized; none if nothing is.
pub(super) struct Grouped {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) quantization: Option<Quantization>,
}

/// The tensors of weights of a checkpoint, quantized ones as they are once decoded.
///
/// # Errors
/// An unknown scheme; a part of a quantized tensor that is missing, left over, or of another dtype
/// or shape; a quantized tensor of a module that the configuration says is not.
pub(super) fn group(files: &Files) -> Result<Grouped> {
    refuse_unread(files)?;
    let plain = |stored: &StoredTensor| matches!(stored.dtype, Dtype::Float(_));
    let scheme = match Scheme::new(files) {
        // What a conversion to plain floats left in the configuration says nothing of the weights.
        Err(_) if files.stored.values().all(plain) => None,
        found => found?.or_else(|| Scheme::shown(files)),
    };
    let mut grouping = Grouping {
        files,
        used: BTreeSet::new(),
        auxiliary: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    if let Some(scheme) = &scheme {
        for (name, stored) in &files.stored {
            scheme.take(&mut grouping, name, stored)?;
        }
        grouping.refuse_unowned(scheme)?;
    } else {
        refuse_undescribed(files)?;
    }
    grouping.add_floats();
    let quantization = scheme.map(|scheme| grouping.facts(scheme)).transpose()?;
    let mut tensors = grouping.tensors;
    mlx::restore(&mut tensors);
    Ok(Grouped { tensors, quantization })
}

/// Endings of names that show codes of which no weights are made, and whose they are.
const UNREAD: &[(&str, &str)] = &[
    (".weight.quant_map", "bitsandbytes"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".W_q", "HQQ"),
    (".weight._data", "Quanto"),
    (".weight_qdata", "torchao"),
    ("._weight_qdata", "torchao"),
    (".codebooks", "AQLM"),
    (".centroids.weight", "VPTQ"),
    (".pre_quant_scale", "ModelOpt's AWQ"),
];

/// Endings of names that show codes of other programs, which keep no whole weights either.
const FOREIGN: &[(&str, &str)] = &[
    (".q_weight", "ExLlamaV2 (EXL2)"),
    (".trellis", "ExLlamaV3 (EXL3)"),
    (".dense_weights", "SpQR"),
];
/// The form of GPTQ for its own kernels: codes `X.B` beside `X.s`.
const MARLIN: &str = "Marlin, in the order of its kernels";
const MARLIN_PARTS: [&str; 2] = [".B", ".s"];
const GPTQ_COPY: &str = "take a copy of the model in the form gptq or gptq_v2";

/// Endings of names that show codes which are read where the configuration has their parameters.
const UNDESCRIBED: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    ("_scale_inv", "FP8"),
    (".weight_packed", "compressed-tensors"),
    ("_proj_blocks", "MXFP4"),
    (".biases", "MLX"),
    (".weight_scale", "FP8, NVFP4 or another scheme"),
];

/// Refuses codes of which nothing says how they were made.
fn refuse_undescribed(files: &Files) -> Result<()> {
    for (name, stored) in &files.stored {
        let Some((_, whose)) = UNDESCRIBED.iter().find(|(end, _)| name.ends_with(end)) else {
            continue;
        };
        let detail = format!(
            "it belongs to codes of {whose}, but config.json has no quantization_config: take it from the model \
             that this is a copy of"
        );
        let path = files.opened[stored.file].file.path();
        return Err(FormatError::tensor(path, name, detail));
    }
    Ok(())
}

/// Whether a tensor is codes of Marlin: their scales are beside it.
fn is_marlin(files: &Files, name: &str) -> bool {
    let module = name.strip_suffix(MARLIN_PARTS[0]);
    let scales = module.map(|module| format!("{module}{}", MARLIN_PARTS[1]));
    scales.is_some_and(|scales| files.stored.contains_key(&scales))
}

/// Refuses codes by the tensors that show them, whatever the configuration says.
fn refuse_unread(files: &Files) -> Result<()> {
    for (name, stored) in &files.stored {
        let whose = |table: &[(&str, &'static str)]| {
            let found = table.iter().find(|(ending, _)| name.ends_with(ending));
            found.map(|(_, whose)| *whose)
        };
        let next = "load the model with transformers, dequantize it and save it again";
        let other = "take the model that they were made from";
        let marlin = is_marlin(files, name).then_some((MARLIN, GPTQ_COPY));
        let unread = whose(UNREAD).map(|whose| (whose, next));
        let foreign = || Some((whose(FOREIGN)?, other));
        let Some((whose, next)) = marlin.or(unread).or_else(foreign) else { continue };
        let detail = format!("it belongs to codes of {whose}, which are not read; {next}");
        let path = files.opened[stored.file].file.path();
        return Err(FormatError::tensor(path, name, detail));
    }
    Ok(())
}

/// The work of grouping.
struct Grouping<'a> {
    files: &'a Files,
    /// Stored tensors that are parts of quantized ones.
    used: BTreeSet<String>,
    auxiliary: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'a> Grouping<'a> {
    fn refused(&self, name: &str, detail: impl Into<Refusal>) -> FormatError {
        let stored = self.files.stored.get(name);
        let path = stored
            .map_or(self.files.root.as_path(), |stored| self.files.opened[stored.file].file.path());
        FormatError::tensor(path, name, detail)
    }

    /// The stored tensor `name`, a part of `of`.
    fn part(&self, of: &str, name: &str, dtypes: &[Dtype]) -> Result<&'a StoredTensor> {
        let found = self.files.stored.get(name);
        let found = found
            .ok_or_else(|| self.refused(of, mismatch(format_args!("`{name}` with it"), "none")))?;
        if dtypes.contains(&found.dtype) {
            return Ok(found);
        }
        let labels: Vec<_> = dtypes.iter().map(|dtype| dtype.label()).collect();
        let detail = mismatch(format_args!("{} with `{of}`", labels.join(" or ")), found.dtype);
        Err(self.refused(name, detail))
    }

    /// Refuses a part of `of` that has none of the shapes.
    fn check_shape(&self, of: &str, name: &str, found: &[u64], shapes: &[Vec<u64>]) -> Result<()> {
        if shapes.iter().any(|shape| shape == found) {
            return Ok(());
        }
        let shapes: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        let whole = self.files.stored.get(of);
        let whole = whole.map_or_else(String::new, |s| format!(" of shape {:?}", s.shape));
        let shapes = shapes.join(" or ");
        let detail =
            mismatch(format_args!("shape {shapes} with `{of}`{whole}"), format_args!("{found:?}"));
        Err(self.refused(name, detail))
    }

    /// Takes in a quantized tensor.
    fn add(&mut self, name: String, dtype: Float, shape: Vec<u64>, decoder: Decoder) -> Result<()> {
        let main = &self.files.stored[decoder.main()];
        let values = shape
            .iter()
            .try_fold(4_u64, |len, dim| len.checked_mul(*dim));
        if values.is_none() {
            let detail = format!("decoded shape {shape:?}: its size in bytes leaves 64 bits");
            return Err(self.refused(decoder.main(), detail));
        }
        if name != decoder.main() && self.files.stored.contains_key(&name) {
            let detail = format!("it gives `{name}`, which the checkpoint holds too");
            return Err(self.refused(decoder.main(), detail));
        }
        self.used
            .extend(decoder.stored_names().into_iter().map(str::to_owned));
        let StoredTensor { file, offset, len, .. } = *main;
        let info = TensorInfo { file, dtype, shape, offset, len, decoder: Some(decoder) };
        self.tensors.insert(name, info);
        Ok(())
    }

    /// Refuses parts of the scheme's tensors that belong to none.
    fn refuse_unowned(&self, scheme: &Scheme) -> Result<()> {
        let mut names = self.files.stored.keys();
        let left = names.find_map(|name| {
            let whole = scheme.whole_of(name)?;
            let free = !self.used.contains(name) && !self.auxiliary.contains_key(name);
            free.then_some((name, whole))
        });
        left.map_or(Ok(()), |(name, whole)| {
            let detail = format!("it belongs to a quantized `{whole}`, found none");
            Err(self.refused(name, detail))
        })
    }

    /// Takes in what is stored as floats and is no part of a quantized tensor.
    fn add_floats(&mut self) {
        for (name, stored) in &self.files.stored {
            let Dtype::Float(dtype) = stored.dtype else { continue };
            if self.used.contains(name) || self.auxiliary.contains_key(name) {
                continue;
            }
            let StoredTensor { file, offset, len, .. } = *stored;
            let shape = stored.shape.clone();
            let info = TensorInfo { file, dtype, shape, offset, len, decoder: None };
            self.tensors.insert(name.clone(), info);
        }
    }

    /// What is quantized, held against what the configuration says is not.
    fn facts(&mut self, scheme: Scheme) -> Result<Quantization> {
        let mut tensors = BTreeMap::new();
        let (mut kept, mut unnamed) = (BTreeMap::new(), BTreeMap::new());
        for (name, info) in &self.tensors {
            let main = info.decoder.as_ref().map_or(name.as_str(), Decoder::main);
            let in_file = || scheme.ignore.names(self.files.module_in_files(main)?);
            let entry = scheme.ignore.names(module(name)).or_else(in_file);
            match (&info.decoder, entry) {
                (Some(decoder), Some(entry)) => {
                    let detail = mismatch(
                        format_args!("plain floats, as the quantization_config says by `{entry}`"),
                        decoder.label(),
                    );
                    return Err(self.refused(decoder.main(), detail));
                }
                (Some(decoder), None) => *tensors.entry(decoder.label()).or_insert(0) += 1,
                (None, _) if info.shape.len() < 2 => {}
                (None, Some(_)) => *kept.entry(starred(name)).or_insert(0) += 1,
                (None, None) => *unnamed.entry(starred(name)).or_insert(0) += 1,
            }
        }
        let auxiliary = std::mem::take(&mut self.auxiliary);
        let (ignore, unread) = (scheme.ignore.entries, scheme.ignore.unread);
        Ok(Quantization {
            method: scheme.method,
            tensors,
            ignore,
            kept,
            unnamed,
            unread,
            auxiliary,
        })
    }
}

/// The module that a tensor belongs to.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// A name with `*` for its numbers.
fn starred(name: &str) -> String {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let parts = name
        .split('.')
        .map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests;
