//! A GGUF file, or the pieces of one, as a checkpoint.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use shardwright_quant::Float;

use super::config;
use super::facts::{CHECKPOINT, Facts};
use super::grouped;
use super::header::{Header, Tensor};
use super::rope::Factors;
use super::synthesized::Synthesized;
use super::table::{Heads, Table, Target};
use super::{MAGIC, read_header};
use crate::checkpoint::file_names::{CONFIG_NAME, FILE_SUFFIX, GGUF_SUFFIX};
use crate::checkpoint::files::{
    CheckpointFile, Described, Files, StoredTensor, TensorInfo, read_config,
};
use crate::checkpoint::group::{Grouped, Quantization, join_heads};
use crate::checkpoint::index::INDEX_NAME;
use crate::checkpoint::wrong;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::io::{OpenFile, ReadFile};
use crate::names::{EXPERT, LAYER, split};
use crate::refusal::{Refusal, mismatch};

/// What names of files end in.
pub const SUFFIX: &str = GGUF_SUFFIX;
/// What the names of files have in them that lie beside models and are none by themselves: parts that see or
/// hear, and statistics that a model was quantized with.
const NO_MODELS: [&str; 2] = ["mmproj", "imatrix"];
/// What `general.type` or `general.architecture` says of such files, and what they are; and of models that llama.cpp
/// or a fork of it computes otherwise than they were published.
const OTHER_TYPES: [(&str, &str); 6] = [
    (
        "adapter",
        "a LoRA adapter, not a model: merge it into its model first, with llama-export-lora of llama.cpp",
    ),
    ("mmproj", "the part of a model that sees or hears: name the file of the text model"),
    ("clip", "the part of a model that sees or hears: name the file of the text model"),
    ("imatrix", "an importance matrix, not a model: statistics to quantize one by"),
    (
        "bitnet",
        "BitNet with SiLU, as llama.cpp computes it, where published models have squared ReLU: take the model's checkpoint for transformers",
    ),
    (
        "bitnet-b1.58",
        "a form of BitNet that bitnet.cpp alone has: take the model's checkpoint for transformers",
    ),
];
/// What names of scales end in that lie beside tensors, and why they are refused.
const SCALE: &str = ".scale";
const SCALED: &str = "a scale of all of the tensor beside it, as files of BitNet and of NVFP4 with two scales have: none is read; take the \
                      model in another type";
/// A tensor that models of some architectures have in any form.
const HEAD_BIAS: &str = "output.bias";
const BIASED: &str =
    "a bias of the head, which no model here computes: run the file with llama.cpp";
/// What is wrong with pieces that were put together as if they were parts of one file's bytes.
const JOINED: &str = "another GGUF file follows in it, as `cat` puts pieces together: take them as they were, and \
                      join them with `llama-gguf-split --merge`, if at all";
/// What names of a layer's tensors begin with in a checkpoint.
const LAYERS: &str = "model.layers.{layer}.";
/// How many positions a layer sees.
const WINDOW: &str = "sliding_window";
/// Most rotary factors that are believed.
const MOST_FACTORS: u64 = 1 << 16;

/// The GGUF file that `path` is, or that the directory holds in place of safetensors: of several
/// pieces the first, whichever is named; parts that see or hear are none.
///
/// # Errors
/// A directory with several models, and a part of a file in place of it.
pub(in crate::checkpoint) fn find(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() {
        if let Some(part) = wrong::part_of_gguf(path) {
            return Err(FormatError::file(path, part));
        }
        return Ok(Some(first_piece(path)));
    }
    let Ok(entries) = fs::read_dir(path) else { return Ok(None) };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| FormatError::io(path, e))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == INDEX_NAME || name.ends_with(FILE_SUFFIX) {
            return Ok(None);
        }
        let first = numbered(name).is_none_or(|(_, number)| number == "00001");
        if name.ends_with(SUFFIX) && first && !NO_MODELS.iter().any(|part| name.contains(part)) {
            found.push(name.to_owned());
        }
    }
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [only] => Ok(Some(path.join(only))),
        several => {
            let names = several.join("`, `");
            let detail = mismatch("one GGUF model", format_args!("`{names}`; name the file"));
            Err(FormatError::file(path, detail))
        }
    }
}

/// The first piece of the model that `path` is a piece of, where it lies beside it.
fn first_piece(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let first = numbered(name).map(|(stem, number)| {
        let rest = &name[stem.len() + 1 + number.len()..];
        path.with_file_name(format!("{stem}-00001{rest}"))
    });
    first
        .filter(|first| first.is_file())
        .unwrap_or_else(|| path.to_owned())
}

/// Stem and number of a piece's name: `STEM-00001-of-00003.gguf`.
fn numbered(name: &str) -> Option<(&str, &str)> {
    let (rest, count) = name.strip_suffix(SUFFIX)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(number)).then_some((stem, number))
}

/// Opens a file and the pieces that belong to it.
///
/// # Errors
/// Files that contradict their layout, an architecture that is not known, metadata or tensors that
/// are not those of one.
pub(in crate::checkpoint) fn open(
    path: &Path,
    single_file: bool,
    open: OpenFile<'_>,
) -> Result<(Files, Grouped)> {
    let mut pieces = vec![Piece::open(path, 0, open)?];
    let count = pieces[0].count()?;
    for number in 1..count {
        let beside = path.with_file_name(pieces[0].name_of(number, count)?);
        let piece = Piece::open(&beside, number, open).map_err(|e| match e {
            FormatError::Io { ref source, .. } if source.kind() == ErrorKind::NotFound => {
                let detail = format!("piece {} of {count}: no such file; fetch it", number + 1);
                FormatError::file(&beside, detail)
            }
            e => e,
        })?;
        let found = piece.count()?;
        if found != count {
            return Err(piece.refused(mismatch(count, found).at("split.count")));
        }
        pieces.push(piece);
    }
    let opening = Opening::new(&pieces)?;
    let (stored, tensors, auxiliary) = opening.tensors()?;
    let quantization = Quantization::decoded("gguf", &tensors, auxiliary);
    let config = opening
        .generated
        .then(|| format!("{:#}\n", opening.config).into_bytes());
    let synthesized = Synthesized::from_gguf(&pieces[0].file, &opening.headers[0], config)?;
    let Opening { config, generated, described, notes, .. } = opening;
    let root = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let files = Files {
        notes,
        described,
        root: root.to_owned(),
        config_path: if generated { path.to_owned() } else { root.join(CONFIG_NAME) },
        synthesized,
        single_file,
        config,
        opened: pieces
            .into_iter()
            .map(Piece::into_file)
            .collect::<Result<_>>()?,
        stored,
        first_names: BTreeMap::new(),
    };
    Ok((files, Grouped { tensors, quantization }))
}

/// An open file and its first bytes.
struct Piece {
    file: ReadFile,
    bytes: Vec<u8>,
}

impl Piece {
    /// Opens the file that is piece `number` of a model.
    fn open(path: &Path, number: u64, open: OpenFile<'_>) -> Result<Self> {
        let file = open(path)?;
        let bytes = read_header(&file)?;
        let piece = Self { file, bytes };
        piece.refuse_joined()?;
        let found = piece.header()?.whole("split.no").unwrap_or_default();
        if found != number {
            let detail = mismatch(number, format_args!("{found}; name the first file of a model"))
                .at("split.no");
            return Err(piece.refused(detail));
        }
        Ok(piece)
    }

    fn header(&self) -> Result<Header<'_>> {
        let unread = self.file.len() - self.bytes.len() as u64;
        Header::parse(&self.bytes, unread).map_err(|e| self.refused(e))
    }

    /// Refuses a file in which another one follows: no program reads it as it is, and none says so.
    fn refuse_joined(&self) -> Result<()> {
        let mut first = [0; MAGIC.len()];
        for end in self.header()?.ends {
            let room = self.file.len().saturating_sub(end) >= first.len() as u64;
            if room {
                self.file.read_at(end, &mut first)?;
            }
            if room && first == *MAGIC {
                return Err(self.refused(JOINED));
            }
        }
        Ok(())
    }

    /// How many pieces there are.
    fn count(&self) -> Result<u64> {
        Ok(self.header()?.whole("split.count").unwrap_or(1).max(1))
    }

    fn name(&self) -> String {
        let name = self.file.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The name of piece `number`, from 0, beside this one.
    fn name_of(&self, number: u64, count: u64) -> Result<String> {
        let name = self.name();
        let Some((stem, _)) = numbered(&name) else {
            let like = format!("MODEL-00001-of-{count:05}{SUFFIX}");
            let found = format_args!("`{name}`: give each of the {count} files its own name again");
            let detail = mismatch(format_args!("a name like {like}"), found);
            return Err(self.refused(detail.at(format_args!("split.count {count}"))));
        };
        Ok(format!("{stem}-{:05}-of-{count:05}{SUFFIX}", number + 1))
    }

    fn refused(&self, detail: impl Into<Refusal>) -> FormatError {
        FormatError::file(self.file.path(), detail)
    }

    fn into_file(self) -> Result<CheckpointFile> {
        let (name, header_len) = (self.name(), self.header()?.data);
        Ok(CheckpointFile { name, header_len, file: self.file, blake3: None })
    }
}

type Named<T> = BTreeMap<String, T>;

/// The work of opening.
struct Opening<'a> {
    pieces: &'a [Piece],
    headers: Vec<Header<'a>>,
    table: Table,
    config: Json,
    /// Whether the configuration is made from metadata.
    generated: bool,
    /// What they give where it is not.
    described: Option<Described>,
    notes: Vec<String>,
}

impl<'a> Opening<'a> {
    fn new(pieces: &'a [Piece]) -> Result<Self> {
        let headers: Vec<_> = pieces.iter().map(Piece::header).collect::<Result<_>>()?;
        let (first, header) = (&pieces[0], &headers[0]);
        let architecture = header.text("general.architecture").unwrap_or_default();
        let kinds = [header.text("general.type").unwrap_or_default(), architecture];
        if let Some((_, what)) = OTHER_TYPES.iter().find(|(kind, _)| kinds.contains(kind)) {
            return Err(first.refused(*what));
        }
        let experts = header.whole(&format!("{architecture}.expert_count"));
        let has = |key: &str| header.metadata.contains_key(key);
        let table = Table::find(architecture, experts.is_some_and(|count| count > 0), has);
        let table = table.map_err(|detail| first.refused(detail))?;
        let path = first.file.path().with_file_name(CONFIG_NAME);
        let beside = path.is_file().then(|| read_config(&path)).transpose()?;
        let whole = beside.filter(is_whole);
        let mut notes = Vec::new();
        if whole.is_none() && path.is_file() {
            notes
                .push(format!("{CONFIG_NAME} beside the file describes no model, the metadata do"));
        }
        let (generated, config) = (whole.is_none(), whole.unwrap_or_default());
        let mut opening =
            Self { pieces, headers, table, config, generated, described: None, notes };
        opening.describe()?;
        Ok(opening)
    }

    /// Takes in what the metadata say of the model: all there is to know of it, or what `config.json` is held
    /// against. That has the last word where it adds something, as windows that llama.cpp has no place for.
    fn describe(&mut self) -> Result<()> {
        let shapes = self
            .each()
            .map(|(_, t)| (t.name.to_owned(), t.shape.clone()));
        let shapes = shapes.collect();
        let metadata = &self.headers[0].metadata;
        let facts = Facts { table: &self.table, metadata, shapes: &shapes };
        let refused = |detail| self.pieces[0].refused(detail);
        facts.check_known().map_err(refused)?;
        let factors = self.factors()?;
        if self.generated {
            self.config = config::make(&facts, &factors).map_err(refused)?;
            return Ok(());
        }
        match config::make_beside(&facts, &factors, &self.config) {
            Ok(config) => {
                let scaled = config::added_scaling(&facts, &config);
                self.notes
                    .extend(scaled.into_iter().chain(window(&self.config, &config)));
                self.described = Some(Described { config, also: self.table.also.clone() });
            }
            Err(detail) => {
                self.notes.push(format!(
                    "{CONFIG_NAME} beside the file alone describes the model: {detail}"
                ));
            }
        }
        Ok(())
    }

    /// What divides the rotary frequencies, if the file says it.
    fn factors(&self) -> Result<Factors> {
        let mut found = Factors::new();
        for (at, tensor) in self.each().filter(|(_, tensor)| self.is_factors(tensor)) {
            let values = tensor.shape.iter().product::<u64>();
            if values > MOST_FACTORS {
                let detail = mismatch(format_args!("at most {MOST_FACTORS} factors"), values);
                return Err(self.refused(at, tensor.name, detail));
            }
            let mut bytes = vec![0; tensor.len as usize];
            self.pieces[at].file.read_at(tensor.offset, &mut bytes)?;
            let mut factors = vec![0.0; values as usize];
            tensor.kind.decode(&bytes, &mut factors);
            found.insert(tensor.name.to_owned(), factors);
        }
        Ok(found)
    }

    fn is_factors(&self, tensor: &Tensor<'_>) -> bool {
        self.table.rope.tensors().any(|name| name == tensor.name)
    }

    /// Every tensor with the number of its file.
    fn each(&self) -> impl Iterator<Item = (usize, &Tensor<'a>)> {
        let headers = self.headers.iter().enumerate();
        headers.flat_map(|(at, header)| header.tensors.iter().map(move |tensor| (at, tensor)))
    }

    fn refused(&self, file: usize, tensor: &str, detail: impl Into<Refusal>) -> FormatError {
        FormatError::tensor(self.pieces[file].file.path(), tensor, detail)
    }

    /// Tensors as stored, those of weights by their names in a checkpoint, and those without use.
    fn tensors(&self) -> Result<(Named<StoredTensor>, Named<TensorInfo>, Named<String>)> {
        let (mut stored, mut auxiliary) = (BTreeMap::new(), BTreeMap::new());
        let mut tensors = BTreeMap::new();
        for (at, tensor) in self.each() {
            if self.is_factors(tensor) {
                stored.insert(tensor.name.to_owned(), as_stored(at, tensor));
                let reason = "factors of rotary frequencies, computed from the configuration";
                auxiliary.insert(tensor.name.to_owned(), reason.to_owned());
                continue;
            }
            let weights = self.weights(at, tensor);
            let (name, info) = weights.map_err(|detail| self.refused(at, tensor.name, detail))?;
            // What needs no decoder is found by the name of its weights.
            let by = if info.decoder.is_some() { tensor.name } else { &name };
            stored.insert(by.to_owned(), as_stored(at, tensor));
            match tensors.entry(name) {
                Entry::Vacant(free) => drop(free.insert(info)),
                Entry::Occupied(taken) => {
                    let detail = mismatch(format_args!("one tensor for `{}`", taken.key()), "two");
                    return Err(self.refused(at, tensor.name, detail));
                }
            }
        }
        join_heads(&mut tensors);
        if self.table.grouped {
            grouped::join(&mut tensors, |key| self.whole(key).unwrap_or_default());
        }
        Ok((stored, tensors, auxiliary))
    }

    /// A tensor of weights and its name in a checkpoint.
    fn weights(&self, file: usize, tensor: &Tensor<'_>) -> Result<(String, TensorInfo), Refusal> {
        let (pattern, [layer, expert]) = split(tensor.name);
        let target = pattern.and_then(|pattern| self.table.tensors.get(&pattern));
        let target = target.ok_or_else(|| match tensor.name {
            HEAD_BIAS => Refusal::from(BIASED),
            name if name.ends_with(SCALE) => SCALED.into(),
            _ => format!("{} has no row for it: {CHECKPOINT}", self.table.path).into(),
        })?;
        let name = self.layer_name(target.name(), layer);
        let name = name.replace(EXPERT, &expert.to_string());
        if let Target::Tiled { value_heads, log, .. } = *target {
            return Ok((name, self.tiled(file, tensor, value_heads, log)?));
        }
        let heads = match target {
            Target::Interleaved { heads, .. } => Some(self.heads(heads, &tensor.shape)?),
            _ => None,
        };
        let less_one = matches!(target, Target::Changed { less_one: true, .. });
        let Tensor { kind, offset, len, .. } = *tensor;
        if kind.float().is_none() && tensor.shape.len() < 2 {
            let name = kind.name();
            return Err(mismatch(
                format_args!("a matrix of {name}"),
                format_args!("shape {:?}", tensor.shape),
            ));
        }
        let decoded = kind.float().is_none() || heads.is_some() || less_one;
        let stored = tensor.name.to_owned();
        let decoder = decoded.then_some(Decoder::Gguf { tensor: stored, kind, heads, less_one });
        let (dtype, shape) = (kind.float().unwrap_or(Float::F32), tensor.shape.clone());
        Ok((name, TensorInfo { file, dtype, shape, offset, len, decoder }))
    }

    /// The name of a tensor of some layer: layers after the model's own predict further tokens.
    fn layer_name(&self, name: &str, layer: u32) -> String {
        let layer = u64::from(layer);
        let own = self.whole("num_hidden_layers").unwrap_or(u64::MAX);
        let rest = name.strip_prefix(LAYERS).filter(|_| layer >= own);
        match (rest, &self.table.further) {
            (Some(rest), Some(further)) => {
                format!("{}{rest}", further.replace(LAYER, &(layer - own).to_string()))
            }
            _ => name.replace(LAYER, &layer.to_string()),
        }
    }

    /// A tensor with the value heads of a gated delta net.
    fn tiled(
        &self,
        file: usize,
        tensor: &Tensor<'_>,
        part: Heads,
        log: bool,
    ) -> Result<TensorInfo, Refusal> {
        let [keys, heads, dim] =
            ["linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"]
                .map(|key| self.whole(key).unwrap_or_default());
        let queries = || keys.checked_mul(dim)?.checked_mul(2);
        let first = match part {
            Heads::Rows | Heads::Columns => 0,
            Heads::LastRows | Heads::LastChannels => queries().unwrap_or(u64::MAX),
        };
        let mut shape = tensor.shape.clone();
        let columns = part == Heads::Columns;
        let all = if columns { shape.last() } else { shape.first() };
        let all = all.copied().unwrap_or_default();
        let even = all.checked_sub(first);
        let even = even.is_some_and(|own| own > 0 && heads > 0 && own.is_multiple_of(heads));
        if !even || keys == 0 || !heads.is_multiple_of(keys) {
            return Err(mismatch(format_args!("{heads} value heads over {keys} key heads"), all));
        }
        if part == Heads::LastChannels && shape.len() == 2 {
            shape.insert(1, 1);
        }
        let Tensor { kind, offset, len, .. } = *tensor;
        let stored = tensor.name.to_owned();
        // Where each is a key head of its own, the heads are in order.
        let keys = if self.table.grouped { heads } else { keys };
        let decoder = Decoder::Tiled { tensor: stored, kind, keys, heads, first, columns, log };
        let dtype = kind.float().unwrap_or(Float::F32);
        Ok(TensorInfo { file, dtype, shape, offset, len, decoder: Some(decoder) })
    }

    /// A number of the configuration, whichever object of it has it.
    fn whole(&self, key: &str) -> Option<u64> {
        let text = self.config.get("text_config");
        let found = self.config.get(key).or_else(|| text?.get(key))?;
        found.as_f64().map(|number| number as u64)
    }

    /// The number of heads whose rows are interleaved.
    fn heads(&self, key: &str, shape: &[u64]) -> Result<u64, Refusal> {
        let number = |key| self.config.get(key).and_then(Json::as_u64);
        let heads = number(key)
            .or_else(|| number("num_attention_heads"))
            .unwrap_or_default();
        let rows = shape.first().copied().unwrap_or_default();
        let even = rows
            .checked_div(heads)
            .is_some_and(|rows| rows.is_multiple_of(2));
        if even && rows.is_multiple_of(heads) {
            return Ok(heads);
        }
        Err(mismatch(format_args!("rows of {heads} heads of even size"), rows))
    }
}

/// Whether a configuration describes a model. Repositories of GGUF files have one that names the kind alone.
fn is_whole(config: &Json) -> bool {
    let inner = config.get("text_config").unwrap_or(config);
    let sizes = ["hidden_size", "num_hidden_layers"];
    sizes.iter().any(|key| inner.get(key).is_some())
}

/// A note of the window that `config.json` adds to what the metadata, as a configuration, have no place for.
fn window(own: &Json, stated: &Json) -> Option<String> {
    let inner = own.get("text_config").unwrap_or(own);
    let on = inner.get("use_sliding_window") != Some(&Json::Bool(false));
    let found = inner.get(WINDOW).filter(|found| on && !found.is_null())?;
    stated.get(WINDOW).is_none().then(|| {
        format!("{CONFIG_NAME} beside the file counts: `{WINDOW}` {found}, of which the metadata say nothing")
    })
}

/// A tensor as its bytes: blocks have no type of a checkpoint's.
fn as_stored(file: usize, tensor: &Tensor<'_>) -> StoredTensor {
    let Tensor { kind, ref shape, offset, len, .. } = *tensor;
    let mut shape = shape.clone();
    let dtype = kind.float().map_or(Dtype::U8, Dtype::Float);
    if let (None, Some(cols)) = (kind.float(), shape.last_mut()) {
        *cols = *cols / kind.block_values() * kind.block_bytes();
    }
    StoredTensor { file, dtype, shape, offset, len }
}
