//! The folder that flash-moe and the apps made of it read: experts record after record in a file for each
//! layer, everything else in one file with a list of tensors. The codes are the bundle's own, since both have
//! MLX's layout; names and conventions are those that mlx-lm's `sanitize` leaves, without the wrapper's prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use shardwright_format::checkpoint::flash_moe::{
    DIRECTORIES, EXPERT_MATRICES, GROUP_SIZE, LAYOUT_NAME, layer_name,
};
use shardwright_format::checkpoint::{CONFIG_NAME, Dtype};
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role, Unit, UnitLayout, mismatch};
use shardwright_quant::{Encoding, Float, widen};

use super::companions::{copy_companions, plain_config, write_json};
use super::flash_moe_dense::DenseFiles;
use super::flash_moe_vocabulary as vocabulary;
use super::mlx::code_pieces;
use super::mlx_config::{Codes, Modules, TEXT, describe};
use super::mlx_places::{Family, MlxPlaces};
use super::tensor_files::Tensor;
use super::told::left_out;
use super::walk::{Rows, each_rows, narrowed};
use super::{ExportOptions, Exported};
use crate::error::{ConvertError, Remedy, Result};

/// The models that it runs: its own words for them.
pub(crate) const MODEL_TYPES: [&str; 2] = ["qwen3_5_moe", "qwen3_5_moe_text"];
/// What mlx-lm's names begin with, and its own do not.
const WRAPPER: &str = "language_model.";
/// What the [`EXPERT_MATRICES`] are.
const EXPERT: [Role; 3] = [Role::ExpertGateProj, Role::ExpertUpProj, Role::ExpertDownProj];

/// Writes a model as flash-moe reads it into `dir`.
pub(super) fn write(weights: &Weights, dir: &Path, options: &ExportOptions) -> Result<Exported> {
    let mut config = wrapped(plain_config(weights)?);
    let model_type = config["model_type"].as_str().unwrap_or_default();
    check_type(model_type)?;
    let family = Family::named(model_type)?;
    let places = MlxPlaces::new(&family, weights.spec())?;
    let form = Form { weights, places: &places };
    form.check_head()?;
    let bits = form.expert_bits()?;
    let (tensors, modules) = form.tensors()?;

    let dense = DenseFiles::create(dir, &tensors, options.file_limit)?;
    let mut rounded = BTreeSet::new();
    let units = || weights.spec().units().filter(is_dense);
    each_rows(weights, units(), options, &mut |rows| form.write(rows, &dense, &mut rounded))?;
    write_experts(weights, dir, bits)?;
    copy_companions(weights, dir)?;
    let written = vocabulary::write(weights, dir)?;
    describe(&mut config, weights.spec(), &family, &modules);
    if let Value::Object(object) = &mut config {
        object.insert("eos_token_id".to_owned(), json!(weights.spec().eos_token_ids));
    }
    dense.describe(dir, &constants(&config[TEXT]))?;
    write_json(&dir.join(CONFIG_NAME), &config)?;

    let left_out = left_out(weights, "flash-moe has the text model alone")?;
    let mut differences = Vec::new();
    if !rounded.is_empty() {
        let roles: Vec<_> = rounded.into_iter().map(Role::name).collect();
        differences
            .push(format!("{} rounded to bf16, in which flash-moe reads them", roles.join(", ")));
    }
    if !written {
        differences
            .push("no vocab.bin and tokenizer.bin, since there is no tokenizer.json".to_owned());
    }
    Ok(Exported { left_out, differences, ..Exported::default() })
}

/// A configuration whose text model is a part, as the engine expects it.
fn wrapped(config: Value) -> Value {
    match config.get(TEXT) {
        Some(_) => config,
        None => json!({ "model_type": config["model_type"], TEXT: config }),
    }
}

/// Refuses models that it does not run.
pub(crate) fn check_type(model_type: &str) -> Result<()> {
    if MODEL_TYPES.contains(&model_type) {
        return Ok(());
    }
    let known = MODEL_TYPES[0];
    Err(ConvertError::Plan(
        mismatch(format_args!("a model_type that it has, {known}"), format_args!("`{model_type}`"))
            .at("flash-moe"),
    ))
}

const fn is_dense(unit: &Unit) -> bool {
    !matches!(unit, Unit::Expert { .. })
}

/// The numbers that lie beside the list of tensors.
fn constants(text: &Value) -> Map<String, Value> {
    const KEYS: [&str; 20] = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "rms_norm_eps",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "full_attention_interval",
        "linear_num_value_heads",
        "linear_num_key_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
        "partial_rotary_factor",
        "rope_theta",
        "layer_types",
    ];
    let keys = KEYS.into_iter();
    keys.filter_map(|key| Some((key.to_owned(), text.get(key)?.clone())))
        .collect()
}

/// A model and the form that it gets.
struct Form<'a> {
    weights: &'a Weights,
    places: &'a MlxPlaces<'a>,
}

impl Form<'_> {
    fn refused(&self, unit: Unit, entry: &TensorEntry, expected: &str) -> ConvertError {
        let found = entry.encoding.label();
        let detail = mismatch(expected, found).at(format_args!("{unit} {}", entry.role));
        let path = self.weights.root().to_owned();
        ConvertError::NotHeld { path, detail, remedy: Remedy::PackedExperts }
    }

    /// Refuses a model without a head of its own: the engine has no other.
    fn check_head(&self) -> Result<()> {
        if !self.weights.spec().tie_word_embeddings {
            return Ok(());
        }
        let detail = mismatch("a head of its own", "one tied to the embedding").at("flash-moe");
        Err(ConvertError::Plan(detail))
    }

    /// The bits of all experts' codes.
    ///
    /// # Errors
    /// Experts that are stored otherwise than a record has them, or than each other.
    fn expert_bits(&self) -> Result<u8> {
        let mut all = None;
        for unit in self.weights.spec().units() {
            let Unit::Expert { expert: 0, .. } = unit else { continue };
            for entry in self.weights.layout(unit)?.tensors.iter() {
                let bits = packed(entry).filter(|bits| *all.get_or_insert(*bits) == *bits);
                if !EXPERT.contains(&entry.role) || bits.is_none() {
                    let expected =
                        "gate, up and down of all experts in q4 g64 bf16, or all in q2 g64 bf16";
                    return Err(self.refused(unit, entry, expected));
                }
            }
        }
        all.ok_or_else(|| ConvertError::Plan(mismatch("experts", "none").at("flash-moe")))
    }

    /// Name and shape of a dense tensor, and its row that is the first one here.
    fn place(&self, unit: Unit, entry: &TensorEntry) -> Result<(String, Vec<u64>, u64)> {
        let place = self.places.place(unit, entry)?;
        let name = place.name.strip_prefix(WRAPPER).unwrap_or(&place.name);
        Ok((name.to_owned(), place.shape, place.first))
    }

    /// The dense tensors, and the modules in codes.
    fn tensors(&self) -> Result<(BTreeMap<String, Tensor>, Modules)> {
        let (mut tensors, mut modules) = (BTreeMap::new(), Modules::default());
        for unit in self.weights.spec().units().filter(is_dense) {
            for entry in self.weights.layout(unit)?.tensors.iter() {
                let (name, shape, _) = self.place(unit, entry)?;
                if !is_matrix(entry) {
                    if entry.encoding.float().is_none() {
                        return Err(self.refused(unit, entry, "floats"));
                    }
                    let dtype = Dtype::Float(float(entry.role));
                    tensors.insert(name, Tensor { dtype, shape });
                    continue;
                }
                let codes = Codes::new(entry.encoding).filter(|_| packed(entry) == Some(4));
                let (Some(codes), Some(module)) = (codes, name.strip_suffix(".weight")) else {
                    return Err(self.refused(unit, entry, "q4 g64 bf16"));
                };
                modules.add(&name, codes, entry.rows * entry.cols);
                for piece in code_pieces(module, &shape, entry.encoding) {
                    tensors.insert(piece.name, Tensor { dtype: piece.dtype, shape: piece.shape });
                }
            }
        }
        Ok((tensors, modules))
    }

    /// Puts rows where they lie; roles whose values had to be rounded are added to `rounded`.
    fn write(
        &self,
        rows: &Rows<'_>,
        files: &DenseFiles,
        rounded: &mut BTreeSet<Role>,
    ) -> Result<()> {
        let (name, shape, first) = self.place(rows.unit, rows.entry)?;
        let first = first + rows.range.start;
        if !is_matrix(rows.entry) {
            let (dtype, mut values) = (float(rows.entry.role), rows.values());
            if self.places.family.raises(rows.entry.role) {
                for value in &mut values {
                    *value += 1.0;
                }
            }
            let bytes = narrowed(dtype, &values);
            let mut held = vec![0.0; values.len()];
            widen(dtype, &bytes, &mut held);
            if held != values {
                rounded.insert(rows.entry.role);
            }
            return files.write(&name, first * rows.entry.cols * dtype.size() as u64, &bytes);
        }
        let Some(module) = name.strip_suffix(".weight") else {
            return Err(self.refused(rows.unit, rows.entry, "q4 g64 bf16"));
        };
        let count = rows.range.end - rows.range.start;
        for (piece, bytes) in code_pieces(module, &shape, rows.entry.encoding)
            .iter()
            .zip(rows.parts())
        {
            files.write(&piece.name, first * (bytes.len() as u64 / count.max(1)), bytes)?;
        }
        Ok(())
    }
}

/// Whether the engine reads codes there: everywhere but in vectors and convolutions.
fn is_matrix(entry: &TensorEntry) -> bool {
    let vector = entry.rows == 1 && entry.role != Role::SharedExpertGate;
    !vector && !entry.role.is_convolution()
}

/// The type in which the engine reads floats.
const fn float(role: Role) -> Float {
    match role {
        Role::DeltaALog => Float::F32,
        _ => Float::Bf16,
    }
}

/// The bits of codes that are in groups as the engine has them.
fn packed(entry: &TensorEntry) -> Option<u8> {
    let Encoding::Affine(a) = entry.encoding else { return None };
    let known = DIRECTORIES.iter().any(|(bits, _)| *bits == a.bits());
    let fits = a.group_size() == usize::from(GROUP_SIZE) && a.scale_dtype() == Float::Bf16;
    (known && fits).then(|| a.bits())
}

/// Writes the records of each layer's experts one after the other, and `layout.json`.
fn write_experts(weights: &Weights, dir: &Path, bits: u8) -> Result<()> {
    let name = DIRECTORIES.iter().find(|(wide, _)| *wide == bits);
    let dir = dir.join(name.map_or("", |(_, name)| *name));
    fs::create_dir(&dir).map_err(|e| FormatError::io(&dir, e))?;
    let (spec, mut buf) = (weights.spec(), AlignedBuf::default());
    let mut layout = None;
    for (layer, described) in (0u32..).zip(&spec.layers) {
        let path = dir.join(layer_name(layer.into()));
        let io = |e| FormatError::io(&path, e);
        let file = File::create_new(&path).map_err(io)?;
        for expert in 0..described.num_experts() {
            let unit = Unit::Expert { layer, expert };
            let found = weights.read(unit, &mut buf)?;
            let record = components(&found, described.num_experts(), spec.layers.len());
            // Every record is like the first, with nothing between its parts.
            if *layout.get_or_insert_with(|| record.clone()) != record {
                let detail =
                    format!("flash-moe: {unit}: expected a record as of all other experts");
                return Err(ConvertError::plan(detail));
            }
            let bytes = &buf.as_slice()[..found.len as usize];
            file.write_all_at(bytes, u64::from(expert) * found.len)
                .map_err(io)?;
        }
    }
    write_json(&dir.join(LAYOUT_NAME), &layout.unwrap_or_default())
}

/// What `layout.json` says of a record.
fn components(record: &UnitLayout, experts: u32, layers: usize) -> Value {
    let mut all = Vec::new();
    let mut offset = 0;
    for (role, name) in EXPERT.into_iter().zip(EXPERT_MATRICES) {
        let Some(entry) = record.find(role) else { continue };
        let [rows, cols] = [entry.rows, entry.cols];
        for piece in code_pieces(name, &[rows, cols], entry.encoding) {
            let size = Tensor { dtype: piece.dtype, shape: piece.shape.clone() }.byte_len();
            all.push(json!({
                "name": piece.name,
                "offset": offset,
                "size": size,
                "dtype": piece.dtype.label(),
                "shape": piece.shape,
            }));
            offset += size;
        }
    }
    json!({
        "expert_size": record.len,
        "num_layers": layers,
        "num_experts": experts,
        "components": all,
    })
}

#[cfg(test)]
mod tests {
    use shardwright_format::SourceView;
    use shardwright_format::layout::place_expert;
    use shardwright_quant::Affine;

    use super::*;

    /// An expert of Qwen3.5-397B or of the 35B, as their published packs have it.
    #[test]
    fn records_are_those_of_published_packs() {
        for (hidden, wide, bits, size, down) in [
            (4096, 1024, 4, 7_077_888, 4_718_592),
            (4096, 1024, 2, 3_932_160, 2_621_440),
            (2048, 512, 4, 1_769_472, 1_179_648),
            (2048, 512, 2, 983_040, 655_360),
        ] {
            let encoding = Encoding::Affine(Affine::new(bits, GROUP_SIZE, Float::Bf16).unwrap());
            let shapes = [[wide, hidden], [wide, hidden], [hidden, wide]];
            let entries = EXPERT.iter().zip(shapes).map(|(role, [rows, cols])| {
                let source = SourceView::whole(String::new(), Float::Bf16, vec![rows, cols], cols);
                TensorEntry::new(*role, [rows, cols], encoding, source)
            });
            let layout = components(&place_expert(entries.collect()).unwrap(), 512, 60);
            assert_eq!(layout["expert_size"], json!(size));
            let last = &layout["components"][6];
            assert_eq!(
                (&last["name"], &last["offset"]),
                (&json!("down_proj.weight"), &json!(down))
            );
            let end = &layout["components"][8];
            let end = end["offset"].as_u64().unwrap() + end["size"].as_u64().unwrap();
            assert_eq!(end, size);
        }
    }
}
