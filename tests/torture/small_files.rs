//! Small files from strangers, damaged: recipes, tables, statistics, reports, parts of verifications and of
//! conversions, sessions, traces, packed bundles. Each has a command that reads it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;

use shardwright_testing::{copy_dir, fixture};

use super::campaign::{Attack, Campaign};
use crate::harness::Scratch;

/// What is damaged, and what reads it; `merge` and `unpack` make something, the others make nothing.
const FILES: [(&str, &str); 12] = [
    ("recipe.json", "plan ckpt --recipe recipe.json"),
    ("table.json", "plan ckpt --arch table.json"),
    ("statistics", "plan ckpt --bits 3 --statistics statistics"),
    ("imatrix.gguf", "plan ckpt --bits 3 --statistics imatrix.gguf"),
    ("imatrix.dat", "plan ckpt --bits 3 --statistics imatrix.dat"),
    ("report.json", "compare whole.json report.json"),
    ("v.part-1-of-2", "verify --merge v.part-1-of-2 v.part-2-of-2 --html page.html -q"),
    ("out.part-2-of-2/ledger.jsonl", "merge out.part-1-of-2 out.part-2-of-2 -o made"),
    ("out.part-2-of-2/planned-manifest.json", "merge out.part-1-of-2 out.part-2-of-2 -o made"),
    ("session", "run q4 --prompt This -n 2 -q --threads 1 --session session"),
    ("trace", "inspect --trace trace"),
    ("whole.pack", "unpack whole.pack -o made -q"),
];

/// All of them as they should be.
fn workshop() -> &'static Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
        for name in ["imatrix.gguf", "imatrix.dat"] {
            let from = name.replace("imatrix", "fixture-2m");
            fs::copy(fixture("imatrix").join(from), scratch.path(name)).unwrap();
        }
        for (name, args) in
            [("recipe.json", "recipes moe-q4"), ("table.json", "arch show qwen3_moe")]
        {
            fs::write(scratch.path(name), scratch.ok(args).stdout).unwrap();
        }
        let window = "--calibration-window 16 --calibration-tokens 64";
        scratch.ok(&format!("calibrate ckpt text.txt -o statistics {window}"));
        scratch.ok("convert ckpt -o q4 --bits 4");
        let verify = "verify q4 --against ckpt --text text.txt --windows 2";
        fs::write(scratch.path("whole.json"), scratch.json(verify).to_string()).unwrap();
        fs::copy(scratch.path("whole.json"), scratch.path("report.json")).unwrap();
        for part in 1..=2 {
            scratch.ok(&format!("{verify} --part {part}/2 -o v"));
            scratch.ok(&format!("convert ckpt -o out --bits 4 --part {part}/2"));
        }
        scratch.ok("run q4 --prompt This -n 2 --session session --trace trace");
        scratch.ok("pack q4 -o whole.pack");
        scratch
    })
}

/// Puts right the hash of what goes before, which ends a session.
fn sign_session(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.truncate(bytes.len().saturating_sub(blake3::OUT_LEN));
    bytes.extend(*blake3::hash(&bytes).as_bytes());
    fs::write(path, bytes).unwrap();
}

fn damaged(attack: &mut Attack) -> Result<(), String> {
    let shop = workshop();
    let (name, args) = *attack.random.pick(&FILES);
    for entry in fs::read_dir(shop.path("")).unwrap() {
        let entry = entry.unwrap().file_name().into_string().unwrap();
        let (from, to) = (shop.path(&entry), attack.scratch.path(&entry));
        match name.split('/').next() == Some(entry.as_str()) {
            true if from.is_dir() => copy_dir(&from, &to),
            true => drop(fs::copy(from, to).unwrap()),
            false => symlink(from, to).unwrap(),
        }
    }
    let path = attack.scratch.path(name);
    if path.extension().is_some_and(|e| e == "json") && attack.random.below(4) != 0 {
        attack.change_json(&path);
    } else {
        attack.change_bytes(&path);
    }
    // Half of the sessions have a hash that is right: it is their own word.
    let signed = name == "session" && attack.random.below(2) == 0;
    if signed {
        sign_session(&path);
    }
    name.clone_into(&mut attack.damage);
    let same = fs::read(&path).unwrap() == fs::read(shop.path(name)).unwrap();
    let ran = attack.run(args, &[0, 2])?;
    // These name the hash of every byte.
    let hashed = match name {
        "session" => !signed,
        "whole.pack" => true,
        _ => name.starts_with("v.") || name.starts_with("out."),
    };
    if hashed && !same && ran.code == Some(0) {
        return Err("other bytes than those that were written are taken".to_owned());
    }
    if ran.code == Some(2) { attack.nothing_left("made") } else { Ok(()) }
}

#[test]
fn damaged_small_files_are_used_or_refused() {
    Campaign::new("small files", 27).run(damaged);
}
