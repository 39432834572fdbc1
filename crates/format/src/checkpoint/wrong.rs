//! What is well known and no checkpoint that we read: a line that names it and the next step.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::file_names::{CONFIG_NAME, FILE_SUFFIX, GGUF_SUFFIX, MAGIC, is_other};
use crate::refusal::{Refusal, mismatch};

/// How files of Git LFS begin that stand for others.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What downloads that have not ended add to a name.
const UNFINISHED: [&str; 5] = [".incomplete", ".part", ".crdownload", ".aria2", ".download"];
/// Where the hub's client keeps what it has of a file that it puts into a directory.
const DOWNLOADS: &str = ".cache/huggingface/download";
/// What is wrong with a link whose file was removed, as from a cache, or never fetched.
pub(super) const LINK_TO_NOTHING: &str = "a link to a file that is not there: fetch it again";
/// What training leaves in place of a model, told by how a name in its folder begins or ends, and what makes
/// `.safetensors` files of it.
const SAVED: [(&[&str], &[&str], &str); 3] = [
    (
        &["global_step", "zero_to_fp32.py"],
        &["_model_states.pt", "_optim_states.pt"],
        "part of a state of DeepSpeed: `python zero_to_fp32.py . OUT --safe_serialization`, in the folder with that \
         program, makes .safetensors files of it; put config.json and the tokenizer beside them",
    ),
    (
        &["__0_", ".metadata"],
        &[".distcp"],
        "part of a sharded state of FSDP: `accelerate merge-weights . OUT`, in its folder, makes .safetensors files \
         of it; put config.json and the tokenizer beside them",
    ),
    (
        &[],
        &[".bin.index.json"],
        "a list of pickles that are not there: fetch the .safetensors files of the same model, or the pickles, load \
         them with transformers and save them again with save_pretrained",
    ),
];
/// Ends of the names of archives, and what unpacks one.
const ARCHIVES: [(&str, &str); 10] = [
    (".tar", "tar -xf"),
    (".tar.gz", "tar -xf"),
    (".tgz", "tar -xf"),
    (".tar.bz2", "tar -xf"),
    (".tar.xz", "tar -xf"),
    (".tar.zst", "tar -xf"),
    (".zip", "unzip"),
    (".7z", "7z x"),
    (".gz", "gzip -d"),
    (".zst", "zstd -d"),
];
/// What programs that cut files by their bytes add to a name, before a letter or number.
const PARTS: [&str; 5] = ["-split-", ".part", "-part-", ".split-", ".00"];
/// What merges an adapter into its model.
const PEFT_MERGE: &str = "merge_and_unload of peft";
const MLX_MERGE: &str = "mlx_lm.fuse";
const ADAPTER: &str = "weights of an adapter that is not merged: merge it, with ";
const FLAT: &str = "a shard of FSDP, in which all weights of a layer lie in a row: save the model whole, with \
                    FULL_STATE_DICT in the training that wrote it";
const PRUNED: &str = "a pruning that is not permanent: call prune.remove of torch.nn.utils on each module that has \
                      one, and save the model again";
/// Parts of the names of tensors that training left apart: the part, what such a tensor is, and what merges an adapter.
const UNMERGED: [(&str, &str, &str); 13] = [
    (".lora_A.", ADAPTER, PEFT_MERGE),
    (".lora_B.", ADAPTER, PEFT_MERGE),
    (".lora_embedding_A", ADAPTER, PEFT_MERGE),
    (".lora_embedding_B", ADAPTER, PEFT_MERGE),
    (".lora_magnitude_vector", ADAPTER, PEFT_MERGE),
    (".lora_a", ADAPTER, MLX_MERGE),
    (".lora_b", ADAPTER, MLX_MERGE),
    (".base_layer.", ADAPTER, PEFT_MERGE),
    (".modules_to_save.", ADAPTER, PEFT_MERGE),
    (".original_module.", ADAPTER, PEFT_MERGE),
    ("_flat_param", FLAT, ""),
    (".weight_orig", PRUNED, ""),
    (".weight_mask", PRUNED, ""),
];
/// Members of an `adapter_config.json` of mlx-lm.
const MLX_ADAPTER: [&str; 2] = ["fine_tune_type", "lora_parameters"];
/// What most weights with these endings are.
const PICKLE: &str = "a pickle, which can run code when it is read: load it with transformers and save it again with save_pretrained";
/// `ggml`, `ggmf`, `ggjt` and `ggla`, the last of adapters, as they were written: numbers, lowest byte first.
const OLDER: [&[u8]; 4] = [b"lmgg", b"fmgg", b"tjgg", b"algg"];
/// What a file is that begins like one of these, and what to do.
pub(super) const OLDER_FORM: &str = "llama.cpp's form before GGUF: convert the original checkpoint, or take a GGUF file of the model";
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

/// What is wrong with a tensor that training left apart from the weights that it changes; none for others.
pub(super) fn unmerged(name: &str) -> Option<String> {
    let (_, what, merge) = UNMERGED.iter().find(|(mark, ..)| name.contains(mark))?;
    Some(format!("{what}{merge}"))
}

/// A length that no file of weights has.
pub(super) fn cut(len: u64) -> String {
    format!("{len}, a download that has not ended: fetch it again")
}

/// What is wrong with a file that is text, by its first bytes: servers say why they send none.
pub(super) fn said_by_server(first: &[u8]) -> Option<String> {
    let text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let first = first.get(..8).filter(|first| first.iter().all(text))?;
    let first = first.escape_ascii();
    Some(format!(
        "a text that begins with `{first}`; what a server says in place of a file: fetch it again"
    ))
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
    let names = listed(dir)?;
    if let Some(download) = interrupted(dir) {
        return Some(download);
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("consolidated")) {
        return Some(mismatch(
            "model.safetensors",
            format_args!(
                "only `{name}`, Mistral's or Meta's own layout: take the files for transformers"
            ),
        ));
    }
    // A model that was saved whole is read more easily than what training left beside it.
    let whole = names
        .iter()
        .find(|name| name.starts_with("pytorch_model") && is_pickle(name));
    if let Some(name) = whole {
        return Some(pickle(dir, name));
    }
    // Where there are weights, something else is missing than what these could be made of.
    let model = |name: &String| name.ends_with(FILE_SUFFIX) && !is_other(name);
    let without = !names.iter().any(model);
    let pickled = || {
        let mut names = names.iter();
        names
            .find(|name| is_pickle(name))
            .map(|name| pickle(dir, name))
    };
    let state = || saved("", &names).filter(|_| without);
    let kept = || saved_inside(dir, &names).or_else(|| archive(&names));
    state()
        .or_else(pickled)
        .or_else(|| other_program(&names))
        .or_else(|| misnamed(&names))
        .or_else(|| nested(dir))
        .or_else(|| nested_gguf(dir))
        .or_else(|| kept().filter(|_| without))
}

fn is_pickle(name: &str) -> bool {
    let ends = [".bin", ".pt", ".pth", ".ckpt"];
    ends.iter().any(|end| name.ends_with(end))
}

fn pickle(dir: &Path, name: &str) -> Refusal {
    mismatch(".safetensors files", format_args!("`{name}`, {}", inside(&dir.join(name))))
}

/// What training leaves in place of a model, among the names in `folder`.
fn saved(folder: &str, names: &[String]) -> Option<Refusal> {
    SAVED.iter().find_map(|(begins, ends, what)| {
        let is = |name: &&String| {
            let mut begins = begins.iter();
            begins.any(|begin| name.starts_with(begin))
                || ends.iter().any(|end| name.ends_with(end))
        };
        let name = names.iter().find(is)?;
        Some(mismatch(".safetensors files", format_args!("`{folder}{name}`, {what}")))
    })
}

/// The same in a folder in `dir`.
fn saved_inside(dir: &Path, names: &[String]) -> Option<Refusal> {
    let inside = |name: &String| saved(&format!("{name}/"), &listed(&dir.join(name))?);
    names.iter().find_map(inside)
}

/// The names in a folder, sorted.
fn listed(dir: &Path) -> Option<Vec<String>> {
    let names = fs::read_dir(dir).ok()?.flatten();
    let mut names: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Some(names)
}

/// An archive that the model may lie in.
fn archive(names: &[String]) -> Option<Refusal> {
    let found = |name: &String| {
        // The longer of two ends comes first.
        let mut ends = ARCHIVES.iter();
        let (_, unpack) = ends.find(|(end, _)| name.ends_with(end))?;
        let detail = format!("`{name}`, an archive: unpack it, with `{unpack} {name}`");
        Some(mismatch(".safetensors files", detail))
    };
    names.iter().find_map(found)
}

/// A download into a directory that the hub's client has not ended.
fn interrupted(dir: &Path) -> Option<Refusal> {
    let names = listed(&dir.join(DOWNLOADS))?;
    let name = names.iter().find(|name| name.ends_with(UNFINISHED[0]))?;
    Some(mismatch(
        format_args!("{FILE_SUFFIX} files"),
        format_args!(
            "a download that has not ended ({DOWNLOADS}/{name}): run the same `hf download` again, which goes on with it"
        ),
    ))
}

/// Whether a file begins like one of llama.cpp's forms before GGUF.
pub(super) fn is_older(first: &[u8]) -> bool {
    OLDER.iter().any(|magic| first.starts_with(magic))
}

/// What a file with the extension of a pickle is: llama.cpp's had it too.
fn inside(path: &Path) -> &'static str {
    let mut first = [0; MAGIC.len()];
    // Asked before opening: the open of a pipe waits for a writer that may never come.
    let file = path.is_file().then(|| File::open(path).ok()).flatten();
    match file.map_or(Ok(()), |mut file| file.read_exact(&mut first)) {
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
    let suffixes = [FILE_SUFFIX, GGUF_SUFFIX];
    let mut found = names
        .iter()
        .flat_map(|name| suffixes.map(|suffix| (name, suffix)));
    found.find_map(|(name, suffix)| {
        let detail = misnamed_as(name, suffix)?;
        Some(mismatch(format_args!("{suffix} files"), format_args!("`{name}`{detail}")))
    })
}

/// What is wrong with the name of a file that should end in `suffix`.
fn misnamed_as(name: &str, suffix: &str) -> Option<String> {
    let lower = name.to_lowercase();
    if lower.ends_with(suffix) && !name.ends_with(suffix) {
        return Some(": write its extension in small letters".to_owned());
    }
    let cut = UNFINISHED.iter().find_map(|end| lower.strip_suffix(end));
    if cut.is_some_and(|stem| stem.contains(suffix)) {
        return Some(", a download that has not ended: fetch it again".to_owned());
    }
    joined(name).filter(|_| suffix == GGUF_SUFFIX)
}

/// What to do about a part of a GGUF file that was cut by its bytes, as large ones were before llama.cpp
/// could split them: `M.gguf-split-a`, `M.gguf.part1of2`.
fn joined(name: &str) -> Option<String> {
    let lower = name.to_lowercase();
    let at = lower.find(GGUF_SUFFIX)? + GGUF_SUFFIX.len();
    let part = PARTS.iter().find(|part| lower[at..].starts_with(**part))?;
    let (whole, part) = (name.get(..at)?, name.get(at..at + part.len())?);
    // A download under way has nothing after it.
    name.get(at + part.len()..)
        .filter(|rest| !rest.is_empty())?;
    let next = format!(
        "join the parts in their order, as cat {whole}{part}* > {whole} does, and name that"
    );
    Some(format!(", a part of a file: {next}"))
}

/// What to do about a file that is a part of a GGUF file; none for any other.
pub(super) fn part_of_gguf(path: &Path) -> Option<Refusal> {
    let name = path.file_name()?.to_str()?;
    Some(mismatch("a GGUF file", format_args!("`{name}`{}", joined(name)?)))
}

/// Whether files of a directory have weights in safetensors.
pub(super) fn holds_weights(dir: &Path) -> bool {
    !files_in(dir, FILE_SUFFIX).is_empty()
}

/// The names of the files in a directory that end in `suffix`, sorted.
fn files_in(dir: &Path, suffix: &str) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    names
}

/// A GGUF file in a directory in `dir`, as repositories have one for each width of codes.
fn nested_gguf(dir: &Path) -> Option<Refusal> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let inside = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    let files = inside.flat_map(|inner| {
        let names = files_in(&inner, GGUF_SUFFIX);
        names.into_iter().map(move |name| inner.join(name))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    let first = files.first()?.display().to_string();
    let expected = format_args!("a {GGUF_SUFFIX} file");
    Some(mismatch(
        expected,
        format_args!("none, but some in directories in it: name one, as {first}"),
    ))
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
    let of_mlx = MLX_ADAPTER.iter().any(|key| config.get(key).is_some());
    let (key, next) =
        if of_mlx { ("model", MLX_MERGE) } else { ("base_model_name_or_path", PEFT_MERGE) };
    let base = config[key].as_str().unwrap_or("another model");
    Some(format!(
        "a LoRA adapter for {base} (adapter_config.json), not a model: merge it into that first, with {next}"
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
    fn an_interrupted_download_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::create_dir_all(dir.path().join(DOWNLOADS)).unwrap();
        fs::write(dir.path().join(DOWNLOADS).join("config.json.metadata"), "x").unwrap();
        assert_eq!(weights(dir.path()), None);
        fs::write(dir.path().join(DOWNLOADS).join("x.1f.incomplete"), "x").unwrap();
        assert_eq!(
            weights(dir.path()).unwrap().to_string(),
            "expected .safetensors files, found a download that has not ended \
             (.cache/huggingface/download/x.1f.incomplete): run the same `hf download` again, which goes on with it"
        );
    }

    /// What is said of a folder with a configuration and files of these names.
    fn said(names: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json"].iter().chain(names) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        weights(dir.path()).map_or_else(String::new, |found| found.to_string())
    }

    #[test]
    fn what_training_leaves_is_named_with_what_makes_a_model_of_it() {
        for (names, found, next) in [
            (
                &["global_step100/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"][..],
                "`global_step100`, part of a state of DeepSpeed",
                "`python zero_to_fp32.py . OUT --safe_serialization`",
            ),
            (
                &["zero_pp_rank_0_mp_rank_00_optim_states.pt"],
                "_optim_states.pt`, part of a state of DeepSpeed",
                "zero_to_fp32.py",
            ),
            (
                &[".metadata", "__0_0.distcp"],
                "`.metadata`, part of a sharded state of FSDP",
                "`accelerate merge-weights . OUT`",
            ),
            (
                &["pytorch_model_fsdp_0/__0_0.distcp"],
                "`pytorch_model_fsdp_0/__0_0.distcp`, part of a sharded state of FSDP",
                "`accelerate merge-weights . OUT`",
            ),
            (
                &["pytorch_model.bin.index.json"],
                "`pytorch_model.bin.index.json`, a list of pickles that are not there",
                "fetch the .safetensors files",
            ),
            (&["model.tar.gz"], "`model.tar.gz`, an archive", "with `tar -xf model.tar.gz`"),
            (&["model.zip"], "`model.zip`, an archive", "with `unzip model.zip`"),
            // A model that was saved whole beside a state is the model.
            (
                &["global_step1/x_model_states.pt", "pytorch_model.bin"],
                "`pytorch_model.bin`, a pickle",
                "save_pretrained",
            ),
        ] {
            let said = said(names);
            assert!(said.contains(found) && said.contains(next), "{said}");
        }
        assert_eq!(said(&["notes.txt", "runs/x"]), "");
        assert_eq!(
            said(&["model.safetensors", "latest", "global_step1/x_model_states.pt", "data.zip"]),
            ""
        );
        let trainer =
            said(&["run/model.safetensors", "run/global_step1/x_model_states.pt", "data.zip"]);
        assert!(trainer.contains("some in `run`"), "{trainer}");
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
