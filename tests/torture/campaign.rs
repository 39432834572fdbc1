//! Many cases of one attack, and what holds of every command in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardwright_testing::mutate::{Random, edit, edit_bytes};
use shardwright_testing::{RawTensors, root};

use crate::harness::Scratch;

/// Most processor time that a command on a small model may take, also in an unoptimized build; and the longest
/// that it may take none at all. On a busy machine the clock alone tells nothing.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Longest by the clock where the system does not tell processor times.
const LONGEST: Duration = Duration::from_secs(60);

/// Ticks of processor time in a second, as Linux counts them for programs.
const TICKS: u64 = 100;

/// Most lines of a message.
const LINES: usize = 6;

/// How many cases, and where they begin.
pub struct Campaign {
    name: &'static str,
    seed: u64,
    cases: u64,
    until: Option<Instant>,
    counts: BTreeMap<String, u64>,
    found: Vec<String>,
    log: Log,
}

/// What campaigns did before, a line of JSON for each.
struct Log {
    path: Option<PathBuf>,
}

impl Log {
    /// Of one kind of case.
    fn lines(&self, name: &str) -> Vec<Value> {
        let text = self
            .path
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        let lines = text.unwrap_or_default();
        let lines = lines
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &Value| line["kind"] == json!(name))
            .collect()
    }

    /// The seed behind all that were tried.
    fn next(&self, name: &str) -> Option<u64> {
        let lines = self.lines(name);
        lines
            .iter()
            .filter_map(|line| line["next_seed"].as_u64())
            .max()
    }

    fn add(&self, line: &Value) {
        let Some(path) = &self.path else { return };
        let _ = path.parent().map(fs::create_dir_all);
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        // One write: other kinds write at the same time.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Cases and kills of all campaigns.
    fn total(&self, name: &str) -> [u64; 2] {
        let lines = self.lines(name);
        let sum = |what| {
            lines
                .iter()
                .filter_map(|line| line["counts"][what].as_u64())
                .sum()
        };
        ["cases", "kills"].map(sum)
    }
}

impl Campaign {
    /// Of a name, with `few` cases where nothing else is asked for.
    pub fn new(name: &'static str, few: u64) -> Self {
        let told = |name: &str| std::env::var(name).ok();
        let number = |name: &str| told(name).and_then(|text| text.parse::<u64>().ok());
        let minutes = number("SHARDWRIGHT_TORTURE_MINUTES");
        let cases = number("SHARDWRIGHT_TORTURE_CASES");
        let log = Log { path: told("SHARDWRIGHT_TORTURE_LOG").map(PathBuf::from) };
        let next = told("SHARDWRIGHT_TORTURE_SEED").is_some_and(|seed| seed == "next");
        let seed = if next { log.next(name) } else { number("SHARDWRIGHT_TORTURE_SEED") };
        Self {
            name,
            seed: seed.unwrap_or(1),
            cases: cases.unwrap_or(if minutes.is_some() { u64::MAX } else { few }),
            until: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
            counts: BTreeMap::new(),
            found: Vec::new(),
            log,
        }
    }

    /// Runs the cases; fails at the end if anything was found.
    pub fn run(mut self, case: impl Fn(&mut Attack) -> Result<(), String>) {
        for number in 0..self.cases {
            if self.until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            let seed = self.seed + number;
            let mut attack = Attack::new(seed);
            if let Err(what) = case(&mut attack) {
                let kept = root().join(format!("target/torture/{}-{seed}", self.name));
                let _ = fs::remove_dir_all(&kept);
                let _ = fs::create_dir_all(kept.parent().unwrap());
                let copied = Command::new("cp")
                    .arg("-a")
                    .arg(attack.scratch.path(""))
                    .arg(&kept)
                    .status();
                assert!(copied.unwrap().success(), "{}", kept.display());
                self.found
                    .push(format!("{} seed {seed}: {}: {what}", self.name, attack.damage));
            }
            *self.counts.entry("cases".to_owned()).or_default() += 1;
            for (what, count) in attack.counts {
                *self.counts.entry(what).or_default() += count;
            }
        }
        let counts: Vec<_> = self
            .counts
            .iter()
            .map(|(what, n)| format!("{n} {what}"))
            .collect();
        eprintln!("torture: {}: {}, {} found", self.name, counts.join(", "), self.found.len());
        let next = self.seed + self.counts.get("cases").unwrap_or(&0);
        let (name, seed) = (self.name, self.seed);
        let (counts, found) = (&self.counts, &self.found);
        self.log.add(&json!({ "kind": name, "seed": seed, "next_seed": next, "counts": counts, "found": found }));
        if self.log.path.is_some() {
            let [cases, kills] = self.log.total(name);
            eprintln!(
                "torture: {name}: {cases} cases and {kills} kills in all; the next seed is {next}"
            );
        }
        assert!(self.found.is_empty(), "{}", self.found.join("\n"));
    }
}

/// One case: a scratch folder and what is done in it.
pub struct Attack {
    pub seed: u64,
    pub scratch: Scratch,
    pub random: Random,
    /// What was damaged.
    pub damage: String,
    counts: BTreeMap<String, u64>,
}

/// What became of a command.
pub struct Ended {
    pub code: Option<i32>,
    stderr: String,
}

/// What is attacked.
pub fn binary() -> PathBuf {
    let given = std::env::var_os("SHARDWRIGHT_TORTURE_BINARY");
    given.map_or_else(|| env!("CARGO_BIN_EXE_shardwright").into(), PathBuf::from)
}

impl Attack {
    fn new(seed: u64) -> Self {
        let (scratch, random) = (Scratch::new(), Random::new(seed));
        Self { seed, scratch, random, damage: String::new(), counts: BTreeMap::new() }
    }

    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(binary());
        let file = |name| fs::File::create(self.scratch.path(name)).unwrap();
        command
            .args(args.split_whitespace())
            .current_dir(self.scratch.path(""));
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command.stdout(file("stdout")).stderr(file("stderr"));
        command
    }

    /// Runs a command to its end and judges what can be judged of any command.
    pub fn run(&mut self, args: &str, codes: &[i32]) -> Result<Ended, String> {
        let mut child = self.command(args).spawn().unwrap();
        let status = end(&mut child).map_err(|what| format!("{args}: {what}"))?;
        let text = fs::read(self.scratch.path("stderr")).unwrap();
        let ended =
            Ended { code: status.code(), stderr: String::from_utf8_lossy(&text).into_owned() };
        self.count(&format!("exit {}", ended.code.unwrap_or(-1)));
        judge(args, &ended, codes)?;
        Ok(ended)
    }

    pub fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Nothing lies under a name that a command was to give only to what is whole.
    pub fn nothing_left(&self, name: &str) -> Result<(), String> {
        if self.scratch.path(name).exists() {
            return Err(format!("`{name}` was left behind"));
        }
        Ok(())
    }

    pub fn change_json(&mut self, path: &Path) {
        let mut tree: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_default();
        for _ in 0..=self.random.below(3) {
            edit(&mut tree, &mut self.random);
        }
        fs::write(path, serde_json::to_vec(&tree).unwrap()).unwrap();
    }

    pub fn change_bytes(&mut self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        edit_bytes(&mut bytes, &mut self.random);
        fs::write(path, bytes).unwrap();
    }

    pub fn change_header(&mut self, path: &Path) {
        let mut tensors = RawTensors::read(path);
        let mut tree = Value::Object(tensors.header);
        edit(&mut tree, &mut self.random);
        tensors.header = tree.as_object().cloned().unwrap_or_default();
        fs::write(path, tensors.to_bytes()).unwrap();
    }

    /// Puts values that are no numbers, or no sensible ones, among the weights.
    pub fn change_values(&mut self, path: &Path) {
        let mut tensors = RawTensors::read(path);
        for _ in 0..=self.random.below(4) {
            let at = self.random.below(tensors.data.len() / 2) * 2;
            let value = *self
                .random
                .pick(&[0x7fc0_u16, 0x7c00, 0xff80, 0x7bff, 0x0001, 0x8000]);
            tensors.data[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        fs::write(path, tensors.to_bytes()).unwrap();
    }
}

/// Waits for a command to end; kills it, and says why, where it does not.
fn end(child: &mut Child) -> Result<ExitStatus, String> {
    let started = Instant::now();
    let (mut used, mut since) = (Some(0), started);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok(status);
        }
        let now = processor_time(child.id());
        if now != used {
            (used, since) = (now, Instant::now());
        }
        let limit = TICKS * PATIENCE.as_secs();
        let hang = match used {
            Some(ticks) if ticks > limit => Some(format!("{PATIENCE:?} of processor time")),
            Some(_) if since.elapsed() > PATIENCE => Some(format!("{PATIENCE:?} without any")),
            None if started.elapsed() > LONGEST => Some(format!("{LONGEST:?}")),
            _ => None,
        };
        if let Some(hang) = hang {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("still running after {hang}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ticks of processor time that a process has used so far, all of its threads together; none where the system
/// does not tell.
fn processor_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name, in parentheses, may hold anything; the 14th and 15th fields are user and system time.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    Some(field()? + field()?)
}

/// What holds of every command: it ends by itself, with one of `codes`, and says why in a few lines.
fn judge(args: &str, ended: &Ended, codes: &[i32]) -> Result<(), String> {
    let Ended { code, stderr } = ended;
    let wrong = |what: &str| Err(format!("{args}: {what}: {code:?}: {stderr}"));
    match code {
        Some(code) if codes.contains(code) => {}
        _ => return wrong("unexpected end"),
    }
    if stderr.contains("internal error") || stderr.contains("panicked") {
        return wrong("a defect of ours");
    }
    if stderr.lines().count() > LINES || stderr.lines().any(|line| line.len() > 2000) {
        return wrong("a long message");
    }
    if *code == Some(2) && !stderr.lines().any(|line| line.starts_with("error: ")) {
        return wrong("no message");
    }
    if stderr.chars().any(|c| c.is_control() && c != '\n') {
        return wrong("control characters");
    }
    Ok(())
}

#[test]
fn a_hang_is_told_from_a_busy_machine() {
    let mut busy = Command::new("sh");
    busy.args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done"]);
    let mut child = busy.spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(processor_time(child.id()).unwrap_or_default());
    }
    // Without /proc there is nothing to see.
    assert!(most > 0 || !Path::new("/proc/self/stat").exists());
    let mut child = Command::new("true").spawn().unwrap();
    assert!(end(&mut child).unwrap().success());
}

#[test]
fn a_campaign_goes_on_where_the_last_one_ended() {
    let scratch = Scratch::new();
    let log = Log { path: Some(scratch.path("kept/log.jsonl")) };
    assert_eq!(log.next("inputs"), None);
    for (kind, seed, cases) in [("inputs", 1, 40), ("kills", 1, 6), ("inputs", 41, 9)] {
        let counts = json!({ "cases": cases, "kills": 2 * cases });
        log.add(
            &json!({ "kind": kind, "seed": seed, "next_seed": seed + cases, "counts": counts }),
        );
    }
    assert_eq!((log.next("inputs"), log.next("kills")), (Some(50), Some(7)));
    assert_eq!((log.total("inputs"), log.total("kills")), ([49, 98], [6, 12]));
}
