//! The binary in a scratch folder, and scripts.

use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use shardwright_testing::root;

/// Runs a script of the repository in `dir`. Tests that do are marked `#[ignore = "needs python3"]`.
pub fn python(script: &str, args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new("python3");
    command.arg("-B").arg(root().join(script)).args(args);
    command
        .current_dir(dir)
        .output()
        .expect("python3 can be started")
}

/// A scratch folder in which commands run, so that messages name relative paths.
pub struct Scratch(shardwright_testing::Scratch);

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Deref for Scratch {
    type Target = shardwright_testing::Scratch;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Scratch {
    pub fn new() -> Self {
        Self(shardwright_testing::Scratch::new())
    }

    /// A scratch folder that holds a copy of a fixture as `ckpt`.
    pub fn with(name: &str) -> Self {
        Self(shardwright_testing::Scratch::with(name))
    }

    /// The command, its arguments split at spaces, not yet started.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
        command
            .args(args.split_whitespace())
            .current_dir(self.path(""))
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
            .current_dir(self.path(""));
        Ran::from(command.stdin(Stdio::null()).output().unwrap())
    }

    /// Runs a conversion that stops itself after so many shards; see `crates/cli/src/stop.rs`.
    pub fn stopped(&self, args: &str, after: &str) -> Ran {
        let mut command = self.command(args);
        command.env("SHARDWRIGHT_STOP_AFTER", after);
        Ran::from(command.output().unwrap())
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

    /// The same under a budget of memory, or the first larger one that works: what the process itself takes, and
    /// with it the least that works, differs from run to run by some hundred KiB.
    pub fn json_within(&self, args: &str, budget: u64) -> Value {
        let mut budgets = (0..24).map(|more| budget + (more << 17));
        let within = |budget| {
            let ran = self.run(&format!("{args} --memory {budget} --json"));
            let small = ran.code == Some(2) && ran.stderr.contains("is too small");
            assert!(small || ran.code == Some(0), "{args} --memory {budget}: {ran:?}");
            (!small).then(|| serde_json::from_str(&ran.stdout).unwrap())
        };
        let found = budgets.find_map(within);
        found.unwrap_or_else(|| panic!("{args}: {budget} and 3 MiB more are too small"))
    }

    /// Runs a command that must be refused with exit code 2, nothing on standard output, and
    /// exactly these lines on standard error.
    #[track_caller]
    pub fn refused(&self, args: &str, expected: &str) {
        let ran = self.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args}: {ran:?}");
        assert_eq!(ran.stderr.trim_end(), expected, "{args}");
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
