//! Experts: in a file for each layer record after record, all alike.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use shardwright_quant::Float;

use super::codes::group_size;
use super::{DIRECTORIES, EXPERT_MATRICES, LAYOUT_NAME, TIERED, layer_name, object};
use crate::checkpoint::files::{CheckpointFile, Files, StoredTensor};
use crate::checkpoint::header::refuse_pointer;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, OpenFile, ReadFile, read_limited};
use crate::refusal::{Refusal, mismatch};

/// More experts in all layers are refused: the largest model has an eighth, and a length that a server names, or a
/// file of holes, bounds nothing.
const MOST_EXPERTS: u64 = 1 << 18;

/// The experts of a folder, as its configuration says.
pub(super) struct Packed {
    /// Bits of their codes.
    pub(super) bits: u8,
    directory: &'static str,
    layers: u64,
    /// In each layer.
    experts: u64,
    record: Record,
}

/// How the parts of an expert lie.
struct Record {
    parts: Vec<Part>,
    len: u64,
}

struct Part {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    /// From the start of the record.
    offset: u64,
    len: u64,
}

/// `layout.json`: what it says repeats what the configuration gives.
#[derive(Deserialize)]
struct Layout {
    expert_size: u64,
    num_layers: u64,
    num_experts: u64,
    components: Vec<Component>,
}

/// A part of a record; some programs say neither type nor shape.
#[derive(Deserialize)]
#[serde(expecting = "an object of a part")]
struct Component {
    name: String,
    offset: u64,
    size: u64,
    dtype: Option<String>,
    shape: Option<Vec<u64>>,
}

impl Packed {
    /// What the configuration says of the directory that is there.
    ///
    /// # Errors
    /// None or several directories; numbers that the configuration lacks, or that make no record; a layout with
    /// others.
    pub(super) fn find(files: &Files) -> Result<Self> {
        let (bits, directory) = directory(&files.root)?;
        let [hidden, wide] = ["hidden_size", "moe_intermediate_size"].map(|key| number(files, key));
        let (hidden, wide) = (hidden?, wide?);
        let record = Record::new([hidden, wide], bits, group_size(&files.config));
        let record = record.map_err(|detail| FormatError::file(&files.config_path, detail))?;
        let (layers, experts) =
            (number(files, "num_hidden_layers")?, number(files, "num_experts")?);
        if layers * experts > MOST_EXPERTS {
            let expected = format_args!("at most {MOST_EXPERTS} experts in all layers");
            let detail = mismatch(expected, layers * experts);
            return Err(FormatError::file(&files.config_path, detail));
        }
        let packed = Self { bits, directory, layers, experts, record };
        packed.check_layout(&files.root.join(directory).join(LAYOUT_NAME))?;
        Ok(packed)
    }

    /// Opens the file of each layer and takes in its experts.
    ///
    /// # Errors
    /// A file that is missing, one too many, or of another length; a tensor that the dense part has too.
    pub(super) fn add(&self, files: &mut Files, open: OpenFile<'_>) -> Result<()> {
        for layer in 0..self.layers {
            let name = self.file_name(layer);
            let file = open(&files.root.join(&name))?;
            self.check_length(&file)?;
            let at = files.opened.len();
            files
                .opened
                .push(CheckpointFile { name, file, header_len: 0, blake3: None });
            for expert in 0..self.experts {
                self.add_expert(files, at, [layer, expert])?;
            }
        }
        let more = files.root.join(self.file_name(self.layers));
        if more.exists() {
            let expected = format_args!("files of {} layers, as config.json says", self.layers);
            return Err(FormatError::file(&more, mismatch(expected, "one more")));
        }
        Ok(())
    }

    fn file_name(&self, layer: u64) -> String {
        format!("{}/{}", self.directory, layer_name(layer))
    }

    /// Refuses a file of another length: with a record for each expert the number of experts, and so of tensors, is
    /// bounded by what is there.
    fn check_length(&self, file: &ReadFile) -> Result<()> {
        refuse_pointer(file)?;
        let (experts, each) = (self.experts, self.record.len);
        if experts.checked_mul(each) == Some(file.len()) {
            return Ok(());
        }
        let expected = format_args!("{experts} experts of {each} bytes, as config.json says");
        let found = format_args!("{} bytes", file.len());
        Err(FormatError::file(file.path(), mismatch(expected, found)))
    }

    fn add_expert(&self, files: &mut Files, at: usize, [layer, expert]: [u64; 2]) -> Result<()> {
        // No overflow: all records are the file's length.
        let start = expert * self.record.len;
        for Part { name, dtype, shape, offset, len } in &self.record.parts {
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}");
            let (dtype, shape, len) = (*dtype, shape.clone(), *len);
            let stored = StoredTensor { file: at, dtype, shape, offset: start + offset, len };
            if let Some(other) = files.stored.insert(name.clone(), stored) {
                let path = files.opened[other.file].file.path();
                return Err(FormatError::tensor(path, &name, "packed experts have it too"));
            }
        }
        Ok(())
    }

    /// Refuses a layout that says otherwise than the configuration, if there is one.
    fn check_layout(&self, path: &Path) -> Result<()> {
        let Some(text) = read_limited(path, CONFIG_LIMIT)? else { return Ok(()) };
        let layout: Layout = object(path, &text)?;
        let Record { parts, len } = &self.record;
        let refused = |expected: String, found: String, key: &str| {
            let expected = format_args!("{expected}, as config.json says");
            FormatError::file(path, mismatch(expected, found).at(format_args!("`{key}`")))
        };
        for (key, expected, found) in [
            ("expert_size", *len, layout.expert_size),
            ("num_layers", self.layers, layout.num_layers),
            ("num_experts", self.experts, layout.num_experts),
            ("components", parts.len() as u64, layout.components.len() as u64),
        ] {
            if expected != found {
                return Err(refused(expected.to_string(), found.to_string(), key));
            }
        }
        let differs = |(component, part): &(&Component, &Part)| !component.is(part);
        let other = layout.components.iter().zip(parts).find(differs);
        other.map_or(Ok(()), |(component, part)| {
            Err(refused(part.shown(), component.shown(), "components"))
        })
    }
}

/// The one directory with experts, and the bits of their codes.
fn directory(root: &Path) -> Result<(u8, &'static str)> {
    let there = |name: &str| root.join(name).join(layer_name(0)).exists();
    let found: Vec<_> = DIRECTORIES
        .into_iter()
        .filter(|(_, name)| there(name))
        .collect();
    let [first, second] = DIRECTORIES.map(|(_, name)| name);
    let detail = match (&found[..], there(TIERED)) {
        ([one], false) => return Ok(*one),
        ([], false) => {
            mismatch(format_args!("{first}/{} or one in {second}", layer_name(0)), "neither")
        }
        ([], true) => {
            format!("{TIERED}: experts of several widths in one layer are not read").into()
        }
        _ => "experts more than once: keep the directory that is meant".into(),
    };
    Err(FormatError::file(root, detail))
}

/// A number of the text model in the configuration.
fn number(files: &Files, key: &str) -> Result<u64> {
    let text = files
        .config
        .get("text_config")
        .and_then(|text| text.get(key));
    let found = text.or_else(|| files.config.get(key));
    let number = found.and_then(Value::as_u64);
    let number = number.filter(|number| (1..=u64::from(u32::MAX)).contains(number));
    number.ok_or_else(|| {
        let found = found.map_or_else(|| "none".to_owned(), Value::to_string);
        let detail = mismatch("a positive whole number of 32 bits", found);
        FormatError::file(&files.config_path, detail.at(format_args!("`{key}`")))
    })
}

impl Record {
    /// Gate and up of `[wide, hidden]` and down of `[hidden, wide]`.
    fn new([hidden, wide]: [u64; 2], bits: u8, group: u64) -> Result<Self, Refusal> {
        let mut record = Self { parts: Vec::new(), len: 0 };
        let shapes = [[wide, hidden], [wide, hidden], [hidden, wide]];
        for (name, [rows, cols]) in EXPERT_MATRICES.into_iter().zip(shapes) {
            let row = cols * u64::from(bits);
            if !cols.is_multiple_of(group) || !row.is_multiple_of(32) {
                let expected = format_args!("columns of experts in whole groups of {group}");
                return Err(mismatch(expected, cols).at(name));
            }
            let groups = [rows, cols / group];
            let bf16 = Dtype::Float(Float::Bf16);
            for (part, dtype, shape) in [
                ("weight", Dtype::U32, [rows, row / 32]),
                ("scales", bf16, groups),
                ("biases", bf16, groups),
            ] {
                record.push(format!("{name}.{part}"), dtype, shape)?;
            }
        }
        Ok(record)
    }

    fn push(&mut self, name: String, dtype: Dtype, shape: [u64; 2]) -> Result<(), Refusal> {
        let (offset, [rows, cols]) = (self.len, shape);
        let len = rows.checked_mul(cols);
        let len = len.and_then(|len| len.checked_mul(dtype.size() as u64));
        let end = len.and_then(|len| Some((len, offset.checked_add(len)?)));
        let (len, end) = end.ok_or("an expert's size leaves 64 bits")?;
        self.parts
            .push(Part { name, dtype, shape: shape.to_vec(), offset, len });
        self.len = end;
        Ok(())
    }
}

impl Part {
    fn shown(&self) -> String {
        let Self { name, dtype, shape, offset, len } = self;
        format!("`{name}` with {len} bytes at {offset}, {} {shape:?}", dtype.label())
    }
}

impl Component {
    fn is(&self, part: &Part) -> bool {
        let place = (&self.name, self.offset, self.size) == (&part.name, part.offset, part.len);
        let dtype = self
            .dtype
            .as_deref()
            .is_none_or(|dtype| dtype == part.dtype.label());
        place && dtype && self.shape.as_ref().is_none_or(|shape| *shape == part.shape)
    }

    fn shown(&self) -> String {
        let Self { name, offset, size, dtype, shape } = self;
        let (dtype, shape) =
            (dtype.as_deref().unwrap_or("untyped"), shape.as_deref().unwrap_or_default());
        format!("`{name}` with {size} bytes at {offset}, {dtype} {shape:?}")
    }
}
