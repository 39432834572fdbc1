//! Bundles for tests, put together here so that the converter cannot repeat its mistakes in them.

use std::fs;
use std::path::{Path, PathBuf};

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Checkpoint, read_view};
use shardwright_format::io::AlignedBuf;
use shardwright_format::layout::{place_dense, place_expert};
use shardwright_format::manifest::{
    CheckpointRecord, DenseShard, ExpertShards, FORMAT, FileEntry, FileKind, Hash, Ignored,
    MANIFEST_FILE, REPORT_FILE, SourceFile, VERSION,
};
use shardwright_format::{Manifest, Role, SourceView, TensorEntry, Unit, UnitLayout};
use shardwright_quant::{
    Affine, Backend, Encoding, Float, Job, Method, Objective, PartsMut, Trellis, Zeros, narrow,
    quantize, widen,
};

use super::noise::Noise;
use crate::golden;

/// Alignment of test bundles, in bytes.
pub const ALIGNMENT: u64 = 4096;
const DENSE: &str = "dense-000.bin";

/// How a test stores matrices.
#[derive(Clone, Copy)]
pub enum Codes {
    /// In the source's type.
    Plain,
    /// At so many bits, in groups of 32.
    Affine(u8),
    /// The same, with codes searched for, where those are the ends of each group's range.
    Searched(u8),
    /// At so many bits, with the smallest states.
    Trellis(u8),
}

/// What most tests need.
pub const FOUR_BITS: Codes = Codes::Affine(4);

/// A bundle in a temporary directory.
pub struct TestBundle {
    /// Its directory.
    pub root: tempfile::TempDir,
    /// The checkpoint it was made from.
    pub checkpoint: PathBuf,
    /// As written.
    pub manifest: Manifest,
}

impl TestBundle {
    /// Stores the checkpoint of a fixture.
    pub fn new(case: &str, codes: Codes) -> Self {
        Self::from_checkpoint(&golden(case), codes)
    }

    /// Stores a checkpoint.
    pub fn from_checkpoint(checkpoint: &Path, codes: Codes) -> Self {
        Self::make(checkpoint, &Content::Stored(codes))
    }

    /// A bundle of random weights for the model in a checkpoint: matrices stored as `encoding` says of
    /// their role, vectors in the checkpoint's type. Any bytes are trellis streams, so that reading is
    /// tested without an encoder.
    pub fn random(checkpoint: &Path, encoding: &dyn Fn(Role) -> Encoding) -> Self {
        Self::make(checkpoint, &Content::Random(encoding, Noise::new()))
    }

    fn make(checkpoint: &Path, content: &Content<'_>) -> Self {
        let opened = Checkpoint::open(checkpoint).unwrap();
        let inventory = Inventory::new(&opened, None).unwrap();
        let root = tempfile::tempdir().unwrap();
        let maker =
            Maker { checkpoint: &opened, inventory: &inventory, root: root.path(), content };
        let manifest = maker.make();
        Self { root, checkpoint: checkpoint.to_owned(), manifest }
    }

    /// A file of the bundle.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    /// Changes a file's bytes.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(file)).unwrap();
        change(&mut bytes);
        fs::write(self.path(file), bytes).unwrap();
    }

    /// Writes another manifest, its hash made right.
    pub fn rewrite(&self, change: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.manifest.clone();
        change(&mut manifest);
        fs::write(self.path(MANIFEST_FILE), manifest.to_bytes()).unwrap();
    }
}

/// Where weights come from.
enum Content<'a> {
    /// The checkpoint.
    Stored(Codes),
    /// Nowhere.
    Random(&'a dyn Fn(Role) -> Encoding, Noise),
}

struct Maker<'a> {
    checkpoint: &'a Checkpoint,
    inventory: &'a Inventory,
    root: &'a Path,
    content: &'a Content<'a>,
}

impl Maker<'_> {
    fn make(&self) -> Manifest {
        let (mut dense, mut experts) = (Vec::new(), Vec::new());
        let mut dense_bytes = Vec::new();
        fs::create_dir(self.root.join("experts")).unwrap();
        for unit in self.inventory.spec.units() {
            match unit {
                Unit::Expert { layer, expert: 0 } => experts.push(self.experts(layer)),
                Unit::Expert { .. } => {}
                unit => dense.push(self.dense(unit, &mut dense_bytes)),
            }
        }
        if experts.is_empty() {
            fs::remove_dir(self.root.join("experts")).unwrap();
        }
        let mut files = vec![self.write(DENSE, &dense_bytes, FileKind::Shards)];
        files.extend(experts.iter().map(|(_, file)| file.clone()));
        for copy in self.checkpoint.copies().unwrap() {
            let made = self
                .checkpoint
                .synthesized(&copy)
                .unwrap()
                .map(<[u8]>::to_vec);
            let read = || fs::read(self.checkpoint.root().join(&copy)).unwrap();
            let bytes = made.unwrap_or_else(read);
            files.push(self.write(&copy, &bytes, FileKind::Copy));
        }
        files.push(self.write(REPORT_FILE, b"{}\n", FileKind::Report));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest {
            blake3: Hash::ZERO,
            format: FORMAT.to_owned(),
            version: VERSION,
            generator: "a test".to_owned(),
            alignment: ALIGNMENT,
            model: self.inventory.spec.clone(),
            recipe: serde_json::Value::Null,
            checkpoint: self.record(),
            calibration: None,
            files,
            dense,
            experts: experts.into_iter().map(|(shards, _)| shards).collect(),
        };
        let bytes = manifest.to_bytes();
        let path = self.root.join(MANIFEST_FILE);
        fs::write(&path, &bytes).unwrap();
        Manifest::from_bytes(&path, &bytes).unwrap()
    }

    fn record(&self) -> CheckpointRecord {
        let file = |name: &String| {
            let bytes = fs::read(self.checkpoint.root().join(name)).unwrap();
            let (size, blake3) = (bytes.len() as u64, blake3::hash(&bytes).into());
            SourceFile { name: name.clone(), size, blake3 }
        };
        let parts = self.inventory.extras.values();
        let parts = parts.flat_map(|part| part.layout.tensors.iter().map(|t| (t, &part.reason)));
        let left_out = parts.map(|(tensor, reason)| Ignored {
            tensor: tensor.source.tensor.clone(),
            role: Some(tensor.role),
            reason: reason.clone(),
        });
        let ignored = self.inventory.ignored.iter().cloned();
        let mut ignored: Vec<_> = ignored.chain(left_out).collect();
        ignored.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        CheckpointRecord {
            files: self
                .checkpoint
                .files()
                .iter()
                .map(|f| file(&f.name))
                .collect(),
            ignored,
            excerpt: None,
        }
    }

    fn write(&self, path: &str, bytes: &[u8], kind: FileKind) -> FileEntry {
        let at = self.root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, bytes).unwrap();
        let (size, blake3) = (bytes.len() as u64, blake3::hash(bytes).into());
        FileEntry { path: path.to_owned(), kind, size, blake3 }
    }

    fn dense(&self, unit: Unit, file: &mut Vec<u8>) -> DenseShard {
        let tensors = self.inventory.units[&unit]
            .tensors
            .iter()
            .map(|t| self.encoded(t))
            .collect();
        let layout = place_dense(tensors).unwrap();
        let bytes = self.encode(unit, &layout);
        let offset = file.len() as u64;
        file.extend(&bytes);
        file.resize(file.len().next_multiple_of(ALIGNMENT as usize), 0);
        let (len, blake3) = (layout.len, blake3::hash(&bytes).into());
        let file = DENSE.to_owned();
        DenseShard { unit, file, offset, len, blake3, tensors: layout.tensors }
    }

    fn experts(&self, layer: u32) -> (ExpertShards, FileEntry) {
        let templates = &self.inventory.experts(layer)[0];
        let tensors = templates.tensors.iter().map(|t| self.encoded(t)).collect();
        let UnitLayout { tensors, len } = place_expert(tensors).unwrap();
        let count = self.inventory.spec.layers[layer as usize].num_experts();
        let layout = UnitLayout { tensors: tensors.clone(), len };
        let encode = |expert| self.encode(Unit::Expert { layer, expert }, &layout);
        let records: Vec<_> = (0..count).map(encode).collect();
        let stride = len.next_multiple_of(ALIGNMENT) as usize;
        let mut file = Vec::new();
        for (e, record) in records.iter().enumerate() {
            file.resize(e * stride, 0);
            file.extend(record);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT as usize), 0);
        let path = format!("experts/layer-{layer:03}.bin");
        let entry = self.write(&path, &file, FileKind::Shards);
        let blake3 = records.iter().map(|r| blake3::hash(r).into()).collect();
        (
            ExpertShards {
                layer,
                experts: None,
                file: path,
                stride: stride as u64,
                len,
                tensors,
                blake3,
            },
            entry,
        )
    }

    fn encoded(&self, tensor: &TensorEntry) -> TensorEntry {
        let encoding = match self.content {
            Content::Stored(codes) => codes.encoding(tensor),
            Content::Random(encoding, _) if tensor.source.shape.len() > 1 => encoding(tensor.role),
            Content::Random(..) => tensor.source.dtype.into(),
        };
        TensorEntry { encoding, ..tensor.clone() }
    }

    /// The bytes of a unit.
    fn encode(&self, unit: Unit, layout: &UnitLayout) -> Vec<u8> {
        let mut bytes = vec![0; layout.len as usize];
        let sources = self.inventory.units[&unit].tensors.iter();
        for (entry, source) in layout.tensors.iter().zip(sources) {
            let out = &mut bytes[entry.offset as usize..][..entry.byte_len().unwrap() as usize];
            match self.content {
                Content::Stored(codes) => {
                    codes.store(&self.values(&source.source, entry), entry, out);
                }
                Content::Random(_, noise) => noise.store(entry, out),
            }
        }
        bytes
    }

    /// The values of a tensor of the checkpoint, `[rows][cols]`.
    fn values(&self, source: &SourceView, entry: &TensorEntry) -> Vec<f32> {
        let mut raw = AlignedBuf::default();
        read_view(self.checkpoint, source, 0..entry.rows, entry.cols, &mut raw).unwrap();
        let mut values = vec![0.0; (entry.rows * entry.cols) as usize];
        widen(source.dtype, raw.as_slice(), &mut values);
        values
    }
}

impl Codes {
    fn encoding(self, tensor: &TensorEntry) -> Encoding {
        let codes = match self {
            Self::Plain => None,
            Self::Affine(bits) | Self::Searched(bits) => {
                Some(Encoding::Affine(Affine::new(bits, 32, Float::Bf16).unwrap()))
            }
            Self::Trellis(bits) => Some(Encoding::Trellis(Trellis::new(bits, 10).unwrap())),
        };
        let fits =
            codes.filter(|codes| tensor.rows > 1 && codes.parts(tensor.rows, tensor.cols).is_ok());
        fits.unwrap_or(tensor.source.dtype.into())
    }

    /// Stores values `[rows][cols]` as `entry` says.
    fn store(self, values: &[f32], entry: &TensorEntry, out: &mut [u8]) {
        if let Some(float) = entry.encoding.float() {
            return narrow(float, values, out);
        }
        let (rows, cols) = (entry.rows as usize, entry.cols as usize);
        let parts = PartsMut::split(entry.encoding, rows, cols, out).unwrap();
        let searched = matches!(self, Self::Searched(_));
        let job = Job {
            backend: Backend::Scalar,
            x: values,
            cols,
            encoding: entry.encoding,
            method: if searched { Method::Search } else { Method::MinMax },
            zeros: Zeros::Float,
            objective: Objective::Weights,
        };
        quantize(&job, parts).unwrap();
    }
}
