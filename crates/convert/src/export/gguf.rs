//! A GGUF file whose values are the model's: affine codes as blocks that hold them exactly, floats in
//! their own types.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{
    CHAT_TEMPLATE_NAME, CONFIG_NAME, Checkpoint, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
use shardwright_format::gguf::{Head, Model, OutTensor, Outline, Tokenizer};
use shardwright_format::io::{CONFIG_LIMIT, TOKENIZER_LIMIT};
use shardwright_format::model::{Mixer, RopeScaling};
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{
    Decoder, FormatError, ModelSpec, Refusal, Role, SourceView, Unit, mismatch,
};
use shardwright_quant::{Blocks, Encoding, Ggml, Unheld, Zeros};

use super::companions::plain_config;
use super::requantize::{Tally, blocks, encoded, rounded};
use super::told::left_out;
use super::walk::{Rows, each_rows};
use super::{ExportOptions, Exported};
use crate::error::{ConvertError, Remedy, Result};

/// Why a bundle's part besides the text model is not in the file.
const BESIDES: &str = "no part of the text model, for which llama.cpp has files of their own";

/// Writes a model as the file `path`.
pub(super) fn write(
    weights: &Weights,
    path: &Path,
    name: &str,
    options: &ExportOptions,
) -> Result<Exported> {
    let entries = entries(weights)?;
    let outline = outline(weights, name, &entries)?;
    let at = holders(&outline);
    let kinds = kinds(weights, (&outline, &at), options)?;
    let head = outline.head(&kinds);
    let file = begin(path, &head)?;
    write_factors(&outline, &head, (path, &file))?;
    // What the file says is read back before the weights are written.
    let found = Inventory::new(&Checkpoint::open(path)?, None)?;
    check_same(weights, &found.spec)?;
    let mut writing = Writing {
        file: (path, &file),
        at: &at,
        kinds: &kinds,
        head: &head,
        found: &found,
        anew: options.requantize.then(Tally::default),
    };
    each_rows(weights, text_units(weights), options, &mut |rows| writing.rows(rows))?;
    let requantized = writing.anew.and_then(Tally::finish);
    Ok(Exported { left_out: left_out(weights, BESIDES)?, requantized, ..Exported::default() })
}

/// The units of the text model.
fn text_units(weights: &Weights) -> impl Iterator<Item = Unit> + '_ {
    weights.units().filter(|unit| unit.extra_role().is_none())
}

/// Every tensor of the text model.
fn entries(weights: &Weights) -> Result<Vec<(Unit, TensorEntry)>> {
    let mut all = Vec::new();
    for unit in text_units(weights) {
        let tensors = weights.layout(unit)?.tensors;
        all.extend(tensors.iter().map(|entry| (unit, entry.clone())));
    }
    Ok(all)
}

/// What the file says, and its tensors.
fn outline(weights: &Weights, name: &str, entries: &[(Unit, TensorEntry)]) -> Result<Outline> {
    let config = plain_config(weights)?;
    let refused = |detail: Refusal| FormatError::file(weights.root(), detail);
    let tokenizer = tokenizer(weights)?;
    let path = weights.root().join(CONFIG_NAME);
    let model = Model {
        name: own_name(&config).unwrap_or(name),
        config: (&path, &config),
        spec: weights.spec(),
        tokenizer: tokenizer.as_ref(),
    };
    let entries = entries.iter().map(|(unit, entry)| (*unit, entry));
    Ok(Outline::new(&model, entries).map_err(refused)?)
}

/// What a model calls itself: the last part of a name as it is on the Hub. A path says where somebody's model lay.
fn own_name(config: &Value) -> Option<&str> {
    let path = config["_name_or_path"].as_str()?;
    let (organization, name) = path.split_once('/').unwrap_or(("-", path));
    let plain =
        |part: &str| !part.is_empty() && !part.contains(['/', '\\', '~']) && !part.starts_with('.');
    (plain(organization) && plain(name)).then_some(name)
}

fn tokenizer(weights: &Weights) -> Result<Option<Tokenizer>> {
    let Some(document) = weights.companion(TOKENIZER_NAME, TOKENIZER_LIMIT)? else {
        return Ok(None);
    };
    let config = weights.companion(TOKENIZER_CONFIG_NAME, CONFIG_LIMIT)?;
    let template = weights.companion(CHAT_TEMPLATE_NAME, CONFIG_LIMIT)?;
    let template = template.map(|text| String::from_utf8_lossy(&text).into_owned());
    let parsed = Tokenizer::parse(&document, config.as_deref(), template);
    let refused = |detail| FormatError::file(weights.root(), detail);
    Ok(Some(parsed.map_err(refused)?.with(&weights.tokens_beside()?)))
}

/// The number of the file's tensor that holds each one of the model.
type Holders = BTreeMap<(Unit, Role), usize>;

fn holders(outline: &Outline) -> Holders {
    let tensors = outline.tensors().iter().enumerate();
    tensors
        .flat_map(|(at, tensor)| tensor.holds.iter().map(move |part| (*part, at)))
        .collect()
}

/// Types that a tensor of the file may have.
#[derive(Clone, Default)]
struct Choice {
    /// Those that hold all its values exactly, the smallest first; none looked at yet.
    exact: Option<Vec<Ggml>>,
    /// That in which it is stored anew where there is none.
    anew: Option<Ggml>,
}

/// The type of each tensor: the smallest that holds all its values exactly; where there is none, and the options allow
/// it, that in which it is stored anew.
fn kinds(
    weights: &Weights,
    (outline, at): (&Outline, &Holders),
    options: &ExportOptions,
) -> Result<Vec<Ggml>> {
    let mut choices = vec![Choice::default(); outline.tensors().len()];
    each_rows(weights, text_units(weights), options, &mut |rows| {
        let Some(at) = at.get(&(rows.unit, rows.entry.role)) else { return Ok(()) };
        let candidates = Ggml::candidates(rows.entry.encoding);
        let choice = &mut choices[*at];
        if options.requantize {
            choice.anew = Some(wider(choice.anew, anew(rows)));
        }
        let kinds = choice.exact.get_or_insert_with(|| candidates.clone());
        kinds.retain(|kind| candidates.contains(kind));
        let (matrix, range) = rows.stored();
        let unheld = Ggml::retain_exact(kinds, matrix, range);
        if kinds.is_empty() && !options.requantize {
            return Err(refuse(weights, rows, &outline.tensors()[*at], unheld));
        }
        Ok(())
    })?;
    let chosen = outline
        .tensors()
        .iter()
        .zip(choices)
        .map(|(tensor, choice)| {
            let kinds = choice.exact.unwrap_or_default();
            // What llama.cpp computes with in 32 bits is stored so: the same values.
            let all_floats = !kinds.is_empty() && kinds.iter().all(|kind| kind.float().is_some());
            if tensor.wide && all_floats {
                Ggml::F32
            } else {
                kinds.first().copied().or(choice.anew).unwrap_or(Ggml::F32)
            }
        });
    Ok(chosen.collect())
}

/// The type that rows have alone: the smallest that holds them, or else the one that stands for their codes, or floats
/// of 32 bits where that one lacks a scale or the columns.
fn anew(rows: &Rows<'_>) -> Ggml {
    let (matrix, range) = rows.stored();
    let mut kinds = Ggml::candidates(rows.entry.encoding);
    Ggml::retain_exact(&mut kinds, matrix, range.clone());
    if let Some(kind) = kinds.first() {
        return *kind;
    }
    let Some(kind) = blocks(rows.entry).map(Ggml::from) else { return Ggml::F32 };
    if !keeps_codes(rows, kind) {
        return kind;
    }
    let (mut bytes, mut values) = (Vec::new(), vec![0.0; range.len() * matrix.cols()]);
    kind.encode(matrix, range, &mut bytes);
    kind.decode(&bytes, &mut values);
    if values.iter().all(|value| value.is_finite()) { kind } else { Ggml::F32 }
}

/// Whether rows that a type does not hold exactly keep their codes in it, and lose digits of scales alone.
fn keeps_codes(rows: &Rows<'_>, kind: Ggml) -> bool {
    kind == Ggml::Q4_1
        && matches!(rows.entry.encoding, Encoding::Affine(affine) if affine.bits() <= 4)
}

/// The type for parts of a tensor of which one alone has `other`: the one with more bits. What is floats in one part
/// becomes floats of 32 bits in all.
fn wider(one: Option<Ggml>, other: Ggml) -> Ggml {
    let Some(one) = one.filter(|one| *one != other) else { return other };
    if one.float().is_some() || other.float().is_some() {
        return Ggml::F32;
    }
    let size = |kind: Ggml, of: Ggml| kind.block_bytes() * of.block_values();
    if size(one, other) < size(other, one) { other } else { one }
}

/// Names the tensor that cannot go into a file as it is, and what avoids it.
fn refuse(
    weights: &Weights,
    rows: &Rows<'_>,
    tensor: &OutTensor,
    unheld: Option<Unheld>,
) -> ConvertError {
    let encoding = rows.entry.encoding;
    let (found, remedy) = match (encoding, unheld) {
        (Encoding::Trellis(_), _) => ("trellis codes".to_owned(), Remedy::AffineCodes),
        (Encoding::Minifloat(_), _) => (encoding.label(), Remedy::AffineCodes),
        (Encoding::Affine(affine), Some(Unheld { row, col, scale, bias })) => {
            let found = format!(
                "{} with scale {scale} and bias {bias} at row {}, column {col}",
                encoding.label(),
                rows.range.start + row as u64
            );
            let narrow = affine.bits() <= 4;
            (found, if narrow { Remedy::HalfScales } else { Remedy::SymmetricZeros })
        }
        _ => (encoding.label(), Remedy::OneEncoding),
    };
    let detail = mismatch("codes that one of its types holds exactly", found)
        .at(format_args!("{} {} (`{}` in GGUF)", rows.unit, rows.entry.role, tensor.name));
    ConvertError::NotHeld { path: weights.root().to_owned(), detail, remedy }
}

/// Writes the header and makes room for the weights.
fn begin(path: &Path, head: &Head) -> Result<File> {
    let io = |e| FormatError::io(path, e);
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(io)?;
    file.write_all_at(&head.bytes, 0).map_err(io)?;
    file.set_len(head.len).map_err(io)?;
    Ok(file)
}

/// Writes the tensors that are no weights.
fn write_factors(outline: &Outline, head: &Head, (path, file): (&Path, &File)) -> Result<()> {
    for (tensor, offset) in outline.tensors().iter().zip(&head.offsets) {
        let values = tensor.values.iter().flatten();
        let bytes: Vec<_> = values.flat_map(|value| value.to_le_bytes()).collect();
        file.write_all_at(&bytes, *offset)
            .map_err(|e| FormatError::io(path, e))?;
    }
    Ok(())
}

/// Refuses a model that the file does not say: what a table turned into metadata and what it is read
/// back as must be the same mathematics.
fn check_same(weights: &Weights, found: &ModelSpec) -> Result<()> {
    let expected = weights.spec();
    let mut found = found.clone();
    // Who ends a text is the tokenizer's matter; a table may write several types of model alike.
    found.model_type.clone_from(&expected.model_type);
    found.eos_token_ids.clone_from(&expected.eos_token_ids);
    found.bos_token_id = expected.bos_token_id;
    for (found, expected) in found.layers.iter_mut().zip(&expected.layers) {
        let (Mixer::Attention(found), Mixer::Attention(expected)) =
            (&mut found.mixer, &expected.mixer)
        else {
            continue;
        };
        let (Some(found), Some(expected)) = (&mut found.rope, &expected.rope) else { continue };
        let llama3 = |scaling: &RopeScaling| matches!(scaling, RopeScaling::Llama3 { .. });
        if llama3(&found.scaling) && llama3(&expected.scaling) {
            // A file has its factors, which leave parameters open.
            found.scaling.clone_from(&expected.scaling);
        }
    }
    if found == *expected {
        return Ok(());
    }
    let json = |spec: &ModelSpec| serde_json::to_value(spec).unwrap_or_default();
    let differs = difference("", &json(expected), &json(&found));
    let detail = differs.unwrap_or_else(|| "expected the same model".into());
    Err(FormatError::file(weights.root(), detail.at("GGUF cannot say the model")).into())
}

/// The first member in which two descriptions differ.
fn difference(path: &str, expected: &Value, found: &Value) -> Option<Refusal> {
    let null = Value::Null;
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys = a.keys().chain(b.keys());
            keys.find_map(|key| {
                let [a, b] = [a, b].map(|object| object.get(key).unwrap_or(&null));
                difference(&format!("{path}.{key}"), a, b)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(mismatch(a, b).at(path.trim_start_matches('.'))),
    }
}

/// The file while it is filled.
struct Writing<'a> {
    file: (&'a Path, &'a File),
    kinds: &'a [Ggml],
    head: &'a Head,
    /// Where the file's reader finds each tensor of the model.
    found: &'a Inventory,
    at: &'a Holders,
    /// What storing tensors anew costs, where that is allowed.
    anew: Option<Tally>,
}

impl Writing<'_> {
    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let (path, file) = self.file;
        Ok(file
            .write_all_at(bytes, offset)
            .map_err(|e| FormatError::io(path, e))?)
    }

    /// Writes rows where they lie in their tensor, as its reader finds them.
    fn rows(&mut self, rows: &Rows<'_>) -> Result<()> {
        let (path, _) = self.file;
        let nowhere = || {
            let detail = format!("{} {}: no place in the file", rows.unit, rows.entry.role);
            ConvertError::from(FormatError::file(path, detail))
        };
        let view = self.view(rows).ok_or_else(nowhere)?;
        let (heads, less_one) = match &view.decoder {
            Some(Decoder::Gguf { heads, less_one, .. }) => (*heads, *less_one),
            _ => (None, false),
        };
        let at = *self
            .at
            .get(&(rows.unit, rows.entry.role))
            .ok_or_else(nowhere)?;
        let (kind, cols) = (self.kinds[at], rows.entry.cols);
        let place = Place { kind, offset: self.head.offsets[at], heads, view: &view };
        let bytes = if less_one {
            let more = rows.values().into_iter().map(|value| value + 1.0);
            more.flat_map(f32::to_le_bytes).collect()
        } else {
            encoded_in(rows, kind, self.anew.as_mut())?
        };
        if heads.is_none() {
            return self.put(&bytes, place.byte(view.start + rows.range.start * cols));
        }
        // Of a vector the values are in another order, of a matrix the rows.
        let vector = view.shape.len() < 2;
        let len = if vector { kind.block_bytes() } else { place.row_len(cols) };
        let first = if vector { 0 } else { rows.range.start };
        for (row, bytes) in (first..).zip(bytes.chunks_exact(len as usize)) {
            let row = place.interleaved(row);
            let start = if vector { row } else { view.start + row * cols };
            self.put(bytes, place.byte(start))?;
        }
        Ok(())
    }

    /// Where the file's reader finds a tensor.
    fn view(&self, rows: &Rows<'_>) -> Option<SourceView> {
        let role = rows.entry.role;
        let entry = self.found.units.get(&rows.unit)?.find(role)?;
        Some(entry.in_unit(rows.unit).source)
    }
}

/// Rows in a type: as they are where it holds them, else anew.
fn encoded_in(rows: &Rows<'_>, kind: Ggml, tally: Option<&mut Tally>) -> Result<Vec<u8>> {
    let Some(tally) = tally.filter(|_| !holds(rows, kind)) else {
        let ((matrix, range), mut bytes) = (rows.stored(), Vec::new());
        kind.encode(matrix, range, &mut bytes);
        return Ok(bytes);
    };
    let mut all = Blocks::ALL.into_iter();
    let blocks = all.find(|blocks| Ggml::from(*blocks) == kind);
    if let Some(blocks) = blocks.filter(|_| keeps_codes(rows, kind)) {
        return Ok(rounded(rows, (kind, blocks), tally));
    }
    let encoding = blocks.map_or(Encoding::F32, Encoding::Ggml);
    let [bytes, ..] = encoded(rows, (encoding, Zeros::Float), tally)?;
    Ok(bytes)
}

/// Whether a type holds all values of rows exactly.
fn holds(rows: &Rows<'_>, kind: Ggml) -> bool {
    let (matrix, range) = rows.stored();
    let mut kinds = Ggml::candidates(rows.entry.encoding);
    kinds.retain(|candidate| *candidate == kind);
    Ggml::retain_exact(&mut kinds, matrix, range);
    !kinds.is_empty()
}

/// A tensor of the file.
struct Place<'a> {
    kind: Ggml,
    /// Its first byte.
    offset: u64,
    heads: Option<u64>,
    view: &'a SourceView,
}

impl Place<'_> {
    /// The byte of a value at the start of a block.
    const fn byte(&self, value: u64) -> u64 {
        self.offset + value / self.kind.block_values() * self.kind.block_bytes()
    }

    const fn row_len(&self, cols: u64) -> u64 {
        cols / self.kind.block_values() * self.kind.block_bytes()
    }

    /// Where a row of the checkpoint lies in the file: see [`Decoder::Gguf`].
    fn interleaved(&self, row: u64) -> u64 {
        let all = self.view.shape.first().copied().unwrap_or(1);
        let head = (all / self.heads.unwrap_or(1).max(1)).max(2);
        let (h, within) = (row / head, row % head);
        let (half, j) = (within / (head / 2), within % (head / 2));
        h * head + 2 * j + half
    }
}
