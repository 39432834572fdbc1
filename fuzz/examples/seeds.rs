//! Writes the first corpus of each target from the repository's fixtures: `corpus/<target>/`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::{place_dense, place_expert};
use shardwright_format::manifest::{
    Calibration,
    CheckpointRecord, DEFAULT_ALIGNMENT, DenseShard, ExpertShards, FORMAT, FileEntry,
    FileKind, Hash, Manifest, SourceFile, VERSION,
};
use shardwright_format::pack::PIECE_LEN;
use shardwright_format::weights::Weights;
use shardwright_format::{TensorEntry, Unit, UnitLayout};
use shardwright_quant::{Affine, Encoding, Float, Trellis};
use shardwright_runtime::saved::save;
use shardwright_runtime::trace::{Header, TraceWriter};
use shardwright_runtime::{Options, Runtime};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for checkpoint in subdirectories(&root.join("fixtures/golden"))? {
        seed_checkpoint(&checkpoint)?;
    }
    for recipe in entries(&root.join("configs/recipes"))? {
        write("recipe", &name(&recipe), &fs::read(&recipe)?)?;
    }
    for model in entries(&root.join("fixtures/gguf"))? {
        if model.extension().is_some_and(|extension| extension == "gguf") {
            write("gguf", &name(&model), &fs::read(&model)?)?;
        }
    }
    for statistics in entries(&root.join("fixtures/imatrix"))? {
        let bytes = fs::read(&statistics)?;
        write("statistics", &name(&statistics), &bytes)?;
        // Of the number of entries that the older form begins with, one byte.
        if !bytes.starts_with(b"GGUF") && bytes.len() > 4 {
            write("imatrix", &name(&statistics), &[&bytes[..1], &bytes[4..]].concat())?;
        }
    }
    for table in entries(&root.join("configs/arch"))? {
        write("arch", &name(&table), &fs::read(&table)?)?;
    }
    let tokenizer = fs::read(root.join("fixtures/fixture-2m/tokenizer.json"))?;
    write("tokenizer", "fixture-2m", &tokenizer)?;
    seed_vocabularies(&root)?;
    seed_run(&root.join("fixtures/fixture-2m"))?;
    let record = Calibration {
        text_blake3: Some(Hash::ZERO),
        tokens: 1024,
        window: 128,
        ..Calibration::default()
    };
    write("calibration", "text", &serde_json::to_vec_pretty(&record)?)?;
    Ok(())
}

/// What a run of three tokens leaves: a session without its hash, and a trace.
fn seed_run(model: &Path) -> Result {
    let (tokens, options) = ([1, 2, 3], Options::default());
    let mut runtime = Runtime::open(Weights::open(model)?, &options)?;
    runtime.watch_experts();
    runtime.forward_all(&tokens)?;
    // Its name is the model that the target takes sessions of.
    let path = seed_path("session", "fixture-2m")?;
    save(&path, &runtime, "fixture-2m", &tokens)?;
    let mut session = fs::read(&path)?;
    session.truncate(session.len() - blake3::OUT_LEN);
    fs::write(path, session)?;
    let header = Header::new(runtime.spec(), runtime.plan()).ok_or("a model with experts")?;
    let mut trace = TraceWriter::create(&seed_path("trace", "fixture-2m")?, &header)?;
    trace.write(&runtime.take_visits())?;
    trace.finish()?;
    Ok(())
}

/// Settings and a vocabulary for them, of each folder; and the GGUF files that have no tensors.
fn seed_vocabularies(root: &Path) -> Result {
    for folder in subdirectories(&root.join("fixtures/vocabularies"))? {
        let settings = fs::read(folder.join("tokenizer_config.json"))?;
        for file in entries(&folder)? {
            if file.extension().is_some_and(|extension| extension == "model") {
                let vocabulary = fs::read(&file)?;
                write("vocabulary", &name(&folder), &[&settings, &b"\0"[..], &vocabulary].concat())?;
                write("vocabulary", &format!("{}-bare", name(&folder)), &[b"{}\0", &vocabulary[..]].concat())?;
            }
        }
    }
    for file in entries(&root.join("fixtures/tokenizers"))? {
        if file.extension().is_some_and(|extension| extension == "gguf") {
            write("vocabulary", &name(&file), &fs::read(&file)?)?;
        }
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
    let inventory = Inventory::new(&checkpoint, None)?;
    let affine = Encoding::Affine(Affine::new(4, 32, Float::Bf16)?);
    let trellis = Encoding::Trellis(Trellis::new(3, 12)?);
    for (codes, kind) in [(affine, ""), (trellis, "-trellis")] {
        let manifest = manifest(&checkpoint, &inventory, codes)?;
        manifest.validate().map_err(|e| e.to_string())?;
        let name = format!("{}{kind}", name(dir));
        write("manifest", &name, &manifest.to_bytes())?;
        write("bundle", &name, &manifest.to_bytes())?;
        write("packed", &name, &packed(manifest)?)?;
    }
    Ok(())
}

/// The manifest of a bundle with every matrix in `codes` that can be, its hashes those of nothing.
fn manifest(checkpoint: &Checkpoint, inventory: &Inventory, codes: Encoding) -> Result<Manifest> {
    let mut files = Vec::new();
    let dense = dense(inventory, codes, &mut files)?;
    let experts = experts(inventory, codes, &mut files)?;
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
        model: inventory.spec.clone(),
        recipe: serde_json::json!({ "name": "q4" }),
        checkpoint: CheckpointRecord {
            files: checkpoint.files().iter().map(source).collect(),
            ignored: Vec::new(),
            excerpt: None,
        },
        calibration: None,
        files,
        dense,
        experts,
    })
}

/// The manifest of files of zeros, and their pieces as they are stored.
fn packed(mut manifest: Manifest) -> Result<Vec<u8>> {
    let mut pieces = vec![0];
    for file in &mut manifest.files {
        let zeros = vec![0; file.size as usize];
        file.blake3 = blake3::hash(&zeros).into();
        for piece in zeros.chunks(PIECE_LEN) {
            let stored = zstd::bulk::compress(piece, 3)?;
            pieces.extend(u16::try_from(stored.len())?.to_le_bytes());
            pieces.extend(stored);
        }
    }
    Ok([manifest.to_bytes(), pieces].concat())
}

fn dense(
    inventory: &Inventory,
    codes: Encoding,
    files: &mut Vec<FileEntry>,
) -> Result<Vec<DenseShard>> {
    let (mut shards, mut end) = (Vec::new(), 0u64);
    let units = inventory
        .spec
        .units()
        .filter(|unit| !matches!(unit, Unit::Expert { .. }));
    for unit in units {
        let UnitLayout { tensors, len } = place_dense(encoded(&inventory.units[&unit].tensors, codes))?;
        let offset = end.next_multiple_of(DEFAULT_ALIGNMENT);
        end = offset + len;
        let file = "dense-000.bin".to_owned();
        shards.push(DenseShard {
            unit,
            file,
            offset,
            len,
            blake3: Hash::ZERO,
            tensors,
        });
    }
    let size = end.next_multiple_of(DEFAULT_ALIGNMENT);
    files.push(file("dense-000.bin", FileKind::Shards, size));
    Ok(shards)
}

fn experts(
    inventory: &Inventory,
    codes: Encoding,
    files: &mut Vec<FileEntry>,
) -> Result<Vec<ExpertShards>> {
    let mut sparse = Vec::new();
    for (layer, spec) in (0..).zip(&inventory.spec.layers) {
        let Some(alike) = inventory.experts(layer).first() else { continue };
        let UnitLayout { tensors, len } = place_expert(encoded(&alike.tensors, codes))?;
        let count = u64::from(spec.num_experts());
        let stride = len.next_multiple_of(DEFAULT_ALIGNMENT);
        let path = format!("experts/layer-{layer:03}.bin");
        files.push(file(&path, FileKind::Shards, stride * count));
        let blake3 = vec![Hash::ZERO; count as usize];
        sparse.push(ExpertShards {
            layer,
            experts: None,
            file: path,
            stride,
            len,
            tensors,
            blake3,
        });
    }
    Ok(sparse)
}

fn encoded(tensors: &[TensorEntry], codes: Encoding) -> Vec<TensorEntry> {
    let one = |tensor: &TensorEntry| {
        let encoding = match codes.parts(tensor.rows, tensor.cols) {
            Ok(_) if tensor.source.shape.len() > 1 => codes,
            _ => tensor.source.dtype.into(),
        };
        TensorEntry { encoding, ..tensor.clone() }
    };
    tensors.iter().map(one).collect()
}

fn file(path: &str, kind: FileKind, size: u64) -> FileEntry {
    FileEntry { path: path.to_owned(), kind, size, blake3: Hash::ZERO }
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result {
    Ok(fs::write(seed_path(target, name)?, bytes)?)
}

fn seed_path(target: &str, name: &str) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&dir)?;
    Ok(dir.join(name))
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
