//! An original whose files are written otherwise and say the same is still the original; one of which another model, other tokens
//! or other conversations come is not.

use std::fs;

use serde_json::{Value, json};
use shardwright_quant::{Float, narrow, widen};
use shardwright_testing::copy_dir;

use crate::harness::Scratch;

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";

/// A model with a chat template, and its bundle.
fn made() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::write(scratch.path("ckpt/chat_template.jinja"), TEMPLATE).unwrap();
    scratch.ok("convert ckpt -o out --bits 8");
    scratch
}

/// What a change of the original is called, and the change.
type Change = (&'static str, fn(&Scratch));

/// The verdict on the bundle by an original with each change, findings and notes.
fn judged(scratch: &Scratch, (name, change): &Change) -> (bool, String, String) {
    let _ = fs::remove_dir_all(scratch.path("new"));
    copy_dir(&scratch.path("ckpt"), &scratch.path("new"));
    change(scratch);
    let ran = scratch.run("verify out --against new --json");
    let report: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{name}: {e}: {ran:?}"));
    let holds = report["verdict"] == json!("holds");
    assert_eq!(ran.code, Some(i32::from(!holds)), "{name}");
    (holds, report["findings"].to_string(), report["notes"].to_string())
}

fn edit(scratch: &Scratch, name: &str, members: Value) {
    scratch.edit_json(&format!("new/{name}"), |object| {
        let Value::Object(members) = members else { panic!() };
        object.extend(members);
    });
}

/// Each change leaves the original what it was, and a note says so.
fn are_notes(changes: &[(Change, &str)]) {
    let scratch = made();
    for (change, note) in changes {
        let (holds, findings, notes) = judged(&scratch, change);
        assert!(holds && notes.contains(note), "{}: {findings} {notes}", change.0);
    }
}

#[test]
fn tokenizers_and_templates_that_say_the_same_are_notes() {
    are_notes(&[
        (
            ("saved again by transformers", |s| {
                let members =
                    json!({"is_local": true, "padding_side": "left", "model_max_length": 2048});
                edit(s, "tokenizer_config.json", members);
            }),
            "tokenizer_config.json: other `is_local`, `model_max_length`, `padding_side` in the checkpoint; the same \
             comes of both: the tokens and the text of conversations",
        ),
        (
            ("merges as texts, and padding", |s| {
                s.edit_json("new/tokenizer.json", |json| {
                    let merges = json["model"]["merges"].as_array().unwrap().iter();
                    let text = |pair: &Value| {
                        json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
                    };
                    json["model"]["merges"] = merges.map(text).collect();
                    json["padding"] = json!({"strategy": "BatchLongest", "direction": "Left",
                        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
                });
            }),
            "tokenizer.json: other `model`, `padding` in the checkpoint; the same comes of both: the tokens",
        ),
        (
            ("the template elsewhere", |s| {
                fs::remove_file(s.path("new/chat_template.jinja")).unwrap();
                edit(s, "tokenizer_config.json", json!({ "chat_template": TEMPLATE }));
            }),
            "chat_template.jinja: not in the checkpoint; the same comes of both: the text of conversations",
        ),
        (
            ("a line end more", |s| {
                fs::write(s.path("new/chat_template.jinja"), format!("{TEMPLATE}\n")).unwrap();
            }),
            "chat_template.jinja: other bytes in the checkpoint; the same comes of both",
        ),
        (
            ("a name for what is known", |s| {
                let map = r#"{"eos_token": {"content": "<|endoftext|>"}}"#;
                fs::write(s.path("new/special_tokens_map.json"), map).unwrap();
            }),
            "special_tokens_map.json: only in the checkpoint; the same comes of both: the tokens and",
        ),
    ]);
}

#[test]
fn configurations_that_say_the_same_are_notes() {
    are_notes(&[
        (
            ("a configuration of transformers 4", |s| {
                s.edit_json("new/config.json", |config| {
                    config.remove("rope_parameters");
                    let dtype = config.remove("dtype").unwrap();
                    config.insert("torch_dtype".to_owned(), dtype);
                    config.insert("rope_theta".to_owned(), json!(10000));
                });
            }),
            "config.json: other `dtype`, `rope_parameters`, `rope_theta`, `torch_dtype` in the checkpoint; the same \
             comes of both: the model and where it stops",
        ),
        (
            ("no settings of generation", |s| {
                fs::remove_file(s.path("new/generation_config.json")).unwrap();
            }),
            "generation_config.json: not in the checkpoint; the same comes of both: the model and where it stops",
        ),
        (
            ("settings of sampling", |s| {
                edit(s, "generation_config.json", json!({"temperature": 0.6, "top_p": 0.9}));
            }),
            "generation_config.json: other `temperature`, `top_p` in the checkpoint",
        ),
    ]);
}

#[test]
fn files_that_say_something_else_are_findings() {
    let scratch = made();
    let changes: [(Change, &str); 9] = [
        (
            ("two merges in another order", |s| {
                s.edit_json("new/tokenizer.json", |json| {
                    json["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
                });
            }),
            "tokenizer.json",
        ),
        (
            ("flags of an added token", |s| {
                s.edit_json("new/tokenizer.json", |json| {
                    json["added_tokens"][0]["lstrip"] = json!(true);
                });
            }),
            "tokenizer.json",
        ),
        (
            ("a token more beside the tokenizer", |s| {
                let token = json!({"content": "<|im_end|>", "special": true});
                edit(s, "tokenizer_config.json", json!({"added_tokens_decoder": {"1023": token}}));
            }),
            "tokenizer_config.json",
        ),
        (
            ("another end of texts", |s| {
                edit(s, "tokenizer_config.json", json!({"eos_token": "."}));
            }),
            "tokenizer_config.json",
        ),
        (
            ("another token to stop at", |s| {
                edit(s, "generation_config.json", json!({"eos_token_id": [0, 5]}));
            }),
            "generation_config.json",
        ),
        (
            ("other positions", |s| {
                let rope = json!({"rope_theta": 10001.0, "rope_type": "default"});
                edit(s, "config.json", json!({ "rope_parameters": rope }));
            }),
            "config.json",
        ),
        (
            ("another template", |s| {
                fs::write(s.path("new/chat_template.jinja"), format!("x{TEMPLATE}")).unwrap();
            }),
            "chat_template.jinja",
        ),
        (
            ("line ends that show", |s| {
                fs::write(s.path("new/chat_template.jinja"), format!("{TEMPLATE}\n\n\n")).unwrap();
            }),
            "chat_template.jinja",
        ),
        (
            ("no template", |s| fs::remove_file(s.path("new/chat_template.jinja")).unwrap()),
            "chat_template.jinja",
        ),
    ];
    for (change, file) in changes {
        let (holds, findings, notes) = judged(&scratch, &change);
        let found = findings.contains(&format!("\"file\":\"{file}\""));
        assert!(!holds && found, "{}: {findings} {notes}", change.0);
    }
}

/// The same values in a wider type: their hashes say nothing, and whoever wants may have them compared.
#[test]
fn the_same_weights_in_another_type_are_one_finding_with_a_way_out() {
    let scratch = made();
    let change: Change = ("in F32", |s| {
        s.edit_tensors("new/model.safetensors", |tensors| {
            let mut wide = Vec::new();
            for (name, entry) in &mut tensors.header {
                if name == "__metadata__" {
                    continue;
                }
                let range = |at: usize| entry["data_offsets"][at].as_u64().unwrap() as usize;
                let bytes = &tensors.data[range(0)..range(1)];
                let mut values = vec![0.0; bytes.len() / 2];
                widen(Float::F16, bytes, &mut values);
                let from = wide.len();
                wide.resize(from + 4 * values.len(), 0);
                narrow(Float::F32, &values, &mut wide[from..]);
                (entry["dtype"], entry["data_offsets"]) = (json!("F32"), json!([from, wide.len()]));
            }
            tensors.data = wide;
        });
    });
    let (holds, findings, _) = judged(&scratch, &change);
    let named = " in another type, f32 for f16: with --other-source their values are compared";
    assert!(!holds && findings.contains(named), "{findings}");
    assert_eq!(findings.matches("\"kind\"").count(), 1, "{findings}");
    scratch.ok("verify out --against new --other-source --quiet");
}
