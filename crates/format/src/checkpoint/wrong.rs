//! What is well known and no checkpoint that we read: a line that names it and the next step.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::file_names::{CONFIG_NAME, FILE_SUFFIX};
use super::gguf::{MAGIC, OLDER_FORM, is_older};
use crate::io::ReadFile;
use crate::refusal::{Refusal, mismatch};

/// How files of Git LFS begin that stand for others.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What downloads that have not ended add to a name.
const UNFINISHED: [&str; 5] = [".incomplete", ".part", ".crdownload", ".aria2", ".download"];
/// What is wrong with a link whose file was removed, as from a cache, or never fetched.
pub(super) const LINK_TO_NOTHING: &str = "a link to a file that is not there: fetch it again";
/// What most weights with these endings are.
const PICKLE: &str = "a pickle, which can run code when it is read: load it with transformers and save it again with save_pretrained";
/// Larger configurations of adapters are not read: real ones have some kilobytes.
const ADAPTER_LIMIT: u64 = 1 << 20;
/// No pointer is longer.
const LFS_LIMIT: u64 = 1024;

/// Bytes to read of a file to tell whether it is a pointer of Git LFS, if it can be one.
pub fn lfs_probe(len: u64) -> Option<usize> {
    (LFS_POINTER.len() as u64..=LFS_LIMIT)
        .contains(&len)
        .then_some(LFS_POINTER.len())
}

/// What is wrong with a file that is a pointer of Git LFS; none for any other.
pub fn lfs_pointer(first: &[u8], len: u64) -> Option<String> {
    let pointer = len <= LFS_LIMIT && first.starts_with(LFS_POINTER);
    pointer.then(|| {
        format!("a Git LFS pointer of {len} bytes, not the file itself: run `git lfs pull` in its directory")
    })
}

/// What a directory without `config.json` holds, if that is known.
pub(super) fn directory(dir: &Path) -> Option<Refusal> {
    if let Some(adapter) = adapter(dir) {
        return Some(adapter.into());
    }
    if dir.join("params.json").is_file() {
        return Some("Mistral's or Meta's own layout (params.json, consolidated weights): take the files for transformers of the same model, with config.json".into());
    }
    if let Some(cache) = hub_cache(dir) {
        return Some(cache);
    }
    let config = dir.join(CONFIG_NAME);
    if config.is_symlink() {
        return Some(Refusal::from(LINK_TO_NOTHING).at(CONFIG_NAME));
    }
    weights(dir).or_else(|| nested(dir)).or_else(|| {
        let next = "none: take it from the model that these weights are of";
        holds_weights(dir).then(|| mismatch(CONFIG_NAME, next))
    })
}

/// What a directory without weights in safetensors holds instead, if that is known.
pub(super) fn weights(dir: &Path) -> Option<Refusal> {
    if let Some(adapter) = adapter(dir) {
        return Some(adapter.into());
    }
    let names = fs::read_dir(dir).ok()?.flatten();
    let mut names: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    if let Some(name) = names.iter().find(|name| name.starts_with("consolidated")) {
        return Some(mismatch(
            "model.safetensors",
            format_args!(
                "only `{name}`, Mistral's or Meta's own layout: take the files for transformers"
            ),
        ));
    }
    let pickled = |name: &&String| {
        [".bin", ".pt", ".pth", ".ckpt"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let pickle = names
        .iter()
        .find(|name| name.starts_with("pytorch_model") && pickled(name));
    let Some(name) = pickle.or_else(|| names.iter().find(pickled)) else {
        let other = other_program(&names).or_else(|| misnamed(&names));
        return other.or_else(|| nested(dir));
    };
    Some(mismatch(".safetensors files", format_args!("`{name}`, {}", inside(&dir.join(name)))))
}

/// What a file with the extension of a pickle is: llama.cpp's had it too.
fn inside(path: &Path) -> &'static str {
    let mut first = [0; MAGIC.len()];
    let read = ReadFile::open(path).and_then(|file| file.read_at(0, &mut first));
    match read {
        Ok(()) if is_older(&first) => OLDER_FORM,
        Ok(()) if first == *MAGIC => "a GGUF file: name the file itself",
        _ => PICKLE,
    }
}

/// Weights in the form of another program.
fn other_program(names: &[String]) -> Option<Refusal> {
    let ends = [".onnx", ".h5", ".msgpack", ".tflite", ".mlmodel", ".npz"];
    let name = names
        .iter()
        .find(|name| ends.iter().any(|end| name.ends_with(end)))?;
    Some(mismatch(
        ".safetensors files",
        format_args!(
            "`{name}`, another program's form of a model: take the files for transformers of the same model"
        ),
    ))
}

/// Weights under a name that is not theirs: another spelling of the extension, or a download that has not
/// ended.
fn misnamed(names: &[String]) -> Option<Refusal> {
    let found = |detail: String| Some(mismatch(format_args!("{FILE_SUFFIX} files"), detail));
    for name in names {
        let lower = name.to_lowercase();
        if lower.ends_with(FILE_SUFFIX) && !name.ends_with(FILE_SUFFIX) {
            return found(format!("`{name}`: write its extension in small letters"));
        }
        let cut = UNFINISHED.iter().find_map(|end| lower.strip_suffix(end));
        if cut.is_some_and(|stem| stem.contains(FILE_SUFFIX)) {
            return found(format!("`{name}`, a download that has not ended: fetch it again"));
        }
    }
    None
}

fn holds_weights(dir: &Path) -> bool {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| name.ends_with(FILE_SUFFIX))
}

/// A directory in `dir` that holds weights.
fn nested(dir: &Path) -> Option<Refusal> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut inside: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && holds_weights(path))
        .collect();
    inside.sort();
    let found = inside.first()?;
    let name = found.file_name()?.to_string_lossy();
    let next = if found.join(CONFIG_NAME).is_file() {
        format!("name that directory, {}", found.display())
    } else {
        "put them beside config.json".to_owned()
    };
    let more = match inside.len() {
        1 => String::new(),
        several => format!(" and {} more directories", several - 1),
    };
    Some(mismatch(
        format_args!("{FILE_SUFFIX} files"),
        format_args!("none, but some in `{name}`{more}: {next}"),
    ))
}

/// A cache of the hub's, in place of a model in it.
fn hub_cache(dir: &Path) -> Option<Refusal> {
    let entries = [dir.join("hub"), dir.to_owned()];
    let entries = entries.iter().filter_map(|dir| fs::read_dir(dir).ok());
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    let mut models: Vec<_> = names
        .filter_map(|name| {
            Some(
                name.to_str()?
                    .strip_prefix("models--")?
                    .replacen("--", "/", 1),
            )
        })
        .collect();
    models.sort();
    let first = models.first()?;
    let detail = match models.len() {
        1 => format!("a Hugging Face cache of one model: name it, as {first}"),
        several => {
            format!("a Hugging Face cache of {several} models: name one of them, as {first}")
        }
    };
    Some(detail.into())
}

/// An adapter without its model.
fn adapter(dir: &Path) -> Option<String> {
    let path = dir.join("adapter_config.json");
    // Neither a pipe nor a device has an end.
    let sound = |data: fs::Metadata| data.is_file() && data.len() <= ADAPTER_LIMIT;
    let config = fs::metadata(&path)
        .is_ok_and(sound)
        .then(|| fs::read(path).ok())??;
    let config: Value = serde_json::from_slice(&config).ok()?;
    let base = config["base_model_name_or_path"]
        .as_str()
        .unwrap_or("another model");
    Some(format!(
        "a LoRA adapter for {base} (adapter_config.json), not a model: merge it into that first, with merge_and_unload of peft"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_another_program_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(weights(dir.path()), None);
        fs::write(dir.path().join("model.onnx"), "x").unwrap();
        let found = weights(dir.path()).unwrap().to_string();
        assert!(found.contains("found `model.onnx`, another program's form of a model"), "{found}");
    }

    #[test]
    fn what_ends_in_bin_is_told_by_its_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, expected) in [
            (&b"tjgg\x03\0\0\0"[..], OLDER_FORM),
            (b"GGUF\x03\0\0\0", "a GGUF file: name the file itself"),
            (b"\x80\x02\x8a\x0a", PICKLE),
            (b"PK\x03\x04", PICKLE),
            (b"", PICKLE),
        ] {
            fs::write(dir.path().join("ggml-model-q4_0.bin"), bytes).unwrap();
            let found = weights(dir.path()).unwrap().to_string();
            let expected =
                format!("expected .safetensors files, found `ggml-model-q4_0.bin`, {expected}");
            assert_eq!(found, expected);
        }
    }
}
