//! Parts of a conversion: together the bundle that one run makes. `hostile_merges` has what is not taken for them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_testing::{contents, copy_dir, digest};

use crate::harness::Scratch;

const CALIBRATION: &str = "--calibration-window 16 --calibration-tokens 64";

/// The trained fixture and statistics of a text.
fn observed() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    let text = "ckpt/tokenizer_config.json";
    scratch.ok(&format!("calibrate ckpt {text} -o stats {CALIBRATION}"));
    scratch
}

/// Makes every part of `out`.
fn make_parts(scratch: &Scratch, out: &str, count: usize, options: &str) {
    for part in 1..=count {
        scratch.ok(&format!("convert ckpt -o {out} --part {part}/{count} {options}"));
    }
}

fn parts(out: &str, count: usize) -> String {
    let names: Vec<_> = (1..=count)
        .map(|part| format!("{out}.part-{part}-of-{count}"))
        .collect();
    names.join(" ")
}

#[test]
fn any_number_of_parts_makes_the_bundle_of_one_run() {
    let scratch = observed();
    // `search` for weights alone, and what looks at the inputs of every matrix.
    for (name, options) in
        [("plain", "--recipe moe-q4"), ("known", "--bits 3 --statistics stats --method gptq")]
    {
        scratch.ok(&format!("convert ckpt -o {name} {options}"));
        let whole = digest(&scratch.path(name));
        for count in [1, 2, 4, 7] {
            let out = format!("{name}-{count}");
            make_parts(&scratch, &out, count, &format!("{options} --threads {}", 1 + count % 2));
            let merged = scratch.json(&format!("merge {} -o {out}", parts(&out, count)));
            assert_eq!((&merged["parts"], &merged["copied_files"]), (&json!(count), &json!(0)));
            assert_eq!(digest(&scratch.path(&out)), whole, "{out}");
            assert!(!scratch.path(&format!("{out}.partial")).exists());
        }
    }
    scratch.ok("verify known-4 --against ckpt --reproduce all --statistics stats");
}

#[test]
fn each_file_is_made_by_one_part_and_the_bytes_are_balanced() {
    let scratch = Scratch::with("fixture-2m");
    let planned = scratch.json("plan ckpt --recipe q4");
    let mut made = Vec::new();
    let mut sizes = Vec::new();
    for part in 1..=2 {
        let report = scratch.json(&format!("convert ckpt -o out --recipe q4 --part {part}/2"));
        assert_eq!((&report["part"], &report["parts"]), (&json!(part), &json!(2)));
        made.extend(report["files"].as_array().unwrap().clone());
        sizes.push(report["bytes"].as_u64().unwrap());
    }
    made.sort_by_key(ToString::to_string);
    let planned = planned["files"].as_array().unwrap();
    // The report and the manifest are of the whole.
    let own = |path: &Value| path != "report.json" && path != "manifest.json";
    let paths = planned.iter().map(|file| file["path"].clone());
    assert_eq!(made, paths.filter(own).collect::<Vec<_>>());
    let is_shards = |path: &str| path.starts_with("dense-") || path.starts_with("experts/");
    let shards = planned
        .iter()
        .filter(|file| is_shards(file["path"].as_str().unwrap()));
    let largest = shards
        .map(|file| file["size"].as_u64().unwrap())
        .max()
        .unwrap();
    assert!(sizes[0].abs_diff(sizes[1]) <= largest, "{sizes:?} {largest}");
}

#[test]
fn every_kind_of_source_is_put_together_to_the_byte() {
    // Two checkpoint files, experts fused and transposed, and what is not the text model.
    for name in ["qwen2_moe", "qwen3_moe-fused-t", "qwen3_5_moe", "mixtral"] {
        let scratch = Scratch::with(&format!("golden/{name}"));
        scratch.ok("convert ckpt -o whole --recipe q4");
        make_parts(&scratch, "out", 3, "--recipe q4");
        scratch.ok(&format!("merge {} -o out", parts("out", 3)));
        assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("whole")), "{name}");
    }
}

#[test]
fn a_part_that_was_stopped_is_finished_by_the_same_command() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o whole");
    scratch.ok("convert ckpt -o out --part 1/2");
    let second = "convert ckpt -o out --part 2/2 --threads 1 --resume";
    for (moment, code) in [("2,kill", None), ("5", Some(130))] {
        assert_eq!(scratch.stopped(second, moment).code, code);
        assert!(!scratch.path("out.part-2-of-2").exists());
        let both = parts("out", 2);
        let error = "error: out.part-2-of-2: cannot merge: is no part that `convert --part` made";
        scratch.refused(&format!("merge {both} -o out"), error);
        let partial = scratch.run("merge out.part-1-of-2 out.part-2-of-2.partial -o out");
        let error = "error: out.part-2-of-2.partial: cannot merge: part 2 of 2 is not finished";
        assert_eq!((partial.code, partial.stderr.trim_end()), (Some(2), error));
    }
    scratch.ok(second);
    let before = contents(&scratch.path("out.part-2-of-2"));
    let again = scratch.ok(second).stdout;
    assert!(again.contains("it was complete already; nothing was written"), "{again}");
    assert!(contents(&scratch.path("out.part-2-of-2")) == before);
    let taken = "error: out.part-2-of-2: already exists; remove it or choose another name";
    scratch.refused("convert ckpt -o out --part 2/2", taken);
    scratch.ok(&format!("merge {} -o out", parts("out", 2)));
    assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("whole")));
}

#[test]
fn a_job_makes_the_part_that_its_scheduler_numbers() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.ok("convert ckpt -o whole");
    let jobs: [(&str, &[(&str, &str)]); 3] = [
        (
            "auto",
            &[
                ("SLURM_ARRAY_TASK_ID", "1"),
                ("SLURM_ARRAY_TASK_MIN", "1"),
                ("SLURM_ARRAY_TASK_COUNT", "3"),
            ],
        ),
        ("auto/3", &[("JOB_COMPLETION_INDEX", "1")]),
        ("auto", &[("AWS_BATCH_JOB_ARRAY_INDEX", "2"), ("AWS_BATCH_JOB_ARRAY_SIZE", "3")]),
    ];
    for (part, variables) in jobs {
        let mut command = scratch.command(&format!("convert ckpt -o out --part {part}"));
        assert!(
            command
                .envs(variables.iter().copied())
                .output()
                .unwrap()
                .status
                .success()
        );
    }
    scratch.ok(&format!("merge {} -o out", parts("out", 3)));
    assert_eq!(digest(&scratch.path("out")), digest(&scratch.path("whole")));
    let index =
        "error: JOB_COMPLETION_INDEX does not say how many parts there are; give --part auto/N";
    let mut command = scratch.command("convert ckpt -o out --part auto");
    let ran = command.env("JOB_COMPLETION_INDEX", "1").output().unwrap();
    assert_eq!(
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).trim_end()),
        (Some(2), index)
    );
}

#[test]
fn a_text_is_for_all_layers() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.refused(
        "convert ckpt -o out --part 1/2 --calibrate ckpt/config.json",
        "error: --part: a text goes through all layers, of which a part has some\n\
         help: `shardwright calibrate` observes it once; give its file with --statistics",
    );
}

/// Two parts of the trained fixture as `out`, and what else a test makes of them.
fn two() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    make_parts(&scratch, "out", 2, "--recipe q4");
    scratch
}

/// Merging `parts` fails with this message and leaves nothing.
#[track_caller]
fn refuses(scratch: &Scratch, parts: &str, expected: &str) {
    scratch.refused(&format!("merge {parts} -o merged"), &format!("error: {expected}"));
    for left in ["merged", "merged.partial"] {
        assert!(scratch.path(left).symlink_metadata().is_err(), "{left}");
    }
}

#[test]
fn parts_of_something_else_are_refused() {
    let scratch = two();
    let (one, other) = ("out.part-1-of-2", "out.part-2-of-2");
    let made = |out: &str, options: &str| {
        scratch.ok(&format!("convert ckpt -o {out} --part 2/2 {options}"));
        format!("{one} {out}.part-2-of-2")
    };
    let cannot = |out: &str, why: &str| format!("{out}.part-2-of-2: cannot merge: {why}");
    let recipe = made("q3", "--recipe q3");
    let why = "it was made with another recipe (`q3`, in out.part-1-of-2 `q4`)";
    refuses(&scratch, &recipe, &cannot("q3", why));
    let alignment = made("aligned", "--recipe q4 --align 4KiB");
    refuses(&scratch, &alignment, &cannot("aligned", "it was made with another alignment"));
    let text = "ckpt/tokenizer_config.json";
    scratch.ok(&format!("calibrate ckpt {text} -o stats {CALIBRATION}"));
    let known = made("known", "--recipe q4 --statistics stats");
    refuses(&scratch, &known, &cannot("known", "it was made with another calibration"));
    // The same shapes, other weights.
    let name = "model.layers.1.self_attn.q_proj.weight";
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        let range = tensors.range(name);
        tensors.data[range].fill(1);
    });
    let tuned = made("tuned", "--recipe q4");
    let why = "it was made with another checkpoint: `model.safetensors` differs";
    refuses(&scratch, &tuned, &cannot("tuned", why));
    refuses(&scratch, one, "merged: cannot merge: part 2 of 2 is missing");
    let twice = format!("part 1 of 2 is given twice: {one} is one, too");
    refuses(&scratch, &format!("{one} {other} {one}"), &format!("{one}: cannot merge: {twice}"));
    scratch.ok("convert ckpt -o out --recipe q4 --part 2/3");
    let counts = "it is one of 3 parts, in out.part-1-of-2 there are 2";
    let three = "out.part-2-of-3";
    refuses(&scratch, &format!("{one} {three}"), &format!("{three}: cannot merge: {counts}"));
    refuses(&scratch, three, "merged: cannot merge: parts 1, 3 of 3 are missing");
    refuses(&scratch, "ckpt", "ckpt: cannot merge: is no part that `convert --part` made");
}

#[test]
fn an_output_or_a_conversion_that_is_there_stays() {
    let scratch = two();
    let merge = format!("merge {} -o merged", parts("out", 2));
    // What a killed merge leaves is no obstacle.
    fs::create_dir_all(scratch.path("merged.partial/bundle/old")).unwrap();
    fs::write(scratch.path("merged.partial/ledger.jsonl"), "").unwrap();
    scratch.ok(&merge);
    scratch.refused(&merge, "error: merged: already exists; remove it or choose another name");
    fs::remove_dir_all(scratch.path("merged")).unwrap();
    scratch.stopped("convert ckpt -o merged --recipe q4", "3,kill");
    let before = contents(&scratch.path("merged.partial"));
    let ran = scratch.run(&merge);
    assert!(ran.stderr.contains("merged.partial"), "{ran:?}");
    assert!(ran.code == Some(2) && contents(&scratch.path("merged.partial")) == before);
}

#[test]
fn parts_elsewhere_are_copied() {
    // Most machines have a second file system here; where not, there is nothing to see.
    let elsewhere = format!("/dev/shm/shardwright-{}", std::process::id());
    let part = Path::new(&elsewhere);
    let scratch = two();
    if fs::create_dir(part).is_err() {
        return;
    }
    copy_dir(&scratch.path("out.part-2-of-2"), part);
    let merged = scratch.json(&format!("merge out.part-1-of-2 {} -o merged", part.display()));
    fs::remove_dir_all(part).unwrap();
    scratch.ok("convert ckpt -o whole --recipe q4");
    assert_eq!(digest(&scratch.path("merged")), digest(&scratch.path("whole")));
    assert!(
        merged["copied_files"].as_u64().unwrap() + merged["linked_files"].as_u64().unwrap() > 2
    );
}

/// What stands in `docs/CLUSTERS.md` between a line that begins so and the next fence.
fn documented(begins: &str) -> String {
    let text = fs::read_to_string(shardwright_testing::root().join("docs/CLUSTERS.md")).unwrap();
    let at = text.find(begins).unwrap_or_else(|| panic!("{begins}"));
    text[at..].split("```").next().unwrap().to_owned()
}

#[test]
fn the_documented_jobs_work_as_they_stand() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o whole");
    let array = documented("#!/bin/bash");
    let range = array
        .split("--array=0-")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let count = range.parse::<usize>().unwrap() + 1;
    for task in 0..count {
        let variables = format!(
            "export MODEL=ckpt BUNDLE=slurm SLURM_ARRAY_TASK_ID={task} SLURM_ARRAY_TASK_MIN=0 \
             SLURM_ARRAY_TASK_COUNT={count} SLURM_CPUS_PER_TASK=2"
        );
        let ran = scratch.shell(&format!("{variables}\n{array}"));
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    scratch.ok(&format!("merge {} -o slurm", parts("slurm", count)));
    let job = documented("apiVersion: batch/v1");
    let line = |name: &str| {
        job.lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .unwrap()
            .to_owned()
    };
    let command: Vec<String> = serde_json::from_str(&line("command: ")).unwrap();
    let command = command[1..]
        .join(" ")
        .replace("/models/model", "ckpt")
        .replace("/bundles/", "");
    let count: usize = line("completions: ").parse().unwrap();
    for index in 0..count {
        let mut job = scratch.command(&command);
        let ran = job
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }
    scratch.ok(&format!("merge {} -o out.bundle", parts("out.bundle", count)));
    for made in ["slurm", "out.bundle"] {
        assert_eq!(digest(&scratch.path(made)), digest(&scratch.path("whole")), "{made}");
    }
}
