//! Files that llama.cpp or gguf-py made: `fixtures/gguf/cases.json`, whose `_comment` says what each entry
//! holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};
use shardwright_quant::widen;
use shardwright_testing::fixture;

use crate::arch::{Arch, Inventory};
use crate::checkpoint::{Checkpoint, TensorInfo, read_view};
use crate::decoder::Decoder;
use crate::io::AlignedBuf;
use crate::unit::SourceView;

fn cases() -> Vec<Json> {
    let json = std::fs::read(fixture("gguf/cases.json")).unwrap();
    let cases: Json = serde_json::from_slice(&json).unwrap();
    cases["cases"].as_array().unwrap().clone()
}

fn open(case: &Json) -> Checkpoint {
    let name = case["files"][0].as_str().unwrap();
    Checkpoint::open(&fixture("gguf").join(name)).unwrap()
}

/// Values `first..first + count` of a tensor.
fn some(checkpoint: &Checkpoint, name: &str, first: u64, count: u64) -> Vec<f32> {
    let info = &checkpoint.tensors()[name];
    let view = SourceView { start: first, ..info.view(name, count) };
    let mut bytes = AlignedBuf::default();
    read_view(checkpoint, &view, 0..1, count, &mut bytes).unwrap();
    let mut values = vec![0.0; count as usize];
    widen(info.dtype, bytes.as_slice(), &mut values);
    values
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    some(checkpoint, name, 0, checkpoint.tensors()[name].values())
}

#[test]
fn values_are_those_that_gguf_py_reads() {
    for case in cases() {
        let checkpoint = open(&case);
        let hash = |name: &String| {
            let bytes: Vec<_> = values(&checkpoint, name)
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect();
            blake3::hash(&bytes).to_string()
        };
        let found: BTreeMap<_, _> = checkpoint
            .tensors()
            .keys()
            .map(|name| (name.clone(), hash(name)))
            .collect();
        let expected: BTreeMap<String, String> =
            serde_json::from_value(case["values"].clone()).unwrap();
        assert_eq!(found, expected, "{}", case["case"]);
    }
}

#[test]
fn values_are_those_of_the_checkpoint() {
    let mut seen = 0;
    for case in cases() {
        let Some(original) = case.get("checkpoint") else { continue };
        let original = Checkpoint::open(&fixture(original.as_str().unwrap())).unwrap();
        let checkpoint = open(&case);
        assert!(original.tensors().keys().eq(checkpoint.tensors().keys()));
        for name in original.tensors().keys() {
            assert_eq!(values(&original, name), values(&checkpoint, name), "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn the_model_is_that_of_the_config() {
    for case in cases() {
        let (checkpoint, config) = (open(&case), &case["config"]);
        let inventory = Inventory::new(&checkpoint, None).unwrap();
        let arch = Arch::builtin(config["model_type"].as_str().unwrap()).unwrap();
        let expected = arch.spec_of(Path::new("config.json"), config).unwrap();
        // Of llama3 scaling a file has the factors; its parameters are known up to a ratio.
        if !case["case"].as_str().unwrap().starts_with("llama3") {
            assert_eq!(inventory.spec, expected, "{}", case["case"]);
        }
        let factors = |name: &&String| name.starts_with("rope_");
        let stored = checkpoint.stored().keys().filter(factors);
        let ignored = inventory.ignored.iter().map(|i| &i.tensor);
        assert!(stored.eq(ignored.filter(factors)), "{}", case["case"]);
    }
}

/// A directory with the file of a case and a `config.json`.
fn beside(case: &Json, config: &Json) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let files = case["files"].as_array().unwrap().iter();
    for name in files.clone().map(|name| name.as_str().unwrap()) {
        std::fs::copy(fixture("gguf").join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let path = dir.path().join(case["files"][0].as_str().unwrap());
    (dir, path)
}

#[test]
fn the_config_of_the_same_model_may_lie_beside_a_file() {
    for case in cases() {
        let mut config = case["config"].clone();
        if case["case"] == "exaone_moe" {
            // As transformers writes it, it does not count the layer that predicts further tokens.
            config["num_nextn_predict_layers"] = json!(1);
        }
        let (_dir, path) = beside(&case, &config);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config(), &config);
        let inventory = Inventory::new(&checkpoint, None);
        inventory.unwrap_or_else(|e| panic!("{}: {e}", case["case"]));
        assert!(checkpoint.described().is_some(), "{}", case["case"]);
    }
}

/// The notes on the file of a case without the metadata whose keys begin with `left_out`, unless that is empty,
/// beside its `config.json` with `changes`.
fn with_config(name: &str, left_out: &str, changes: &[(&str, Json)]) -> crate::Result<String> {
    let cases = cases();
    let case = cases.iter().find(|case| case["case"] == name).unwrap();
    let mut config = case["config"].clone();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    let (_dir, path) = beside(case, &config);
    let mut bytes = std::fs::read(&path).unwrap();
    let found = |at: &usize| !left_out.is_empty() && bytes[*at..].starts_with(left_out.as_bytes());
    let places: Vec<_> = (0..bytes.len()).filter(found).collect();
    assert_eq!(places.is_empty(), left_out.is_empty());
    // Keys of another architecture say nothing.
    for at in places {
        bytes[at] = b'_';
    }
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path)?;
    Inventory::new(&checkpoint, None).map(|_| checkpoint.notes().join("; "))
}

/// What files of before their converters wrote it leave out is no contradiction; what these always wrote is.
#[test]
fn a_config_adds_what_older_files_leave_out() {
    let counts = |what: &str| {
        format!("config.json beside the file counts: {what}, of which the metadata say nothing")
    };
    let scaling = "deepseek2.rope.scaling.";
    assert_eq!(with_config("deepseek2", scaling, &[]).unwrap(), counts("`rope_scaling` yarn"));
    let member = "deepseek2.rope.scaling.yarn_log_multiplier";
    assert_eq!(with_config("deepseek2", member, &[]).unwrap(), "");
    let window = "phi3.attention.sliding_window";
    assert_eq!(with_config("phi3", window, &[]).unwrap(), counts("`sliding_window` 5"));
    let refused = |name: &str, left_out: &str, changes: &[(&str, Json)], expected: &str| {
        let found = with_config(name, left_out, changes)
            .unwrap_err()
            .to_string();
        assert!(found.contains(expected), "{found}");
    };
    let other = [("sliding_window", json!(4))];
    refused("phi3", "", &other, "`sliding_window`: expected 5 as in phi3.gguf, found 4");
    let other =
        json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256});
    refused("deepseek2", member, &[("rope_scaling", other)], "`rope_scaling`: expected {");
    // Factors of llama3 and longrope are tensors.
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let expected = "`rope_scaling`: expected null as in llama-bias.gguf, found {";
    refused("llama-bias", "", &[("rope_scaling", llama3)], expected);
    let theta = [("rope_parameters", json!({"rope_type": "default", "rope_theta": 500.0}))];
    let expected = "`rope_theta`: expected 10000.0 as in llama-bias.gguf, found 500.0";
    refused("llama-bias", "llama.rope.freq_base", &theta, expected);
}

/// What `config.json` and metadata say otherwise is refused; what metadata have no place for is a note.
#[test]
fn a_config_beside_a_file_must_not_contradict_it() {
    let with = |name: &str, changes: &[(&str, Json)]| with_config(name, "", changes);
    let refused = |name: &str, changes: &[(&str, Json)], expected: &str| {
        let found = with(name, changes).unwrap_err().to_string();
        let next = "take the config.json of its model, or remove this one: the GGUF file describes its model";
        assert!(found.ends_with(&format!("config.json: {expected}; {next}")), "{found}");
    };
    let theta = json!({"rope_type": "default", "rope_theta": 500.0});
    let changes = [("rope_parameters", theta)];
    refused(
        "llama-bias",
        &changes,
        "`rope_theta`: expected 10000.0 as in llama-bias.gguf, found 500.0",
    );
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let changes = [("rope_scaling", linear.clone())];
    let expected = r#"`rope_scaling`: expected null as in llama-bias.gguf, found {"rope_type":"linear","factor":4.0}"#;
    refused("llama-bias", &changes, expected);
    let changes = [("rope_parameters", linear)];
    let expected = "`rope_scaling`: expected {";
    let found = with("llama3-q8_0", &changes).unwrap_err().to_string();
    assert!(found.contains(expected), "{found}");
    let heads = [("num_attention_heads", json!(8)), ("num_key_value_heads", json!(8))];
    refused(
        "llama-bias",
        &heads,
        "`num_attention_heads`: expected 4 as in llama-bias.gguf, found 8",
    );
    let changes = [("rms_norm_eps", json!(1e-3))];
    refused(
        "llama-bias",
        &changes,
        "`rms_norm_eps`: expected 0.00001 as in llama-bias.gguf, found 0.001",
    );
    let granite = [("model_type", json!("granite")), ("logits_scaling", json!(3.0))];
    let expected = r#"`model_type`: expected "llama" as in llama3-q8_0.gguf, found "granite""#;
    refused("llama3-q8_0", &granite, expected);
    let changes = [("sliding_window", json!(4))];
    refused("gemma3", &changes, "`sliding_window`: expected 8 as in gemma3.gguf, found 4");
    assert_eq!(with("llama3-q8_0", &[]).unwrap(), "");
    // llama.cpp has no place for windows of Mistral's.
    let mistral = [("model_type", json!("mistral")), ("sliding_window", json!(4))];
    let note =
        "config.json beside the file counts: `sliding_window` 4, of which the metadata say nothing";
    assert_eq!(with("llama3-q8_0", &mistral).unwrap(), note);
    let ends = [("eos_token_id", json!([2, 5])), ("max_position_embeddings", json!(512))];
    assert_eq!(with("llama-bias", &ends).unwrap(), "");
}

/// Rows that llama.cpp puts elsewhere and blocks are read alone as they are together.
#[test]
fn pieces_are_those_of_the_whole() {
    for case in cases() {
        let checkpoint = open(&case);
        let decoded = |info: &&TensorInfo| info.decoder.is_some();
        for (name, info) in checkpoint.tensors() {
            let Some(info) = Some(info).filter(decoded) else { continue };
            let (whole, cols) = (values(&checkpoint, name), *info.shape.last().unwrap());
            let last = info.values() - 1;
            for first in [0, 1, 31, cols - 1, cols + 7, last / 2].map(|first| first.min(last)) {
                let count = (cols + 3).min(info.values() - first);
                let expected = &whole[first as usize..(first + count) as usize];
                assert_eq!(some(&checkpoint, name, first, count), expected, "{name} {first}");
            }
        }
    }
}

#[test]
fn blocks_are_stored_as_bytes_under_the_name_in_the_file() {
    let cases = cases();
    let of = |name: &str| open(cases.iter().find(|case| case["case"] == name).unwrap());
    let blocks = of("qwen3_moe-k");
    let experts = &blocks.tensors()["model.layers.0.mlp.experts.gate_proj.weight"];
    let Some(Decoder::Gguf { tensor, heads: None, .. }) = &experts.decoder else { panic!() };
    assert_eq!(tensor, "blk.0.ffn_gate_exps.weight");
    assert_eq!(experts.shape, [3, 256, 256]);
    assert_eq!(blocks.stored()[tensor].shape, [3, 256, 144]);
    assert_eq!(blocks.unused().count(), 0);
    let quantized = &blocks.quantization().unwrap().tensors;
    assert_eq!(quantized.values().sum::<u64>(), 9);
    // Plain floats in the order of a checkpoint need no decoder.
    assert_eq!(of("qwen3").quantization(), None);
    let biased = of("llama-bias");
    let bias = &biased.tensors()["model.layers.0.self_attn.q_proj.bias"];
    assert!(matches!(bias.decoder, Some(Decoder::Gguf { heads: Some(4), .. })));
}

/// A turn ends with another token than a text, and the template is that of the file, whatever
/// tokenizer lies beside it.
#[test]
fn conversations_have_their_ends_and_their_template() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::copy(fixture("tokenizers/llama-bpe.gguf"), &path).unwrap();
    let config = Checkpoint::open(&path).unwrap().config().clone();
    assert_eq!(config["eos_token_id"], json!([601, 602]));
    let template = || {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = checkpoint.companion("tokenizer_config.json", 1 << 20);
        let config: Json = serde_json::from_slice(&config.unwrap()?).unwrap();
        config["chat_template"].as_str().map(str::to_owned)
    };
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(template().unwrap().starts_with("{{ bos_token }}"));
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    assert_eq!(template(), None);
}

/// A `tokenizer.json` beside a file with a vocabulary is used where it has the same pieces, and refused by the
/// first token that differs.
#[test]
fn a_tokenizer_beside_a_file_has_the_pieces_of_its_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let (path, beside) = (dir.path().join("m.gguf"), dir.path().join("tokenizer.json"));
    for name in ["llama-bpe", "spm", "qwen2", "deepseek-v3"] {
        let _ = std::fs::remove_file(&beside);
        std::fs::copy(fixture(&format!("tokenizers/{name}.gguf")), &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let own = checkpoint
            .companion("tokenizer.json", 1 << 30)
            .unwrap()
            .unwrap();
        std::fs::write(&beside, &own).unwrap();
        Checkpoint::open(&path).unwrap();
        let mut other: Json = serde_json::from_slice(&own).unwrap();
        let vocab = other["model"]["vocab"].as_object_mut().unwrap();
        let at = |id: u64| {
            vocab
                .iter()
                .find(|(_, found)| **found == id)
                .unwrap()
                .0
                .clone()
        };
        let (one, two) = (at(300), at(301));
        vocab.insert(one.clone(), 301.into());
        vocab.insert(two.clone(), 300.into());
        std::fs::write(&beside, other.to_string()).unwrap();
        let found = Checkpoint::open(&path).unwrap_err().to_string();
        let expected = format!(
            "tokenizer.json: token 300: expected {one:?} as in m.gguf, found {two:?}; take the tokenizer.json of \
             its model, or remove this one: the GGUF file has a vocabulary"
        );
        assert!(found.ends_with(&expected), "{found}");
    }
}

/// Where a turn has several messages, the end of one ends no turn; a call of a tool does. The numbers are all
/// that `generation_config.json` of gpt-oss has.
#[test]
fn turns_of_several_messages_end_with_the_last_or_a_call() {
    let mut bytes = std::fs::read(fixture("tokenizers/llama-bpe.gguf")).unwrap();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    // The header grows by whole alignments.
    let longer = "-".repeat(28);
    let names = [
        ("<|user|>", "<|call|>"),
        ("<|end|>", "<|return|>"),
        ("[PAD0]", "<|endoftext|>"),
        ("[PAD1]", &longer),
    ];
    let len = bytes.len();
    for (from, to) in names {
        let from = text(from);
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes.splice(at..at + from.len(), text(to));
    }
    assert_eq!((bytes.len() - len) % 32, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let config = Checkpoint::open(&path).unwrap().config().clone();
    assert_eq!(config["eos_token_id"], json!([601, 602, 603, 604]));
}

/// No part of a model can have a bias of the head, so neither can one that somebody converts again.
#[test]
fn a_bias_of_the_head_has_a_next_step() {
    let mut bytes = std::fs::read(fixture("gguf/llama-bias.gguf")).unwrap();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let changes = [("Checkpoint", "Checkpoint-longer"), ("output_norm.weight", "output.bias")];
    for (from, to) in changes.map(|(from, to)| (text(from), text(to))) {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes.splice(at..at + from.len(), to);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let told = Checkpoint::open(&path).unwrap_err().to_string();
    let next = "a bias of the head, which no model here computes: run the file with llama.cpp";
    assert!(told.ends_with(&format!("m.gguf: tensor `output.bias`: {next}")), "{told}");
}

/// A file whose metadatum `key` has other bytes, after its kind: `old` bytes of the file go, and the header
/// must grow by whole alignments.
fn changed(file: &str, key: &str, old: usize, new: &[u8]) -> crate::Result<Checkpoint> {
    let mut bytes = std::fs::read(fixture("gguf").join(file)).unwrap();
    let at = bytes
        .windows(key.len())
        .position(|w| w == key.as_bytes())
        .unwrap();
    let at = at + key.len();
    bytes.splice(at..at + old, new.iter().copied());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, &bytes).unwrap();
    Checkpoint::open(&path)
}

/// A list of numbers of 32 bits, its kind included.
fn list(numbers: &[u32]) -> Vec<u8> {
    let mut bytes = [9u32, 4].map(u32::to_le_bytes).concat();
    bytes.extend((numbers.len() as u64).to_le_bytes());
    bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    bytes
}

/// Some converters write a number for every layer, which is one where they agree.
#[test]
fn a_list_of_equal_numbers_is_one_number() {
    let key = "qwen3.attention.head_count_kv";
    let with = |numbers: &[u32]| changed("qwen3.gguf", key, 8, &list(numbers));
    let alike = with(&[2; 6]).unwrap();
    assert_eq!(alike.config()["num_key_value_heads"], 2);
    let found = with(&[2, 2, 2, 1, 2, 2]).unwrap_err().to_string();
    let expected = "metadatum `qwen3.attention.head_count_kv`: expected the same number for every \
                    layer, found 2 in layer 0 and 1 in layer 3";
    assert!(found.ends_with(expected), "{found}");
}

/// A number for every layer that has attention, 0 for the others.
#[test]
fn a_list_tells_which_layers_have_attention() {
    let key = "lfm2.attention.head_count_kv";
    let with = |numbers: &[u32]| changed("lfm2.gguf", key, 4 + 4 + 8 + 16, &list(numbers));
    let config = with(&[2, 0, 2, 0]).unwrap().config().clone();
    assert_eq!(config["num_key_value_heads"], 2);
    let kinds = ["full_attention", "conv", "full_attention", "conv"];
    assert_eq!(config["layer_types"], json!(kinds));
    let refused = |numbers: &[u32]| {
        let found = with(numbers).unwrap_err().to_string();
        let at = found.find("metadatum").unwrap();
        found[at..].to_owned()
    };
    let unlike = "expected the same number for every layer, found 2 in layer 1 and 1 in layer 3";
    assert_eq!(refused(&[0, 2, 0, 1]), format!("metadatum `{key}`: {unlike}"));
    assert_eq!(refused(&[0; 4]), format!("metadatum `{key}`: expected one, found none"));
    let short = "expected a value for each of 4 layers, found 12";
    assert_eq!(refused(&[2; 12]), format!("metadatum `{key}`: {short}"));
}

/// Metadata that say what is so without them are no reason to refuse a file; others are.
#[test]
fn metadata_that_change_nothing_are_not_refused() {
    let with = |key: &str, value: u32| {
        // In place of one that is never read, of the same length.
        let mut bytes = std::fs::read(fixture("gguf/qwen3.gguf")).unwrap();
        let old = b"general.quantization_version";
        let key = format!("qwen3.{key}");
        let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
        let mut new = (key.len() as u64).to_le_bytes().to_vec();
        new.extend(key.as_bytes());
        new.extend([4, value].map(u32::to_le_bytes).concat());
        let old_len = 8 + old.len() + 8;
        bytes.splice(at - 8..at - 8 + old_len, new);
        // The header keeps its length by what a name of nobody's is longer.
        let name = b"general.file_type";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
        let more = old.len() - key.len();
        bytes[at - 8..at].copy_from_slice(&((name.len() + more) as u64).to_le_bytes());
        bytes.splice(at + name.len()..at + name.len(), vec![b'x'; more]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, &bytes).unwrap();
        Checkpoint::open(&path)
    };
    with("nextn_predict_layers", 0).unwrap();
    with("attention.clamp_kqv", 0).unwrap();
    for (key, value) in
        [("logit_scale", 1), ("logit_scale", 0), ("expert_group_count", 1), ("moe_latent_size", 0)]
    {
        with(key, value).unwrap();
    }
    for (key, value) in [
        ("nextn_predict_layers", 1),
        ("attention.clamp_kqv", 1),
        ("whatever", 0),
        ("logit_scale", 2),
        ("moe_latent_size", 1),
    ] {
        let found = with(key, value).unwrap_err().to_string();
        let expected = format!(
            "metadatum `qwen3.{key}`: expected one that configs/gguf/qwen3.json lists, found another, of {value}; \
             take the checkpoint for transformers that the file was made from"
        );
        assert!(found.ends_with(&expected), "{found}");
    }
}

/// Of the largest model llama.cpp divides scores by another width than that of a head.
#[test]
fn scores_of_the_largest_gemma3_are_its_own() {
    let scalar = |layers: u32| {
        let new = [4, layers].map(u32::to_le_bytes).concat();
        let checkpoint = changed("gemma3.gguf", "gemma3.block_count", 8, &new).unwrap();
        let config = checkpoint.config();
        let share = config["hidden_size"].as_f64().unwrap()
            / config["num_attention_heads"].as_f64().unwrap();
        (config["query_pre_attn_scalar"].as_f64().unwrap(), share)
    };
    let ((own, share), (other, _)) = (scalar(62), scalar(2));
    assert!(own == share && other != share, "{own} {other} {share}");
}

/// A list of what each layer sees, in place of a period, which any architecture with windows may have.
#[test]
fn a_list_tells_which_layers_slide() {
    let key = "gemma3.attention.sliding_window_pattern";
    let with = |numbers: &[u32]| changed("gemma3.gguf", key, 8, &list(numbers));
    let found = with(&[1, 0, 1, 0, 0, 0]).unwrap_err().to_string();
    let expected = format!("metadatum `{key}`: expected a value for each of 2 layers, found 6");
    assert!(found.ends_with(&expected), "{found}");
    let bools = |values: [u8; 4]| {
        let mut bytes = [9u32, 7].map(u32::to_le_bytes).concat();
        bytes.extend(4u64.to_le_bytes());
        bytes.extend(values);
        bytes
    };
    let key = "olmo2.attention.sliding_window_pattern";
    let with = |values| changed("olmo3.gguf", key, 4 + 4 + 8 + 4, &bools(values));
    let config = with([1, 1, 1, 0]).unwrap().config().clone();
    let [sliding, full] = ["sliding_attention", "full_attention"];
    assert_eq!(config["layer_types"], json!([sliding, sliding, sliding, full]));
    assert_eq!(config["sliding_window_pattern_n"], 4);
}

#[test]
fn numbers_of_any_size_are_no_reason_to_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut bytes = std::fs::read(fixture("gguf/llama3-q8_0.gguf")).unwrap();
    for at in (0..2600).step_by(11) {
        for number in [0, 0x7fff_ffff, u32::MAX] {
            let kept: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let _ = Checkpoint::open(&path).map(|checkpoint| Inventory::new(&checkpoint, None));
            bytes[at..at + 4].copy_from_slice(&kept);
        }
    }
}
