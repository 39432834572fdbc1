//! More of what people have: files beside the weights that whoever has the result would parse, pages of servers
//! in place of files, and configurations that leave something out.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use shardwright_testing::fixture;

use crate::harness::Scratch;

fn trained() -> Scratch {
    Scratch::with("fixture-2m")
}

/// What is no JSON is found before weights are read, whether they are converted or exported, and leaves nothing.
#[test]
fn files_that_are_parsed_later_are_parsed_first() {
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        for text in ["Entry not found", ""] {
            let scratch = trained();
            fs::write(scratch.path(&format!("ckpt/{name}")), text).unwrap();
            for command in ["convert ckpt -o out", "export ckpt --to hf -o out"] {
                let ran = scratch.run(&format!("{command} --quiet"));
                assert_eq!(ran.code, Some(2), "{name}: {ran:?}");
                assert!(ran.stderr.contains(&format!("ckpt/{name}: ")), "{}", ran.stderr);
                assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
            }
            assert!(!scratch.path("out").exists() && !scratch.path("out.partial").exists());
        }
    }
    let scratch = trained();
    fs::write(scratch.path("ckpt/tokenizer_config.json"), "{").unwrap();
    let expected = "error: ckpt/tokenizer_config.json: expected JSON, found a text that is none (EOF while parsing \
                    an object at line 1 column 1); put the original model's file there, or remove it";
    scratch.refused("convert ckpt -o out", expected);
    // Numbers that Python writes are none of JSON's, and a byte order mark is no text.
    let config = fs::read_to_string(scratch.path("ckpt/config.json")).unwrap();
    fs::write(scratch.path("ckpt/config.json"), format!("\u{feff}{config}")).unwrap();
    fs::write(scratch.path("ckpt/tokenizer_config.json"), r#"{"model_max_length": Infinity}"#)
        .unwrap();
    scratch.ok("export ckpt --to hf -o out");
    scratch.ok("verify out --against ckpt");
}

/// A vocabulary that is not known says so before the conversion, and in its notes.
#[test]
fn a_tokenizer_without_a_vocabulary_is_said() {
    let scratch = trained();
    scratch.edit_json("ckpt/tokenizer.json", |tokenizer| drop(tokenizer.remove("model")));
    let said = scratch.ok("convert ckpt -o out");
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("tokenizer.json has no vocabulary that is known here"), "{said}");
}

/// Without `generation_config.json`, a model whose turns have several messages ends with a call of a tool, too.
#[test]
fn a_call_of_a_tool_ends_a_turn() {
    let scratch = trained();
    fs::remove_file(scratch.path("ckpt/generation_config.json")).unwrap();
    let run = "run ckpt --prompt This -n 8";
    let tokens: Vec<u64> = serde_json::from_value(scratch.json(run)["tokens"].clone()).unwrap();
    let ends = [tokens[2], 1023];
    assert!(!tokens[..2].iter().any(|token| ends.contains(token)), "{tokens:?}");
    scratch.edit_json("ckpt/tokenizer.json", |tokenizer| {
        let model = tokenizer["model"].as_object_mut().unwrap();
        let mut vocab = model["vocab"].as_object().unwrap().clone();
        let mut gone = Vec::new();
        for (id, name) in ends.into_iter().zip(["<|call|>", "<|return|>"]) {
            let piece = vocab.iter().find(|(_, found)| **found == id).unwrap();
            let piece = piece.0.clone();
            vocab.remove(&piece);
            vocab.insert(name.to_owned(), json!(id));
            gone.push(piece);
        }
        let text = |merge: &Value| match merge {
            Value::Array(parts) => parts
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" "),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        let merges = model["merges"].as_array().unwrap().iter();
        let merges = merges.filter(|merge| {
            let (text, whole) = (text(merge), text(merge).replacen(' ', "", 1));
            gone.iter()
                .all(|piece| whole != *piece && text.split(' ').all(|part| part != piece))
        });
        let merges: Vec<_> = merges.cloned().collect();
        model.insert("merges".to_owned(), merges.into());
        model.insert("vocab".to_owned(), vocab.into());
    });
    let found = scratch.json(run);
    assert_eq!(
        (&found["tokens"], &found["stopped"]),
        (&json!(tokens[..3]), &json!("end_of_text")),
        "{found}"
    );
}

/// Whose codes they are, the tensors show.
#[test]
fn codes_are_known_by_their_tensors() {
    let scratch = Scratch::with("golden/qwen2-gptq");
    let config = |edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        scratch.edit_json("ckpt/config.json", |config| edit(config));
    };
    let plain = scratch.ok("inspect ckpt").stdout;
    config(&|config| config["quantization_config"]["quant_method"] = json!("GPTQ"));
    assert_eq!(scratch.ok("inspect ckpt").stdout, plain);
    config(&|config| config["quantization_config"]["quant_method"] = Value::Null);
    assert_eq!(scratch.ok("inspect ckpt").stdout, plain);
    config(&|config| drop(config.remove("quantization_config")));
    let ran = scratch.run("inspect ckpt");
    assert_eq!(ran.code, Some(2));
    let expected = "it belongs to codes of GPTQ or AWQ, but config.json has no quantization_config";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
}

/// A page of a server is no file of weights.
#[test]
fn pages_in_place_of_weights_are_named() {
    let scratch = trained();
    fs::write(scratch.path("ckpt/model.safetensors"), "<!DOCTYPE html><html></html>").unwrap();
    let expected = "error: ckpt/model.safetensors: expected safetensors, found a text that begins with `<!DOCTYP`; \
                    what a server says in place of a file: fetch it again";
    scratch.refused("inspect ckpt", expected);
    fs::remove_file(scratch.path("ckpt/config.json")).unwrap();
    let expected = "error: ckpt: expected config.json, found none: take it from the model that these weights are of";
    scratch.refused("inspect ckpt", expected);
}

/// Whole numbers as floats, and -1 for a token that there is none of.
#[test]
fn numbers_of_tokens_may_be_floats_or_none() {
    let scratch = trained();
    let run = "run ckpt --prompt This -n 4";
    let plain = scratch.json(run);
    for (eos, bos) in
        [(json!(0.0), json!(-1)), (json!([0, -1]), json!([0])), (json!(-1), json!(null))]
    {
        scratch.edit_json("ckpt/config.json", |config| {
            config.insert("eos_token_id".to_owned(), eos.clone());
            config.insert("bos_token_id".to_owned(), bos.clone());
        });
        scratch.edit_json("ckpt/generation_config.json", |config| {
            config.insert("eos_token_id".to_owned(), eos);
        });
        assert_eq!(scratch.json(run)["tokens"], plain["tokens"]);
    }
}

/// A cache of the hub's is known by its folders; what was removed from it, by the links that are left.
#[test]
fn caches_and_their_broken_links_are_named() {
    let scratch = trained();
    let folder = "cache/hub/models--org--model/snapshots/abc";
    fs::create_dir_all(scratch.path(folder)).unwrap();
    let expected = "a Hugging Face cache of one model: name it, as org/model";
    for path in ["cache", "cache/hub"] {
        scratch.refused(&format!("inspect {path}"), &format!("error: {path}: {expected}"));
    }
    let expected = "a link to a file that is not there: fetch it again";
    for name in ["model.safetensors", "config.json"] {
        let path = scratch.path(&format!("ckpt/{name}"));
        fs::remove_file(&path).unwrap();
        symlink("../nothing", &path).unwrap();
        let ran = scratch.run("inspect ckpt");
        assert!(ran.code == Some(2) && ran.stderr.contains(expected), "{ran:?}");
    }
}

/// Names as other programs take them say how this one does.
#[test]
fn names_with_a_revision_or_a_quantization_are_answered() {
    let scratch = Scratch::new();
    for (name, help) in [
        ("org/model@v1", "hf://org/model@v1 reads that revision"),
        ("org/model:Q4_K_M", "hf://org/model/FILE.gguf reads one GGUF file"),
    ] {
        let ran = scratch.run(&format!("inspect {name}"));
        assert!(ran.code == Some(2) && ran.stderr.contains(help), "{ran:?}");
    }
}

/// What trainers leave is neither copied nor damage.
#[test]
fn what_trainers_leave_is_left() {
    let scratch = trained();
    for name in ["trainer_state.json", "zero_to_fp32.py", "latest", "runs/events.out", "wandb/x"] {
        let path = scratch.path(&format!("ckpt/{name}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    scratch.ok("convert ckpt -o out");
    for name in ["trainer_state.json", "zero_to_fp32.py", "latest", "runs", "wandb"] {
        assert!(!scratch.path(&format!("out/{name}")).exists(), "{name}");
    }
}

/// A bundle cloned without Git LFS has pointers, which are named as such, one finding each.
#[test]
fn pointers_in_a_bundle_are_named() {
    let scratch = trained();
    scratch.ok("convert ckpt -o out");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
    fs::write(scratch.path("out/dense-000.bin"), pointer).unwrap();
    let named =
        "a Git LFS pointer of 68 bytes, not the file itself: run `git lfs pull` in its directory";
    scratch.refused("run out --prompt x", &format!("error: out/dense-000.bin: {named}"));
    let ran = scratch.run("verify out");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains(named) && ran.stdout.contains("1 finding"), "{}", ran.stdout);
}

/// Repositories of GGUF files have a `config.json` that names the kind of a model alone, and the statistics that
/// it was quantized with.
#[test]
fn files_beside_a_gguf_file_that_say_nothing_of_it_change_nothing() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("g")).unwrap();
    let copy = |from: &str, to: &str| {
        fs::copy(fixture(from), scratch.path(&format!("g/{to}"))).unwrap();
    };
    copy("tokenizers/llama-bpe.gguf", "m.gguf");
    let run = "run g --prompt This -n 4";
    let plain = scratch.json(run);
    copy("imatrix/fixture-2m.gguf", "imatrix_unsloth.gguf");
    fs::write(scratch.path("g/config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let found = scratch.json(run);
    assert_eq!(found["tokens"], plain["tokens"]);
    scratch.ok("convert g -o out");
    let config = fs::read_to_string(scratch.path("out/config.json")).unwrap();
    assert!(config.contains("hidden_size"), "{config}");
    scratch.ok("verify out --against g");
    copy("gguf/olmoe-00001-of-00003.gguf", "o-00001-of-00003.gguf");
    scratch.refused(
        "inspect g/o-00001-of-00003.gguf",
        "error: g/o-00002-of-00003.gguf: piece 2 of 3: no such file; fetch it",
    );
}

/// What people keep beside a bundle is listed; what a shard or weights could be is a finding, wherever it lies.
#[test]
fn documents_and_pictures_beside_a_bundle_are_notes() {
    let scratch = trained();
    scratch.ok("convert ckpt -o out");
    let documents = ["USE_POLICY.md", "LICENSE-MIT", "Notice.txt", "logo.PNG", "report.pdf"];
    fs::create_dir(scratch.path("out/figures")).unwrap();
    for name in documents.into_iter().chain(["figures/curve.svg"]) {
        fs::write(scratch.path("out").join(name), "x").unwrap();
    }
    let report = scratch.json("verify out");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    let notes = report["notes"].to_string();
    for name in documents.into_iter().chain(["figures"]) {
        assert!(notes.contains(name), "{name}: {notes}");
    }
    for name in [
        "dense-009.bin",
        "LICENSE.bin",
        "README.safetensors",
        "figures/a.bin",
        "onnx/model.onnx",
        "experts/x.md",
    ] {
        let path = scratch.path("out").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        let ran = scratch.run("verify out");
        let (folder, _) = name.split_once('/').unwrap_or((name, ""));
        assert!(ran.code == Some(1) && ran.stdout.contains(folder), "{name}: {}", ran.stdout);
        fs::remove_file(&path).unwrap();
        fs::remove_dir(scratch.path("out/onnx")).ok();
    }
    // A model without experts has no folder for them; none that is empty stays.
    fs::remove_dir(scratch.path("out/experts")).ok();
    scratch.ok("verify out");
}

/// What a bundle cannot run any text with is said when it is planned and made, not when it is run.
#[test]
fn tokenizers_that_no_text_can_be_run_with_are_named_at_once() {
    let wrong: [fn(&mut serde_json::Map<String, Value>); 4] = [
        |json| json["model"]["merges"][0] = json!("zz qq"),
        |json| json["model"]["merges"][0] = json!("a  b"),
        |json| json["pre_tokenizer"] = json!({"type": "Foo"}),
        |json| json["version"] = json!("2.0"),
    ];
    for edit in wrong {
        let scratch = trained();
        scratch.edit_json("ckpt/tokenizer.json", edit);
        let named = "tokenizer.json: is not a usable tokenizer (";
        let next = "; copy the tokenizer.json of the original model there again; until then the bundle runs no text";
        let notes = scratch.json("plan ckpt --bits 4")["notes"].to_string();
        assert!(notes.contains(named) && notes.contains(next), "{notes}");
        let ran = scratch.ok("convert ckpt -o out --bits 4");
        assert!(ran.stdout.contains(&format!("note: {named}")), "{}", ran.stdout);
        let ran = scratch.run("run out --prompt x -n 1");
        assert!(ran.code == Some(2) && ran.stderr.contains(named), "{}", ran.stderr);
    }
    let notes = trained().json("plan ckpt --bits 4")["notes"].to_string();
    assert!(!notes.contains("usable"), "{notes}");
}

/// Nor does what systems and stores leave in a bundle's directory change what is in it.
#[test]
fn what_systems_leave_in_a_bundle_is_a_note() {
    let scratch = trained();
    scratch.ok("convert ckpt -o out");
    let left = [
        "config.json:Zone.Identifier",
        "experts/layer-000.bin:Zone.Identifier",
        "SHA256SUMS",
        "__MACOSX/._x",
        "@eaDir/x",
        "experts/@eaDir/x",
        "lost+found/x",
        "desktop.ini",
        "experts/Thumbs.db",
        "._config.json",
    ];
    for name in left {
        let path = scratch.path("out").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let report = scratch.json("verify out");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    let notes = report["notes"].to_string();
    for name in left {
        let shown = name.strip_suffix("/x").unwrap_or(name);
        assert!(notes.contains(shown.strip_suffix("/._x").unwrap_or(shown)), "{name}: {notes}");
    }
}

/// A text in another form is named by its first bytes; no encoding is claimed that no byte tells.
#[test]
fn texts_in_other_forms_are_named() {
    let scratch = trained();
    fs::write(scratch.path("t.txt"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03").unwrap();
    let zipped = "error: t.txt: expected text in UTF-8, found a gzip file: `gzip -dc` unpacks it";
    scratch.refused("run ckpt --prompt-file t.txt -n 1", zipped);
    scratch.refused("verify ckpt --against ckpt --text t.txt", zipped);
    fs::write(scratch.path("t.txt"), b"\xc4\xe3\xba\xc3\xca\xc0\xbd\xe7\n").unwrap();
    let other = "error: t.txt: expected text in UTF-8, found byte 0xc4 at 0: `iconv -f ENCODING -t UTF-8` changes \
                 it, with the encoding that it is in";
    scratch.refused("run ckpt --prompt-file t.txt -n 1", other);
    scratch.refused("convert ckpt -o out --calibrate t.txt", other);
}

/// What is to be kept must be there.
#[test]
fn a_model_without_layers_for_further_tokens_keeps_none() {
    let scratch = trained();
    let ran = scratch.run("convert ckpt -o out --mtp keep");
    let expected = "error: this model has no layer that predicts further tokens, which `--mtp keep` would keep";
    assert!(ran.code == Some(2) && ran.stderr.contains(expected), "{}", ran.stderr);
    assert!(!scratch.path("out").exists());
}

/// A bias of zeros adds nothing beside a matrix, and may mean another norm beside a norm; values that are wider
/// than any that is computed with are refused with the next step.
#[test]
fn weights_that_nobody_computes_with_are_left_out_or_named() {
    let plan = "plan ckpt --bits 4 --group-size 32";
    let beside = |name: &str, len: usize, value: u8| {
        let scratch = Scratch::with("golden/llama2");
        scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
            let start = tensors.data.len();
            tensors.data.resize(start + 2 * len, value);
            let offsets = [start, tensors.data.len()];
            let entry = json!({"dtype": "F16", "shape": [len], "data_offsets": offsets});
            tensors.header.insert(name.to_owned(), entry);
        });
        scratch
    };
    for name in ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias"] {
        let len = if name == "lm_head.bias" { 256 } else { 64 };
        let ignored = beside(name, len, 0).json(plan)["ignored"].to_string();
        assert!(ignored.contains(name) && ignored.contains("a bias of zeros"), "{ignored}");
        let ran = beside(name, len, 0x3c).run(plan);
        assert!(ran.code == Some(2) && ran.stderr.contains(name), "{}", ran.stderr);
    }
    let ran = beside("model.norm.bias", 64, 0).run(plan);
    assert!(ran.code == Some(2) && ran.stderr.contains("model.norm.bias"), "{}", ran.stderr);
    let scratch = Scratch::with("golden/llama2");
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        let norm = &mut tensors.header["model.norm.weight"];
        (norm["dtype"], norm["shape"]) = (json!("F64"), json!([16]));
    });
    let ran = scratch.run(plan);
    let expected = "found F64: load it with transformers and save it again in float32";
    assert!(ran.code == Some(2) && ran.stderr.contains(expected), "{}", ran.stderr);
}

/// An archive in place of a model is named, and a GGUF file is one whatever it is called.
#[test]
fn files_in_place_of_a_model_are_named() {
    let scratch = Scratch::new();
    fs::write(scratch.path("m.zip"), b"PK\x03\x04 and so on").unwrap();
    let zipped =
        "error: m.zip: expected GGUF first, found a zip file: unpack it, and name the model in it";
    scratch.refused("inspect m.zip", zipped);
    fs::copy(fixture("gguf/llama3-q8_0.gguf"), scratch.path("m.bin")).unwrap();
    scratch.ok("inspect m.bin");
}

/// What llama.cpp reads and nobody can tell is refused with the next step.
#[test]
fn gguf_files_that_nobody_can_tell_are_refused_with_the_next_step() {
    let refused = |from: &str, old: &str, new: &str, expected: &str| {
        assert_eq!(old.len(), new.len());
        let scratch = Scratch::new();
        fs::copy(fixture(from), scratch.path("m.gguf")).unwrap();
        scratch.edit_bytes("m.gguf", |bytes| {
            let at = bytes
                .windows(old.len())
                .position(|w| w == old.as_bytes())
                .unwrap();
            bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
        });
        let ran = scratch.run("convert m.gguf -o out");
        assert!(ran.code == Some(2) && ran.stderr.contains(expected), "{}", ran.stderr);
    };
    let pre = "metadatum `tokenizer.ggml.pre`: expected one, found none: how text is cut is not known; put the \
               model's tokenizer.json beside the file";
    refused("tokenizers/llama-bpe.gguf", "tokenizer.ggml.pre", "tokenizer.ggml.xxx", pre);
    let scale = "tensor `blk.11.attn_q.scale`: a scale of all of the tensor beside it";
    refused("gguf/llama3-q8_0.gguf", "blk.1.attn_q.weight", "blk.11.attn_q.scale", scale);
}
