//! Checkpoints as people have them: what other tools left in a folder, forgot or named otherwise. Each
//! is read as transformers would read it, or refused in one line that says what to do.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use shardwright_testing::{copy_dir, fixture};

use crate::harness::Scratch;

const INDEX: &str = "ckpt/model.safetensors.index.json";
const SINGLE: &str = "ckpt/model.safetensors";
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";

/// A golden in one file.
fn dense() -> Scratch {
    Scratch::with("golden/llama2")
}

/// A golden in two files with an index.
fn split() -> Scratch {
    Scratch::with("golden/llama3")
}

fn trained() -> Scratch {
    Scratch::with("fixture-2m")
}

fn index(scratch: &Scratch, file: &str, names: &[&str]) {
    let map: serde_json::Map<_, _> = names
        .iter()
        .map(|n| ((*n).to_owned(), json!(file)))
        .collect();
    fs::write(scratch.path(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
}

/// Reads as the untouched checkpoint does, and says so in a note that contains `note`.
#[track_caller]
fn reads(scratch: &Scratch, case: &str, note: &str) {
    let whole = Scratch::with(case);
    let model = |s: &Scratch| s.json("inspect ckpt")["model"].take();
    assert_eq!(model(scratch), model(&whole));
    for command in
        ["plan ckpt --bits 4 --group-size 32", "verify ckpt", "verify ckpt --against ckpt"]
    {
        let found = scratch.json(command);
        assert!(found["notes"].to_string().contains(note), "{command}: {}", found["notes"]);
    }
    assert!(
        !whole.json("plan ckpt --bits 4 --group-size 32")["notes"]
            .to_string()
            .contains(note)
    );
}

#[test]
fn an_index_of_another_save() {
    // Whole weights beside it.
    let scratch = dense();
    index(&scratch, "model-00001-of-00002.safetensors", &["model.norm.weight"]);
    reads(&scratch, "golden/llama2", "is of another save and not used");
    // A set of another length.
    let scratch = split();
    index(&scratch, "model-00003-of-00004.safetensors", &["model.norm.weight"]);
    reads(&scratch, "golden/llama3", "is of another save and not used");
    // Some of the files that are there.
    let scratch = split();
    index(&scratch, "model-00001-of-00002.safetensors", &["model.norm.weight"]);
    reads(&scratch, "golden/llama3", "names 1 of the 2 files: all are read");
    // A tensor that no file holds and the model does not need.
    let scratch = split();
    scratch.edit_json(INDEX, |index| {
        index["weight_map"]["model.extra"] = json!("model-00001-of-00002.safetensors");
    });
    reads(&scratch, "golden/llama3", "does not place `model.extra` as the files do");
}

#[test]
fn shards_without_an_index_beside_what_is_not_the_model() {
    let scratch = split();
    fs::remove_file(scratch.path(INDEX)).unwrap();
    for name in ["adapter_model", "optimizer", "consolidated", "._model-00001-of-00002"] {
        fs::write(scratch.path(&format!("ckpt/{name}.safetensors")), "x").unwrap();
    }
    let ran = scratch.ok("plan ckpt --bits 4 --group-size 32");
    assert!(ran.stdout.contains("left out: file optimizer.safetensors"), "{ran:?}");
    fs::remove_file(scratch.path("ckpt/model-00001-of-00002.safetensors")).unwrap();
    scratch.refused(
        "inspect ckpt",
        "error: ckpt/model-00001-of-00002.safetensors: a file of this set is missing: fetch it",
    );
}

#[test]
fn two_complete_models() {
    let scratch = dense();
    fs::copy(scratch.path(SINGLE), scratch.path("ckpt/model-00001-of-00001.safetensors")).unwrap();
    reads(
        &scratch,
        "golden/llama2",
        "holds the same weights as `model.safetensors` and is not read",
    );
    scratch.edit_bytes("ckpt/model-00001-of-00001.safetensors", |bytes| {
        *bytes.last_mut().unwrap() ^= 1;
    });
    let ran = scratch.run("inspect ckpt");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let expected = "error: ckpt: two complete models that differ, `model.safetensors` and \
                    `model-00001-of-00001.safetensors` (first in tensor `";
    assert!(ran.stderr.starts_with(expected), "{ran:?}");
}

#[test]
fn pointers_of_git_lfs() {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let scratch = trained();
        fs::write(scratch.path("ckpt").join(name), POINTER).unwrap();
        let expected = format!(
            "error: ckpt/{name}: a Git LFS pointer of 68 bytes, not the file itself: run `git lfs \
             pull` in its directory"
        );
        scratch.refused("convert ckpt -o out", &expected);
        assert!(!scratch.path("out").exists());
    }
    let scratch = Scratch::new();
    fs::write(scratch.path("m.gguf"), POINTER).unwrap();
    let ran = scratch.run("inspect m.gguf");
    assert!(ran.stderr.contains("a Git LFS pointer"), "{ran:?}");
}

#[test]
fn companions_are_followed_as_weights_are() {
    let scratch = Scratch::new();
    copy_dir(&fixture("fixture-2m"), &scratch.path("real"));
    fs::write(scratch.path("real/secret.txt"), "mine").unwrap();
    fs::create_dir(scratch.path("ckpt")).unwrap();
    for entry in fs::read_dir(scratch.path("real")).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(scratch.path("real").join(&name), scratch.path("ckpt").join(&name)).unwrap();
    }
    scratch.ok("convert ckpt -o out --bits 4");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(scratch.path("out").join(name).is_file(), "{name}");
    }
    assert!(!scratch.path("out/secret.txt").exists());
    scratch.ok("run out --prompt This -n 1");
}

#[test]
fn a_bundle_without_a_tokenizer_is_said() {
    let scratch = trained();
    fs::rename(scratch.path("ckpt/tokenizer.json"), scratch.path("ckpt/tokenizer.model")).unwrap();
    let ran = scratch.ok("convert ckpt -o out --bits 4");
    assert!(
        ran.stdout
            .contains("note: no tokenizer.json, only tokenizer.model (expected a model of"),
        "{ran:?}"
    );
}

#[test]
fn what_tools_leave_is_not_copied() {
    let scratch = trained();
    for name in [".gitattributes", ".DS_Store", "._config.json", "ReadMe.md"] {
        fs::write(scratch.path("ckpt").join(name), "x").unwrap();
    }
    fs::create_dir_all(scratch.path("ckpt/.cache/huggingface")).unwrap();
    fs::write(scratch.path("ckpt/.cache/huggingface/x.lock"), "").unwrap();
    fs::write(scratch.path("ckpt/LICENSE"), "free").unwrap();
    scratch.ok("convert ckpt -o out --bits 4");
    let names = fs::read_dir(scratch.path("out")).unwrap();
    let names: Vec<_> = names
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    let clutter = |n: &&String| n.starts_with('.') || n.eq_ignore_ascii_case("readme.md");
    assert_eq!(names.iter().find(clutter), None, "{names:?}");
    assert!(names.contains(&"LICENSE".to_owned()));
    // Nor is it damage in a bundle.
    fs::write(scratch.path("out/Thumbs.db"), "x").unwrap();
    fs::write(scratch.path("out/.DS_Store"), "x").unwrap();
    scratch.ok("verify out");
}

/// Renames every tensor of the one file.
fn rename(scratch: &Scratch, to: impl Fn(&str) -> String) {
    scratch.edit_tensors(SINGLE, |tensors| {
        let old = std::mem::take(&mut tensors.header);
        tensors.header = old
            .into_iter()
            .map(|(name, entry)| (if name == "__metadata__" { name } else { to(&name) }, entry))
            .collect();
    });
}

/// Gives a tensor the name that a tool would.
type Renaming = fn(&str) -> String;

#[test]
fn names_that_training_left() {
    let cases: [(Renaming, &str); 5] = [
        (|n| format!("_orig_mod.{n}"), "of torch.compile"),
        (|n| n.replace("self_attn", "_orig_mod.self_attn"), "of torch.compile"),
        (|n| format!("module._orig_mod.{n}"), "`module.` before every name"),
        (|n| format!("base_model.model.{n}"), "`base_model.model.` before every name"),
        (|n| n.trim_start_matches("model.").to_owned(), "names without `model.`"),
    ];
    for (to, note) in cases {
        let scratch = dense();
        rename(&scratch, to);
        reads(&scratch, "golden/llama2", note);
    }
    let scratch = dense();
    rename(&scratch, |n| n.replace("q_proj.weight", "q_proj.lora_A.weight"));
    let ran = scratch.run("inspect ckpt");
    assert!(ran.stderr.contains("an adapter that is not merged"), "{ran:?}");
    let scratch = dense();
    rename(&scratch, |n| n.replace("q_proj.weight", "q_proj.lora_a"));
    let ran = scratch.run("inspect ckpt");
    assert!(ran.stderr.contains("merge it, with mlx_lm.fuse"), "{ran:?}");
}

#[test]
fn heads_and_embeddings() {
    // Stored as the head alone.
    let scratch = trained();
    rename(&scratch, |n| n.replace("model.embed_tokens.", "lm_head."));
    let tokens = |s: &Scratch| s.json("run ckpt --prompt This -n 4")["tokens"].take();
    assert_eq!(tokens(&scratch), tokens(&trained()));
    // Untied in the config, and missing.
    scratch.edit_json("ckpt/config.json", |config| {
        config.insert("tie_word_embeddings".to_owned(), json!(false));
    });
    rename(&scratch, |n| n.replace("lm_head.", "model.embed_tokens."));
    let ran = scratch.run("inspect ckpt");
    assert!(
        ran.stderr
            .contains("set tie_word_embeddings to true in config.json"),
        "{ran:?}"
    );
}

/// Appends scales of one.
fn append_scalars(scratch: &Scratch, names: &[&str]) {
    scratch.edit_tensors(SINGLE, |tensors| {
        for name in names {
            let start = tensors.data.len();
            tensors.data.extend(1_f32.to_le_bytes());
            let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [start, start + 4]});
            tensors.header.insert((*name).to_owned(), entry);
        }
    });
}

/// Appends tensors of zeros.
fn append(scratch: &Scratch, names: &[(&str, &str)]) {
    scratch.edit_tensors(SINGLE, |tensors| {
        for (name, dtype) in names {
            let start = tensors.data.len();
            tensors.data.extend([0; 8]);
            let size = match *dtype {
                "I64" => 8,
                "U8" => 1,
                _ => 4,
            };
            let entry =
                json!({"dtype": dtype, "shape": [8 / size], "data_offsets": [start, start + 8]});
            tensors.header.insert((*name).to_owned(), entry);
        }
    });
}

#[test]
fn buffers_are_left_out_and_listed() {
    let scratch = dense();
    let buffers = [
        ("model.embeddings.position_ids", "I64"),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", "F32"),
        ("model.layers.1.attn.masked_bias", "F32"),
        ("model.layers.1.self_attn._extra_state", "U8"),
    ];
    append(&scratch, &buffers);
    let plan = scratch.json("plan ckpt --bits 4 --group-size 32");
    for (name, _) in buffers {
        assert!(plan["ignored"].to_string().contains(name), "{name}");
    }
    append(&scratch, &[("model.layers.0.self_attn.mystery", "F32")]);
    let ran = scratch.run("inspect ckpt");
    assert!(ran.stderr.contains("has no row for it"), "{ran:?}");
}

/// Scales of a cache that another program quantizes say nothing of weights, whatever the configuration says of it.
#[test]
fn scales_of_a_cache_are_left_out_and_listed() {
    let scales = [
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.self_attn.v_scale",
        "model.layers.0.self_attn.q_scale",
        "model.layers.0.self_attn.attn.v_scale",
        "model.layers.1.self_attn.k_proj.output_scale",
        "model.layers.1.self_attn.v_proj.v_scale",
    ];
    let scheme = json!({"quant_method": "compressed-tensors", "format": "dense",
        "config_groups": {}, "kv_cache_scheme": {"num_bits": 8, "type": "float"}, "ignore": []});
    for config in [Value::Null, scheme, json!({"quant_method": "fp8"})] {
        let scratch = dense();
        append_scalars(&scratch, &scales);
        scratch.edit_json("ckpt/config.json", |own| {
            own.insert("quantization_config".to_owned(), config);
        });
        let plan = scratch.json("plan ckpt --bits 4 --group-size 32");
        for name in scales {
            assert!(plan["ignored"].to_string().contains(name), "{name}: {}", plan["ignored"]);
        }
    }
    // Alone it may be a weight, and so may several values.
    for (name, several) in [("q_scale", false), ("k_scale", true), ("up_scale", false)] {
        let scratch = dense();
        let name = format!("model.layers.0.self_attn.{name}");
        if several {
            append(&scratch, &[(&name, "F32")]);
        } else {
            append_scalars(&scratch, &[&name]);
        }
        let ran = scratch.run("inspect ckpt");
        assert!(ran.stderr.contains("has no row for it"), "{name}: {ran:?}");
    }
}

#[test]
fn neutral_spellings() {
    let scratch = dense();
    scratch.edit_tensors(SINGLE, |tensors| {
        tensors
            .header
            .insert("__metadata__".to_owned(), Value::Null);
    });
    scratch.edit_json("ckpt/config.json", |config| {
        let size = config["hidden_size"].as_f64().unwrap();
        config.insert("hidden_size".to_owned(), json!(size));
    });
    scratch.ok("inspect ckpt");
}

#[test]
fn what_is_no_checkpoint_is_named_with_the_next_step() {
    let named = |files: &[(&str, &str)], expected: &str| {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path("ckpt")).unwrap();
        for (name, text) in files {
            fs::write(scratch.path("ckpt").join(name), text).unwrap();
        }
        scratch.refused("inspect ckpt", expected);
    };
    let adapter = ("adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#);
    let expected = "error: ckpt: a LoRA adapter for org/base (adapter_config.json), not a model: \
                    merge it into that first, with merge_and_unload of peft";
    named(&[adapter, ("adapter_model.safetensors", "x")], expected);
    named(&[adapter, ("adapter_model.safetensors", "x"), ("config.json", "{}")], expected);
    let mlx = (
        "adapter_config.json",
        r#"{"model": "org/base", "fine_tune_type": "lora", "lora_parameters": {}}"#,
    );
    let expected = "error: ckpt: a LoRA adapter for org/base (adapter_config.json), not a model: \
                    merge it into that first, with mlx_lm.fuse";
    named(&[mlx, ("adapters.safetensors", "x")], expected);
    let steps = ("0000100_adapters.safetensors", "x");
    named(&[mlx, ("adapters.safetensors", "x"), steps, ("config.json", "{}")], expected);
    let pickle = "error: ckpt: expected .safetensors files, found `pytorch_model.bin`, a pickle, which \
                  can run code when it is read: load it with transformers and save it again with \
                  save_pretrained";
    named(&[("config.json", "{}"), ("pytorch_model.bin", "x")], pickle);
    let own = "error: ckpt: Mistral's or Meta's own layout (params.json, consolidated weights): take the \
               files for transformers of the same model, with config.json";
    named(&[("params.json", "{}"), ("consolidated.safetensors", "x")], own);
    let scratch = dense();
    scratch.refused(
        "inspect ckpt/model.safetensors",
        "error: ckpt/model.safetensors: one file of a checkpoint: name its directory, ckpt",
    );
}

#[test]
fn the_cache_of_the_hub() {
    let scratch = Scratch::new();
    for revision in ["old", "new"] {
        let snapshot = format!("hub/models--org--name/snapshots/{revision}");
        copy_dir(&fixture("golden/llama2"), &scratch.path(&snapshot));
    }
    fs::remove_file(scratch.path("hub/models--org--name/snapshots/new/model.safetensors")).unwrap();
    fs::create_dir(scratch.path("hub/models--org--name/refs")).unwrap();
    fs::write(scratch.path("hub/models--org--name/refs/main"), "old\n").unwrap();
    scratch.ok("inspect hub/models--org--name");
    let run = |variable: &str, value: &str, name: &str| {
        let mut command = scratch.command(&format!("inspect {name}"));
        command.env_remove("HF_HUB_CACHE").env_remove("HF_HOME");
        command.env(variable, scratch.path(value)).output().unwrap()
    };
    assert!(run("HF_HUB_CACHE", "hub", "org/name").status.success());
    assert!(run("HF_HOME", "", "org/name").status.success());
    let missing = run("HF_HUB_CACHE", "hub", "org/other");
    let stderr = String::from_utf8(missing.stderr).unwrap();
    assert!(stderr.contains("`hf download org/other` would fetch"), "{stderr}");
}

#[test]
fn long_input_is_quoted_in_part() {
    let scratch = dense();
    rename(&scratch, |n| n.replace("model.norm", &"x".repeat(100_000)));
    let ran = scratch.run("inspect ckpt");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.len() < 1000 && ran.stderr.contains("characters"), "{}", ran.stderr.len());
}

/// Writes what `with` makes of a JSON text as it stands, which need not be JSON any more.
fn rewrite(scratch: &Scratch, file: &str, with: impl Fn(&str) -> String) {
    let path = scratch.path(file);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, with(&text)).unwrap();
}

#[test]
fn a_save_that_was_interrupted() {
    let scratch = dense();
    fs::copy(
        fixture("golden/llama3/model-00001-of-00002.safetensors"),
        scratch.path("ckpt/model-00001-of-00002.safetensors"),
    )
    .unwrap();
    let plan = scratch.json("plan ckpt --bits 4 --group-size 32");
    assert!(
        plan["skipped"]
            .to_string()
            .contains("model-00001-of-00002.safetensors"),
        "{plan}"
    );
    let names = [
        ("MODEL.SAFETENSORS", "write its extension in small letters"),
        ("model.safetensors.incomplete", "a download that has not ended: fetch it again"),
        ("weights/model.safetensors", "none, but some in `weights`: put them beside config.json"),
    ];
    for (name, expected) in names {
        let scratch = dense();
        fs::create_dir(scratch.path("ckpt/weights")).unwrap();
        fs::rename(scratch.path(SINGLE), scratch.path("ckpt").join(name)).unwrap();
        let ran = scratch.run("inspect ckpt");
        assert_eq!(ran.code, Some(2), "{name}");
        assert!(ran.stderr.contains(expected), "{ran:?}");
    }
    // The directory above the model's.
    let scratch = Scratch::new();
    copy_dir(&fixture("golden/llama2"), &scratch.path("above/model"));
    scratch.refused(
        "inspect above",
        "error: above: expected .safetensors files, found none, but some in `model`: name that \
         directory, above/model",
    );
}

#[test]
fn models_of_a_trainer_inside_are_not_copied() {
    let scratch = trained();
    copy_dir(&fixture("fixture-2m"), &scratch.path("ckpt/checkpoint-500"));
    fs::write(scratch.path("ckpt/optimizer.pt"), "x").unwrap();
    scratch.ok("convert ckpt -o out --bits 4");
    assert!(!scratch.path("out/checkpoint-500").exists());
    let plan = scratch.json("plan ckpt --bits 4");
    assert!(plan["skipped"].to_string().contains("another model's"), "{plan}");
}

#[test]
fn spellings_of_a_config_that_change_nothing() {
    let tokens = |s: &Scratch, model: &str| {
        s.json(&format!("run {model} --prompt This -n 4 --ignore-eos"))["tokens"].take()
    };
    let expected = tokens(&trained(), "ckpt");
    let members = [
        ("rope_scaling", json!({"type": null})),
        ("rope_scaling", json!({})),
        ("quantization_config", json!({})),
        ("quantization_config", Value::Null),
        ("text_config", Value::Null),
        ("dtype", json!("float16")),
        ("eos_token_id", json!([0, 5])),
        ("pad_token_id", json!(-1)),
    ];
    for (name, value) in members {
        let scratch = trained();
        scratch.edit_json("ckpt/config.json", |config| drop(config.insert(name.to_owned(), value)));
        assert_eq!(tokens(&scratch, "ckpt"), expected, "{name}");
    }
    // What Python's json writes and no other reads, before a byte order mark; in a bundle too.
    let scratch = trained();
    rewrite(&scratch, "ckpt/config.json", |text| {
        let rest = text.trim_end().strip_suffix('}').unwrap();
        format!("\u{feff}{rest}, \"time_step_limit\": [0.0, Infinity]}}")
    });
    assert_eq!(tokens(&scratch, "ckpt"), expected);
    scratch.ok("convert ckpt -o out --bits 8");
    scratch.ok("run out --prompt This -n 1");
    assert_eq!(scratch.json("verify out --against ckpt")["verdict"], json!("holds"));
}

#[test]
fn vocabularies_in_other_forms_are_named_with_the_command() {
    let none = "expected a model of SentencePiece, found none (";
    let other = "line 1: expected a token in base64 and its rank, found another text): ";
    for (name, why) in [("tokenizer.model", none), ("tiktoken.model", other), ("vocab.json", "")] {
        let scratch = trained();
        fs::rename(scratch.path("ckpt/tokenizer.json"), scratch.path("ckpt").join(name)).unwrap();
        let make = "python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('";
        for command in
            ["run ckpt --prompt This", "verify ckpt --against ckpt --text ckpt/config.json"]
        {
            let ran = scratch.run(command);
            assert_eq!(ran.code, Some(2), "{ran:?}");
            let expected = format!(": make it with {make}ckpt').save");
            assert!(ran.stderr.contains(&expected), "{ran:?}");
            assert!(ran.stderr.contains(&format!("no such file, only {name}")), "{ran:?}");
            assert!(ran.stderr.contains(why), "{ran:?}");
        }
        let ran = scratch.ok("convert ckpt -o out --bits 4");
        let expected = format!("no tokenizer.json, only {name}");
        assert!(ran.stdout.contains(&expected) && ran.stdout.contains(make), "{ran:?}");
        assert!(ran.stdout.contains(": the bundle runs no text until"), "{ran:?}");
    }
}

/// The same weights in a file of another name are the same original.
#[test]
fn an_original_that_was_renamed_is_the_same() {
    let scratch = trained();
    scratch.ok("convert ckpt -o out --bits 4");
    let other = "ckpt/pytorch_model-00001-of-00001.safetensors";
    fs::rename(scratch.path(SINGLE), scratch.path(other)).unwrap();
    assert_eq!(scratch.json("verify out --against ckpt")["verdict"], json!("holds"));
}

#[test]
fn weights_that_training_left_are_named_with_the_next_step() {
    let scratch = dense();
    append(&scratch, &[("v_head.summary.weight", "F32")]);
    let ran = scratch.run("inspect ckpt");
    assert!(
        ran.stderr
            .contains("the head of a classifier or a reward model"),
        "{ran:?}"
    );
    let scratch = dense();
    scratch.edit_tensors(SINGLE, |tensors| {
        let last = tensors
            .header
            .values()
            .map(|entry| entry["data_offsets"][0].as_u64());
        let last = last.max().unwrap();
        let mut entries = tensors.header.values_mut();
        let entry = entries
            .find(|entry| entry["data_offsets"][0].as_u64() == last)
            .unwrap();
        tensors.data.truncate(last.unwrap() as usize);
        (entry["shape"], entry["data_offsets"]) = (json!([0]), json!([last, last]));
    });
    let ran = scratch.run("inspect ckpt");
    assert!(
        ran.stderr
            .contains("found [0], empty as DeepSpeed's ZeRO-3 saves"),
        "{ran:?}"
    );
}

#[test]
fn a_tokenizer_config_may_have_numbers_that_python_writes() {
    let scratch = trained();
    fs::write(scratch.path("ckpt/chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    rewrite(&scratch, "ckpt/tokenizer_config.json", |text| {
        format!("{}, \"model_max_length\": Infinity}}", text.trim_end().strip_suffix('}').unwrap())
    });
    scratch.ok("run ckpt --chat --prompt This -n 1");
}

/// What would say that a directory is an adapter is no file, and may have no end.
#[test]
fn a_pipe_in_place_of_an_adapters_configuration() {
    let scratch = dense();
    scratch.shell("mkfifo ckpt/adapter_config.json && mkdir other && ln -s /dev/zero other/adapter_config.json");
    let ran = scratch.shell("timeout -s KILL 60 shardwright inspect ckpt");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = scratch.shell("ulimit -v 4000000; timeout -s KILL 60 shardwright inspect other");
    assert!(ran.code == Some(2) && ran.stderr.starts_with("error: other"), "{ran:?}");
}
