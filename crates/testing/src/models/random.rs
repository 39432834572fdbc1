//! Bundles of random codes. Any bytes are trellis streams, so that reading can be tested without an
//! encoder; their values are known from the definition alone.

use std::path::Path;

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::{place_dense, place_expert};
use shardwright_format::manifest::{
    CheckpointRecord, DenseShard, ExpertShards, FORMAT, FileEntry, FileKind, Hash, MANIFEST_FILE,
    REPORT_FILE, VERSION,
};
use shardwright_format::{Manifest, Role, TensorEntry, Unit, UnitLayout};
use shardwright_quant::{Encoding, Float, narrow};

const ALIGNMENT: u64 = 4096;
const DENSE: &str = "dense-000.bin";

/// Writes a bundle of the model in `checkpoint` to `out`. Matrices are stored as `encoding` says of
/// their role, vectors in the checkpoint's type.
pub fn bundle(checkpoint: &Path, out: &Path, encoding: &dyn Fn(Role) -> Encoding) {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    std::fs::create_dir_all(out.join("experts")).unwrap();
    let mut maker =
        Maker { inventory: &inventory, encoding, out, noise: Noise(1), files: Vec::new() };
    let (dense, experts) = (maker.dense(), maker.experts());
    if experts.is_empty() {
        std::fs::remove_dir(out.join("experts")).unwrap();
    }
    for copy in checkpoint.copies().unwrap() {
        // The expected values lie beside the golden checkpoints and are no part of them.
        if copy != "golden.safetensors" {
            let bytes = std::fs::read(checkpoint.root().join(&copy)).unwrap();
            maker.write(&copy, FileKind::Copy, &bytes);
        }
    }
    maker.write(REPORT_FILE, FileKind::Report, b"{}\n");
    let mut files = maker.files;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let manifest = Manifest {
        blake3: Hash::ZERO,
        format: FORMAT.to_owned(),
        version: VERSION,
        generator: "a test".to_owned(),
        alignment: ALIGNMENT,
        model: inventory.spec.clone(),
        recipe: serde_json::Value::Null,
        checkpoint: CheckpointRecord::default(),
        calibration: None,
        files,
        dense,
        experts,
    };
    manifest.validate().unwrap();
    std::fs::write(out.join(MANIFEST_FILE), manifest.to_bytes()).unwrap();
}

struct Maker<'a> {
    inventory: &'a Inventory,
    encoding: &'a dyn Fn(Role) -> Encoding,
    out: &'a Path,
    noise: Noise,
    files: Vec<FileEntry>,
}

impl Maker<'_> {
    fn dense(&mut self) -> Vec<DenseShard> {
        let (mut file, mut shards) = (Vec::new(), Vec::new());
        let units = self.inventory.spec.units();
        for unit in units.filter(|unit| !matches!(unit, Unit::Expert { .. })) {
            let layout = place_dense(self.encoded(&self.inventory.units[&unit].tensors)).unwrap();
            let bytes = self.bytes(&layout);
            let (offset, len) = (file.len() as u64, layout.len);
            pad(&mut file, &bytes);
            let (tensors, blake3) = (layout.tensors, blake3::hash(&bytes).into());
            let file = DENSE.to_owned();
            shards.push(DenseShard { unit, file, offset, len, blake3, tensors });
        }
        self.write(DENSE, FileKind::Shards, &file);
        shards
    }

    fn experts(&mut self) -> Vec<ExpertShards> {
        let mut shards = Vec::new();
        for (layer, spec) in (0..).zip(&self.inventory.spec.layers) {
            let Some(tensors) = self.inventory.expert_tensors(layer) else { continue };
            let layout = place_expert(self.encoded(tensors)).unwrap();
            let (mut bytes, mut blake3) = (Vec::new(), Vec::new());
            for _ in 0..spec.num_experts() {
                let record = self.bytes(&layout);
                blake3.push(blake3::hash(&record).into());
                pad(&mut bytes, &record);
            }
            let file = format!("experts/layer-{layer:03}.bin");
            self.write(&file, FileKind::Shards, &bytes);
            let UnitLayout { tensors, len } = layout;
            let stride = len.next_multiple_of(ALIGNMENT);
            shards.push(ExpertShards { layer, file, stride, len, tensors, blake3 });
        }
        shards
    }

    fn encoded(&self, tensors: &[TensorEntry]) -> Vec<TensorEntry> {
        let encoding = |t: &TensorEntry| match t.source.shape.len() {
            0 | 1 => t.source.dtype.into(),
            _ => (self.encoding)(t.role),
        };
        let one = |t: &TensorEntry| TensorEntry { encoding: encoding(t), ..t.clone() };
        tensors.iter().map(one).collect()
    }

    fn bytes(&mut self, layout: &UnitLayout) -> Vec<u8> {
        let mut bytes = vec![0; layout.len as usize];
        for entry in layout.tensors.iter() {
            let parts = entry.encoding.parts(entry.rows, entry.cols).unwrap();
            let out = &mut bytes[entry.offset as usize..][..parts.total() as usize];
            let size = (entry.cols as f32).sqrt().recip();
            match entry.encoding.float() {
                // A vector multiplies or is added.
                Some(float) if entry.rows == 1 => self.noise.floats(float, 1.0, out),
                Some(float) => self.noise.floats(float, size, out),
                None => {
                    let (codes, scales) = out.split_at_mut(parts.weight as usize);
                    codes.fill_with(|| self.noise.next() as u8);
                    self.noise.floats(Float::Bf16, size, scales);
                }
            }
        }
        bytes
    }

    fn write(&mut self, path: &str, kind: FileKind, bytes: &[u8]) {
        std::fs::write(self.out.join(path), bytes).unwrap();
        let (size, blake3) = (bytes.len() as u64, blake3::hash(bytes).into());
        self.files
            .push(FileEntry { path: path.to_owned(), kind, size, blake3 });
    }
}

/// Appends `bytes` and zeros up to the alignment.
fn pad(file: &mut Vec<u8>, bytes: &[u8]) {
    file.extend(bytes);
    file.resize(file.len().next_multiple_of(ALIGNMENT as usize), 0);
}

/// Numbers that look random.
struct Noise(u32);

impl Noise {
    /// The upper half of the next state.
    fn next(&mut self) -> u16 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 16) as u16
    }

    /// Fills `out` with values of either sign, between half of `size` and all of it.
    fn floats(&mut self, float: Float, size: f32, out: &mut [u8]) {
        let mut value = || {
            let (sign, x) = (self.next() & 1, f32::from(self.next()) / 65536.0);
            size * (0.5 + x / 2.0) * if sign == 0 { 1.0 } else { -1.0 }
        };
        let values: Vec<f32> = std::iter::repeat_with(&mut value)
            .take(out.len() / float.size())
            .collect();
        narrow(float, &values, out);
    }
}
