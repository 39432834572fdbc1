//! Conversion: sizes as planned, the same bytes always, resumable at any moment.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardwright_testing::{RawTensors, contents, digest, each_golden, fixture};

use crate::harness::{Ran, Scratch};

/// The trained fixture, converted once as `whole`.
fn converted(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok(&format!("convert ckpt -o whole {options}"));
    scratch
}

#[test]
fn sizes_are_those_that_plan_names() {
    for options in [
        "",
        "--bits 4",
        "--recipe moe-q3 --align 4KiB",
        "--bits 2 --group-size 32 --scale-dtype bf16",
    ] {
        let scratch = converted(options);
        let plan = scratch.json(&format!("plan ckpt {options}"));
        let planned: Vec<(String, u64)> = plan["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| (f["path"].as_str().unwrap().to_owned(), f["size"].as_u64().unwrap()))
            .collect();
        let mut found: Vec<(String, u64)> = contents(&scratch.path("whole"))
            .into_iter()
            .map(|(n, b)| (n, b.len() as u64))
            .collect();
        let mut sorted = planned.clone();
        sorted.sort();
        found.sort();
        assert_eq!(sorted, found, "{options}");
        let total: u64 = found.iter().map(|(_, size)| size).sum();
        assert_eq!(plan["summary"]["bundle_bytes"], json!(total));
        let inspect = scratch.json("inspect whole");
        assert_eq!(plan["summary"]["bits_per_weight"], inspect["bits_per_weight"]);
    }
}

#[test]
fn plan_writes_nothing() {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("plan ckpt");
    let left: Vec<_> = fs::read_dir(scratch.path("."))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["ckpt"]);
}

fn a_golden_checkpoint_converts_holds_and_runs(case: &str) {
    let scratch = Scratch::with(&format!("golden/{case}"));
    // Goldens have no text; any tokenizer whose first tokens they know will do.
    let tokenizer = fixture("fixture-2m/tokenizer.json");
    fs::copy(tokenizer, scratch.path("ckpt/tokenizer.json")).unwrap();
    scratch.ok("convert ckpt -o out --recipe q4");
    let report = scratch.json("verify out --against ckpt");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    let ran = scratch.json("run out --prompt q -n 3");
    assert!(!ran["tokens"].as_array().unwrap().is_empty(), "{ran}");
}

each_golden!(a_golden_checkpoint_converts_holds_and_runs);

#[test]
fn one_and_two_threads_give_the_same_bytes() {
    let scratch = Scratch::with("fixture-2m");
    for threads in [1, 2] {
        scratch.ok(&format!("convert ckpt -o t{threads} --threads {threads}"));
    }
    assert_eq!(digest(&scratch.path("t1")), digest(&scratch.path("t2")));
}

#[test]
fn a_snapshot_of_the_hugging_face_cache_gives_the_same_bytes() {
    let scratch = converted("");
    fs::create_dir_all(scratch.path("blobs")).unwrap();
    fs::create_dir_all(scratch.path("snapshots/abc")).unwrap();
    for (at, (name, bytes)) in contents(&scratch.path("ckpt")).into_iter().enumerate() {
        fs::write(scratch.path(&format!("blobs/{at}")), bytes).unwrap();
        let link = scratch.path(&format!("snapshots/abc/{name}"));
        std::os::unix::fs::symlink(format!("../../blobs/{at}"), link).unwrap();
    }
    scratch.ok("convert snapshots/abc -o linked");
    assert_eq!(digest(&scratch.path("whole")), digest(&scratch.path("linked")));
}

#[test]
fn no_trace_of_time_or_place_is_in_a_bundle() {
    let (one, two) = (converted("--bits 3"), converted("--bits 3"));
    assert_eq!(digest(&one.path("whole")), digest(&two.path("whole")));
}

/// Goes layer by layer: what is stopped in one has not begun the next, however fast its threads are.
const CALIBRATED: &str =
    "--calibrate ckpt/tokenizer_config.json --calibration-window 16 --calibration-tokens 16";

/// Stops conversions after some shards, and again on the way back, and lets `--resume` finish: the
/// bytes are those of a run that nothing stopped.
fn survives(how: &str, code: Option<i32>, moments: &[usize], options: &str) {
    let scratch = converted(options);
    let expected = digest(&scratch.path("whole"));
    let args = format!("convert ckpt -o out {options}");
    let resume = format!("{args} --resume");
    for &after in moments {
        let ran = scratch.stopped(&args, &format!("{after}{how}"));
        assert_eq!(ran.code, code, "after {after}: {ran:?}");
        assert!(!scratch.path("out").exists());
        scratch.stopped(&resume, &format!("{}{how}", after + 9));
        if scratch.path("out.partial").exists() {
            scratch.ok(&resume);
        }
        assert_eq!(digest(&scratch.path("out")), expected, "after {after}");
        assert!(!scratch.path("out.partial").exists());
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

#[test]
fn a_conversion_killed_after_any_shard_is_finished_to_the_byte() {
    // Of 38 shards: the first, some, all but the last, all.
    survives(",kill", None, &[1, 17, 37, 38], "--threads 1");
    survives(",kill", None, &[2, 33], "--threads 2");
}

#[test]
fn a_conversion_interrupted_after_any_shard_is_finished_to_the_byte() {
    survives("", Some(130), &[1, 17], &format!("--threads 2 {CALIBRATED}"));
}

/// Kills from outside, wherever it happens to be: between shards, while hashing, while renaming.
#[test]
fn a_conversion_killed_at_any_time_is_finished_to_the_byte() {
    let scratch = Scratch::with("fixture-2m");
    let started = Instant::now();
    scratch.ok("convert ckpt -o whole");
    let whole = started.elapsed();
    let expected = digest(&scratch.path("whole"));
    for step in 1..=6 {
        let mut child = scratch.spawn("convert ckpt -o out");
        std::thread::sleep(whole.mul_f64(f64::from(step) / 6.5));
        child.kill().unwrap();
        child.wait().unwrap();
        // Complete it may be, but for the removal of what led to it.
        if !scratch.path("out").exists() || scratch.path("out.partial").exists() {
            scratch.ok("convert ckpt -o out --resume");
        }
        assert_eq!(digest(&scratch.path("out")), expected, "step {step}");
        assert!(!scratch.path("out.partial").exists());
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

/// A conversion that stopped at the last expert, all but it done: a weight there was no number.
fn partial(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    let sound = fs::read(scratch.path("ckpt/model.safetensors")).unwrap();
    poison(&scratch, "model.layers.3.mlp.experts.7.down_proj.weight", 0, 0x7e00);
    let ran = scratch.run(&format!("convert ckpt -o out --threads 1 {options}"));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    fs::write(scratch.path("ckpt/model.safetensors"), sound).unwrap();
    scratch
}

#[test]
fn sigint_says_how_to_go_on() {
    let scratch = Scratch::with("fixture-2m");
    let mut command = scratch.command(&format!("convert ckpt -o out --quiet {CALIBRATED}"));
    command
        .env("SHARDWRIGHT_STOP_AFTER", "5,wait")
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The ledger comes after the handlers of signals.
    while !scratch.path("out.partial").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut kill = Command::new("kill");
    let kill = kill.args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let start = "error: stopped after ";
    let end = " of 38 shards, which out.partial keeps\nhelp: --resume continues it\n";
    assert!(ran.stderr.starts_with(start) && ran.stderr.ends_with(end), "{ran:?}");
}

#[test]
fn resume_refuses_another_source_or_recipe() {
    let scratch = partial("--bits 4");
    let ran = scratch.run("convert ckpt -o out --bits 3 --resume");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(
        ran.stderr,
        "error: out.partial: cannot resume: it was begun with another recipe (`uniform q4g64`, now \
         `uniform q3g64`)\n"
    );
    let tensors = |t: &mut RawTensors| t.data[1000] ^= 1;
    scratch.edit_tensors("ckpt/model.safetensors", tensors);
    let ran = scratch.run("convert ckpt -o out --bits 4 --resume");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(
        ran.stderr,
        "error: out.partial: cannot resume: it was begun with another checkpoint: the weights of \
         embedding in `model.safetensors` differ\n"
    );
}

#[test]
fn a_partial_conversion_is_neither_ignored_nor_overwritten() {
    let scratch = partial("--bits 4");
    let before = digest(&scratch.path("out.partial"));
    scratch.refused(
        "convert ckpt -o out --bits 4",
        "error: out.partial: is what an interrupted run left\nhelp: --resume continues it; or \
         remove it",
    );
    assert_eq!(digest(&scratch.path("out.partial")), before);
}

#[test]
fn an_output_that_exists() {
    let scratch = converted("--bits 4");
    let before = digest(&scratch.path("whole"));
    let message = "error: whole: already exists; remove it or choose another name";
    scratch.refused("convert ckpt -o whole --bits 4", message);
    scratch.refused("convert ckpt -o whole --bits 3 --resume", message);
    let again = scratch.ok("convert ckpt -o whole --bits 4 --resume");
    assert!(
        again
            .stdout
            .contains("whole is already complete; nothing was written. Names and sizes"),
        "{again:?}"
    );
    scratch.refused(
        "export whole --to hf -o ckpt",
        "error: ckpt: already exists; remove it or choose another name",
    );
    assert_eq!(digest(&scratch.path("whole")), before);
}

#[test]
fn names_of_a_bundles_own_files_are_left_out_from_the_start() {
    let scratch = Scratch::with("fixture-2m");
    for name in ["report.json", "experts"] {
        fs::write(scratch.path(&format!("ckpt/{name}")), "{}").unwrap();
    }
    fs::create_dir(scratch.path("ckpt/dense-000.bin")).unwrap();
    fs::write(scratch.path("ckpt/dense-000.bin/note.txt"), "x").unwrap();
    let plan = scratch.ok("plan ckpt --bits 4").stdout;
    for name in ["report.json", "experts", "dense-000.bin"] {
        let line = format!("file {name}: the bundle has a file of its own with this name");
        assert!(plan.contains(&line), "{plan}");
    }
    scratch.ok("convert ckpt -o out --bits 4 --method minmax");
    scratch.ok("verify out --against ckpt");
}

#[test]
fn what_is_no_regular_file_is_neither_opened_nor_copied() {
    let scratch = Scratch::with("fixture-2m");
    let made = scratch.shell("mkfifo ckpt/pipe && ln -s /dev/zero ckpt/merges.txt");
    assert_eq!(made.code, Some(0), "{made:?}");
    let plan = scratch.ok("plan ckpt --bits 4").stdout;
    for name in ["pipe", "merges.txt"] {
        assert!(plan.contains(&format!("file {name}: not a regular file")), "{plan}");
    }
    fs::remove_file(scratch.path("ckpt/tokenizer_config.json")).unwrap();
    scratch.shell("mkfifo ckpt/tokenizer_config.json");
    scratch.ok("convert ckpt -o out --bits 4 --method minmax");
}

#[test]
fn a_companion_that_cannot_be_read_is_found_by_the_plan() {
    let scratch = Scratch::with("fixture-2m");
    let script =
        "chmod -R a+rX . && chmod 0 ckpt/tokenizer.json && cp $(realpath shardwright) binary
                  as=; [ -r ckpt/tokenizer.json ] && as='setpriv --reuid 65534 --clear-groups'";
    for command in ["plan ckpt --bits 4", "convert ckpt -o out --bits 4"] {
        let ran = scratch.shell(&format!("{script}; $as ./binary {command}"));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let expected = "error: ckpt/tokenizer.json: Permission denied (os error 13)\n";
        assert_eq!(ran.stderr, expected);
    }
    assert!(!scratch.path("out.partial").exists());
}

#[test]
fn a_parent_that_cannot_be_written_to() {
    let scratch = Scratch::with("golden/llama2");
    fs::write(scratch.path("file"), "").unwrap();
    scratch.refused(
        "convert ckpt -o file/out --bits 4 --group-size 32",
        "error: file/out.partial: Not a directory (os error 20)",
    );
    scratch.refused(
        "convert ckpt -o nowhere/out --bits 4 --group-size 32",
        "error: nowhere: No such file or directory (os error 2)",
    );
}

#[test]
fn no_room() {
    let scratch = Scratch::with("fixture-2m");
    // The shell's limit on the size of files stands for a full disk; the signal it sends is
    // ignored so that the write fails as it does on a full disk.
    let ran = scratch
        .shell("trap '' XFSZ; ulimit -f 200; shardwright convert ckpt -o out --bits 4 --quiet");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let message = "error: out.partial/bundle/dense-000.bin: File too large (os error 27)\n";
    assert_eq!(ran.stderr, message);
    assert!(!scratch.path("out").exists());
    scratch.ok("convert ckpt -o out --bits 4 --resume");
    scratch.ok("verify out");
}

/// Runs a script where `disk` is a file system of its own, mounted with the given options; none
/// where the system does not let a test do that.
fn mounted(scratch: &Scratch, options: &str, script: &str) -> Option<Ran> {
    fs::create_dir(scratch.path("disk")).unwrap();
    let mount = format!("mount -t tmpfs -o {options} tmpfs disk 2>/dev/null || exit 77");
    let ran = scratch.shell(&format!("unshare -rm bash -c '{mount}; {script}' || exit $?"));
    if ran.code == Some(77) || ran.stderr.starts_with("unshare") {
        eprintln!("skipped: this system mounts nothing for a test");
        return None;
    }
    Some(ran)
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_written() {
    let scratch = Scratch::with("fixture-2m");
    let script =
        "shardwright convert ckpt -o disk/out --bits 4 --quiet; code=$?; ls disk; exit $code";
    let Some(ran) = mounted(&scratch, "size=512k", script) else { return };
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    let (start, end) = ("error: disk: no room: expected ", " bytes available, found 524288\n");
    assert!(ran.stderr.starts_with(start) && ran.stderr.ends_with(end), "{}", ran.stderr);
}

#[test]
fn a_read_only_file_system() {
    let scratch = Scratch::with("fixture-2m");
    let script = "shardwright convert ckpt -o disk/out --bits 4 --quiet";
    let Some(ran) = mounted(&scratch, "ro", script) else { return };
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let message = "error: disk/out.partial: Read-only file system (os error 30)\n";
    assert_eq!(ran.stderr, message);
}

/// Puts a value into one element of a tensor.
fn poison(scratch: &Scratch, tensor: &str, element: usize, bits: u16) {
    scratch.edit_tensors("ckpt/model.safetensors", |t| {
        let at = t.range(tensor).start + 2 * element;
        t.data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    });
}

#[test]
fn weights_that_are_no_numbers_are_named_with_their_position() {
    let name = "model.layers.2.mlp.experts.3.up_proj.weight";
    for (bits, shown) in [(0x7e00, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf")] {
        let scratch = Scratch::with("fixture-2m");
        poison(&scratch, name, 128 * 5 + 7, bits);
        scratch.refused(
            "convert ckpt -o out --bits 4 --quiet",
            &format!(
                "error: ckpt/model.safetensors: tensor `{name}`: row 5, column 7: expected a \
                 finite weight, found {shown}"
            ),
        );
        assert!(!scratch.path("out").exists());
    }
    let scratch = Scratch::with("fixture-2m");
    poison(&scratch, "model.norm.weight", 3, 0x7e00);
    scratch.refused(
        "convert ckpt -o out --bits 4 --quiet",
        "error: ckpt/model.safetensors: tensor `model.norm.weight`: row 0, column 3: expected a \
         finite weight, found NaN",
    );
}

#[test]
fn options_of_recipes() {
    let scratch = Scratch::with("golden/llama2");
    scratch.refused("plan ckpt --recipe q5", "error: unknown recipe `q5`: expected one of q4, q3, q2, moe-q4, moe-q3, moe-q2, moe-mixed, dense-q4, dense-mixed, t4, t3, t2, or a path
help: `shardwright recipes` says what each is for");
    scratch.refused(
        "plan ckpt --recipe nowhere.json",
        "error: nowhere.json: No such file or directory (os error 2)",
    );
    scratch.refused("plan ckpt --bits 5", "error: bits: expected 2, 3, 4, 6 or 8, found 5");
    scratch.refused(
        "plan ckpt --bits 4 --group-size 48",
        "error: group_size: expected 32, 64 or 128, found 48",
    );
    scratch.refused("plan ckpt --bits 4 --set head=q8", "error: `head=q8`: unknown role `head`: expected embed_tokens, norm.input, attention.q_a_proj, attention.q_a_bias, norm.q_a, attention.q_b_proj, attention.kv_a_proj, attention.kv_a_bias, norm.kv_a, attention.kv_b_proj, attention.q_proj, attention.q_bias, attention.k_proj, attention.k_bias, attention.v_proj, attention.v_bias, norm.q, norm.k, attention.sinks, norm.mixer_inner, attention.o_proj, attention.o_bias, delta_net.in_proj_qkvz, delta_net.in_proj_ba, delta_net.in_proj_qkv, delta_net.in_proj_z, delta_net.in_proj_b, delta_net.in_proj_a, delta_net.conv1d, delta_net.a_log, delta_net.dt_bias, norm.delta_net, delta_net.out_proj, short_conv.in_proj, short_conv.conv, short_conv.out_proj, norm.mixer_out, norm.post_attention, mlp.gate_proj, mlp.gate_bias, mlp.up_proj, mlp.up_bias, norm.ffn_inner, mlp.down_proj, mlp.down_bias, norm.ffn_out, router, router.bias, router.correction_bias, expert.gate_proj, expert.gate_bias, expert.up_proj, expert.up_bias, expert.down_proj, expert.down_bias, shared_expert_gate, shared_expert.gate_proj, shared_expert.up_proj, shared_expert.down_proj, norm.final, lm_head, vision, mtp, indexer");
    scratch.refused(
        "plan ckpt --bits 4 --set lm_head=q7",
        "error: `lm_head=q7`: bits: expected 2, 3, 4, 6 or 8, found 7",
    );
    scratch.refused(
        "plan ckpt --bits 4 --set lm_head",
        "error: `lm_head`: expected ROLE=ENCODING, as in expert.down_proj=q4g32",
    );
    scratch.refused(
        "plan ckpt --bits 4 --align 5000",
        "error: alignment: expected a power of two from 4096 to 1048576, found 5000",
    );
    // Rules for experts match nothing in a dense model.
    scratch.refused(
        "plan ckpt --recipe moe-q4",
        "error: recipe `moe-q4`: rule 8 (expert.*) matches nothing in this checkpoint",
    );
}

/// Taps of a convolution, inner widths of tiny models, routers: no model is refused for those.
#[test]
fn bits_alone_keep_what_cannot_be_cut_and_say_so() {
    for case in ["qwen3_5_moe", "qwen3_next"] {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let plan = scratch.json("plan ckpt --bits 4 --group-size 128");
        let fallbacks = plan["fallbacks"].as_array().unwrap();
        let conv = fallbacks
            .iter()
            .find(|f| f["role"] == "delta_net.conv1d")
            .unwrap();
        assert_eq!(conv["reason"], "group size 128 does not divide 4 columns");
        assert_eq!(conv["used"], "bf16");
        let smaller = fallbacks
            .iter()
            .find(|f| f["role"] == "attention.q_proj")
            .unwrap();
        assert_eq!(smaller["used"], "q4 g64 bf16");
        let leftovers = plan["leftovers"].as_array().unwrap();
        let router = leftovers.iter().find(|l| l["role"] == "router").unwrap();
        assert_eq!(router["reason"], "rule 1 (router) keeps it");
    }
}

#[test]
fn changes_to_a_recipe_may_leave_its_own_rules_nothing_to_do() {
    let scratch = Scratch::with("fixture-2m");
    let plan = scratch.json("plan ckpt --recipe moe-q4 --set expert.*=q2g32:bf16 --set router=q8");
    let roles = plan["summary"]["roles"].as_array().unwrap();
    for (role, stored) in [("expert.up_proj", "q2 g32 bf16"), ("router", "q8 g64 f16")] {
        let found = roles.iter().find(|r| r["role"] == role).unwrap();
        assert_eq!(found["encodings"], json!([stored]));
    }
    scratch.refused(
        "plan ckpt --bits 4 --set lm_head=q8",
        "error: recipe `uniform q4g64`: rule 1 (lm_head) matches nothing in this checkpoint",
    );
}

#[test]
fn recipe_files() {
    let scratch = Scratch::with("golden/llama2");
    let write = |recipe: Value| fs::write(scratch.path("r.json"), recipe.to_string()).unwrap();
    write(json!({"name": "mine", "rules": [{"match": {"role": "lm_hed"}, "encoding": "keep"}]}));
    scratch.refused("plan ckpt --recipe r.json", "error: recipe `r.json`: unknown role `lm_hed`: expected embed_tokens, norm.input, attention.q_a_proj, attention.q_a_bias, norm.q_a, attention.q_b_proj, attention.kv_a_proj, attention.kv_a_bias, norm.kv_a, attention.kv_b_proj, attention.q_proj, attention.q_bias, attention.k_proj, attention.k_bias, attention.v_proj, attention.v_bias, norm.q, norm.k, attention.sinks, norm.mixer_inner, attention.o_proj, attention.o_bias, delta_net.in_proj_qkvz, delta_net.in_proj_ba, delta_net.in_proj_qkv, delta_net.in_proj_z, delta_net.in_proj_b, delta_net.in_proj_a, delta_net.conv1d, delta_net.a_log, delta_net.dt_bias, norm.delta_net, delta_net.out_proj, short_conv.in_proj, short_conv.conv, short_conv.out_proj, norm.mixer_out, norm.post_attention, mlp.gate_proj, mlp.gate_bias, mlp.up_proj, mlp.up_bias, norm.ffn_inner, mlp.down_proj, mlp.down_bias, norm.ffn_out, router, router.bias, router.correction_bias, expert.gate_proj, expert.gate_bias, expert.up_proj, expert.up_bias, expert.down_proj, expert.down_bias, shared_expert_gate, shared_expert.gate_proj, shared_expert.up_proj, shared_expert.down_proj, norm.final, lm_head, vision, mtp, indexer at line 1 column 50");
    write(json!({"name": "mine", "rules": [{"match": {"role": "lm_head"}, "encoding": "keep"}]}));
    scratch.refused(
        "plan ckpt --recipe r.json",
        "error: recipe `mine`: no rule matches tensor `model.embed_tokens.weight` (embed_tokens)",
    );
    write(json!({"name": "mine", "rules": [{"encoding": "q4g64", "fallback": [32]}]}));
    let plan = scratch.json("plan ckpt --recipe r.json");
    assert_eq!(plan["recipe"]["name"], json!("mine"));
    let fallbacks = plan["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 3, "{fallbacks:?}");
}

#[test]
fn what_recipes_prints_is_a_recipe_file() {
    let scratch = Scratch::with("fixture-2m");
    let list = scratch.json("recipes");
    for recipe in list.as_array().unwrap() {
        let name = recipe["name"].as_str().unwrap();
        fs::write(scratch.path("r.json"), scratch.ok(&format!("recipes {name}")).stdout).unwrap();
        if name.starts_with("dense") {
            continue;
        }
        let (named, filed) =
            (scratch.ok(&format!("plan ckpt -r {name}")), scratch.ok("plan ckpt -r r.json"));
        assert_eq!(named.stdout, filed.stdout, "{name}");
    }
}

/// Quantized sources: shown, converted at their own bits and at others, proved and run.
#[test]
fn quantized_checkpoints_are_shown_converted_proved_and_run() {
    let cases = [
        ("deepseek_v3-fp8", "fp8", "f8_e4m3 128x128", false),
        ("kimi_k2-int4", "compressed-tensors", "int4 g32", true),
        ("gpt_oss-mxfp4", "mxfp4", "mxfp4", true),
    ];
    for (name, method, label, repacked) in cases {
        let scratch = Scratch::with(&format!("golden/{name}"));
        let vocab: Value = (0..256).map(|id| (format!("w{id}"), json!(id))).collect();
        let tokenizer = json!({ "version": "1.0", "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" } });
        fs::write(scratch.path("ckpt/tokenizer.json"), tokenizer.to_string()).unwrap();
        let inspect = scratch.json("inspect ckpt");
        let quantization = &inspect["checkpoint"]["quantization"];
        assert_eq!(quantization["method"], json!(method), "{name}");
        assert!(quantization["tensors"][label].as_u64().unwrap() > 2, "{name}: {quantization}");
        for recipe in ["q4", "q3"] {
            let plan = scratch.json(&format!("plan ckpt --recipe {recipe}"));
            let lossless = repacked && recipe == "q4";
            assert_eq!(plan.get("repacked").is_some(), lossless, "{name} {recipe}");
            scratch.ok(&format!("convert ckpt -o {recipe} --recipe {recipe}"));
            let report = scratch.json(&format!("verify {recipe} --against ckpt"));
            assert_eq!(report["verdict"], json!("holds"), "{name}: {report}");
            scratch.ok(&format!("run {recipe} --prompt w1 -n 2"));
        }
    }
}
