//! An open bundle: its tensors, where they lie, and whether its bytes are those that were written.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use shardwright_format::io::ReadFile;
use shardwright_format::manifest::{FileEntry, Hash, Manifest};
use shardwright_format::model::LayerSpec;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role, TensorEntry, Unit};
use shardwright_quant::Encoding;

use crate::status::{Failure, c_text};

/// An open bundle. Nothing in it changes, so any number of threads may use it at once.
#[derive(Debug)]
pub struct Bundle {
    weights: Weights,
    tensors: Vec<Listed>,
    /// Full paths of the files that hold shards, by their names in the manifest.
    files: BTreeMap<String, CString>,
}

/// A tensor as the manifest lists it: once for all experts of a layer.
#[derive(Debug)]
struct Listed {
    unit: Unit,
    /// Units that have it: 1, or those experts of its layer that are stored alike, `unit` the first.
    count: u64,
    entry: TensorEntry,
    role: CString,
    source: CString,
    label: CString,
}

/// A separately readable piece of the model.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// The token embedding.
    Embedding = 0,
    /// A layer without its routed experts.
    Layer = 1,
    /// A routed expert of a layer.
    Expert = 2,
    /// The final norm, and the head unless it is the embedding.
    Head = 3,
    /// A vision tower, where the bundle has one.
    Vision = 4,
    /// Layers that predict further tokens, where the bundle has them.
    Mtp = 5,
    /// What chooses the positions that a sparse attention sees, where the bundle has it.
    Indexer = 6,
}

/// How values are stored; docs/FORMAT.md has the bytes of each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodingKind {
    /// Floats of 32 bits.
    F32 = 0,
    /// Floats of 16 bits, IEEE 754.
    F16 = 1,
    /// Floats of 16 bits, bfloat16.
    Bf16 = 2,
    /// Codes with a scale and a bias for each group of columns: `scale * code + bias`.
    Affine = 3,
    /// Codes of a trellis with computed values.
    Trellis = 4,
    /// Blocks of codes and scales as GGUF files have them; the label says which.
    Ggml = 5,
    /// Floats of 4 or 8 bits with a scale for each group of columns; the label says which.
    Minifloat = 6,
    /// Powers of two, a byte for the exponent and 127: scales only.
    E8m0 = 7,
}

/// A tensor: a matrix of `rows` outputs by `cols` inputs; a vector is one row.
///
/// Tensors of experts are listed once for the `count` experts of a layer that are stored alike: all of them in most
/// bundles. The texts live as long as the bundle is open.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// What it is for, as docs/FORMAT.md calls it: `attention.q_proj`, `expert.up_proj`.
    pub role: *const c_char,
    /// Its name in the checkpoint; `{expert}` stands for the expert's number.
    pub source: *const c_char,
    /// How it is stored, to be shown: `q4 g64 bf16`.
    pub label: *const c_char,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// The unit that it lies in.
    pub unit: UnitKind,
    /// Its layer, from 0; -1 outside of layers.
    pub layer: i32,
    /// Units that have it: 1, or experts of the layer.
    pub count: u32,
    /// The first of those experts; 0 for what is no expert's.
    pub expert: u32,
    /// How it is stored.
    pub encoding: EncodingKind,
    /// Bits of a code; 0 for floats.
    pub bits: u32,
    /// Columns of a group; 0 unless affine or in blocks.
    pub group_size: u32,
    /// Bits of a state; 0 unless trellis.
    pub state_bits: u32,
    /// Type of scales and biases; of floats their own.
    pub scale_type: EncodingKind,
}

/// Bytes of a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where a unit lies: a shard, which one read gives.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Path of the file; lives as long as the bundle is open.
    pub file: *const c_char,
    /// Its bytes; the offset is a multiple of the bundle's alignment.
    pub bytes: Span,
    /// BLAKE3 of those bytes.
    pub blake3: [u8; 32],
}

/// Where a tensor of a unit lies. All offsets are from the start of the unit's file; the parts follow each other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The unit.
    pub unit: Extent,
    /// Values or packed codes, `[rows, row_bytes]`.
    pub weight: Span,
    /// Scales, `[rows, cols / group_size]`, or one per row of a trellis; empty for floats.
    pub scales: Span,
    /// Biases, as many; empty unless affine.
    pub biases: Span,
}

impl Bundle {
    /// Opens a bundle whose manifest is sound and whose shard files have the stated sizes.
    ///
    /// # Errors
    /// Another path, a damaged manifest, a file that is missing or of another size.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let bundle = shardwright_format::Bundle::open(path)?;
        let manifest = bundle.manifest();
        let tensors = manifest.tensors().map(Listed::new).collect();
        let file = |file: &FileEntry| {
            let full = path.join(&file.path);
            let full = CString::new(full.as_os_str().as_bytes());
            (file.path.clone(), full.unwrap_or_default())
        };
        let files = manifest.files.iter().map(file).collect();
        Ok(Self { tensors, files, weights: bundle.into() })
    }

    /// The weights. A clone outlives the handle.
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What the bundle says of itself.
    fn bundle(&self) -> Result<&shardwright_format::Bundle, Failure> {
        let missing = || Failure::Missing("manifest".to_owned());
        self.weights.bundle().ok_or_else(missing)
    }

    /// How many tensors are listed.
    pub const fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether none is.
    pub const fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor with number `index`.
    ///
    /// # Errors
    /// A number that none has.
    pub fn describe(&self, index: usize) -> Result<Tensor, Failure> {
        self.listed(index).map(Listed::describe)
    }

    /// The number of the tensor with a role; `layer` is negative for those outside of layers, `expert` 0 for what is
    /// no expert's.
    ///
    /// # Errors
    /// A role, a layer or an expert that the bundle does not have.
    pub fn find(&self, role: &str, layer: i32, expert: u32) -> Result<usize, Failure> {
        let wanted = (Role::parse(role), u32::try_from(layer).ok());
        let mut first = None;
        if let (Some(role), Some(layer)) = wanted
            && role.is_expert()
        {
            first = Some(self.first_alike(layer, expert)?);
        }
        let held = |listed: &Listed| first.is_none_or(|first| listed.unit == first);
        let found = self.tensors.iter().position(|listed| {
            (Some(listed.entry.role), listed.unit.layer()) == wanted && held(listed)
        });
        let missing = || match wanted.1 {
            Some(layer) => Failure::Missing(format!("{role} in layer {layer}")),
            None => Failure::Missing(format!("{role} outside of layers")),
        };
        found.ok_or_else(missing)
    }

    /// A tensor of one of the units that have it.
    ///
    /// # Errors
    /// A number that no tensor has, or no expert; `expert` is 0 for what is no expert's.
    pub fn tensor(&self, index: usize, expert: u32) -> Result<(Unit, &TensorEntry), Failure> {
        let listed = self.listed(index)?;
        let unit = match listed.unit {
            Unit::Expert { layer, .. } => {
                if self.first_alike(layer, expert)? != listed.unit {
                    let what =
                        format!("expert {expert} of layer {layer} among those of tensor {index}");
                    return Err(Failure::Missing(what));
                }
                Unit::Expert { layer, expert }
            }
            _ if expert > 0 => {
                let found = u64::from(expert);
                return Err(Failure::Range { name: "expert", count: 1, found });
            }
            unit => unit,
        };
        Ok((unit, &listed.entry))
    }

    /// The first of the experts that are stored as `expert` is: the unit that they are listed by.
    fn first_alike(&self, layer: u32, expert: u32) -> Result<Unit, Failure> {
        let manifest = self.bundle()?.manifest();
        if let Some((shards, _)) = manifest.expert(layer, expert) {
            return Ok(shards.first());
        }
        let described = manifest.model.layers.get(layer as usize);
        match described.map_or(0, LayerSpec::num_experts) {
            0 => Err(Failure::Missing(format!("experts in layer {layer}"))),
            count => {
                let (count, found) = (count.into(), expert.into());
                Err(Failure::Range { name: "expert", count, found })
            }
        }
    }

    /// Where a tensor lies.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn place(&self, index: usize, expert: u32) -> Result<Place, Failure> {
        let (unit, entry) = self.tensor(index, expert)?;
        let extent = self.extent(unit)?;
        let parts = entry
            .encoding
            .row_parts([entry.rows, entry.cols], &(0..entry.rows))?;
        // A valid manifest's tensors lie in their units, and those in files.
        let [weight, scales, biases] = parts.map(|part| Span {
            offset: extent.bytes.offset + entry.offset + part.start,
            len: part.end - part.start,
        });
        Ok(Place { unit: extent, weight, scales, biases })
    }

    /// Where an expert lies.
    ///
    /// # Errors
    /// A layer without experts, or an expert that it does not have.
    pub fn expert(&self, layer: u32, expert: u32) -> Result<Extent, Failure> {
        self.first_alike(layer, expert)?;
        self.extent(Unit::Expert { layer, expert })
    }

    fn extent(&self, unit: Unit) -> Result<Extent, Failure> {
        let (name, extent) = self.bundle()?.place(unit)?;
        let file = self.files.get(name).map_or(c"", CString::as_c_str);
        let bytes = Span { offset: extent.offset, len: extent.len };
        Ok(Extent { file: file.as_ptr(), bytes, blake3: extent.blake3.0 })
    }

    fn listed(&self, index: usize) -> Result<&Listed, Failure> {
        let (count, found) = (self.tensors.len() as u64, index as u64);
        let range = || Failure::Range { name: "tensor", count, found };
        self.tensors.get(index).ok_or_else(range)
    }

    /// Holds every file to its size and hash. `go_on` is told the bytes read and those of all files, after each
    /// block; where it says no, that is the end.
    ///
    /// # Errors
    /// A file that is missing, of another size or with other bytes; [`Failure::Stopped`].
    pub fn check(&self, mut go_on: impl FnMut(u64, u64) -> bool) -> Result<(), Failure> {
        let bundle = self.bundle()?;
        let Manifest { files, .. } = bundle.manifest();
        let (mut done, total) = (0, files.iter().map(|file| file.size).sum());
        for FileEntry { path, size, blake3, .. } in files {
            let file = ReadFile::open_direct(&bundle.root().join(path))?;
            if file.len() != *size {
                let detail = format!("size: expected {size} bytes, found {}", file.len());
                return Err(FormatError::file(file.path(), detail).into());
            }
            let mut hasher = blake3::Hasher::new();
            file.blocks(|_, bytes| {
                hasher.update(bytes);
                done += bytes.len() as u64;
                if go_on(done, total) { Ok(()) } else { Err(Failure::Stopped) }
            })?;
            let found = Hash::from(hasher.finalize());
            if found != *blake3 {
                let detail = format!("BLAKE3: expected {blake3}, found {found}");
                return Err(FormatError::file(file.path(), detail).into());
            }
        }
        Ok(())
    }
}

impl Listed {
    fn new((unit, count, entry): (Unit, u64, &TensorEntry)) -> Self {
        Self {
            unit,
            count,
            role: c_text(entry.role.name()),
            source: c_text(&entry.source.tensor),
            label: c_text(&entry.encoding.label()),
            entry: entry.clone(),
        }
    }

    fn describe(&self) -> Tensor {
        let TensorEntry { rows, cols, encoding, .. } = self.entry;
        let (bits, group_size, state_bits) = match encoding {
            Encoding::Affine(a) => (a.bits(), a.group_size() as u32, 0),
            Encoding::Trellis(t) => (t.bits(), 0, t.state_bits()),
            Encoding::Ggml(blocks) => (blocks.form().bits, blocks.form().group as u32, 0),
            Encoding::Minifloat(m) => (m.element().bits(), m.group_size() as u32, 0),
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => (0, 0, 0),
        };
        let scale_type = match encoding {
            Encoding::Affine(a) => Encoding::from(a.scale_dtype()).into(),
            Encoding::Minifloat(m) => {
                let float = m.scale_dtype().float().map(Encoding::from);
                float.map_or(EncodingKind::E8m0, EncodingKind::from)
            }
            // The scale of a row: docs/FORMAT.md, "Trellis".
            Encoding::Trellis(_) => EncodingKind::Bf16,
            Encoding::Ggml(_) => EncodingKind::F16,
            float => float.into(),
        };
        Tensor {
            role: self.role.as_ptr(),
            source: self.source.as_ptr(),
            label: self.label.as_ptr(),
            rows,
            cols,
            unit: self.unit.into(),
            layer: self.unit.layer().map_or(-1, u32::cast_signed),
            count: self.count as u32,
            expert: match self.unit {
                Unit::Expert { expert, .. } => expert,
                _ => 0,
            },
            encoding: encoding.into(),
            bits: bits.into(),
            group_size,
            state_bits: state_bits.into(),
            scale_type,
        }
    }
}

impl From<Unit> for UnitKind {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Embedding => Self::Embedding,
            Unit::Layer(_) => Self::Layer,
            Unit::Expert { .. } => Self::Expert,
            Unit::Head => Self::Head,
            Unit::Vision => Self::Vision,
            Unit::Mtp => Self::Mtp,
            Unit::Indexer => Self::Indexer,
        }
    }
}

impl From<Encoding> for EncodingKind {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Affine(_) => Self::Affine,
            Encoding::Trellis(_) => Self::Trellis,
            Encoding::Ggml(_) => Self::Ggml,
            Encoding::Minifloat(_) => Self::Minifloat,
            Encoding::F32 => Self::F32,
            Encoding::F16 => Self::F16,
            Encoding::Bf16 => Self::Bf16,
        }
    }
}
