//! GGUF files in place of checkpoints.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_testing::{contents, fixture};

use crate::harness::Scratch;

/// What the names of files with shards end in.
const SHARDS: &str = ".bin";

/// A scratch directory with the files of a case as `ckpt/`; gives the first one's name too.
fn with(case: &Value) -> (Scratch, String) {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("ckpt")).unwrap();
    let names: Vec<String> = serde_json::from_value(case["files"].clone()).unwrap();
    for name in &names {
        let from = fixture("gguf").join(name);
        fs::copy(from, scratch.path("ckpt").join(name)).unwrap();
    }
    (scratch, format!("ckpt/{}", names[0]))
}

fn cases() -> Vec<Value> {
    let list = fs::read(fixture("gguf/cases.json")).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    list["cases"].as_array().unwrap().clone()
}

fn named(name: &str) -> (Scratch, String) {
    with(cases().iter().find(|case| case["case"] == name).unwrap())
}

#[test]
fn every_file_converts_and_holds() {
    for case in cases() {
        let (scratch, file) = with(&case);
        let name = &case["case"];
        scratch.ok(&format!("convert {file} -o out --bits 4 --group-size 32"));
        let report = scratch.json(&format!("verify out --against {file}"));
        assert_eq!(report["verdict"], json!("holds"), "{name}: {report}");
        // A directory that holds nothing else is the same checkpoint.
        scratch.ok("convert ckpt -o again --bits 4 --group-size 32");
        assert_eq!(contents(&scratch.path("out")), contents(&scratch.path("again")), "{name}");
        let config: Value =
            serde_json::from_slice(&contents(&scratch.path("out"))["config.json"]).unwrap();
        assert_eq!(config["model_type"], case["config"]["model_type"]);
    }
}

/// A model is named by any of its files; a part that sees, beside it, is no second model.
#[test]
fn any_piece_names_the_model() {
    let (scratch, file) = named("olmoe");
    let whole = scratch.ok(&format!("inspect {file}")).stdout;
    for number in 2..=3 {
        let found = scratch.ok(&format!("inspect ckpt/olmoe-0000{number}-of-00003.gguf"));
        assert_eq!(found.stdout, whole);
    }
    fs::write(scratch.path("ckpt/mmproj-model-f16.gguf"), "GGUF").unwrap();
    let plan = scratch.json("plan ckpt --bits 4 --group-size 32");
    let skipped = plan["skipped"].to_string();
    assert!(skipped.contains("mmproj-model-f16.gguf"), "{plan}");
}

/// Layers that predict further tokens are left out and listed, as those of a checkpoint are.
#[test]
fn layers_that_predict_further_tokens_are_listed() {
    let (scratch, file) = named("qwen3_5-mtp");
    let listed = |model: &str| {
        let plan = scratch.json(&format!("plan {model} --bits 4 --group-size 32"));
        let all = plan["ignored"].as_array().unwrap().clone();
        let names = all
            .iter()
            .map(|one| one["tensor"].as_str().unwrap().to_owned());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("mtp.")).collect();
        names.sort();
        names
    };
    let found = listed(&file);
    assert!(found.contains(&"mtp.fc.weight".to_owned()), "{found:?}");
    assert_eq!(found, listed(&fixture("golden/qwen3_5").display().to_string()));
    assert_eq!(
        scratch.json(&format!("inspect {file}"))["model"]["layers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

/// A vocabulary in the file is a tokenizer in the bundle.
#[test]
fn bundles_have_the_tokenizer_of_the_metadata() {
    for name in ["llama-bpe", "spm"] {
        let scratch = Scratch::new();
        fs::copy(fixture("tokenizers").join(format!("{name}.gguf")), scratch.path("m.gguf"))
            .unwrap();
        scratch.ok("convert m.gguf -o out --bits 4 --group-size 32");
        let files = contents(&scratch.path("out"));
        assert!(
            files.contains_key("tokenizer.json") && files.contains_key("tokenizer_config.json")
        );
        assert_eq!(scratch.json("verify out --against m.gguf")["verdict"], json!("holds"));
        let run = |model: &str| scratch.json(&format!("run {model} --prompt Hello --tokens 4"));
        assert_eq!(run("out")["prompt_tokens"], run("m.gguf")["prompt_tokens"]);
    }
}

/// The same weights make the same shards, whatever file they came in.
#[test]
fn shards_are_those_of_the_checkpoint() {
    for case in cases() {
        let Some(original) = case.get("checkpoint").and_then(Value::as_str) else { continue };
        let (scratch, file) = with(&case);
        let options = "--bits 4 --group-size 32 --set norm.*=f32";
        scratch.ok(&format!("convert {file} -o ours {options}"));
        let original = fixture(original);
        scratch.ok(&format!("convert {} -o theirs {options}", original.display()));
        let [ours, theirs] = ["ours", "theirs"].map(|name| contents(&scratch.path(name)));
        let shards = ours.iter().filter(|(name, _)| name.ends_with(SHARDS));
        let mut seen = 0;
        for (name, bytes) in shards {
            assert!(theirs[name] == *bytes, "{}: {name}", case["case"]);
            seen += 1;
        }
        assert!(seen > 0);
    }
}

/// What is exported has the names of transformers: our own reader takes it for the checkpoint that
/// the file was made from.
#[test]
fn an_export_has_the_names_of_transformers() {
    for name in ["llama3", "qwen2", "qwen3", "mixtral", "olmoe", "qwen3_moe"] {
        let (scratch, file) = named(name);
        scratch.ok(&format!("convert {file} -o kept --recipe q4 --set *=keep"));
        scratch.ok("export kept --to hf -o hf");
        // The file itself gives the same checkpoint as a bundle that keeps its values.
        scratch.ok(&format!("export {file} --to hf -o direct"));
        for file in ["model.safetensors", "config.json"] {
            let bytes = |dir: &str| fs::read(scratch.path(dir).join(file)).unwrap();
            assert!(bytes("hf") == bytes("direct"), "{name}: {file}");
        }
        // The files have other sizes than the goldens, so names alone can be compared.
        let names = |dir: &Path| {
            let checkpoint = Checkpoint::open(dir).unwrap();
            let names = checkpoint.tensors().keys().cloned();
            names
                .filter(|name| !name.contains("experts.") || name.contains("experts.0."))
                .filter(|name| !name.contains("layers.") || name.contains("layers.0."))
                .collect::<Vec<_>>()
        };
        let exported = names(&scratch.path("hf"));
        let expected = names(&fixture(&format!("golden/{name}")));
        assert_eq!(exported, expected, "{name}");
    }
}

#[test]
fn what_lies_beside_a_file_is_not_copied_unless_it_belongs_to_a_model() {
    let (scratch, file) = named("qwen3");
    fs::write(scratch.path("ckpt/letter.txt"), "private").unwrap();
    fs::write(scratch.path("ckpt/tokenizer_config.json"), "{}").unwrap();
    // Beside the file is no place inside a checkpoint.
    scratch.ok(&format!("convert {file} -o ckpt/out --bits 4 --group-size 32"));
    let copied = contents(&scratch.path("ckpt/out"));
    let copied: Vec<_> = copied
        .keys()
        .filter(|name| !name.ends_with(SHARDS))
        .collect();
    assert_eq!(copied, ["config.json", "manifest.json", "report.json", "tokenizer_config.json"]);
}

#[test]
fn text_needs_a_tokenizer_beside_the_file() {
    let (scratch, file) = named("qwen3_moe-k");
    scratch.refused(
        &format!("run {file} --prompt q -n 4"),
        "error: ckpt/tokenizer.json: no such file; copy the tokenizer.json of the original model there",
    );
    let tokenizer = fixture("fixture-2m/tokenizer.json");
    fs::copy(tokenizer, scratch.path("ckpt/tokenizer.json")).unwrap();
    let original = scratch.json(&format!("run {file} --prompt q -n 4"));
    assert_eq!(original["tokens"].as_array().unwrap().len(), 4);
    scratch.ok(&format!("convert {file} -o out --bits 8 --group-size 32"));
    let bundle = scratch.json("run out --prompt q -n 4");
    assert_eq!(bundle["prompt_tokens"], original["prompt_tokens"]);
}

#[test]
fn files_are_refused_by_name() {
    let (scratch, file) = named("llama3-q8_0");
    scratch.edit_bytes(&file, |bytes| {
        let name = b"blk.1.attn_q.weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
        bytes[at..at + name.len()].copy_from_slice(b"blk.1.attn_x.weight");
    });
    scratch.refused(
        &format!("inspect {file}"),
        "error: ckpt/llama3-q8_0.gguf: tensor `blk.1.attn_x.weight`: configs/gguf/llama.json has no \
         row for it: take the checkpoint for transformers that the file was made from",
    );
    let (scratch, file) = named("qwen2");
    scratch.edit_bytes(&file, |bytes| bytes.truncate(100_000));
    let ran = scratch.run(&format!("inspect {file}"));
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("bytes of data, found"), "{}", ran.stderr);
    let (scratch, file) = named("olmoe");
    fs::remove_file(scratch.path("ckpt/olmoe-00002-of-00003.gguf")).unwrap();
    for file in [file.as_str(), "ckpt/olmoe-00003-of-00003.gguf"] {
        let ran = scratch.run(&format!("inspect {file}"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains("ckpt/olmoe-00002-of-00003.gguf: "), "{}", ran.stderr);
    }
    fs::remove_file(scratch.path(&file)).unwrap();
    scratch.refused(
        "inspect ckpt/olmoe-00003-of-00003.gguf",
        "error: ckpt/olmoe-00003-of-00003.gguf: split.no: expected 0, found 2; name the first file \
         of a model",
    );
    fs::write(scratch.path("other.gguf"), "GGUX").unwrap();
    scratch.refused("inspect other.gguf", "error: other.gguf: expected GGUF first, found GGUX");
}

/// A file of GGUF with one key and nothing else.
fn one_key(key: &str, text: &str) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0_u64, 1].map(u64::to_le_bytes).as_flattened());
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    // Type 8 is text.
    bytes.extend([string(key), 8_u32.to_le_bytes().to_vec(), string(text)].concat());
    bytes
}

#[test]
fn what_is_no_model_or_another_is_named_with_the_next_step() {
    let scratch = Scratch::new();
    for (key, text, expected) in [
        ("general.type", "adapter", "merge it into its model first"),
        ("general.type", "mmproj", "name the file of the text model"),
        ("general.type", "imatrix", "statistics to quantize one by"),
        ("general.architecture", "clip", "name the file of the text model"),
        ("general.architecture", "bitnet", "take the model's checkpoint for transformers"),
        ("general.architecture", "bitnet-b1.58", "take the model's checkpoint for transformers"),
    ] {
        fs::write(scratch.path("m.gguf"), one_key(key, text)).unwrap();
        let ran = scratch.run("inspect m.gguf");
        assert_eq!(ran.code, Some(2), "{text}: {ran:?}");
        assert!(ran.stderr.contains(expected), "{text}: {}", ran.stderr);
    }
}

/// Scales that are no numbers give weights that are none.
#[test]
fn weights_that_are_not_finite_are_refused() {
    let (scratch, file) = named("llama3-q8_0");
    scratch.edit_bytes(&file, |bytes| {
        // The scale of the last block becomes infinite.
        let at = bytes.len() - 34;
        bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    });
    let ran = scratch.run(&format!("convert {file} -o out --bits 4 --group-size 32"));
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("expected a finite weight, found"), "{}", ran.stderr);
}

/// Pieces are no parts of one file's bytes, and each has a name that says which it is.
#[test]
fn pieces_that_were_put_together_or_renamed() {
    let (scratch, file) = named("olmoe");
    let piece = |number| format!("ckpt/olmoe-0000{number}-of-00003.gguf");
    let mut all = Vec::new();
    for number in 1..=3 {
        all.extend(fs::read(scratch.path(&piece(number))).unwrap());
        fs::remove_file(scratch.path(&piece(number))).unwrap();
    }
    let next = "take them as they were, and join them with `llama-gguf-split --merge`, if at all";
    for name in ["ckpt/whole.gguf", &file] {
        fs::write(scratch.path(name), &all).unwrap();
        let expected = format!(
            "error: {name}: another GGUF file follows in it, as `cat` puts pieces together: {next}"
        );
        scratch.refused(&format!("inspect {name}"), &expected);
    }
    let (scratch, file) = named("olmoe");
    fs::rename(scratch.path(&file), scratch.path("ckpt/first.gguf")).unwrap();
    scratch.refused(
        "inspect ckpt/first.gguf",
        "error: ckpt/first.gguf: split.count 3: expected a name like MODEL-00001-of-00003.gguf, found \
         `first.gguf`: give each of the 3 files its own name again",
    );
}

/// What people have of a GGUF model that is none yet: the next step is one line.
#[test]
fn gguf_files_in_directories_in_parts_and_under_other_names() {
    let scratch = Scratch::new();
    let at = |name: &str, bytes: &[u8]| {
        let path = scratch.path("ckpt").join(name);
        let _ = fs::remove_dir_all(scratch.path("ckpt"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let refused = |named: &str, expected: &str| {
        scratch.refused(&format!("inspect {named}"), &format!("error: {expected}"));
    };
    at("Q4_K_M/m-00001-of-00002.gguf", b"GGUF");
    let next = "name one, as ckpt/Q4_K_M/m-00001-of-00002.gguf";
    refused(
        "ckpt",
        &format!("ckpt: expected a .gguf file, found none, but some in directories in it: {next}"),
    );
    at("M.GGUF", b"GGUF");
    refused(
        "ckpt",
        "ckpt: expected .gguf files, found `M.GGUF`: write its extension in small letters",
    );
    at("m.gguf.incomplete", b"GGUF");
    let ended = "a download that has not ended: fetch it again";
    refused("ckpt", &format!("ckpt: expected .gguf files, found `m.gguf.incomplete`, {ended}"));
    for (name, parts) in [("m.gguf.part1of2", "m.gguf.part"), ("m.gguf-split-a", "m.gguf-split-")] {
        at(name, b"GGUF");
        let next =
            format!("join the parts in their order, as cat {parts}* > m.gguf does, and name that");
        refused(
            "ckpt",
            &format!("ckpt: expected .gguf files, found `{name}`, a part of a file: {next}"),
        );
        let file = format!("ckpt/{name}");
        refused(
            &file,
            &format!("{file}: expected a GGUF file, found `{name}`, a part of a file: {next}"),
        );
    }
    at("m.gguf", b"<html><body>Not Found</body></html>");
    let said =
        "a text that begins with `<html><b`; what a server says in place of a file: fetch it again";
    refused("ckpt", &format!("ckpt/m.gguf: expected GGUF first, found {said}"));
    at("m.gguf", b"");
    refused("ckpt", &format!("ckpt/m.gguf: expected at least 4 bytes, found 0, {ended}"));
    at("m.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    assert!(
        scratch
            .run("inspect ckpt")
            .stderr
            .contains("a Git LFS pointer of")
    );
}
