//! Runs that read their experts, killed at any moment.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::campaign::{Attack, Campaign};
use crate::harness::Scratch;

/// What a run makes besides its text, and how.
const RUN: &str = "run ckpt --prompt This -n 40 --ignore-eos -q --session kept --trace trace";

/// What a run says when nobody disturbs it, the files that it leaves, and how long it takes.
struct Undisturbed {
    ckpt: PathBuf,
    /// The least that it needs, and what holds all.
    memory: [u64; 2],
    text: Vec<u8>,
    kept: Vec<u8>,
    took: Duration,
    _scratch: Scratch,
}

fn undisturbed() -> &'static Undisturbed {
    static MADE: OnceLock<Undisturbed> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        let report = scratch.json("run ckpt --prompt This -n 1");
        let bytes = |name: &str| report["memory"][name].as_u64().unwrap();
        let memory = [bytes("floor_bytes"), bytes("resident_bytes")];
        let started = Instant::now();
        let text = scratch.ok(RUN).stdout.into_bytes();
        let took = started.elapsed();
        let kept = fs::read(scratch.path("kept")).unwrap();
        Undisturbed { ckpt: scratch.path("ckpt"), memory, text, kept, took, _scratch: scratch }
    })
}

/// A run that streams, killed some times at any moment, then left alone: the same text, the same session, a
/// whole trace, and nothing else.
fn killed(attack: &mut Attack) -> Result<(), String> {
    let expected = undisturbed();
    std::os::unix::fs::symlink(&expected.ckpt, attack.scratch.path("ckpt")).unwrap();
    let [floor, all] = expected.memory;
    // What the process itself takes differs a little from run to run.
    let budget = floor.midpoint(all) + attack.random.below(((all - floor) / 8) as usize) as u64;
    let when = attack.random.pick(&["on", "auto", "off"]);
    let more = attack
        .random
        .pick(&["", "--draft ngram", "--threads 1", "--temperature 0"]);
    let args = format!("{RUN} --memory {budget} --look-ahead {when} {more}");
    attack.damage.clone_from(&args);
    for _ in 0..=attack.random.below(3) {
        let mut child = attack.command(&args).spawn().unwrap();
        std::thread::sleep(expected.took * attack.random.below(1100) as u32 / 1000);
        let _ = child.kill();
        let _ = child.wait();
        attack.count("kills");
        let said = fs::read(attack.scratch.path("stdout")).unwrap();
        if !expected.text.starts_with(&said) {
            return Err("another text before it was killed".to_owned());
        }
    }
    attack.run(&args, &[0])?;
    if fs::read(attack.scratch.path("stdout")).unwrap() != expected.text {
        return Err("another text after it was killed".to_owned());
    }
    if fs::read(attack.scratch.path("kept")).unwrap() != expected.kept {
        return Err("another session than when nothing disturbs".to_owned());
    }
    attack.run("inspect --trace trace --json", &[0])?;
    let found = fs::read(attack.scratch.path("stdout")).unwrap();
    let found: Value = serde_json::from_slice(&found).map_err(|e| e.to_string())?;
    if found["recorded"]["tokens"]
        .as_u64()
        .is_none_or(|tokens| tokens < 39)
    {
        return Err(format!("a trace of another run: {found}"));
    }
    let mut left: Vec<_> = fs::read_dir(attack.scratch.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    if left != ["ckpt", "kept", "stderr", "stdout", "trace"] {
        return Err(format!("left behind: {left:?}"));
    }
    Ok(())
}

#[test]
fn killed_runs_say_the_same_and_leave_nothing() {
    Campaign::new("streams", 4).run(killed);
}
