//! The files of a checkpoint that are not weights: which ones a bundle copies, which ones not and
//! why.

use std::fs;
use std::path::Path;

use super::Checkpoint;
use super::file_names::{CHAT_TEMPLATE_NAME, CONFIG_NAME, FILE_SUFFIX, SINGLE_NAME};
use super::flash_moe;
use super::header::refuse_pointer;
use super::index::INDEX_NAME;
use crate::error::{FormatError, Result};
use crate::io::ReadFile;
use crate::manifest::{EXPERTS_DIR, MANIFEST_FILE, REPORT_FILE};

/// Directories of tools, not of the model.
const TOOL_DIRECTORIES: &[&str] = &[
    ".git",
    ".cache",
    ".huggingface",
    "__pycache__",
    "__MACOSX",
    ".ipynb_checkpoints",
    "@eaDir",
    "lost+found",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "runs",
    "wandb",
];
/// Files of Git, of macOS, of Windows, of `ModelScope`'s client and of trainers; what begins like macOS's copies of attributes is too.
const TOOL_FILES: &[&str] = &[
    ".gitattributes",
    ".gitignore",
    ".gitmodules",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".msc",
    ".mv",
    ".mdl",
    "trainer_state.json",
    "zero_to_fp32.py",
    "latest",
];
/// What the names of files end in that Windows and the clients of stores keep beside others.
const STREAMS: [&str; 3] = [":Zone.Identifier", ":com.dropbox.attrs", ":com.dropbox.attributes"];
/// Sums that were made for a whole directory, in any spelling.
const SUMS: [&str; 8] = [
    "sha256sums",
    "sha256sums.txt",
    "sha256sums.asc",
    "sha256sum.txt",
    "sha512sums",
    "md5sums",
    "md5sum.txt",
    "checksums.txt",
];
/// What a hub shows of a repository, in any spelling.
const MODEL_CARD: &str = "readme.md";
/// Extensions of documents and pictures, on which neither weights nor tokens depend.
const DOCUMENTS: &[&str] = &["md", "pdf", "cff", "png", "jpg", "jpeg", "gif", "svg", "webp"];
/// What documents are called, up to what names a kind of them, whose extension is none or that of plain text.
const DOCUMENT_NAMES: &[&str] =
    &["readme", "license", "licence", "notice", "use_policy", "copying", "changelog"];
/// Extensions of weights in other forms than safetensors.
const OTHER_WEIGHTS: &[&str] =
    &["bin", "pt", "pth", "ckpt", "gguf", "ggml", "h5", "msgpack", "onnx", "npz", "tflite"];

/// What belongs to any model: beside a model that is one file, which may lie in anybody's directory,
/// nothing else is taken; and links to these are followed wherever they lead, as those to weights
/// are.
const COMPANIONS: &[&str] = &[
    CONFIG_NAME,
    "added_tokens.json",
    CHAT_TEMPLATE_NAME,
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Something in the checkpoint's directory that is neither weights nor copied.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Path from the checkpoint's directory.
    pub path: String,
    /// Why it is left out.
    pub reason: String,
}

/// What becomes of one directory entry.
enum Fate {
    Weights,
    Copied,
    Skipped(String),
    Entered,
}

/// Whether a bundle has something of its own where a file, or a directory, of this path would be
/// copied to: it has shards in `experts`, so that may be a directory.
fn is_own(path: &str, directory: bool) -> bool {
    let shards = match path.rsplit_once('.') {
        Some((stem, "bin")) => stem.starts_with("dense-") || stem.starts_with("experts/"),
        _ => false,
    };
    let file = shards || [MANIFEST_FILE, REPORT_FILE].contains(&path);
    file || (path == EXPERTS_DIR && !directory)
}

/// Why a directory is nobody's model, whoever put it there; none for any other.
pub fn clutter_directory(name: &str) -> Option<&'static str> {
    TOOL_DIRECTORIES
        .contains(&name)
        .then_some("a tool's directory")
}

/// Why a file is nobody's model, whoever put it there; none for any other.
pub fn clutter(name: &str) -> Option<&'static str> {
    let stream = STREAMS.iter().any(|end| name.ends_with(end));
    if TOOL_FILES.contains(&name) || name.starts_with("._") || stream {
        return Some("a tool's file");
    }
    if SUMS.iter().any(|sums| name.eq_ignore_ascii_case(sums)) {
        return Some("sums of other files");
    }
    name.eq_ignore_ascii_case(MODEL_CARD)
        .then_some("a model card")
}

/// Whether a file is for people to read, by its name: a model card, a licence, a picture.
pub fn is_document(name: &str) -> bool {
    let name = name.to_lowercase();
    let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
    let first = stem.split(['.', '-', ' ']).next().unwrap_or_default();
    DOCUMENTS.contains(&extension)
        || ["", "txt"].contains(&extension) && DOCUMENT_NAMES.contains(&first)
}

impl Checkpoint {
    /// Every regular file besides weights, with `/` between directories, sorted; beside a model
    /// that is one file those that belong to any model; [`Self::synthesized`] among them.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn copies(&self) -> Result<Vec<String>> {
        Ok(self.walk()?.0)
    }

    /// What is neither weights nor among [`Self::copies`], sorted.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn skipped(&self) -> Result<Vec<Skipped>> {
        Ok(self.walk()?.1)
    }

    fn walk(&self) -> Result<(Vec<String>, Vec<Skipped>)> {
        let (mut copies, mut skipped) = (Vec::new(), Vec::new());
        let synthesized = self.files.synthesized.names();
        copies.extend(synthesized.iter().copied().map(str::to_owned));
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            let path = self.root().join(&directory);
            let io = |e| FormatError::io(&path, e);
            for entry in fs::read_dir(&path).map_err(io)? {
                let entry = entry.map_err(io)?;
                let file_name = entry.file_name();
                let name = format!("{directory}{}", file_name.to_string_lossy());
                let fate = match file_name.to_str() {
                    Some(name) if self.is_single_file() && !COMPANIONS.contains(&name) => continue,
                    Some(_) if synthesized.contains(&name.as_str()) => continue,
                    Some(_) => self.fate(&name, &entry.path())?,
                    None => Fate::Skipped("its name is not UTF-8".to_owned()),
                };
                match fate {
                    Fate::Weights => {}
                    Fate::Copied => {
                        refuse_pointer(&ReadFile::open(&entry.path())?)?;
                        copies.push(name);
                    }
                    Fate::Skipped(reason) => skipped.push(Skipped { path: name, reason }),
                    Fate::Entered => directories.push(format!("{name}/")),
                }
            }
        }
        copies.sort();
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((copies, skipped))
    }

    fn fate(&self, name: &str, path: &Path) -> Result<Fate> {
        let io = |e| FormatError::io(path, e);
        let link = fs::symlink_metadata(path).map_err(io)?.is_symlink();
        let target = match fs::metadata(path) {
            Ok(target) => target,
            Err(_) if link => return Ok(Fate::Skipped("a link to nothing".to_owned())),
            Err(e) => return Err(io(e)),
        };
        let last = name.rsplit('/').next().unwrap_or(name);
        Ok(match () {
            () if self.is_of_bundle() && is_own(name, target.is_dir()) => Fate::Weights,
            () if is_own(name, target.is_dir()) => {
                Fate::Skipped("the bundle has a file of its own with this name".to_owned())
            }
            () if target.is_dir() && link => Fate::Skipped("a link to a directory".to_owned()),
            () if target.is_dir() && clutter_directory(last).is_some() => {
                Fate::Skipped(clutter_directory(last).unwrap_or_default().to_owned())
            }
            () if target.is_dir() && path.join(CONFIG_NAME).is_file() => Fate::Skipped(
                "a directory with a config.json of its own, another model's".to_owned(),
            ),
            () if target.is_dir() => Fate::Entered,
            () if !target.is_file() => Fate::Skipped("not a regular file".to_owned()),
            () if target.is_file() && clutter(last).is_some() => {
                Fate::Skipped(clutter(last).unwrap_or_default().to_owned())
            }
            () if link && !COMPANIONS.contains(&last) && !self.is_part(path)? => {
                Fate::Skipped("a link to a file outside the checkpoint".to_owned())
            }
            () => self.fate_of_file(name),
        })
    }

    /// Whether a link leads to a file of the checkpoint: inside its directory or, for a snapshot in
    /// a Hugging Face cache, among the blobs beside it. Any other could carry a private file of this
    /// machine into a bundle that is meant to be passed on. Weights and [`COMPANIONS`] may lie anywhere.
    fn is_part(&self, path: &Path) -> Result<bool> {
        let real = |path: &Path| path.canonicalize().map_err(|e| FormatError::io(path, e));
        let (root, target) = (real(self.root())?, real(path)?);
        let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"));
        let blobs = snapshots
            .and_then(Path::parent)
            .map(|cache| cache.join("blobs"));
        let weights = self.files().iter().any(|file| file.file.path() == path);
        Ok(weights || target.starts_with(&root) || blobs.is_some_and(|b| target.starts_with(b)))
    }

    /// Whether the files are a bundle's.
    fn is_of_bundle(&self) -> bool {
        self.files().iter().any(|file| file.blake3.is_some())
    }

    fn fate_of_file(&self, name: &str) -> Fate {
        let indexed = self.is_indexed();
        if name == INDEX_NAME || self.files().iter().any(|file| file.name == name) {
            return Fate::Weights;
        }
        let packed = self
            .files()
            .iter()
            .any(|file| flash_moe::holds_weights(&file.name));
        if packed && flash_moe::describes_weights(name) {
            return Fate::Weights;
        }
        if packed && flash_moe::VOCABULARY_NAMES.contains(&name) {
            return Fate::Skipped("what flash-moe has of tokenizer.json".to_owned());
        }
        if self.files_outside.contains(name) {
            return Fate::Skipped("weights of layers outside the excerpt".to_owned());
        }
        if name.ends_with(FILE_SUFFIX) {
            let chosen = if indexed { INDEX_NAME } else { SINGLE_NAME };
            return Fate::Skipped(format!("weights that are not part of {chosen}"));
        }
        let stem = name.strip_suffix(".index.json");
        if stem.is_some_and(|stem| stem.ends_with(FILE_SUFFIX)) {
            return Fate::Skipped("an index of other weights".to_owned());
        }
        match stem.unwrap_or(name).rsplit_once('.') {
            Some((_, extension)) if OTHER_WEIGHTS.contains(&extension) => {
                Fate::Skipped(format!("weights in another form (.{extension})"))
            }
            _ => Fate::Copied,
        }
    }

    fn is_indexed(&self) -> bool {
        self.root().join(INDEX_NAME).exists()
    }
}
