//! A directory of compressed-tensors, form `pack-quantized`: codes and scales copied, as their layout is
//! that of affine codes here, and zeros in place of biases. Values are `scale · (code - zero)`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;

use shardwright_format::arch::Arch;
use shardwright_format::checkpoint::{CONFIG_NAME, Dtype, TensorFile, write_view};
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Refusal, Role, SourceView, Unit, mismatch};
use shardwright_quant::{Affine, Encoding, Float, Zeros, widen};

use super::companions::{copy_companions, plain_config, write_json};
use super::compressed_config::Schemes;
use super::places::Places;
use super::requantize::{Tally, encoded, symmetric};
use super::tensor_files::{Tensor, TensorFiles};
use super::told::quantized_before;
use super::walk::{Rows, each_rows, narrowed};
use super::{ExportOptions, Exported};
use crate::error::{ConvertError, Remedy, Result};

/// What the headers say of who reads the files.
const FORMAT: &str = "pt";

/// Widths whose zeros compressed-tensors packs and engines run; all others have the middle code.
pub(crate) const PACKED_ZEROS: [u8; 2] = [4, 8];

/// Tensors some group of which has another zero than the middle code, and their encodings.
type Zeroed = BTreeMap<(Unit, Role), Affine>;

/// Writes a model as compressed-tensors has it into `dir`.
pub(super) fn write(weights: &Weights, dir: &Path, options: &ExportOptions) -> Result<Exported> {
    let arch = Arch::builtin(&weights.spec().model_type);
    let (requantize, anew) = (options.requantize, BTreeSet::new());
    let mut form = Form { weights, places: Places::new(weights.spec()), arch, requantize, anew };
    let mut with_zeros = BTreeMap::new();
    each_rows(weights, weights.units(), options, &mut |rows| form.scan(rows, &mut with_zeros))?;
    let mut schemes = Schemes::default();
    with_zeros.retain(|place, _| !form.anew.contains(place));
    for affine in with_zeros.into_values() {
        schemes.make_asymmetric(affine);
    }
    let (tensors, told) = form.tensors(&mut schemes)?;
    let files = TensorFiles::create(dir, &tensors, options.file_limit, FORMAT)?;
    let mut tally = Tally::default();
    let write = &mut |rows: &Rows<'_>| form.write(rows, (&files, &schemes), &mut tally);
    each_rows(weights, weights.units(), options, write)?;
    files.index(dir, false)?;
    copy_companions(weights, dir)?;
    let mut config = plain_config(weights)?;
    if let (Some(quantization), Some(object)) = (schemes.quantization(), config.as_object_mut()) {
        object.insert("quantization_config".to_owned(), quantization);
    }
    write_json(&dir.join(CONFIG_NAME), &config)?;
    Ok(Exported { requantized: tally.finish(), ..told })
}

/// A linear layer that holds rows of a tensor in codes.
struct Module {
    name: String,
    /// Rows and columns of its weight.
    shape: [u64; 2],
    /// Its row that is the tensor's first.
    first: u64,
}

impl Module {
    fn part(&self, part: &str) -> String {
        format!("{}.weight_{part}", self.name)
    }

    /// Its tensors, by their types and shapes.
    fn tensors(&self, affine: Affine, asymmetric: bool) -> Vec<(String, Tensor)> {
        let [rows, cols] = self.shape;
        let bits = u64::from(affine.bits());
        let groups = cols / affine.group_size() as u64;
        let tensor = |part: &str, dtype, shape| (self.part(part), Tensor { dtype, shape });
        let mut all = vec![
            tensor("packed", Dtype::I32, vec![rows, cols * bits / 32]),
            tensor("scale", affine.scale_dtype().into(), vec![rows, groups]),
            tensor("shape", Dtype::I64, vec![2]),
        ];
        if asymmetric {
            let words = (rows * bits).div_ceil(32);
            all.push(tensor("zero_point", Dtype::I32, vec![words, groups]));
        }
        all
    }
}

/// A model and the form that it gets.
struct Form<'a> {
    weights: &'a Weights,
    places: Places,
    arch: Option<Arch>,
    /// Whether tensors may be stored anew, and those that are.
    requantize: bool,
    anew: BTreeSet<(Unit, Role)>,
}

impl Form<'_> {
    /// The place of a tensor in an encoding: that of a checkpoint of plain floats, where each expert in codes has its
    /// own.
    fn view(&self, unit: Unit, entry: &TensorEntry, encoding: Encoding) -> SourceView {
        let view = self.places.view(unit, entry);
        let own = self.arch.as_ref().filter(|arch| {
            let codes = matches!(encoding, Encoding::Affine(_));
            codes && view.shape.len() > 2 && arch.has_own_name(entry.role)
        });
        let shape = [entry.rows, entry.cols];
        let own =
            own.and_then(|a| a.own_place(self.weights.spec(), unit, (entry.role, shape), &view));
        own.unwrap_or(view)
    }

    fn refused(
        &self,
        (unit, entry): (Unit, &TensorEntry),
        detail: impl Into<Refusal>,
        remedy: Remedy,
    ) -> ConvertError {
        let detail = detail.into().at(format_args!("{unit} {}", entry.role));
        ConvertError::NotHeld { path: self.weights.root().to_owned(), detail, remedy }
    }

    /// How the export holds a tensor.
    fn held(&self, unit: Unit, entry: &TensorEntry) -> Encoding {
        if !self.anew.contains(&(unit, entry.role)) {
            return entry.encoding;
        }
        let affine = symmetric(entry).filter(|affine| self.linear(unit, entry, *affine).is_ok());
        affine.map_or(Encoding::F32, Encoding::Affine)
    }

    /// Affine codes and the module that holds them; none for floats.
    fn module(&self, unit: Unit, entry: &TensorEntry) -> Result<Option<(Module, Affine)>> {
        let label = entry.encoding.label();
        let affine = match self.held(unit, entry) {
            Encoding::Affine(affine) => affine,
            Encoding::Trellis(_) | Encoding::Ggml(_) | Encoding::Minifloat(_) => {
                let detail = mismatch("floats or affine codes", label);
                return Err(self.refused((unit, entry), detail, Remedy::AffineCodes));
            }
            _ => return Ok(None),
        };
        match self.linear(unit, entry, affine) {
            Ok(module) => Ok(Some((module, affine))),
            Err(name) => {
                let floats = format_args!("floats, as `{name}` is of no linear layer");
                Err(self.refused((unit, entry), mismatch(floats, label), Remedy::Floats))
            }
        }
    }

    /// The linear layer that holds a tensor in codes; if it is of none, the name of what it is.
    fn linear(&self, unit: Unit, entry: &TensorEntry, affine: Affine) -> Result<Module, String> {
        let view = self.view(unit, entry, Encoding::Affine(affine));
        let matrix = view.row_stride == entry.cols
            && view.col_stride == 1
            && view.start.is_multiple_of(entry.cols.max(1));
        let linear = !matches!(entry.role, Role::EmbedTokens | Role::Router);
        match (view.tensor.strip_suffix(".weight"), &view.shape[..]) {
            (Some(name), &[rows, cols]) if cols == entry.cols && matrix && linear => {
                let first = view.start / cols.max(1);
                Ok(Module { name: name.to_owned(), shape: [rows, cols], first })
            }
            _ => Err(view.tensor),
        }
    }

    /// Notes which tensors need zero points, and which are to be stored anew.
    ///
    /// # Errors
    /// Where nothing may be: a group whose zero is none of the codes, or one that codes of its width cannot have.
    fn scan(&mut self, rows: &Rows<'_>, with_zeros: &mut Zeroed) -> Result<()> {
        let place = (rows.unit, rows.entry.role);
        if self.anew.contains(&place) {
            return Ok(());
        }
        match self.has_zeros(rows) {
            Ok(None) => {}
            Ok(Some(affine)) => drop(with_zeros.insert(place, affine)),
            Err(ConvertError::NotHeld { .. }) if self.requantize => drop(self.anew.insert(place)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The encoding of rows in codes of which some group has another zero than the middle code.
    fn has_zeros(&self, rows: &Rows<'_>) -> Result<Option<Affine>> {
        let Some((_, affine)) = self.module(rows.unit, rows.entry)? else { return Ok(None) };
        let mut found = None;
        let middle = affine.max_code() / 2 + 1;
        let groups = rows.entry.cols / affine.group_size() as u64;
        for (at, (scale, bias)) in pairs(rows, affine).enumerate() {
            let zero = affine.zero_code(scale, bias);
            let remedy = match zero {
                Some(zero) if zero == middle => continue,
                Some(_) if PACKED_ZEROS.contains(&affine.bits()) => {
                    found = Some(affine);
                    continue;
                }
                Some(_) => Remedy::SymmetricZeros,
                None => Remedy::WholeZeros,
            };
            let row = rows.range.start + at as u64 / groups.max(1);
            let col = at as u64 % groups.max(1) * affine.group_size() as u64;
            let detail = mismatch(
                "biases that are whole multiples of scales",
                format_args!(
                    "{} with scale {scale} and bias {bias} at row {row}, column {col}",
                    rows.entry.encoding.label()
                ),
            );
            return Err(self.refused((rows.unit, rows.entry), detail, remedy));
        }
        Ok(found)
    }

    /// Every tensor of the export, and what there is to tell; modules are added to `schemes`.
    fn tensors(&self, schemes: &mut Schemes) -> Result<(BTreeMap<String, Tensor>, Exported)> {
        let mut tensors = BTreeMap::<String, Tensor>::new();
        let mut told =
            Exported { left_out: self.weights.ignored().to_vec(), ..Exported::default() };
        // Weights that units of the model give a tensor, and those that it has.
        let mut filled = BTreeMap::<String, [u64; 2]>::new();
        for unit in self.weights.units() {
            for entry in self.weights.layout(unit)?.tensors.iter() {
                let (held, module) = (self.held(unit, entry), self.module(unit, entry)?);
                let view = self.view(unit, entry, held);
                let all = view.shape.iter().product();
                filled.entry(view.tensor.clone()).or_insert([0, all])[0] += entry.rows * entry.cols;
                let pieces = if let Some((module, affine)) = module {
                    schemes.add(&module.name, affine);
                    module.tensors(affine, schemes.is_asymmetric(affine))
                } else {
                    told.unquantized.extend(quantized_before(entry));
                    let linear = view.shape.len() == 2 && entry.role != Role::EmbedTokens;
                    if let Some(name) = view.tensor.strip_suffix(".weight").filter(|_| linear) {
                        schemes.add_floats(name);
                    }
                    let dtype = stored(held).into();
                    vec![(view.tensor, Tensor { dtype, shape: view.shape })]
                };
                for (name, tensor) in pieces {
                    self.add(&mut tensors, (name, tensor), (unit, entry))?;
                }
            }
        }
        check_filled(&filled, &tensors)?;
        Ok((tensors, told))
    }

    /// Adds a tensor of the export, or more rows of one.
    fn add(
        &self,
        tensors: &mut BTreeMap<String, Tensor>,
        (name, tensor): (String, Tensor),
        place: (Unit, &TensorEntry),
    ) -> Result<()> {
        let Some(found) = tensors.get(&name) else {
            tensors.insert(name, tensor);
            return Ok(());
        };
        if (found.dtype, &found.shape) == (tensor.dtype, &tensor.shape) {
            return Ok(());
        }
        let label = place.1.encoding.label();
        let detail = mismatch(format_args!("all parts of `{name}` stored alike"), label);
        Err(self.refused(place, detail, Remedy::OneEncoding))
    }

    /// Puts rows where they lie.
    fn write(
        &self,
        rows: &Rows<'_>,
        (files, schemes): (&TensorFiles, &Schemes),
        tally: &mut Tally,
    ) -> Result<()> {
        let (unit, entry) = (rows.unit, rows.entry);
        let (is_anew, held) = (self.anew.contains(&(unit, entry.role)), self.held(unit, entry));
        let made = is_anew.then(|| encoded(rows, (held, Zeros::Symmetric), tally));
        let made = made.transpose()?;
        let parts = match &made {
            Some([weight, scales, biases]) => [weight, scales, biases].map(Vec::as_slice),
            None => rows.parts(),
        };
        let Some((module, affine)) = self.module(unit, entry)? else {
            let view = self.view(unit, entry, held);
            let Some(to) = files.tensor(&view.tensor) else { return Ok(()) };
            let bytes = made.map(|[bytes, ..]| bytes);
            let bytes = bytes.unwrap_or_else(|| narrowed(stored(held), &rows.values()));
            return Ok(write_view(&view, rows.range.clone(), &bytes, &to)?);
        };
        let (first, count) = (module.first + rows.range.start, rows.range.end - rows.range.start);
        for (part, bytes) in [("packed", parts[0]), ("scale", parts[1])] {
            let Some(to) = files.tensor(&module.part(part)) else { continue };
            let row = bytes.len() as u64 / count.max(1) / to.size as u64;
            to.write(first * row, bytes)?;
        }
        if let Some(to) = files.tensor(&module.part("shape")) {
            to.write(0, &module.shape.map(u64::to_le_bytes).concat())?;
        }
        match files.tensor(&module.part("zero_point")) {
            Some(to) if schemes.is_asymmetric(affine) => {
                write_zeros((first, count), affine, decoded(parts, affine), &to, entry.cols)
            }
            _ => Ok(()),
        }
    }
}

/// Refuses tensors of which the model holds a part only, and tensors in codes and floats both.
fn check_filled(
    filled: &BTreeMap<String, [u64; 2]>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    for (name, [found, all]) in filled {
        if found != all {
            let detail =
                format!("tensor `{name}`: expected {all} weights, the model holds {found}");
            return Err(ConvertError::plan(detail));
        }
        let both = tensors.contains_key(name) && tensors.contains_key(&format!("{name}_packed"));
        if both {
            let detail = format!("tensor `{name}`: expected all parts in codes or all in floats");
            return Err(ConvertError::plan(detail));
        }
    }
    Ok(())
}

/// The type of a tensor that is floats.
fn stored(held: Encoding) -> Float {
    held.float().unwrap_or(Float::F32)
}

/// Scale and bias of each group of rows in codes.
fn pairs(rows: &Rows<'_>, affine: Affine) -> impl Iterator<Item = (f32, f32)> + use<> {
    decoded(rows.parts(), affine)
}

/// Scale and bias of each group, of codes, scales and biases.
fn decoded(parts: [&[u8]; 3], affine: Affine) -> impl Iterator<Item = (f32, f32)> + use<> {
    let dtype = affine.scale_dtype();
    let [_, scales, biases] = parts;
    let [scales, biases] = [scales, biases].map(|bytes| {
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        widen(dtype, bytes, &mut values);
        values
    });
    scales.into_iter().zip(biases)
}

/// Puts the zeros of `count` rows into words of `32 / bits` rows, of which other tiles may hold some: the
/// module's row `first` is the first of these. `pairs` are the groups of `cols` columns.
fn write_zeros(
    (first, count): (u64, u64),
    affine: Affine,
    pairs: impl Iterator<Item = (f32, f32)>,
    to: &TensorFile<'_>,
    cols: u64,
) -> Result<()> {
    let (bits, groups) = (u64::from(affine.bits()), cols / affine.group_size() as u64);
    let (per_word, end) = (32 / bits, first + count);
    let word = first / per_word * groups;
    let mut bytes = vec![0; ((end.div_ceil(per_word) * groups - word) * 4) as usize];
    let read = to.file.read_exact_at(&mut bytes, to.offset + word * 4);
    read.map_err(|e| FormatError::io(to.path, e))?;
    let (words, _) = bytes.as_chunks_mut::<4>();
    for (at, (scale, bias)) in (0..).zip(pairs) {
        // `scan` has seen that there is one.
        let zero = affine.zero_code(scale, bias).unwrap_or_default();
        let (row, group) = (first + at / groups.max(1), at % groups.max(1));
        let held = &mut words[(row / per_word * groups + group - word) as usize];
        let shifted = u32::from(zero) << (row % per_word * bits);
        *held = (u32::from_le_bytes(*held) | shifted).to_le_bytes();
    }
    Ok(to.write(word, &bytes)?)
}
