//! Writes the first corpus of each target from the repository's fixtures: `corpus/<target>/`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use shardwright_format::arch::{Inventory, SourceTensor};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::{Unplaced, place_dense, place_expert};
use shardwright_format::manifest::{
    CheckpointRecord, Codec, DEFAULT_ALIGNMENT, DenseShard, ExpertShards, FORMAT, FileEntry,
    FileKind, Hash, Manifest, SourceFile, VERSION,
};
use shardwright_format::{SourceView, Unit, UnitLayout};
use shardwright_quant::{Affine, Encoding, Float};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for checkpoint in subdirectories(&root.join("fixtures/golden"))? {
        seed_checkpoint(&checkpoint)?;
    }
    for recipe in entries(&root.join("configs/recipes"))? {
        write("recipe", &name(&recipe), &fs::read(&recipe)?)?;
    }
    Ok(())
}

fn seed_checkpoint(dir: &Path) -> Result {
    let checkpoint = Checkpoint::open(dir)?;
    write("config", &name(dir), &fs::read(checkpoint.config_path())?)?;
    for file in checkpoint.files() {
        let bytes = fs::read(file.file.path())?;
        let header = &bytes[8..file.header_len as usize];
        write("safetensors_header", &format!("{}-{}", name(dir), file.name), header)?;
    }
    let manifest = manifest(&checkpoint, &Inventory::new(&checkpoint, None)?)?;
    manifest.validate()?;
    write("manifest", &name(dir), &manifest.to_bytes())
}

/// The manifest of a bundle with every matrix at 4 bits, its hashes those of nothing.
fn manifest(checkpoint: &Checkpoint, inventory: &Inventory) -> Result<Manifest> {
    let mut files = Vec::new();
    let dense = dense(inventory, &mut files)?;
    let experts = experts(inventory, &mut files)?;
    files.push(file("tokenizer.json", FileKind::Copy, 1000));
    files.push(file("report.json", FileKind::Report, 1000));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let source = |f: &shardwright_format::checkpoint::CheckpointFile| SourceFile {
        name: f.name.clone(),
        size: f.file.len(),
        blake3: Hash::ZERO,
    };
    Ok(Manifest {
        blake3: Hash::ZERO,
        format: FORMAT.to_owned(),
        version: VERSION,
        generator: "seeds".to_owned(),
        alignment: DEFAULT_ALIGNMENT,
        codec: Codec::None,
        model: inventory.spec.clone(),
        recipe: serde_json::json!({ "name": "q4" }),
        checkpoint: CheckpointRecord {
            files: checkpoint.files().iter().map(source).collect(),
            ignored: Vec::new(),
        },
        calibration: None,
        files,
        dense,
        experts,
    })
}

fn dense(inventory: &Inventory, files: &mut Vec<FileEntry>) -> Result<Vec<DenseShard>> {
    let (mut shards, mut end) = (Vec::new(), 0u64);
    let units = inventory
        .spec
        .units()
        .filter(|unit| !matches!(unit, Unit::Expert { .. }));
    for unit in units {
        let UnitLayout { tensors, len } = place_dense(unplaced(&inventory.units[&unit]))?;
        let offset = end.next_multiple_of(DEFAULT_ALIGNMENT);
        end = offset + len;
        let file = "dense-000.bin".to_owned();
        shards.push(DenseShard {
            unit,
            file,
            offset,
            stored: len,
            len,
            blake3: Hash::ZERO,
            tensors,
        });
    }
    let size = end.next_multiple_of(DEFAULT_ALIGNMENT);
    files.push(file("dense-000.bin", FileKind::Shards, size));
    Ok(shards)
}

fn experts(inventory: &Inventory, files: &mut Vec<FileEntry>) -> Result<Vec<ExpertShards>> {
    let mut sparse = Vec::new();
    for (layer, spec) in (0..).zip(&inventory.spec.layers) {
        let Some(tensors) = inventory.expert_tensors(layer) else { continue };
        let UnitLayout { tensors, len } = place_expert(unplaced(tensors))?;
        let count = u64::from(spec.num_experts());
        let stride = len.next_multiple_of(DEFAULT_ALIGNMENT);
        let path = format!("experts/layer-{layer:03}.bin");
        files.push(file(&path, FileKind::Shards, stride * count));
        let blake3 = vec![Hash::ZERO; count as usize];
        sparse.push(ExpertShards {
            layer,
            file: path,
            stride,
            len,
            tensors,
            stored: Vec::new(),
            blake3,
        });
    }
    Ok(sparse)
}

fn unplaced(tensors: &[SourceTensor]) -> Vec<Unplaced> {
    let one = |SourceTensor { role, rows, cols, view }: &SourceTensor| Unplaced {
        role: *role,
        encoding: encoding(view, *cols),
        rows: *rows,
        cols: *cols,
        source: view.clone(),
    };
    tensors.iter().map(one).collect()
}

fn encoding(view: &SourceView, cols: u64) -> Encoding {
    match Affine::new(4, 32, Float::Bf16) {
        Ok(affine) if view.shape.len() > 1 && cols % 32 == 0 => Encoding::Affine(affine),
        _ => view.dtype.into(),
    }
}

fn file(path: &str, kind: FileKind, size: u64) -> FileEntry {
    FileEntry { path: path.to_owned(), kind, size, blake3: Hash::ZERO }
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(name), bytes)?)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(dir)?
        .into_iter()
        .filter(|path| path.is_dir())
        .collect())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
