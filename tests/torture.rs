//! The attack: checkpoints, GGUF files, tokenizers and bundles damaged by a mutator that knows their structure, kills
//! at any moment, and surroundings that refuse. Whatever is done to them, commands end within seconds, with an exit
//! code that means something and a message of a few lines, and leave nothing half-made.
//!
//! A case follows from its seed alone. `SHARDWRIGHT_TORTURE_MINUTES` says how long to go on (without it a few cases
//! run, as part of the tests), `SHARDWRIGHT_TORTURE_SEED` where to begin, `SHARDWRIGHT_TORTURE_CASES` after how many
//! cases of each kind to end, `SHARDWRIGHT_TORTURE_BINARY` what to run. With `SHARDWRIGHT_TORTURE_LOG` each kind adds a
//! line to that file, and where the seed is `next` it goes on behind what the file tells of it. A find is printed with
//! its seed and kept under `target/torture`: `just torture` with that seed, and one case, makes it again.

mod campaign;
mod exports;
mod small_files;
mod streams;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardwright_testing::mutate::edit_bytes;
use shardwright_testing::{contents, copy_dir, digest, fixture, golden};

use crate::harness::Scratch;
use campaign::{Attack, Campaign, PATIENCE, binary};

/// Checkpoints of different kinds: dense, with experts, packed, quantized by others.
const CHECKPOINTS: [&str; 8] = [
    "llama2",
    "qwen3_moe",
    "qwen3_moe-fused-t",
    "gemma3",
    "qwen2-gptq",
    "qwen2-awq",
    "qwen3_5-mlx",
    "gpt_oss-mxfp4",
];

/// GGUF files.
const GGUF: [&str; 4] = ["llama3-q8_0.gguf", "qwen3_moe.gguf", "gemma3.gguf", "gpt_oss.gguf"];

/// A damaged checkpoint through the commands that take one.
fn damaged_input(attack: &mut Attack) -> Result<(), String> {
    let gguf = attack.random.below(5) == 0;
    let source = if gguf { gguf_input(attack) } else { checkpoint_input(attack) };
    attack.run(&format!("plan {source}"), &[0, 2])?;
    let options =
        *attack
            .random
            .pick(&["--bits 4 --group-size 32", "--bits 8", "--bits 2 --method minmax"]);
    let made = attack.run(&format!("convert {source} -o out -q --threads 1 {options}"), &[0, 2])?;
    if made.code == Some(2) {
        return attack.nothing_left("out");
    }
    attack.count("converted");
    // What was converted is a bundle of this model, by our own word.
    attack.run("verify out -q", &[0])?;
    attack.run(&format!("verify out --against {source} -q"), &[0])?;
    Ok(())
}

fn gguf_input(attack: &mut Attack) -> &'static str {
    let name = *attack.random.pick(&GGUF);
    let path = attack.scratch.path("model.gguf");
    fs::copy(fixture("gguf").join(name), &path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Most of what can be told apart is in the first kilobytes.
    let head = bytes
        .len()
        .min(if attack.random.below(3) == 0 { usize::MAX } else { 8192 });
    let mut damaged = bytes[..head].to_vec();
    edit_bytes(&mut damaged, &mut attack.random);
    damaged.extend(bytes.drain(head..));
    fs::write(path, damaged).unwrap();
    attack.damage = format!("{name}, bytes");
    "model.gguf"
}

fn checkpoint_input(attack: &mut Attack) -> &'static str {
    let name = *attack.random.pick(&CHECKPOINTS);
    copy_dir(&golden(name), &attack.scratch.path("ckpt"));
    let _ = fs::remove_file(attack.scratch.path("ckpt/golden.safetensors"));
    let (config, weights) =
        (attack.scratch.path("ckpt/config.json"), attack.scratch.path("ckpt/model.safetensors"));
    let kind = if weights.exists() { attack.random.below(6) } else { 0 };
    match kind {
        0 | 1 => attack.change_json(&config),
        2 | 3 => attack.change_header(&weights),
        4 => attack.change_bytes(&weights),
        _ => attack.change_values(&weights),
    }
    attack.damage = format!("{name}, kind {kind}");
    "ckpt"
}

/// A damaged tokenizer, before commands that read one.
fn damaged_tokenizer(attack: &mut Attack) -> Result<(), String> {
    copy_dir(&fixture("fixture-2m"), &attack.scratch.path("ckpt"));
    let path = attack.scratch.path("ckpt/tokenizer.json");
    match attack.random.below(4) {
        0 => attack.change_bytes(&path),
        _ => attack.change_json(&path),
    }
    "tokenizer.json".clone_into(&mut attack.damage);
    attack.run("run ckpt --prompt This -n 2 -q --threads 1", &[0, 2])?;
    Ok(())
}

/// A bundle made once, and copied for each case.
fn bundle(options: &'static str) -> &'static Path {
    static MADE: OnceLock<BTreeMap<&str, Scratch>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let make = |options: &&'static str| {
            let scratch = Scratch::with("fixture-2m");
            scratch.ok(&format!("convert ckpt -o out {options}"));
            (*options, scratch)
        };
        RECIPES.iter().map(make).collect()
    });
    static PATHS: OnceLock<BTreeMap<&str, PathBuf>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| made.iter().map(|(k, s)| (*k, s.path("out"))).collect());
    &paths[options]
}

/// Of bundles.
const RECIPES: [&str; 3] =
    ["--bits 4", "--bits 2 --method minmax", "--recipe moe-q3 --scale-dtype bf16"];

/// A damaged bundle, half of them with every hash made right again.
fn damaged_bundle(attack: &mut Attack) -> Result<(), String> {
    let recipe = *attack.random.pick(&RECIPES);
    let whole = bundle(recipe);
    copy_dir(whole, &attack.scratch.path("out"));
    let signed = attack.random.below(2) == 0;
    let mut files: Vec<String> = contents(whole).into_keys().collect();
    files.sort();
    let name = match attack.random.below(3) {
        0 => "manifest.json".to_owned(),
        _ => attack.random.pick(&files).clone(),
    };
    let path = attack.scratch.path("out").join(&name);
    if name == "manifest.json" && (signed || attack.random.below(2) == 0) {
        attack.change_json(&path);
    } else {
        attack.change_bytes(&path);
    }
    if signed {
        sign(&attack.scratch.path("out"), &name);
    }
    attack.damage =
        format!("{name}, {}", if signed { "hashes made right" } else { "hashes left alone" });
    attack.count(if signed { "with hashes made right" } else { "with hashes left alone" });
    let verified = attack.run("verify out -q", &[0, 1, 2])?;
    if verified.code == Some(0) && !signed && digest(&attack.scratch.path("out")) != digest(whole) {
        return Err("verify holds of other bytes".to_owned());
    }
    attack.count(if verified.code == Some(0) { "held" } else { "refused" });
    attack.run("inspect out", &[0, 2])?;
    attack.run("run out --prompt This -n 2 -q --threads 1", &[0, 2])?;
    let exported = attack.run("export out --to hf -o back -q", &[0, 2])?;
    if exported.code == Some(2) {
        return attack.nothing_left("back");
    }
    Ok(())
}

/// Makes the hashes of a bundle right after its file `name` was changed: those of the shards in it, its own, and the
/// manifest's.
fn sign(dir: &Path, name: &str) {
    let path = dir.join("manifest.json");
    let Ok(mut manifest) = serde_json::from_slice::<Value>(&fs::read(&path).unwrap()) else {
        return;
    };
    // Damage may have left something else than an object, which nothing is written into.
    if !manifest.is_object() {
        return;
    }
    if name != "manifest.json" {
        let bytes = fs::read(dir.join(name)).unwrap();
        sign_shards(&mut manifest, name, &bytes);
        for file in manifest["files"].as_array_mut().into_iter().flatten() {
            if file["path"] == json!(name) {
                file["blake3"] = json!(blake3::hash(&bytes).to_hex().as_str());
                file["size"] = json!(bytes.len());
            }
        }
    }
    manifest["blake3"] = json!("0".repeat(64));
    let mut text = serde_json::to_string_pretty(&manifest).unwrap() + "\n";
    let hash = blake3::hash(text.as_bytes()).to_hex();
    text = text.replacen(&"0".repeat(64), hash.as_str(), 1);
    fs::write(path, text).unwrap();
}

fn sign_shards(manifest: &mut Value, name: &str, bytes: &[u8]) {
    let number = |value: &Value| value.as_u64().unwrap_or_default() as usize;
    let hash = |from: usize, len: usize| {
        let from = from.min(bytes.len());
        let piece = &bytes[from..from.saturating_add(len).min(bytes.len())];
        json!(blake3::hash(piece).to_hex().as_str())
    };
    for shard in manifest["dense"].as_array_mut().into_iter().flatten() {
        if shard["file"] == json!(name) {
            shard["blake3"] = hash(number(&shard["offset"]), number(&shard["len"]));
        }
    }
    for shards in manifest["experts"].as_array_mut().into_iter().flatten() {
        if shards["file"] != json!(name) {
            continue;
        }
        let (stride, len) = (number(&shards["stride"]), number(&shards["len"]));
        for (expert, old) in shards["blake3"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .enumerate()
        {
            *old = hash(expert * stride, len);
        }
    }
}

/// Ways of making something, each with what it makes: what is killed is made again to the same bytes.
const MODES: [(&str, &str); 6] = [
    ("convert ckpt -o made -q --bits 4 --resume", "made"),
    ("convert ckpt -o made -q --recipe moe-q3 --threads 2 --resume", "made"),
    (
        "convert ckpt -o made -q --bits 4 --calibrate text.txt --calibration-tokens 256 --calibration-window 64 --resume",
        "made",
    ),
    ("pack out -o made --resume", "made"),
    ("unpack whole.pack -o made --resume", "made"),
    ("export out --to hf -o made -q", "made"),
];

/// The files that a command makes, with their hashes, and how long it takes, when nobody disturbs it.
type Undisturbed = (Vec<(String, String)>, Duration);

/// A folder with what the modes need; and what each mode makes.
type Workshop = (Scratch, Vec<Undisturbed>);

/// A folder in which every mode can work, and what each makes when nobody disturbs it.
fn workshop() -> &'static Workshop {
    static MADE: OnceLock<Workshop> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::with("fixture-2m");
        fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
        scratch.ok("convert ckpt -o out --bits 4");
        scratch.ok("pack out -o whole.pack");
        let each = MODES.iter().map(|(args, made)| {
            let started = Instant::now();
            let mut command = Command::new(binary());
            command
                .args(args.split_whitespace())
                .current_dir(scratch.path(""));
            assert!(command.output().unwrap().status.success(), "{args}");
            let (took, path) = (started.elapsed(), scratch.path(made));
            let found = fingerprint(&path);
            let gone =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.unwrap();
            (found, took)
        });
        let each = each.collect();
        (scratch, each)
    })
}

fn fingerprint(path: &Path) -> Vec<(String, String)> {
    if path.is_dir() {
        return digest(path);
    }
    if !path.exists() {
        return Vec::new();
    }
    vec![(String::new(), blake3::hash(&fs::read(path).unwrap()).to_hex().to_string())]
}

/// A command killed some times at any moment, then left alone.
fn killed(attack: &mut Attack) -> Result<(), String> {
    let (shop, undisturbed) = workshop();
    let mode = attack.random.below(MODES.len());
    let (args, made) = MODES[mode];
    for name in ["ckpt", "out", "text.txt", "whole.pack"] {
        std::os::unix::fs::symlink(shop.path(name), attack.scratch.path(name)).unwrap();
    }
    kill_and_go_on(attack, args, made, &undisturbed[mode])
}

/// Kills a command some times, which when nobody disturbs it makes files with these hashes in this time; then lets it
/// work, and compares.
fn kill_and_go_on(
    attack: &mut Attack,
    args: &str,
    made: &str,
    (expected, took): &Undisturbed,
) -> Result<(), String> {
    args.clone_into(&mut attack.damage);
    for _ in 0..=attack.random.below(3) {
        let mut child = attack.command(args).spawn().unwrap();
        std::thread::sleep(*took * attack.random.below(1100) as u32 / 1000);
        let _ = child.kill();
        let _ = child.wait();
        attack.count("kills");
        if attack.scratch.path(made).exists() {
            break;
        }
    }
    // What was whole before the kill came is refused by commands that cannot go on.
    let whole = attack.scratch.path(made).exists();
    if !whole || args.starts_with("convert") {
        attack.run(args, &[0])?;
    }
    if fingerprint(&attack.scratch.path(made)) != *expected {
        return Err("other bytes than when nothing disturbs".to_owned());
    }
    Ok(())
}

/// What can be wrong around a conversion: limits, closed and full outputs, files that cannot be read.
const SURROUNDINGS: [(&str, &[i32]); 8] = [
    ("ulimit -f 64; shardwright convert ckpt -o made -q --bits 4", &[2]),
    ("ulimit -n 12; shardwright convert ckpt -o made -q --bits 4", &[0, 2]),
    ("shardwright convert ckpt -o made --bits 4 2>&-", &[0]),
    ("shardwright convert ckpt -o made --bits 4 2>/dev/full >&-", &[0]),
    ("shardwright convert ckpt -o made --bits 4 > /dev/full", &[2]),
    ("shardwright convert ckpt -o /dev/null/made -q --bits 4", &[2]),
    ("mkdir made; shardwright convert ckpt -o made -q --bits 4", &[2]),
    ("ln -s nowhere made; shardwright convert ckpt -o made -q --bits 4", &[2]),
];

fn surrounded(attack: &mut Attack) -> Result<(), String> {
    let (script, codes) = *attack.random.pick(&SURROUNDINGS);
    copy_dir(&fixture("fixture-2m"), &attack.scratch.path("ckpt"));
    script.clone_into(&mut attack.damage);
    let binary = binary();
    let script = script.replace("shardwright", &binary.to_string_lossy());
    let script = format!("ulimit -t {}; {script}", PATIENCE.as_secs());
    let mut command = Command::new("timeout");
    command
        .args(["60", "bash", "-c", &script])
        .current_dir(attack.scratch.path(""));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    attack.count(&format!("exit {}", code.unwrap_or(-1)));
    match code {
        Some(code) if codes.contains(&code) && !stderr.contains("internal error") => Ok(()),
        _ => Err(format!("{code:?}: {stderr}")),
    }
}

#[test]
fn damaged_inputs_are_converted_rightly_or_refused() {
    Campaign::new("inputs", 40).run(damaged_input);
}

#[test]
fn damaged_tokenizers_are_used_or_refused() {
    Campaign::new("tokenizers", 15).run(damaged_tokenizer);
}

#[test]
fn damaged_bundles_are_found_and_harm_nobody() {
    Campaign::new("bundles", 20).run(damaged_bundle);
}

#[test]
fn killed_commands_go_on_to_the_same_bytes() {
    Campaign::new("kills", 6).run(killed);
}

#[test]
fn surroundings_end_in_messages() {
    Campaign::new("surroundings", 8).run(surrounded);
}

/// Found by the attack, seeds 103141 and 104914: a few values that outweigh all others, here the name of a tensor
/// in the place of weights, made an honest conversion look as if it had been scaled.
#[test]
fn weights_of_any_size_are_like_their_conversion() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        let at = tensors.range("lm_head.weight").start + 8192;
        let name = b"0.attn_k_norm.weight\x01\0\0\0 \0\0\0\0\0";
        tensors.data[at..at + name.len()].copy_from_slice(name);
    });
    for options in ["--bits 4 --group-size 32", "--bits 8", "--bits 2 --method minmax"] {
        scratch.ok(&format!("convert ckpt -o out {options}"));
        scratch.ok("verify out --against ckpt");
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

/// Found by the attack, seeds 1053042, 1108583 and 1113859: where one value of each sign outweighs all others of its
/// group, a grid over the range has no level near zero, and two bits err by more than the weights.
#[test]
fn outliers_of_both_signs_are_like_their_conversion() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        for name in ["lm_head.weight", "model.embed_tokens.weight"] {
            let at = tensors.range(name).start + 8192;
            tensors.data[at..at + 4].copy_from_slice(&[0, 0x54, 0, 0xd4]);
        }
    });
    for options in ["--bits 2 --method minmax", "--bits 2 --group-size 32", "--bits 8"] {
        scratch.ok(&format!("convert ckpt -o out {options}"));
        scratch.ok("verify out --against ckpt");
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

/// Found by the attack: an export killed before it could leave its mark was refused ever after.
#[test]
fn an_export_that_was_killed_at_once_begins_anew() {
    let scratch = Scratch::with("golden/qwen3_moe");
    scratch.ok("convert ckpt -o out --bits 4 --group-size 32");
    fs::create_dir(scratch.path("back.partial")).unwrap();
    scratch.ok("export out --to hf -o back");
    assert!(!scratch.path("back.partial").exists());
}

/// Found by the attack, seed 3750022: killed when its output had its name already, an export left a directory that
/// nothing ever removed.
#[test]
fn what_a_whole_export_left_is_removed_by_the_next() {
    let scratch = Scratch::with("golden/llama3");
    scratch.ok("convert ckpt -o out --for gguf --bits 4");
    scratch.ok("export out --to gguf -o made.gguf");
    fs::create_dir(scratch.path("made.gguf.partial")).unwrap();
    fs::write(scratch.path("made.gguf.partial/export.lock"), "").unwrap();
    let exists = "error: made.gguf: already exists; remove it or choose another name";
    scratch.refused("export out --to gguf -o made.gguf", exists);
    assert!(!scratch.path("made.gguf.partial").exists());
}
