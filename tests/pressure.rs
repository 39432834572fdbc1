//! Memory that shrinks while a run goes on, told by a file and a signal.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::Scratch;
use crate::run::{PLAIN, conversing};

/// What is asked turn by turn, and what the file says before each turn but the first.
const TURNS: [(&str, &str, &str); 4] = [
    ("def main", "1GiB", ""),
    ("import os", "20MiB", "is below what this run can go on with: it takes "),
    ("return x", "a lot", "note: memory stays as it is: limit: expected a size such as 512MiB"),
    ("class A", "2GiB", "note: memory is now at most "),
];

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
    let mut command = scratch.command(&format!("{args} --memory-file limit"));
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = vec![0];
    for (turn, size, note) in TURNS {
        if !note.is_empty() {
            // The turn waits for its line, so that the signal always comes before it.
            fs::write(scratch.path("limit"), size).unwrap();
            let pid = child.id().to_string();
            assert!(
                Command::new("kill")
                    .args(["-USR1", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
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
