//! Parts of a verification: together the report that one run gives, to the byte, and nothing else is taken for
//! them.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{copy_dir, fixture};

use crate::harness::Scratch;

/// The fixture and the evaluation text.
fn scratch() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    scratch
}

/// Makes every part of `out`.
fn make_parts(scratch: &Scratch, out: &str, count: usize, options: &str) {
    for part in 1..=count {
        let threads = 1 + part % 2;
        scratch.run(&format!(
            "verify {options} --part {part}/{count} -o {out} --threads {threads} -q"
        ));
    }
}

/// The parts of `out`.
fn parts(out: &str, count: usize) -> String {
    let names: Vec<_> = (1..=count)
        .map(|part| format!("{out}.part-{part}-of-{count}"))
        .collect();
    names.join(" ")
}

/// What a report says as text, as JSON without what depends on the run, as a page; and the exit code.
fn reports(scratch: &Scratch, command: &str) -> (Option<i32>, String, Value, String) {
    let ran = scratch.run(&format!("{command} --quiet"));
    let json = scratch.run(&format!("{command} --html page.html --json"));
    assert_eq!(ran.code, json.code, "{json:?}");
    let mut value: Value =
        serde_json::from_str(&json.stdout).unwrap_or_else(|_| panic!("{json:?}"));
    for own in ["seconds", "peak_memory_bytes"] {
        value.as_object_mut().unwrap().shift_remove(own);
    }
    (ran.code, ran.stdout, value, fs::read_to_string(scratch.path("page.html")).unwrap())
}

#[track_caller]
fn equal(scratch: &Scratch, name: &str, options: &str, counts: &[usize], code: i32) -> Value {
    let whole = reports(scratch, &format!("verify {options}"));
    assert_eq!(whole.0, Some(code), "{}", whole.1);
    for &count in counts {
        let out = format!("{name}-{count}");
        make_parts(scratch, &out, count, options);
        let mut parts: Vec<_> = parts(&out, count).split(' ').map(str::to_owned).collect();
        // In whatever order.
        parts.reverse();
        let merged = reports(scratch, &format!("verify --merge {}", parts.join(" ")));
        assert!(merged == whole, "{out}: {}\n{}", merged.1, whole.1);
    }
    whole.2
}

#[test]
fn any_number_of_parts_gives_the_report_of_one_run() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o q4 --bits 4");
    scratch.ok("convert ckpt -o q2 --bits 2");
    // Windows of which 64 tokens are no share; a noise floor of two of them, which two parts divide.
    let cut = "--against ckpt --text text.txt --window 40 --windows 20";
    let one = format!("q4 {cut} --max-kld 0.00001");
    let report = equal(&scratch, "one", &one, &[1, 2, 3, 20], 1);
    assert_eq!(report["divergence"]["noise_floor"]["windows"], json!(2));
    let several = format!("q4 q2 ckpt {cut} --cache-type-k q8_0 --skip-checkpoint-hashes");
    let report = equal(&scratch, "several", &several, &[2], 0);
    assert!(
        report["candidates"][1]["cache"]["candidate"]["kld_mean"]
            .as_f64()
            .unwrap()
            > 0.0
    );
}

#[test]
fn what_is_found_in_one_run_is_found_in_parts() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o q4 --bits 4");
    // Weights so large that values overflow in the second layer; a bundle that is damaged.
    scratch.ok("export q4 --to hf -o large");
    scratch.edit_tensors("large/model.safetensors", |tensors| {
        let range = tensors.range("model.layers.1.self_attn.o_proj.weight");
        tensors.data[range].fill(0x7f);
    });
    scratch.ok("convert ckpt -o broken --bits 4");
    scratch.edit_bytes("broken/dense-000.bin", |bytes| bytes[0] ^= 1);
    let options = "large broken --against ckpt --text text.txt --windows 3";
    let report = equal(&scratch, "found", options, &[1, 2, 3], 1);
    let found = report["candidates"][0]["findings"].to_string();
    assert!(found.contains("large: layer 1: its output is not finite at token 0, "), "{found}");
    // Where nothing can be compared nothing is predicted.
    equal(&scratch, "nothing", "broken --against ckpt --text text.txt", &[2], 1);
}

#[test]
fn a_part_says_what_it_is() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o q4 --bits 4");
    let verify = "verify q4 --against ckpt --text text.txt --windows 4";
    let report = scratch.json(&format!("{verify} --part 2/3 -o out"));
    let told = ["part", "parts", "windows", "tokens"].map(|name| report[name].clone());
    assert_eq!(told, [json!(2), json!(3), json!([1, 2]), json!(255)]);
    assert_eq!(report["file"], json!("out.part-2-of-3"));
    let again = "error: out.part-2-of-3: already exists; remove it or choose another name";
    scratch.refused(&format!("{verify} --part 2/3 -o out"), again);
    scratch.refused(
        &format!("{verify} --part 2/5 -o out"),
        "error: --part: expected at most 4 parts, one per window, found 5",
    );
    let mut job = scratch.command(&format!("{verify} --part auto/3 -o out"));
    assert!(
        job.env("JOB_COMPLETION_INDEX", "0")
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(scratch.path("out.part-1-of-3").is_file());
    // The same part of the same inputs is the same file.
    scratch.ok(&format!("{verify} --part 2/3 -o again --threads 1"));
    let file = |name: &str| fs::read(scratch.path(name)).unwrap();
    assert!(file("again.part-2-of-3") == file("out.part-2-of-3"));
    for (options, told) in [
        ("--part 1/2", "--output"),
        ("-o out", "--part"),
        ("--part 1/2 -o out --html page.html", "--html"),
        ("--part 1/2 -o out --reproduce", "--reproduce"),
        ("--merge out.part-1-of-3", "--merge"),
    ] {
        let ran = scratch.run(&format!("{verify} {options}"));
        assert!(ran.code == Some(2) && ran.stderr.contains(told), "{options}: {ran:?}");
    }
}

/// Merging is refused with this message.
#[track_caller]
fn refuses(scratch: &Scratch, parts: &str, expected: &str) {
    let ran = scratch.run(&format!("verify --merge {parts} --html page.html"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    assert!(ran.stderr.starts_with(&format!("error: {expected}")), "{expected}\n{}", ran.stderr);
    assert!(!scratch.path("page.html").exists());
}

#[test]
fn parts_of_something_else_are_refused() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o q4 --bits 4");
    let cut = "--against ckpt --text text.txt --windows 4";
    make_parts(&scratch, "out", 2, &format!("q4 {cut}"));
    let (one, two) = ("out.part-1-of-2", "out.part-2-of-2");
    let of_another = |name: &str, options: &str, place: &str| {
        scratch.ok(&format!("verify {options} --part 2/2 -o {name} -q"));
        let start = format!("{name}.part-2-of-2: cannot merge: it is of another verification: ");
        let part = format!("{one} {name}.part-2-of-2");
        refuses(&scratch, &part, &format!("{start}{place}: expected "));
    };
    of_another("cut", &format!("q4 {cut} --window 64"), "inputs.windows.window");
    of_another("limit", &format!("q4 {cut} --max-kld 3"), "inputs.thresholds.max_kld");
    of_another("cache", &format!("q4 {cut} --cache-type-v q4_0"), "inputs.cache.v");
    let unhashed = format!("q4 {cut} --skip-checkpoint-hashes");
    of_another("unhashed", &unhashed, "inputs.original.files");
    of_another("source", &format!("q4 {cut} --other-source"), "inputs.other_source");
    fs::create_dir(scratch.path("other")).unwrap();
    scratch.ok("convert ckpt -o other/q4 --bits 4 --method minmax");
    of_another("candidate", &format!("other/q4 {cut}"), "inputs.candidates[0].identity");
    of_another("more", &format!("q4 ckpt {cut}"), "inputs.candidates");
    copy_dir(&scratch.path("q4"), &scratch.path("same"));
    of_another("same", &format!("same {cut}"), "report.candidates[0].name");
    fs::write(scratch.path("text2.txt"), fs::read(fixture("text/evaluation.txt")).unwrap())
        .unwrap();
    let renamed = cut.replace("text.txt", "text2.txt");
    of_another("renamed", &format!("q4 {renamed}"), "text.text.name");
    scratch.edit_bytes("text2.txt", |bytes| bytes.push(b'\n'));
    fs::rename(scratch.path("text2.txt"), scratch.path("text.txt")).unwrap();
    of_another("text", &format!("q4 {cut}"), "text.text.blake3");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    // The same names and shapes, one other weight.
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        let at = tensors
            .range("model.layers.1.self_attn.q_proj.weight")
            .start;
        tensors.data[at] ^= 1;
    });
    let tuned = format!("q4 {cut} -q --part 2/2 -o tuned");
    scratch.ok(&format!("verify {tuned}"));
    let place = "tuned.part-2-of-2: cannot merge: it is of another verification: ";
    refuses(
        &scratch,
        &format!("{one} tuned.part-2-of-2"),
        &format!("{place}inputs.original.files[0].blake3"),
    );

    refuses(&scratch, one, &format!("{one}: cannot merge: part 2 of 2 is missing"));
    let twice = format!("{two}: cannot merge: part 2 of 2 is given twice: {two} is one, too");
    refuses(&scratch, &format!("{two} {two}"), &twice);
    refuses(&scratch, "nowhere", "nowhere: No such file");
    refuses(&scratch, "q4", "q4: expected a regular file");
    refuses(&scratch, "ckpt/config.json", "ckpt/config.json: expected what `verify --part` writes");
}

/// Changes a part's file, its hash made right again.
fn resign(scratch: &Scratch, name: &str, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(scratch.path(name)).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    change(&mut value);
    let zeros = "0".repeat(64);
    value["blake3"] = json!(zeros);
    let text = value.to_string() + "\n";
    let hash = blake3::hash(text.as_bytes()).to_hex();
    fs::write(scratch.path(name), text.replacen(&zeros, hash.as_str(), 1)).unwrap();
}

#[test]
fn damaged_parts_are_refused() {
    let scratch = scratch();
    scratch.ok("convert ckpt -o q4 --bits 4");
    make_parts(&scratch, "out", 2, "q4 --against ckpt --text text.txt --windows 4");
    let two = "out.part-2-of-2";
    let sound = fs::read(scratch.path(two)).unwrap();
    let refused = |expected: &str| {
        refuses(&scratch, &parts("out", 2), &format!("{two}: {expected}"));
        fs::write(scratch.path(two), &sound).unwrap();
    };
    for at in [sound.len() / 3, sound.len() / 2, sound.len() - 3] {
        // Another digit.
        scratch.edit_bytes(two, |bytes| {
            let place = (at..bytes.len())
                .find(|at| bytes[*at].is_ascii_digit())
                .unwrap_or(at);
            bytes[place] ^= 1;
        });
        refused("");
    }
    scratch.edit_bytes(two, |bytes| {
        let at = bytes.windows(9).position(|w| w == b"\"scores\":").unwrap() + 14;
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
    });
    refused("damaged: hash: expected ");
    scratch.edit_bytes(two, |bytes| bytes.truncate(bytes.len() / 2));
    refused("expected what `verify --part` writes: EOF");
    fs::write(scratch.path(two), "").unwrap();
    refused("expected what `verify --part` writes");
    let resigned = |change: &dyn Fn(&mut Value), expected: &str| {
        resign(&scratch, two, |value| change(value));
        refused(expected);
    };
    let scores = "/predictions/measured/candidates/0/whole/scores";
    let not_whole = "its figures are not those of part 2 of 2";
    resigned(&|v| drop(v.pointer_mut(scores).unwrap().as_array_mut().unwrap().pop()), not_whole);
    resigned(&|v| v["predictions"]["measured"]["candidates"] = json!([]), not_whole);
    resigned(
        &|v| v["predictions"]["measured"]["floor"] = json!([[1.0, 1.0, 0.0, true, 1.0, 0.5]]),
        not_whole,
    );
    resigned(&|v| v["predictions"]["asked"]["parties"][0]["candidate"] = json!(1), not_whole);
    resigned(
        &|v| v["predictions"]["asked"]["text"]["tokens"] = json!(u64::MAX),
        "cannot merge: it is of another verification: text.text.tokens",
    );
    resigned(&|v| v["predictions"]["asked"]["cut"]["window"] = json!(0), not_whole);
    resigned(&|v| v["report"]["original"] = json!(null), not_whole);
    resigned(&|v| v["part"] = json!([3, 2]), "there is no part 3 of 2");
    resigned(&|v| v["part"] = json!([2, 3]), not_whole.replace("2 of 2", "2 of 3").as_str());
    resigned(&|v| v["extra"] = json!(1), "unknown field `extra`");
    resigned(
        &|v| v["generator"] = json!("shardwright 9.9.9"),
        "it was made by another version: expected ",
    );
    resigned(&|v| v["verification"] = json!(2), "it was made by another version: expected ");
    resigned(
        &|v| v["predictions"] = json!(null),
        "cannot merge: it is of another verification: text: expected ",
    );
    resigned(
        &|v| *v.pointer_mut(scores).unwrap().pointer_mut("/0/0").unwrap() = json!(1),
        "its values are not written as ",
    );
    scratch.ok(&format!("verify --merge {}", parts("out", 2)));
}
