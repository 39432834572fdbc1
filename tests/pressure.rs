//! Memory that shrinks while a run goes on, told by a file and a signal.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use serde_json::json;
use shardwright_testing::mutate::Random;

use crate::harness::Scratch;
use crate::run::{PLAIN, conversing};

/// What is asked turn by turn, and what the file says before each turn but the first.
const TURNS: [(&str, &str, &str); 4] = [
    ("def main", "1GiB", ""),
    ("import os", "20MiB", "is below what this run can go on with: it takes "),
    ("return x", "a lot", "note: memory stays as it is: limit: expected a size such as 512MiB"),
    ("class A", "2GiB", "note: memory is now at most "),
];

/// Starts a command that takes its memory from the file `limit`; gives what it says on both of its outputs too.
fn start(
    scratch: &Scratch,
    args: &str,
    input: Stdio,
) -> (Child, ChildStdout, BufReader<ChildStderr>) {
    let mut command = scratch.command(&format!("{args} --memory-file limit"));
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    (child, output, BufReader::new(errors))
}

/// Has it read the file again.
fn look_again(child: &Child) {
    let pid = child.id().to_string();
    let told = Command::new("kill").args(["-USR1", &pid]).status().unwrap();
    assert!(told.success());
}

#[test]
fn a_conversation_says_the_same_while_its_memory_changes() {
    let scratch = conversing(PLAIN);
    let asked = TURNS.map(|(turn, ..)| turn).join("\n");
    fs::write(scratch.path("lines"), asked).unwrap();
    let args = "run ckpt --chat -n 20 --ignore-eos";
    let stdin = fs::File::open(scratch.path("lines")).unwrap();
    let plain = scratch
        .command(&format!("{args} --quiet"))
        .stdin(stdin)
        .output()
        .unwrap();

    fs::write(scratch.path("limit"), "1GiB\n").unwrap();
    let (mut child, mut output, mut errors) = start(&scratch, args, Stdio::piped());
    let (mut input, mut said) = (child.stdin.take().unwrap(), vec![0]);
    for (turn, size, note) in TURNS {
        if !note.is_empty() {
            // The turn waits for its line, so that the signal always comes before it.
            fs::write(scratch.path("limit"), size).unwrap();
            look_again(&child);
        }
        writeln!(input, "{turn}").unwrap();
        if note.is_empty() {
            // The handler is there when text is.
            output.read_exact(&mut said).unwrap();
            continue;
        }
        let mut line = String::new();
        while !line.contains(note) {
            line.clear();
            assert_ne!(errors.read_line(&mut line).unwrap(), 0, "no `{note}`");
        }
    }
    drop(input);
    output.read_to_end(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(said == plain.stdout, "{}", String::from_utf8_lossy(&said));
}

#[test]
fn a_size_in_a_file_is_a_budget_like_any_other() {
    let scratch = Scratch::with("fixture-2m");
    fs::write(scratch.path("limit"), "64MiB\n").unwrap();
    let args = "run ckpt --prompt This -n 4";
    let report = scratch.json(&format!("{args} --memory-file limit"));
    assert_eq!(report["memory"]["budget_bytes"], json!(64 << 20));
    assert_eq!(report["memory"]["changes"], json!(0));
    let refused = |text: &str, expected: &str| {
        fs::write(scratch.path("limit"), text).unwrap();
        scratch
            .refused(&format!("{args} --memory-file limit"), &format!("error: limit: {expected}"));
    };
    let size = "expected a size such as 512MiB, 1.5GB or 1048576, found";
    refused("", &format!("{size} ``"));
    refused("much", &format!("{size} `much`"));
    refused(&"9".repeat(300), "expected at most 256 bytes, found 300");
    let ran = scratch.run(&format!("{args} --memory-file nowhere"));
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(2), 1), "{}", ran.stderr);
}

/// How often memory changes: a few times as part of the tests, `SHARDWRIGHT_PRESSURE` times where that is given.
fn changes() -> usize {
    let told = std::env::var("SHARDWRIGHT_PRESSURE").ok();
    told.map_or(10, |number| number.parse().unwrap())
}

/// A run that streams, and what it says.
struct Streaming {
    child: Child,
    output: ChildStdout,
    errors: BufReader<ChildStderr>,
    said: Vec<u8>,
    limit: PathBuf,
}

impl Streaming {
    fn start(scratch: &Scratch, args: &str) -> Self {
        let (child, output, errors) = start(scratch, args, Stdio::null());
        let limit = scratch.path("limit");
        let mut running = Self { child, output, errors, said: Vec::new(), limit };
        // The handler is there when text is.
        assert!(running.goes_on(1));
        running
    }

    /// Waits for more text; `false` where it has ended.
    fn goes_on(&mut self, bytes: usize) -> bool {
        let before = self.said.len();
        let mut more = (&mut self.output).take(bytes as u64);
        more.read_to_end(&mut self.said).unwrap();
        self.said.len() == before + bytes
    }

    /// Gives it `memory`, and the most that it takes from then on, as it says itself; nothing where its text
    /// ended first.
    fn change(&mut self, memory: u64) -> Option<u64> {
        fs::write(&self.limit, memory.to_string()).unwrap();
        look_again(&self.child);
        let mut line = String::new();
        while !line.contains("with room for") {
            line.clear();
            if self.errors.read_line(&mut line).unwrap() == 0 {
                return None;
            }
        }
        let promised = line
            .split(' ')
            .skip_while(|word| *word != "most" && *word != "takes");
        let words: Vec<&str> = promised.skip(1).take(2).collect();
        let number: f64 = words[0].parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(words[1].starts_with("MiB"), "{line}");
        // It is said to a tenth.
        Some(((number + 0.05) * f64::from(1 << 20)) as u64)
    }

    /// The most that it held since this was last asked.
    fn peak(&self) -> Option<u64> {
        let status = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(status).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        // What Linux does on this number.
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").ok()?;
        Some(kib << 10)
    }
}

#[test]
fn the_process_stays_below_what_it_was_last_given() {
    let scratch = Scratch::with("fixture-2m");
    let args = "run ckpt --prompt This -n 600 --ignore-eos";
    let plain = scratch.json(args);
    let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
    let (floor, all) = (bytes("floor_bytes"), bytes("resident_bytes"));
    let text = plain["text"].as_str().unwrap();
    let (mut random, mut left) = (Random::new(1), changes());
    while left > 0 {
        let when = random.pick(&["on", "auto", "off"]);
        fs::write(scratch.path("limit"), (all + (1 << 20)).to_string()).unwrap();
        let mut running = Streaming::start(&scratch, &format!("{args} --look-ahead {when}"));
        for _ in 0..left.min(50) {
            let memory = floor / 2 + random.below((all - floor / 2) as usize) as u64;
            let Some(promised) = running.change(memory) else { break };
            // From its word on, whatever it computes until it is told anew.
            running.peak();
            running.goes_on(4);
            let peak = running.peak().unwrap_or_default();
            assert!(peak <= promised, "given {memory}, promised {promised}, took {peak}");
            left -= 1;
        }
        while running.goes_on(1 << 10) {}
        assert!(running.child.wait().unwrap().success());
        assert_eq!(
            String::from_utf8_lossy(&running.said).trim_end_matches('\n'),
            text.trim_end_matches('\n')
        );
    }
}
