//! Checkpoints that are refused, each with its exact message and exit code 2.

use std::fs;

use serde_json::{Value, json};

use crate::harness::Scratch;

const MODEL: &str = "ckpt/model.safetensors";
const NORM: &str = "model.layers.0.input_layernorm.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

/// A dense model of 278,384 bytes: its header is 3,048 of them, its data 275,328.
fn dense() -> Scratch {
    Scratch::with("golden/llama2")
}

/// Damages a copy of the dense model; `inspect` and `plan` and `convert` must all refuse it alike
/// and leave nothing behind.
#[track_caller]
fn refused(damage: impl FnOnce(&Scratch), expected: &str) {
    let scratch = dense();
    damage(&scratch);
    scratch.refused("inspect ckpt", expected);
    scratch.refused("plan ckpt --bits 4 --group-size 32", expected);
    scratch.refused("convert ckpt -o out --bits 4 --group-size 32", expected);
    let left: Vec<_> = fs::read_dir(scratch.path("."))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["ckpt"], "something was left behind");
}

#[track_caller]
fn refused_tensors(edit: impl FnOnce(&mut shardwright_testing::RawTensors), expected: &str) {
    refused(|scratch| scratch.edit_tensors(MODEL, edit), expected);
}

#[track_caller]
fn refused_config(key: &str, value: Value, expected: &str) {
    let set = |config: &mut serde_json::Map<String, Value>| {
        config.insert(key.to_owned(), value);
    };
    refused(|scratch| scratch.edit_json("ckpt/config.json", set), expected);
}

#[test]
fn a_truncated_file() {
    refused(
        |s| s.edit_bytes(MODEL, |bytes| bytes.truncate(200_000)),
        "error: ckpt/model.safetensors: tensor `model.layers.1.self_attn.q_proj.weight`: data_offsets [188928, 197120]: the file holds 196944 bytes of data",
    );
    refused(
        |s| s.edit_bytes(MODEL, |bytes| bytes.truncate(5)),
        "error: ckpt/model.safetensors: expected at least 8 bytes, found 5, a download that has not ended: fetch it again",
    );
}

#[test]
fn a_header_longer_than_the_file_or_absurd() {
    for len in [278_377_u64, u64::MAX] {
        refused(
            |s| s.edit_bytes(MODEL, |bytes| bytes[..8].copy_from_slice(&len.to_le_bytes())),
            &format!(
                "error: ckpt/model.safetensors: header length: expected at most 278376 (the rest \
                 of the file), found {len}"
            ),
        );
    }
}

#[test]
fn a_header_that_is_no_object() {
    refused(
        |s| s.edit_bytes(MODEL, |bytes| bytes[8] = b'['),
        "error: ckpt/model.safetensors: header: expected `{` first, found byte 91",
    );
    refused(
        |s| s.edit_bytes(MODEL, |bytes| bytes[9] = b'x'),
        "error: ckpt/model.safetensors: header: key must be a string at line 1 column 2",
    );
}

#[test]
fn overlapping_tensors() {
    refused_tensors(
        |t| t.header[NORM]["data_offsets"] = json!([65_408, 65_536]),
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: data_offsets [65408, 65536] overlap the tensors before them, which end at 65536",
    );
}

#[test]
fn a_gap_between_tensors() {
    refused_tensors(
        |t| {
            let range = t.range(DOWN);
            t.data.splice(range.start..range.start, [0; 64]);
            for tensor in t
                .header
                .values_mut()
                .filter(|t| t.get("data_offsets").is_some())
            {
                let offsets = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap());
                if offsets[0] >= range.start as u64 {
                    tensor["data_offsets"] = json!(offsets.map(|o| o + 64));
                }
            }
        },
        "error: ckpt/model.safetensors: tensor `model.layers.0.mlp.down_proj.weight`: data_offsets [65728, 78016] leave a gap after the tensors before them, which end at 65664",
    );
}

#[test]
fn a_tensor_outside_the_file() {
    refused_tensors(
        |t| t.header[NORM]["data_offsets"] = json!([275_328, 275_456]),
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: data_offsets [275328, 275456]: the file holds 275328 bytes of data",
    );
}

#[test]
fn a_shape_that_disagrees_with_its_bytes() {
    refused_tensors(
        |t| t.header[NORM]["shape"] = json!([63]),
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: shape [63] of F16 takes 126 bytes, data_offsets [65536, 65664] hold 128",
    );
    refused_tensors(
        |t| t.header[NORM]["shape"] = json!([u64::MAX, 2]),
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: shape [18446744073709551615, 2]: its size in bytes leaves 64 bits",
    );
}

#[test]
fn a_shape_that_is_not_the_models() {
    refused_tensors(
        |t| t.header[DOWN]["shape"] = json!([96, 64]),
        "error: ckpt/model.safetensors: tensor `model.layers.0.mlp.down_proj.weight`: expected shape [64, 96] of mlp.down_proj, found [96, 64]",
    );
}

#[test]
fn an_unknown_dtype() {
    refused_tensors(
        |t| t.header[NORM]["dtype"] = json!("F4"),
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: unsupported dtype: expected one of F32, F16, BF16, F64, F8_E4M3, F8_E5M2, F8_E8M0, BOOL, U8, I8, U16, I16, U32, I32, U64, I64, found `F4`",
    );
}

#[test]
fn a_tensor_twice_in_a_header() {
    refused(
        |s| {
            s.edit_bytes(MODEL, |bytes| {
                let other = b"model.layers.1.input_layernorm.weight";
                let at = bytes.windows(other.len()).position(|w| w == other).unwrap();
                bytes[at..at + NORM.len()].copy_from_slice(NORM.as_bytes());
            });
        },
        "error: ckpt/model.safetensors: tensor `model.layers.0.input_layernorm.weight`: its name appears twice in the header",
    );
}

#[test]
fn an_unknown_tensor() {
    refused_tensors(
        |t| {
            let tensor = t.header.remove(NORM).unwrap();
            t.header
                .insert("model.layers.0.extra.weight".to_owned(), tensor);
        },
        "error: ckpt/model.safetensors: tensor `model.layers.0.extra.weight`: configs/arch/llama.json has no row for it: take the model that this one was made from, or name a table of its own with --arch, which `shardwright arch draft` starts",
    );
}

#[test]
fn a_missing_tensor() {
    refused_tensors(
        |t| {
            let end = t.range("lm_head.weight").end as u64;
            t.data.drain(..end as usize);
            t.header.remove("lm_head.weight");
            for tensor in t
                .header
                .values_mut()
                .filter(|t| t.get("data_offsets").is_some())
            {
                let offsets = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() - end);
                tensor["data_offsets"] = json!(offsets);
            }
        },
        "error: ckpt: lm_head of head [256, 64]: expected tensor `lm_head.weight`, found none; if the head is the embedding, set tie_word_embeddings to true in config.json, else the checkpoint is incomplete",
    );
}

#[test]
fn an_unknown_architecture() {
    refused_config(
        "model_type",
        json!("gpt_neox"),
        "error: ckpt/config.json: `model_type`: expected one of arcee, bitnet, deepseek_v2, deepseek_v3, deepseek_v32, dots1, ernie4_5, ernie4_5_moe, exaone4, exaone_moe, gemma2, gemma3_text, glm4, glm4_moe, glm4_moe_lite, glm4v_moe, glm_moe_dsa, gpt_oss, granite, granitemoe, granitemoehybrid, granitemoeshared, hunyuan_v1_dense, hunyuan_v1_moe, hy_v3, kimi_k25, lfm2, lfm2_moe, llama, llama4, minimax_m2, ministral, ministral3, mistral, mistral3, mixtral, olmo2, olmo3, olmoe, phi3, qwen2, qwen2_5_vl, qwen2_moe, qwen3, qwen3_5, qwen3_5_moe, qwen3_moe, qwen3_next, qwen3_vl, qwen3_vl_moe, seed_oss, smollm3, solar_open, youtu, or a table of your own, found `gpt_neox`; its tensors and keys have names that are known; the nearest table is llama; to start one: shardwright arch draft ckpt -o gpt_neox.json",
    );
    refused_config(
        "model_type",
        Value::Null,
        "error: ckpt/config.json: `model_type`: expected a name, found null",
    );
}

#[test]
fn unsupported_settings() {
    refused_config(
        "hidden_act",
        json!("gelu"),
        "error: ckpt/config.json: `hidden_act`: expected \"silu\" or \"swish\", found \"gelu\"",
    );
    refused_config(
        "rope_scaling",
        json!({"rope_type": "su", "factor": 4.0}),
        "error: ckpt/config.json: `rope_scaling.rope_type`: expected `default`, `linear`, `llama3`, `yarn`, `longrope` or `dynamic`, found \"su\"",
    );
    refused_config(
        "num_key_value_heads",
        json!(3),
        "error: ckpt/config.json: `num_key_value_heads`: expected a divisor of num_attention_heads 4, found 3",
    );
    refused_config(
        "num_hidden_layers",
        json!(1_000_000),
        "error: ckpt/config.json: `num_hidden_layers`: expected a whole number from 1 to 4096, found 1000000",
    );
    refused_config(
        "hidden_size",
        json!(-64),
        "error: ckpt/config.json: `hidden_size`: expected a whole number from 1 to 16777216, found -64",
    );
}

#[test]
fn a_config_that_is_no_object_or_not_there() {
    refused(
        |s| fs::write(s.path("ckpt/config.json"), "[]").unwrap(),
        "error: ckpt/config.json: expected a JSON object",
    );
    refused(
        |s| fs::write(s.path("ckpt/config.json"), "{").unwrap(),
        "error: ckpt/config.json: EOF while parsing an object at line 1 column 1",
    );
    refused(
        |s| fs::remove_file(s.path("ckpt/config.json")).unwrap(),
        "error: ckpt: expected config.json, found none: take it from the model that these weights are of",
    );
}

#[test]
fn no_weights_and_no_directory() {
    refused(
        |s| fs::remove_file(s.path(MODEL)).unwrap(),
        "error: ckpt: expected .safetensors files, found none",
    );
    dense().refused("inspect nowhere", "error: nowhere: there is no such directory");
    dense().refused("plan nowhere", "error: nowhere: there is no such directory");
    dense().refused("convert nowhere -o out", "error: nowhere: there is no such directory");
    dense().refused("run nowhere --prompt x", "error: nowhere: there is no such directory");
    dense().refused("verify nowhere", "error: nowhere: there is no such directory");
    dense().refused("export nowhere --to hf -o out", "error: nowhere: there is no such directory");
}

/// Two files with an index.
#[track_caller]
fn refused_index(damage: impl FnOnce(&Scratch), expected: &str) {
    let scratch = Scratch::with("golden/llama3");
    damage(&scratch);
    scratch.refused("inspect ckpt", expected);
    scratch.refused("convert ckpt -o out --bits 4 --group-size 32", expected);
    assert!(!scratch.path("out").exists());
}

#[track_caller]
fn refused_weight_map(file: &str, expected: &str) {
    refused_index(
        |s| {
            s.edit_json("ckpt/model.safetensors.index.json", |index| {
                index["weight_map"][NORM] = json!(file);
            });
        },
        expected,
    );
}

#[test]
fn an_index_that_names_what_it_must_not() {
    refused_weight_map(
        "../model-00001-of-00002.safetensors",
        "error: ckpt/model.safetensors.index.json: tensor `model.layers.0.input_layernorm.weight`: expected a file inside the checkpoint, found `../model-00001-of-00002.safetensors`",
    );
    refused_weight_map(
        "/etc/passwd",
        "error: ckpt/model.safetensors.index.json: tensor `model.layers.0.input_layernorm.weight`: expected a file inside the checkpoint, found `/etc/passwd`",
    );
    refused_index(
        |s| fs::remove_file(s.path("ckpt/model-00002-of-00002.safetensors")).unwrap(),
        "error: ckpt/model-00002-of-00002.safetensors: named by model.safetensors.index.json: no such file; fetch it, or remove the index if it is of another save",
    );
}

#[test]
fn a_tensor_in_two_files() {
    refused_index(
        |s| {
            fs::rename(
                s.path("ckpt/model-00001-of-00002.safetensors"),
                s.path("ckpt/a.safetensors"),
            )
            .unwrap();
            fs::remove_file(s.path("ckpt/model-00002-of-00002.safetensors")).unwrap();
            fs::copy(s.path("ckpt/a.safetensors"), s.path("ckpt/b.safetensors")).unwrap();
            s.edit_tensors("ckpt/b.safetensors", |tensors| tensors.data.fill(0x11));
            fs::remove_file(s.path("ckpt/model.safetensors.index.json")).unwrap();
        },
        "error: ckpt/b.safetensors: tensor `model.embed_tokens.weight`: `a.safetensors` holds it too, \
         with another type, shape or values",
    );
}

/// A checkpoint of a type that is not built in, and the table that describes it.
fn own_architecture(edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Scratch {
    let scratch = dense();
    let rename = |o: &mut serde_json::Map<String, Value>| o["model_type"] = json!("mine");
    scratch.edit_json("ckpt/config.json", rename);
    let table = shardwright_testing::root().join("configs/arch/llama.json");
    fs::copy(table, scratch.path("mine.json")).unwrap();
    scratch.edit_json("mine.json", |table| {
        rename(table);
        edit(table);
    });
    scratch
}

#[test]
fn an_architecture_of_ones_own() {
    let scratch = own_architecture(|_| ());
    scratch.ok("inspect ckpt --arch mine.json");
    scratch.ok("convert ckpt -o out --bits 4 --group-size 32 --arch mine.json");
    scratch.ok("verify out --against ckpt --arch mine.json");
}

#[test]
fn a_wrong_table_of_an_architecture() {
    let plan = "plan ckpt --bits 4 --group-size 32 --arch";
    own_architecture(|_| ()).refused(
        &format!("{plan} nowhere.json"),
        "error: nowhere.json: No such file or directory (os error 2)",
    );
    let scratch = own_architecture(|table| table["model_type"] = json!("other"));
    scratch.refused(&format!("{plan} mine.json"), "error: ckpt/config.json: `model_type`: expected `other`, as mine.json is for, found `mine`");
    let scratch = own_architecture(|table| {
        table["tensors"]["attention.z_proj"] = json!("model.layers.{layer}.z.weight");
    });
    scratch.refused(&format!("{plan} mine.json"), "error: mine.json: tensors: expected one of embed_tokens, norm.input, attention.q_a_proj, attention.q_a_bias, norm.q_a, attention.q_b_proj, attention.kv_a_proj, attention.kv_a_bias, norm.kv_a, attention.kv_b_proj, attention.q_proj, attention.q_bias, attention.k_proj, attention.k_bias, attention.v_proj, attention.v_bias, norm.q, norm.k, attention.sinks, norm.mixer_inner, attention.o_proj, attention.o_bias, delta_net.in_proj_qkvz, delta_net.in_proj_ba, delta_net.in_proj_qkv, delta_net.in_proj_z, delta_net.in_proj_b, delta_net.in_proj_a, delta_net.conv1d, delta_net.a_log, delta_net.dt_bias, norm.delta_net, delta_net.out_proj, short_conv.in_proj, short_conv.conv, short_conv.out_proj, norm.mixer_out, norm.post_attention, mlp.gate_proj, mlp.gate_bias, mlp.up_proj, mlp.up_bias, norm.ffn_inner, mlp.down_proj, mlp.down_bias, norm.ffn_out, router, router.bias, router.correction_bias, expert.gate_proj, expert.gate_bias, expert.up_proj, expert.up_bias, expert.down_proj, expert.down_bias, shared_expert_gate, shared_expert.gate_proj, shared_expert.up_proj, shared_expert.down_proj, norm.final, lm_head, vision, mtp, indexer, found role `attention.z_proj`");
    let scratch = own_architecture(|table| {
        table["tensors"]
            .as_object_mut()
            .unwrap()
            .remove("mlp.up_proj");
    });
    scratch.refused(&format!("{plan} mine.json"), "error: ckpt/model.safetensors: tensor `model.layers.0.mlp.up_proj.weight`: mine.json has no row for it: add one");
}
