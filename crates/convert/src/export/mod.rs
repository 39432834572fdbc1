//! Models in the forms that other engines read: a file for each form, and what they share.
//!
//! An export is made in `OUT.partial` and gets its name when it is whole. A killed one leaves that
//! directory, which the next export to the same name begins anew.

mod companions;
mod compressed;
mod compressed_config;
mod flash_moe;
mod flash_moe_dense;
mod flash_moe_vocabulary;
mod gguf;
mod hf;
mod mlx;
mod mlx_config;
mod mlx_places;
mod places;
mod requantize;
mod tensor_files;
mod told;
mod walk;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use shardwright_format::FormatError;
use shardwright_format::checkpoint::gguf::SUFFIX;
use shardwright_format::io::{self, partial_path};
use shardwright_format::manifest::{Hash, Ignored};
use shardwright_format::weights::Weights;
use shardwright_format::writer::publish;
use shardwright_quant::Float;

pub(crate) use compressed::PACKED_ZEROS;
pub(crate) use flash_moe::check_type as check_packed_type;
pub use mlx_places::Family;
pub use requantize::{Requantized, RequantizedRole};

use crate::convert::is_held;
use crate::error::{ConvertError, Result};

/// Says in a directory that it is an export in the making, and whose: its maker holds a lock on it.
const MARK: &str = "export.lock";

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportTarget {
    /// A Hugging Face checkpoint of plain floats.
    Hf,
    /// A directory that mlx-lm loads: affine codes as they are.
    Mlx,
    /// A GGUF file, every value exactly the model's.
    Gguf,
    /// A directory of compressed-tensors: integers packed as the bundle has them.
    CompressedTensors,
    /// The folder of flash-moe: experts as packed records, everything else in one file.
    FlashMoe,
}

/// The type that weights are exported in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportDtype {
    /// 32 bits: every value exactly what the model stands for.
    #[default]
    F32,
    /// That of the checkpoint's values: half the size where it is 16 bits, values of a bundle rounded once more.
    Source,
}

impl ExportDtype {
    const fn for_source(self, source: Float) -> Float {
        match self {
            Self::F32 => Float::F32,
            Self::Source => source,
        }
    }
}

/// How a model is exported.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Type of the weights.
    pub dtype: ExportDtype,
    /// A new file of weights is begun before one passes this many bytes.
    pub file_limit: u64,
    /// Whether what the form cannot hold is stored anew, with the error that this adds.
    pub requantize: bool,
    /// Weights held at a time, and more only where a block of rows has more.
    pub tile: u64,
    /// Units up to this many bytes are read whole.
    pub whole_limit: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            dtype: ExportDtype::F32,
            requantize: false,
            file_limit: 5_000_000_000,
            tile: 1 << 20,
            whole_limit: 64 << 20,
        }
    }
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedFile {
    /// Relative path, `/`-separated.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// BLAKE3 of its contents.
    pub blake3: Hash,
}

/// What an export wrote.
#[derive(Debug, Default)]
pub struct Exported {
    /// Its files, by their paths; none until all are written.
    pub files: Vec<ExportedFile>,
    /// How the model's checkpoint held tensors that are plain floats now.
    pub unquantized: BTreeSet<String>,
    /// What the model has, or its checkpoint had, and the export lacks.
    pub left_out: Vec<Ignored>,
    /// What the form's engine computes otherwise than the model says: a line each.
    pub differences: Vec<String>,
    /// What the form could not hold and was stored anew.
    pub requantized: Option<Requantized>,
}

/// Writes a model to `out`, in the form of `target`.
///
/// Memory is one unit of at most 64 MiB, or a few rows of a larger one.
///
/// # Errors
/// An output that exists or is being written, an excerpt of a model, a model that the form cannot
/// hold, and what the operating system refuses.
pub fn export(
    weights: &Weights,
    out: &Path,
    target: ExportTarget,
    options: &ExportOptions,
) -> Result<Exported> {
    if let Some(excerpt) = weights.excerpted() {
        let detail = format!("{excerpt}: expected a model of all layers, as config.json says");
        return Err(FormatError::file(weights.root(), detail).into());
    }
    let single = match target {
        ExportTarget::Gguf => Some(file_name(out)?),
        ExportTarget::Hf
        | ExportTarget::Mlx
        | ExportTarget::CompressedTensors
        | ExportTarget::FlashMoe => None,
    };
    companions::check(weights)?;
    let partial = Partial::begin(out)?;
    let exported = match (target, &single) {
        (ExportTarget::Gguf, Some((name, stem))) => {
            gguf::write(weights, &partial.dir.join(name), stem, options)
        }
        (ExportTarget::CompressedTensors, _) => compressed::write(weights, &partial.dir, options),
        (ExportTarget::FlashMoe, _) => flash_moe::write(weights, &partial.dir, options),
        (ExportTarget::Mlx, _) => mlx::write(weights, &partial.dir, options),
        _ => hf::write(weights, &partial.dir, options),
    };
    let exported = exported.and_then(|exported| {
        let name = single.as_ref().map(|(name, _)| name.as_str());
        Ok(Exported { files: partial.finish(name, out)?, ..exported })
    });
    if exported.is_err() {
        // Nothing half-made is left; that it cannot be removed is no news after the first error.
        let _ = fs::remove_dir_all(&partial.dir);
    }
    exported
}

/// Name and stem of the file that a form consists of.
fn file_name(out: &Path) -> Result<(String, String)> {
    let name = out.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| Some((name, name.strip_suffix(SUFFIX)?)));
    let stem = stem.filter(|(_, stem)| !stem.is_empty());
    stem.map(|(name, stem)| (name.to_owned(), stem.to_owned()))
        .ok_or_else(|| {
            let detail = format!("expected the name of a file that ends in {SUFFIX}");
            ConvertError::Output { path: out.to_owned(), detail: detail.into() }
        })
}

/// An export in the making.
struct Partial {
    dir: PathBuf,
    /// Locked until the process ends.
    _mark: File,
}

impl Partial {
    /// Makes the directory; takes over that of an export that was killed.
    fn begin(out: &Path) -> Result<Self> {
        let refused = |path: &Path, detail: &str| {
            Err(ConvertError::Output { path: path.to_owned(), detail: detail.into() })
        };
        let exists = "already exists; remove it or choose another name";
        let dir = partial_path(out);
        if out.symlink_metadata().is_ok() {
            remove_left(&dir);
            return refused(out, exists);
        }
        // Killed before it could leave a mark, an export leaves an empty directory.
        let _ = fs::remove_dir(&dir);
        let path = dir.join(MARK);
        let killed = path.symlink_metadata().is_ok();
        if dir.symlink_metadata().is_ok() && !killed {
            return refused(&dir, exists);
        }
        fs::create_dir_all(&dir).map_err(|e| FormatError::io(&dir, e))?;
        let mark = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let mark = mark.map_err(|e| FormatError::io(&path, e))?;
        if is_held(&mark).map_err(|e| FormatError::io(&path, e))? {
            return refused(&dir, "another export is writing it");
        }
        if killed {
            io::clear(&dir, MARK)?;
        }
        Ok(Self { dir, _mark: mark })
    }

    /// Makes all files durable and gives the directory its name, or the `single` file that the form
    /// consists of.
    fn finish(&self, single: Option<&str>, out: &Path) -> Result<Vec<ExportedFile>> {
        let mut files = Vec::new();
        sealed(&self.dir, "", &mut files)?;
        files.retain(|file| file.path != MARK);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(name) = single {
            publish(&self.dir.join(name), out)?;
            fs::remove_dir_all(&self.dir).map_err(|e| FormatError::io(&self.dir, e))?;
            return Ok(files);
        }
        // Last, so that whoever is killed before the next line can begin anew.
        let mark = self.dir.join(MARK);
        fs::remove_file(&mark).map_err(|e| FormatError::io(&mark, e))?;
        publish(&self.dir, out)?;
        Ok(files)
    }
}

/// Removes what an export left that was killed when its output had its name already. That it cannot be removed is
/// no news beside what is said of the output.
fn remove_left(dir: &Path) {
    let mark = File::options().write(true).open(dir.join(MARK));
    if mark.is_ok_and(|mark| is_held(&mark).is_ok_and(|held| !held)) {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Makes files durable and hashes them, those of directories inside too.
fn sealed(dir: &Path, prefix: &str, files: &mut Vec<ExportedFile>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| FormatError::io(dir, e))? {
        let path = entry.map_err(|e| FormatError::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            sealed(&path, &format!("{name}/"), files)?;
            continue;
        }
        let io = |e| FormatError::io(&path, e);
        let file = File::open(&path).map_err(io)?;
        file.sync_all().map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(io)?;
        let blake3 = hasher.finalize().into();
        files.push(ExportedFile { path: name, size: hasher.count(), blake3 });
    }
    Ok(())
}
