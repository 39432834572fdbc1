//! Parts of conversions that were mistaken, damaged or made up: each set is refused in one line, and nothing is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};
use shardwright_testing::{copy_dir, digest};

use crate::harness::Scratch;

/// The parts of a bundle of the trained fixture.
const BOTH: &str = "out.part-1-of-2 out.part-2-of-2";

/// Parts made of the same model in other ways, by the options that made them.
const OTHERS: [(&str, &str); 8] = [
    ("recipe", "--recipe q3"),
    ("bits", "--bits 4 --group-size 32"),
    ("method", "--bits 4 --method minmax"),
    ("scales", "--bits 4 --scale-dtype bf16"),
    ("kept", "--bits 4 --set router=keep"),
    ("aligned", "--bits 4 --align 4KiB"),
    ("excerpt", "--bits 4 --layers 0..2"),
    ("known", "--bits 4 --statistics stats"),
];

/// Both parts; the second one made in other ways, too; and those of three.
fn workshop() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    let text = "ckpt/tokenizer_config.json";
    let window = "--calibration-window 16 --calibration-tokens 64";
    scratch.ok(&format!("calibrate ckpt {text} -o stats {window}"));
    for part in ["1/2", "2/2", "1/3", "2/3", "3/3"] {
        scratch.ok(&format!("convert ckpt -o out --bits 4 --part {part}"));
    }
    for (name, options) in OTHERS {
        scratch.ok(&format!("convert ckpt -o {name} {options} --part 2/2"));
    }
    copy_dir(&scratch.path("ckpt"), &scratch.path("tuned"));
    scratch.edit_tensors("tuned/model.safetensors", |tensors| {
        // Of every tensor a part looks at some bytes, whoever makes it.
        let range = tensors.range("model.layers.1.self_attn.q_proj.weight");
        tensors.data[range].fill(1);
    });
    copy_dir(&scratch.path("ckpt"), &scratch.path("spoken"));
    scratch.edit_json("spoken/generation_config.json", |config| {
        drop(config.insert("top_k".into(), json!(7)));
    });
    copy_dir(&scratch.path("ckpt"), &scratch.path("roped"));
    scratch.edit_json("roped/config.json", |config| {
        drop(config.insert("rope_theta".into(), json!(77777.0)));
    });
    for name in ["tuned", "roped"] {
        scratch.ok(&format!("convert {name} -o {name} --bits 4 --part 2/2"));
    }
    // The first part has the copies.
    scratch.ok("convert spoken -o spoken --bits 4 --part 1/2");
    scratch.ok("convert ckpt -o whole --bits 4");
    scratch.stopped("convert ckpt -o stopped --bits 4 --part 2/2", "2,kill");
    scratch
}

/// Changes the lines of a part's ledger, and makes the hash of all of them right again.
fn ledger(scratch: &Scratch, part: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let path = scratch.path(&format!("{part}/ledger.jsonl"));
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    change(&mut lines);
    fs::write(path, sealed(&lines)).unwrap();
}

/// Lines of JSON, the last of which names the hash of all.
fn sealed(lines: &[Value]) -> String {
    let mut text: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    let Some(mut last) = lines
        .last()
        .cloned()
        .filter(|last| !last["files"].is_null())
    else {
        return text.concat();
    };
    text.pop();
    let zeros = "0".repeat(64);
    last["blake3"] = json!(zeros);
    let last = format!("{last}\n");
    let own = blake3::hash(last.as_bytes());
    let mut all = blake3::Hasher::new();
    all.update(text.concat().as_bytes()).update(own.as_bytes());
    text.concat() + &last.replacen(&zeros, all.finalize().to_hex().as_str(), 1)
}

/// Changes a JSON file of a part, and makes its hash in the part's ledger right again.
fn book(scratch: &Scratch, part: &str, name: &str, change: impl FnOnce(&mut Value)) {
    let path = scratch.path(&format!("{part}/{name}"));
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    let mut text = serde_json::to_string_pretty(&value).unwrap() + "\n";
    if !value["blake3"].is_null() {
        let (old, zeros) = (value["blake3"].as_str().unwrap(), "0".repeat(64));
        text = text.replacen(old, &zeros, 1);
        let hash = blake3::hash(text.as_bytes()).to_hex();
        text = text.replacen(&zeros, hash.as_str(), 1);
    }
    fs::write(path, &text).unwrap();
    let hash = json!(blake3::hash(text.as_bytes()).to_hex().as_str());
    ledger(scratch, part, |lines| match name {
        "plan.json" => lines[0]["part"]["plan"] = hash,
        _ => lines[0]["plan"] = hash,
    });
}

/// The same of both parts, as whoever made them all up would.
fn books(scratch: &Scratch, name: &str, change: impl Fn(&mut Value)) {
    for part in BOTH.split(' ') {
        book(scratch, part, name, &change);
    }
}

type Change = fn(&Scratch);

/// What is done, what is merged where that is not both parts, and what the refusal says.
const CASES: &[(&str, Change, &str)] = &[
    // Parts of other conversions.
    ("", |s| other(s, "recipe"), "made with another recipe (`q3`"),
    ("", |s| other(s, "bits"), "made with another recipe"),
    ("", |s| other(s, "method"), "made with another recipe"),
    ("", |s| other(s, "scales"), "made with another recipe"),
    ("", |s| other(s, "kept"), "made with another recipe"),
    ("", |s| other(s, "aligned"), "made with another alignment"),
    ("", |s| other(s, "excerpt"), "cannot merge: it was made with another"),
    ("", |s| other(s, "known"), "made with another calibration"),
    ("", |s| other(s, "tuned"), "made with another checkpoint: `model.safetensors` differs"),
    ("", |s| other(s, "roped"), "made with another checkpoint"),
    ("spoken.part-1-of-2 out.part-2-of-2", |_| (), "made with another checkpoint"),
    (
        "out.part-1-of-2 out.part-2-of-3",
        |_| (),
        "it is one of 3 parts, in out.part-1-of-2 there are 2",
    ),
    // Not all of them, some twice, things that are none.
    ("out.part-1-of-2", |_| (), "part 2 of 2 is missing"),
    ("out.part-1-of-3 out.part-3-of-3", |_| (), "part 2 of 3 is missing"),
    ("out.part-3-of-3", |_| (), "parts 1, 2 of 3 are missing"),
    ("out.part-1-of-2 out.part-1-of-2", |_| (), "part 1 of 2 is given twice"),
    (
        "out.part-1-of-2 again",
        |s| copy_dir(&s.path("out.part-1-of-2"), &s.path("again")),
        "part 1 of 2 is given twice",
    ),
    (
        "out.part-1-of-2 link",
        |s| symlink(s.path("out.part-1-of-2"), s.path("link")).unwrap(),
        "given twice",
    ),
    ("out.part-1-of-2 ckpt", |_| (), "is no part that `convert --part` made"),
    ("out.part-1-of-2 whole", |_| (), "is no part that `convert --part` made"),
    ("out.part-1-of-2 nowhere", |_| (), "is no part that `convert --part` made"),
    ("out.part-1-of-2 stats", |_| (), "is no part that `convert --part` made"),
    ("out.part-1-of-2 out.part-2-of-2/bundle", |_| (), "is no part that `convert --part` made"),
    ("out.part-1-of-2 stopped.part-2-of-2.partial", |_| (), "part 2 of 2 is not finished"),
    // Files that are not what was written.
    ("", |s| flip(s, "bundle/dense-000.bin", 4242), "dense-000.bin: damaged: expected hash "),
    ("", |s| flip(s, "bundle/experts/layer-000.bin", 0), "layer-000.bin: damaged: expected hash "),
    ("", |s| flip(s, "plan.json", 100), "plan.json: damaged: expected hash "),
    (
        "",
        |s| flip(s, "planned-manifest.json", 200),
        "planned-manifest.json: damaged: expected hash ",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/bundle/dense-000.bin", |b| b.truncate(99)),
        "expected a file of ",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/bundle/dense-000.bin", |b| b.push(0)),
        "expected a file of ",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/bundle/dense-000.bin", Vec::clear),
        "expected a file of ",
    ),
    ("", |s| gone(s, "bundle/dense-000.bin"), "dense-000.bin: No such file"),
    ("", |s| gone(s, "plan.json"), "plan.json: No such file"),
    ("", |s| gone(s, "planned-manifest.json"), "planned-manifest.json: No such file"),
    ("", |s| gone(s, "ledger.jsonl"), "is no part that `convert --part` made"),
    ("", |s| fs::remove_dir_all(s.path("out.part-2-of-2/bundle")).unwrap(), "is no part"),
    (
        "",
        |s| swap(s, "bundle/experts/layer-000.bin", "bundle/experts/layer-002.bin"),
        "damaged: expected hash ",
    ),
    ("", |s| swap(s, "plan.json", "planned-manifest.json"), "damaged: expected hash "),
    // What is beside them, and what leads elsewhere.
    (
        "",
        |s| fs::write(s.path("out.part-2-of-2/bundle/stranger"), "x").unwrap(),
        "stranger: is no file of the bundle",
    ),
    (
        "",
        |s| fs::write(s.path("out.part-2-of-2/bundle/experts/layer-001.bin"), "x").unwrap(),
        "layer-001.bin: is no file",
    ),
    (
        "",
        |s| fs::create_dir(s.path("out.part-2-of-2/bundle/folder")).unwrap(),
        "folder: is no file of the bundle",
    ),
    ("", |s| linked(s, "bundle/dense-000.bin"), "dense-000.bin: is no file of the bundle"),
    ("", |s| linked(s, "bundle/experts"), "experts: is no file of the bundle"),
    ("", |s| linked(s, "bundle"), "is no part that `convert --part` made"),
    ("", |s| pipe(s, "bundle/dense-000.bin"), "dense-000.bin: is no file of the bundle"),
    ("", |s| pipe(s, "ledger.jsonl"), "is no part that `convert --part` made"),
    ("", |s| pipe(s, "plan.json"), "plan.json: expected a regular file"),
    // Ledgers that were damaged.
    (
        "",
        |s| fs::write(s.path("out.part-2-of-2/ledger.jsonl"), "").unwrap(),
        "its first line is cut",
    ),
    (
        "",
        |s| fs::write(s.path("out.part-2-of-2/ledger.jsonl"), [0xff; 99]).unwrap(),
        "its first line is cut",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/ledger.jsonl", |b| b.truncate(b.len() - 1)),
        "is not finished",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/ledger.jsonl", |b| b.truncate(b.len() / 2)),
        "is not finished",
    ),
    (
        "",
        |s| s.edit_bytes("out.part-2-of-2/ledger.jsonl", |b| b.extend(b"more\n")),
        "damaged: its lines are not",
    ),
    ("", |s| digit(s, "\"sum_sq_error\":"), "damaged: its lines are not"),
    ("", |s| digit(s, "\"max_abs_error\":"), "damaged: its lines are not"),
    ("", |s| digit(s, "\"values\":[\""), "damaged: its lines are not"),
    (
        "out.part-1-of-2 out.part-2-of-2",
        |s| {
            let first = s.path("out.part-1-of-2/ledger.jsonl");
            fs::copy(first, s.path("out.part-2-of-2/ledger.jsonl")).unwrap();
        },
        "part 1 of 2 is given twice",
    ),
    // Ledgers that were made up, their hashes right.
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["part"]["part"] = json!([1, 2])),
        "part 1 of 2 is given twice",
    ),
    ("", |s| ledger(s, TWO, |l| l[0]["part"]["part"] = json!([3, 2])), "there is no part 3 of 2"),
    ("", |s| ledger(s, TWO, |l| l[0]["part"]["part"] = json!([0, 2])), "there is no part 0 of 2"),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["part"]["part"] = json!([2, 4_294_967_295_u32])),
        "there is no part 2 of 4294967295",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["part"]["part"] = json!([2, 1_000_000])),
        "it is one of 1000000 parts",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["part"] = json!(null)),
        "is a whole conversion that was not finished",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["generator"] = json!("shardwright 9.9.9")),
        "it was made by shardwright 9.9.9",
    ),
    ("", |s| ledger(s, TWO, |l| l[0]["ledger"] = json!(4)), "expected a ledger of version "),
    ("", |s| ledger(s, TWO, |l| l[0]["surprise"] = json!(1)), "unknown field `surprise`"),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["plan"] = json!("0".repeat(64))),
        "cannot merge: it was made with another",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["source_block"] = json!(1)),
        "cannot merge: it was made with another",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[0]["files"][0]["size"] = json!(1)),
        "made with another checkpoint",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| l[1]["blake3"] = json!("0".repeat(64))),
        "is not the one that the ledger names",
    ),
    ("", |s| ledger(s, TWO, |l| drop(l.remove(1))), "its ledger has no "),
    ("", |s| ledger(s, TWO, |l| l[1]["stats"] = json!([])), "its ledger has no "),
    ("", |s| ledger(s, TWO, |l| drop(l.pop())), "part 2 of 2 is not finished"),
    ("", |s| ledger(s, TWO, |l| closing(l)["files"] = json!({})), "its ledger has no "),
    (
        "",
        |s| ledger(s, TWO, |l| closing(l)["files"]["dense-000.bin"] = json!("0".repeat(64))),
        "damaged: expected hash ",
    ),
    ("", |s| ledger(s, TWO, |l| closing(l)["blocks"] = json!([])), "no part answers for all of "),
    (
        "",
        |s| ledger(s, TWO, |l| closing(l)["blocks"][0]["first"] = json!(u64::MAX)),
        "no part answers for all of ",
    ),
    (
        "",
        |s| ledger(s, TWO, |l| closing(l)["blocks"][0]["file"] = json!(7)),
        "no part answers for all of ",
    ),
    // Plans that were made up for one part, and for both.
    (
        "",
        |s| book(s, TWO, "plan.json", |plan| plan["more"] = json!(1)),
        "cannot merge: it was made with another",
    ),
    (
        "",
        |s| book(s, TWO, "planned-manifest.json", |m| m["alignment"] = json!(4096)),
        "cannot merge: it was made with another",
    ),
    (
        "",
        |s| books(s, "planned-manifest.json", |m| m["files"][0]["path"] = json!("../stolen")),
        "../stolen",
    ),
    (
        "",
        |s| books(s, "planned-manifest.json", |m| m["dense"][0]["offset"] = json!(1)),
        "planned-manifest.json: ",
    ),
    (
        "",
        |s| books(s, "planned-manifest.json", |m| m["dense"][0]["len"] = json!(u64::MAX)),
        "planned-manifest.json: ",
    ),
    (
        "",
        |s| books(s, "planned-manifest.json", |m| m["model"]["layers"] = json!([])),
        "planned-manifest.json: ",
    ),
    (
        "",
        |s| {
            books(s, "planned-manifest.json", |m| {
                drop(m.as_object_mut().unwrap().shift_remove("experts"));
            });
        },
        "planned-manifest.json: ",
    ),
    ("", |s| books(s, "plan.json", |plan| *plan = json!({})), "plan.json: "),
    ("", |s| books(s, "plan.json", |plan| *plan = json!([])), "plan.json: "),
    // Where the bundle is to be.
    ("", |s| fs::create_dir(s.path("merged")).unwrap(), "merged: already exists"),
    ("", |s| fs::write(s.path("merged"), "").unwrap(), "merged: already exists"),
    ("", |s| symlink("nowhere", s.path("merged")).unwrap(), "merged: already exists"),
    (
        "",
        |s| fs::write(s.path("merged.partial"), "").unwrap(),
        "merged.partial: expected a directory",
    ),
    (
        "",
        |s| symlink("ckpt", s.path("merged.partial")).unwrap(),
        "merged.partial: expected a directory",
    ),
];

const TWO: &str = "out.part-2-of-2";

fn other(scratch: &Scratch, name: &str) {
    fs::remove_dir_all(scratch.path(TWO)).unwrap();
    copy_dir(&scratch.path(&format!("{name}.part-2-of-2")), &scratch.path(TWO));
}

fn flip(scratch: &Scratch, name: &str, at: usize) {
    scratch.edit_bytes(&format!("{TWO}/{name}"), |bytes| bytes[at] ^= 4);
}

fn gone(scratch: &Scratch, name: &str) {
    fs::remove_file(scratch.path(&format!("{TWO}/{name}"))).unwrap();
}

fn swap(scratch: &Scratch, a: &str, b: &str) {
    let [a, b] = [a, b].map(|name| scratch.path(&format!("{TWO}/{name}")));
    let held = scratch.path("held");
    fs::rename(&a, &held).unwrap();
    fs::rename(&b, a).unwrap();
    fs::rename(held, b).unwrap();
}

/// Puts a link in the place of a file or folder, to where that now is.
fn linked(scratch: &Scratch, name: &str) {
    let path = scratch.path(&format!("{TWO}/{name}"));
    fs::rename(&path, scratch.path("elsewhere")).unwrap();
    symlink(scratch.path("elsewhere"), path).unwrap();
}

fn pipe(scratch: &Scratch, name: &str) {
    gone(scratch, name);
    let made = Command::new("mkfifo")
        .arg(scratch.path(&format!("{TWO}/{name}")))
        .status();
    assert!(made.unwrap().success());
}

/// Another digit behind the first place where the ledger has such a name.
fn digit(scratch: &Scratch, name: &str) {
    scratch.edit_bytes(&format!("{TWO}/ledger.jsonl"), |bytes| {
        let at = bytes
            .windows(name.len())
            .position(|found| found == name.as_bytes())
            .unwrap();
        let at = (at + name.len()..bytes.len())
            .find(|at| matches!(bytes[*at], b'1'..=b'8'))
            .unwrap();
        bytes[at] ^= if bytes[at] == b'8' { 1 } else { 3 };
    });
}

fn closing(lines: &mut [Value]) -> &mut Value {
    lines.last_mut().unwrap()
}

/// Copies of both parts, and links to all else in the workshop.
fn desk(workshop: &Scratch) -> Scratch {
    let scratch = Scratch::new();
    for entry in fs::read_dir(workshop.path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (from, to) = (workshop.path(&name), scratch.path(&name));
        if BOTH.split(' ').any(|part| part == name) {
            copy_dir(&from, &to);
        } else {
            symlink(from, to).unwrap();
        }
    }
    scratch
}

#[test]
fn hostile_merges_are_refused() {
    assert!(CASES.len() >= 50, "{}", CASES.len());
    let workshop = workshop();
    let mut wrong = Vec::new();
    for (at, (merged, change, expected)) in CASES.iter().enumerate() {
        let scratch = desk(&workshop);
        change(&scratch);
        let left = |name: &str| {
            scratch
                .path(name)
                .symlink_metadata()
                .map(|data| data.file_type())
                .ok()
        };
        let before = ["merged", "merged.partial"].map(left);
        let parts = if merged.is_empty() { BOTH } else { merged };
        let ran = scratch.run(&format!("merge {parts} -o merged"));
        let refused = ran.code == Some(2)
            && ran.stdout.is_empty()
            && ran.stderr.lines().count() == 1
            && ran.stderr.starts_with("error: ")
            && ran.stderr.contains(expected);
        let clean =
            ["merged", "merged.partial"].map(left) == before && !scratch.path("stolen").exists();
        if !(refused && clean) {
            wrong.push(format!("case {at}, expected `{expected}`, clean {clean}: {ran:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nobody's hand in it.
    workshop.ok(&format!("merge {BOTH} -o merged"));
    assert_eq!(digest(&workshop.path("merged")), digest(&workshop.path("whole")));
}
