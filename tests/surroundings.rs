//! What reads us, and what limits us: streams that are closed, full or read by nobody, and limits on files.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use shardwright_testing::{copy_dir, digest, fixture};

use crate::harness::Scratch;

/// The trained fixture, a bundle of it, one that was damaged, and a text with line ends that are noted.
fn scratch() -> Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        scratch.ok("convert ckpt -o sound --bits 4 --method minmax");
        scratch
    });
    let scratch = Scratch::with("fixture-2m");
    copy_dir(&made.path("sound"), &scratch.path("sound"));
    copy_dir(&scratch.path("sound"), &scratch.path("damaged"));
    scratch.edit_bytes("damaged/dense-000.bin", |bytes| bytes[0] ^= 1);
    let text = fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    fs::write(scratch.path("crlf.txt"), text.replace('\n', "\r\n")).unwrap();
    scratch
}

/// A pipe whose reader is gone.
fn broken() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A file to which nothing can be written.
fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// Commands that have something to say on standard error, each with its exit code.
const TALKING: [(&str, i32); 6] = [
    ("convert ckpt -o OUT --calibrate crlf.txt --calibration-window 64 --calibration-tokens 64", 0),
    ("verify sound", 0),
    ("verify damaged", 1),
    ("run ckpt --prompt This -n 2", 0),
    ("verify nowhere", 2),
    ("verify nowhere --json", 2),
];

#[test]
fn nobody_has_to_read_what_we_say() {
    let scratch = scratch();
    let code = |mut command: Command, stderr: Stdio| {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr).status().unwrap().code()
    };
    for (args, expected) in TALKING {
        let args = |out: &str| args.replace("OUT", out);
        let made = |out: &str| (scratch.command(&args(out)), args(out));
        let (command, what) = made("broken");
        assert_eq!(code(command, broken()), Some(expected), "reader gone: {what}");
        let (command, what) = made("full");
        assert_eq!(code(command, full()), Some(expected), "full: {what}");
        let closed = scratch.shell(&format!("shardwright {} 2>&-", args("closed")));
        assert_eq!(closed.code, Some(expected), "closed: {}", args("closed"));
    }
    let whole = digest(&scratch.path("broken"));
    for other in ["full", "closed"] {
        assert_eq!(digest(&scratch.path(other)), whole, "{other}");
        assert!(!scratch.path(&format!("{other}.partial")).exists());
    }
}

#[test]
fn results_that_cannot_be_written_are_an_error_and_those_that_nobody_reads_are_none() {
    let scratch = scratch();
    for (args, expected) in [("verify sound", 0), ("verify damaged", 1), ("inspect ckpt", 0)] {
        let mut command = scratch.command(args);
        let gone = command
            .stdout(broken())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(gone.code(), Some(expected), "{args}");
        let mut command = scratch.command(args);
        let ran = command
            .stdout(full())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{args}: {said}");
        assert!(said.starts_with("error: standard output: No space left"), "{args}: {said}");
    }
}

#[test]
fn a_limit_on_the_size_of_files_ends_in_a_message() {
    let scratch = scratch();
    let ran =
        scratch.shell("ulimit -f 100; shardwright convert ckpt -o out --bits 4 --method minmax");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr.starts_with("error: out.partial/bundle/") && ran.stderr.contains("too large"),
        "{ran:?}"
    );
    assert!(!scratch.path("out").exists());
    scratch.ok("convert ckpt -o out --bits 4 --method minmax --resume");
    assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("sound")));
}

/// What a name could do to whoever reads it: turn the writing direction, end a line.
const NAME: &str = "a\u{202e}b\u{2028}c\u{2066}d\u{1b}[8m";

#[test]
fn names_steer_no_terminal() {
    let scratch = scratch();
    let steers = |text: &str| text.contains(['\u{202e}', '\u{2028}', '\u{2066}', '\u{1b}']);
    let companion = scratch.path(&format!("ckpt/{NAME}.txt"));
    fs::copy(scratch.path("ckpt/config.json"), &companion).unwrap();
    fs::write(scratch.path(NAME), "a\r\nb\r\n".repeat(300)).unwrap();
    for (args, code) in [
        (vec!["plan", "ckpt"], 2),
        (vec!["plan", "ckpt", "--json"], 2),
        (vec!["inspect", "ckpt"], 0),
        (vec!["run", "ckpt", "-n", "0", "--prompt-file", NAME], 0),
        (vec!["plan", "ckpt", "--calibrate", NAME], 2),
        (vec!["convert", "ckpt", "-o", NAME, "--bits", "4", "--method", "minmax"], 0),
        (vec!["inspect", NAME], 0),
        (vec!["verify", NAME, "--against", "ckpt"], 0),
        (vec!["inspect", NAME, "--json"], 0),
        (vec!["convert", "ckpt", "-o", NAME], 2),
        (vec!["convert", "ckpt", "-o", NAME, "--json"], 2),
        (vec!["verify", NAME, "--against", NAME, "--text", NAME], 2),
        (vec!["plan", "ckpt", "--set", NAME], 2),
        (vec!["plan", "ckpt", "--recipe", NAME], 2),
    ] {
        if args[0] == "convert" && code == 0 {
            fs::remove_file(scratch.path(NAME)).unwrap();
            fs::remove_file(&companion).unwrap();
        }
        let ran = scratch.command("").args(&args).output().unwrap();
        let (out, err) =
            (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        assert_eq!(ran.status.code(), Some(code), "{args:?}: {err}");
        assert!(!steers(&out) && !steers(&err), "{args:?}: {out}{err}");
    }
}
