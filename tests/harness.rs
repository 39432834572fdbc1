//! Scratch directories, the binary, and checkpoints to damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Map, Value};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Runs a script of the repository in `dir`; none where there is no Python, which the gate does not
/// allow.
pub fn python(script: &str, args: &[&str], dir: &Path) -> Option<Output> {
    let ran = Command::new("python3")
        .arg("-B")
        .arg(root().join(script))
        .args(args)
        .current_dir(dir)
        .output();
    match ran {
        Ok(output) => Some(output),
        Err(e) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: python3: {e}");
            None
        }
        Err(e) => panic!("python3: {e}"),
    }
}

/// The names of the golden checkpoints that are listed in `cases.json`.
pub fn goldens() -> Vec<String> {
    let list = fs::read(fixture("golden/cases.json")).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    let cases = list["cases"].as_array().unwrap().iter();
    cases
        .map(|case| case["case"].as_str().unwrap().to_owned())
        .collect()
}

/// A fixture of the repository.
pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures").join(name)
}

/// A directory in which commands run, so that messages name relative paths; removed when dropped.
pub struct Scratch(tempfile::TempDir);

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A scratch directory that holds a copy of a fixture as `ckpt`.
    pub fn with(name: &str) -> Self {
        let scratch = Self::new();
        copy_dir(&fixture(name), &scratch.path("ckpt"));
        // The expected values lie beside the checkpoint and are no part of it.
        let _ = fs::remove_file(scratch.path("ckpt/golden.safetensors"));
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, its arguments split at spaces, not yet started.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
        command
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("RUST_BACKTRACE");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &str) -> Ran {
        Ran::from(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    /// Starts a command whose output nobody reads.
    pub fn spawn(&self, args: &str) -> Child {
        let mut command = self.command(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Runs a command through the shell, so that limits can be set around it.
    pub fn shell(&self, script: &str) -> Ran {
        let binary = env!("CARGO_BIN_EXE_shardwright");
        let mut command = Command::new("bash");
        command
            .args(["-c", &script.replace("shardwright", binary)])
            .current_dir(self.0.path());
        Ran::from(command.stdin(Stdio::null()).output().unwrap())
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &str) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args}: {ran:?}");
        ran
    }

    /// Runs a command that must succeed, with `--json`; gives its report.
    pub fn json(&self, args: &str) -> Value {
        let ran = self.ok(&format!("{args} --json"));
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Runs a command that must be refused with exit code 2, nothing on standard output, and
    /// exactly these lines on standard error.
    #[track_caller]
    pub fn refused(&self, args: &str, expected: &str) {
        let ran = self.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args}: {ran:?}");
        assert_eq!(ran.stderr.trim_end(), expected, "{args}");
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(value.as_object_mut().unwrap());
        fs::write(&path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
    }

    /// Changes the header and data of a `.safetensors` file.
    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut RawTensors)) {
        let path = self.path(name);
        let mut tensors = RawTensors::read(&path);
        edit(&mut tensors);
        fs::write(&path, tensors.to_bytes()).unwrap();
    }

    /// Changes the bytes of a file.
    pub fn edit_bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path(name);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A `.safetensors` file taken apart without any check, so that it can be put together wrongly.
pub struct RawTensors {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl RawTensors {
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        Self { header, data: bytes[8 + len..].to_vec() }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(&self.header).unwrap();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        bytes.extend(&self.data);
        bytes
    }

    /// First and last byte of a tensor's data.
    pub fn range(&self, name: &str) -> std::ops::Range<usize> {
        let offsets = self.header[name]["data_offsets"].as_array().unwrap();
        offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize
    }
}

/// Copies a directory and what is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Every file below a directory, by its path from there, with its bytes.
pub fn contents(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What [`contents`] gives, as names with hashes: short enough for an assertion to print.
pub fn digest(dir: &Path) -> Vec<(String, String)> {
    let hash = |bytes: &Vec<u8>| blake3::hash(bytes).to_hex().to_string();
    contents(dir)
        .iter()
        .map(|(name, bytes)| (name.clone(), hash(bytes)))
        .collect()
}
