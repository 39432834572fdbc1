//! What commands take of memory, as the kernel counted it (`VmHWM` of the child), against what they promise.

use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shardwright_testing::{fixture, widen};

use crate::harness::Scratch;

/// A real vocabulary of today: Gemma 3 has 262,144.
const PIECES: usize = 262_000;
const MIB: u64 = 1 << 20;

/// Bytes that a run names as the least; a run of that many must work.
fn floor(scratch: &Scratch, args: &str) -> u64 {
    let refused = scratch.run(&format!("{args} --memory 1MiB"));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let named = refused.stderr.rsplit("--memory ").next().unwrap();
    named.split("MiB").next().unwrap().parse::<u64>().unwrap() * MIB
}

#[test]
fn a_large_vocabulary_stays_within_the_budget() {
    let scratch = Scratch::with("fixture-2m");
    scratch.edit_json("ckpt/tokenizer.json", |json| widen(json, PIECES));
    let file = fs::metadata(scratch.path("ckpt/tokenizer.json"))
        .unwrap()
        .len();
    let args = "run ckpt --prompt This -n 4 --ignore-eos";
    let floor = floor(&scratch, args);
    assert!(floor <= file + 64 * MIB, "{floor} with a tokenizer of {file} bytes");
    for budget in [floor, floor + 4 * MIB, floor * 3 / 2] {
        let report = scratch.json(&format!("{args} --memory {budget}"));
        let Some(peak) = report["memory"]["peak_bytes"].as_u64() else { return };
        assert!(peak <= budget, "peak {peak} with a budget of {budget}");
    }
    // The plan knows the tokenizer too, and names the same floor.
    let planned = scratch.json("plan ckpt")["runtime"]["floor_bytes"]
        .as_u64()
        .unwrap();
    assert!(planned.abs_diff(floor) < MIB, "plan says {planned}, run {floor}");
}

/// Buffers of a prompt's chunks take the room of experts and give it back: at no time is there more of both.
#[test]
fn long_prompts_stay_within_the_budget() {
    let scratch = Scratch::with("fixture-2m");
    let text = fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    fs::write(scratch.path("prompt"), &text[..1500]).unwrap();
    let args = "run ckpt --prompt-file prompt -n 16 --ignore-eos";
    let plain = scratch.json(args);
    let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
    let (floor, resident) = (bytes("floor_bytes") + MIB, bytes("resident_bytes"));
    let mut longest = 0;
    for eighths in 0..=8 {
        let budget = floor + (resident - floor) * eighths / 8;
        let trace = format!("trace-{eighths}");
        let report = scratch.json(&format!("{args} --memory {budget} --trace {trace}"));
        assert_eq!(report["logits_blake3"], plain["logits_blake3"], "{budget}");
        let Some(peak) = report["memory"]["peak_bytes"].as_u64() else { return };
        assert!(peak <= budget, "peak {peak} with a budget of {budget}");
        let text = fs::read_to_string(scratch.path(&trace)).unwrap();
        let first = text.lines().nth(1).map(serde_json::from_str::<Value>);
        let picks = first.unwrap().unwrap()["picks"].as_array().unwrap().len();
        longest = longest.max(picks / 2);
    }
    assert!(longest > 1, "every prompt was read token by token");
}

/// 24 KB and 5 MB: a byte of text took 140 bytes of memory.
#[test]
fn the_length_of_a_text_costs_no_memory() {
    let scratch = Scratch::with("fixture-2m");
    let text = fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    let short = &text[..24_000];
    fs::write(scratch.path("short.txt"), short).unwrap();
    fs::write(scratch.path("long.txt"), short.repeat(200)).unwrap();
    scratch.ok("convert ckpt -o out --bits 4 --layers 0..1");
    for args in [
        "convert ckpt -o made-TEXT --bits 4 --calibration-tokens 128 --calibration-window 64 --calibrate TEXT.txt",
        "calibrate ckpt -o seen-TEXT --calibration-tokens 128 --calibration-window 64 TEXT.txt",
        "verify out --against ckpt --window 64 --windows 2 --text TEXT.txt",
    ] {
        let peak =
            |text: &str| scratch.json(&args.replace("TEXT", text))["peak_memory_bytes"].as_u64();
        let (Some(short), Some(long)) = (peak("short"), peak("long")) else { return };
        assert!(long < short + 8 * MIB, "{args}: {short}, then {long}");
    }
    // A prompt that does not fit is refused when enough of it was read.
    let refused = scratch.run("run out --prompt-file long.txt --context 64 -n 1");
    let expected = "error: long.txt: the prompt has more than 64 tokens: expected at most 64, as --context says\n";
    assert_eq!((refused.code, refused.stderr.as_str()), (Some(2), expected));
}

#[test]
fn endless_prompts_end() {
    let scratch = Scratch::with("fixture-2m");
    let limits = format!("ulimit -v {}", 2 * 1024 * MIB / 1024);
    let ran =
        scratch.shell(&format!("{limits}; shardwright run ckpt --prompt-file /dev/zero -n 1"));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("1024 KiB of it have no place"), "{}", ran.stderr);
    let words = "yes some words of a text | shardwright run ckpt --prompt-file - --context 50 -n 1";
    let ran = scratch.shell(words);
    assert!(ran.stderr.contains("-: the prompt has more than 50 tokens"), "{}", ran.stderr);
    let ran = scratch.shell("shardwright run ckpt --prompt-file <(printf This) -n 1 --quiet");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn plain_conversions_keep_to_their_plan() {
    let scratch = Scratch::with("fixture-2m");
    for options in ["--bits 4", "--bits 8", "--bits 4 --threads 4"] {
        let planned = scratch.json(&format!("plan ckpt {options}"));
        let planned = planned["cost"]["peak_memory"].as_u64().unwrap();
        let made = scratch.json(&format!("convert ckpt -o out {options}"));
        let Some(peak) = made["peak_memory_bytes"].as_u64() else { return };
        assert!(peak <= planned, "{options}: planned {planned}, took {peak}");
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

/// Streams, sums, factors and logits are counted, not guessed: the figure holds, and no more than a tenth is spare,
/// beside some MiB by which the pages of an unoptimized program differ from run to run.
#[test]
fn calibrated_conversions_take_what_their_plan_says() {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    let text = "--calibrate text.txt --calibration-window 128 --calibration-tokens";
    for options in [
        format!("--bits 4 {text} 256 --threads 2"),
        format!("--bits 4 {text} 1024 --threads 2"),
        format!("--recipe t3 {text} 512 --threads 3"),
        format!("--target-bpw 3 --probe-tokens 256 {text} 256 --threads 2"),
    ] {
        let planned = scratch.json(&format!("plan ckpt {options}"));
        let planned = planned["cost"]["peak_memory"].as_u64().unwrap();
        let made = scratch.json(&format!("convert ckpt -o out {options}"));
        let Some(peak) = made["peak_memory_bytes"].as_u64() else { return };
        assert!(peak <= planned, "{options}: planned {planned}, took {peak}");
        assert!(planned <= peak + peak / 10 + 6 * MIB, "{options}: planned {planned}, took {peak}");
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

/// What a command takes at most, looked at until it ends: the kernel's count only grows.
fn watched(scratch: &Scratch, args: &str) -> Option<u64> {
    let mut child = scratch.spawn(args);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = kib.map(|kib| kib << 10).max(peak);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{args}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn statistics_benches_and_exports_keep_to_their_memory() {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    scratch.ok("calibrate ckpt text.txt -o seen --calibration-tokens 256 --calibration-window 64");
    let options = "--bits 4 --method gptq --statistics seen --threads 2";
    let planned = scratch.json(&format!("plan ckpt {options}"));
    let planned = planned["cost"]["peak_memory"].as_u64().unwrap();
    let taken = watched(&scratch, &format!("convert ckpt -o out {options}"));
    let Some(taken) = taken else { return };
    assert!(taken <= planned, "planned {planned}, took {taken}");
    let bench = "bench out -p 16 -n 4 --repeat 1 --memory 40MiB --threads 2";
    let taken = watched(&scratch, bench).unwrap();
    assert!(taken <= 40 * MIB, "{bench}: took {taken}");
    // A unit, at most 64 MiB, besides the program: here the whole model has 5.
    let taken = watched(&scratch, "export out --to hf -o back").unwrap();
    assert!(taken <= 48 * MIB, "export took {taken}");
}

/// A dense model of `layers` layers, whose statistics are larger than its weights, with the fixture's tokenizer: the
/// fixture's own layer 0 would be, if its feed-forward part were one wide matrix.
fn deep(layers: usize) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.edit_json("ckpt/config.json", |config| {
        for name in ["num_experts_per_tok", "num_local_experts", "moe_intermediate_size"] {
            config.remove(name);
        }
        config.insert("model_type".to_owned(), "qwen3".into());
        config.insert("num_hidden_layers".to_owned(), layers.into());
        config.insert("intermediate_size".to_owned(), WIDE.into());
    });
    scratch.edit_tensors("ckpt/model.safetensors", |t| {
        let (mut header, mut data) = (Map::new(), Vec::new());
        let mut put = |name: String, shape: Value, bytes: &[u8]| {
            let begin = data.len();
            data.extend(bytes);
            let offsets = [begin, data.len()];
            header.insert(name, json!({ "dtype": "F16", "shape": shape, "data_offsets": offsets }));
        };
        let hidden = &t.data[t.range("model.embed_tokens.weight")];
        for (name, tensor) in &t.header {
            let Some(end) = name.strip_prefix("model.layers.0.") else { continue };
            if !end.starts_with("mlp.") {
                let bytes = &t.data[t.range(name)];
                (0..layers).for_each(|l| {
                    put(format!("model.layers.{l}.{end}"), tensor["shape"].clone(), bytes);
                });
            }
        }
        // As many values as the embedding has.
        for layer in 0..layers {
            for (name, shape) in [("gate", [WIDE, 128]), ("up", [WIDE, 128]), ("down", [128, WIDE])]
            {
                put(format!("model.layers.{layer}.mlp.{name}_proj.weight"), json!(shape), hidden);
            }
        }
        for name in ["model.embed_tokens.weight", "model.norm.weight"] {
            put(name.to_owned(), t.header[name]["shape"].clone(), &t.data[t.range(name)]);
        }
        (t.header, t.data) = (header, data);
    });
    scratch
}

/// Inputs of the widest matrix of [`deep`], as many as the fixture has tokens.
const WIDE: usize = 1024;

/// 4.4 MiB of statistics for each layer were held twice.
#[test]
fn statistics_cost_no_memory_by_depth() {
    let taken = [6, 12].map(|layers| {
        let scratch = deep(layers);
        fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
        let amount = "--calibration-tokens 64 --calibration-window 64 --threads 2";
        let observed = watched(&scratch, &format!("calibrate ckpt text.txt -o seen {amount}"))?;
        let options = "--bits 4 --method gptq --statistics seen --threads 2";
        let planned = scratch.json(&format!("plan ckpt {options}"));
        let planned = planned["cost"]["peak_memory"].as_u64().unwrap();
        let made = watched(&scratch, &format!("convert ckpt -o out {options}"))?;
        assert!(made <= planned, "{layers} layers: planned {planned}, took {made}");
        Some([observed, planned, made])
    });
    let [Some(few), Some(many)] = taken else { return };
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few + 8 * MIB, "{few}, with twice the layers {many}");
    }
}

/// A vocabulary of another library's takes more while a tokenizer is made of it than a small model does to convert.
#[test]
fn plans_count_what_making_a_tokenizer_takes() {
    let scratch = Scratch::with("fixture-2m");
    fs::remove_file(scratch.path("ckpt/tokenizer.json")).unwrap();
    fs::write(scratch.path("ckpt/tokenizer.model"), pieces(PIECES)).unwrap();
    let planned = scratch.json("plan ckpt --bits 4");
    let planned = planned["cost"]["peak_memory"].as_u64().unwrap();
    let made = scratch.json("convert ckpt -o out --bits 4");
    let Some(peak) = made["peak_memory_bytes"].as_u64() else { return };
    assert!(peak <= planned, "planned {planned}, took {peak}");
}

/// A model of `SentencePiece` with merges: characters, and each piece with each character behind it.
fn pieces(size: usize) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).unwrap();
        [&[number << 3 | 2, len][..], bytes].concat()
    };
    let letters: Vec<String> = ('!'..='~').map(String::from).collect();
    let mut all: Vec<String> = letters.clone();
    for at in 0.. {
        let head = all[at].clone();
        all.extend(letters.iter().map(|letter| format!("{head}{letter}")));
        if all.len() >= size {
            break;
        }
    }
    let piece = |(at, text): (usize, &String)| {
        let score = [&[2 << 3 | 5][..], &(-(at as f32)).to_le_bytes()].concat();
        field(1, &[field(1, text.as_bytes()), score].concat())
    };
    let unknown = field(1, &[field(1, b"<unk>"), vec![3 << 3, 2]].concat());
    let known = all.iter().take(size).enumerate().flat_map(piece);
    // A trainer that says BPE.
    unknown
        .into_iter()
        .chain(known)
        .chain(field(2, &[3 << 3, 2]))
        .collect()
}
