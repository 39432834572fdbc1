//! Tables of one's own: drafts for every golden checkpoint, and what unknown ones are told.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{each_golden, fixture};

use crate::harness::Scratch;

/// A golden checkpoint whose `model_type` no table knows.
fn renamed(case: &str) -> Scratch {
    let scratch = Scratch::with(&format!("golden/{case}"));
    scratch.edit_json("ckpt/config.json", |config| {
        config.insert("model_type".to_owned(), json!("unheard_of"));
    });
    scratch
}

fn drop_marks(scratch: &Scratch, table: &str) {
    scratch.edit_json(table, |table| {
        table.remove("_uncertain");
    });
}

/// The model that `inspect` shows, its name apart.
fn model(scratch: &Scratch, args: &str) -> Value {
    let mut model = scratch.json(args)["model"].take();
    model["model_type"] = Value::Null;
    model
}

fn a_draft_describes_a_golden_checkpoint_as_the_built_in_table_does(case: &str) {
    let expected = model(&Scratch::with(&format!("golden/{case}")), "inspect ckpt");
    let scratch = renamed(case);
    let drafted = scratch.json("arch draft ckpt -o my.json");
    assert_eq!(drafted["misfit"], Value::Null);
    drop_marks(&scratch, "my.json");
    assert_eq!(model(&scratch, "inspect ckpt --arch my.json"), expected);
    scratch.ok("convert ckpt -o out --recipe q4 --arch my.json");
    let report = scratch.json("verify out --against ckpt --arch my.json");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
}

each_golden!(a_draft_describes_a_golden_checkpoint_as_the_built_in_table_does);

/// Ernie 4.5 has Llama's names and rotates neighbours: what could be otherwise is marked whatever the
/// nearest table is.
#[test]
fn what_any_model_may_have_otherwise_is_marked() {
    let scratch = renamed("llama2");
    let marks = scratch.json("arch draft ckpt -o my.json")["uncertain"].take();
    for place in ["output_norms", "attention.rotary.pairing", "attention.softmax_scale"] {
        assert!(marks[place].as_str().unwrap().contains("as in llama"), "{place}: {marks}");
    }
    assert_eq!(marks["mlp.activation"], Value::Null);
    scratch.edit_json("ckpt/config.json", |config| {
        config.remove("hidden_act");
    });
    let marks = scratch.json("arch draft ckpt -o other.json")["uncertain"].take();
    assert!(marks["mlp.activation"].is_string(), "{marks}");
}

#[test]
fn a_table_with_marks_is_refused() {
    let scratch = renamed("qwen3_moe");
    scratch.ok("arch draft ckpt -o my.json");
    let table: Value = serde_json::from_slice(&fs::read(scratch.path("my.json")).unwrap()).unwrap();
    let marks = table["_uncertain"].as_object().unwrap();
    let marks: Vec<_> = marks.keys().map(|place| format!("`{place}`")).collect();
    for command in ["plan ckpt", "inspect ckpt", "convert ckpt -o out"] {
        let expected = format!(
            "error: my.json: `_uncertain`: expected none, found {}; see that each is right, then \
             remove its mark",
            marks.join(", ")
        );
        scratch.refused(&format!("{command} --arch my.json"), &expected);
    }
}

#[test]
fn unknown_architectures_are_told_what_is_unknown_and_how_to_start() {
    let scratch = renamed("llama2");
    scratch.edit_json("ckpt/config.json", |config| {
        config.insert("hyper_connections".to_owned(), json!(4));
    });
    scratch.edit_tensors("ckpt/model.safetensors", |tensors| {
        let renamed = tensors
            .header
            .remove("model.layers.0.input_layernorm.weight")
            .unwrap();
        tensors
            .header
            .insert("model.layers.0.hyper.alpha".to_owned(), renamed);
    });
    let ran = scratch.run("plan ckpt");
    assert_eq!(ran.code, Some(2));
    let end = "found `unheard_of`; no table knows the tensors `model.layers.{layer}.hyper.alpha`, \
               nor the keys `hyper_connections`; the nearest table is llama; to start one: \
               shardwright arch draft ckpt -o unheard_of.json";
    assert!(ran.stderr.trim_end().ends_with(end), "{}", ran.stderr);
    let drafted = scratch.json("arch draft ckpt -o unheard_of.json");
    let uncertain = drafted["uncertain"].as_object().unwrap();
    for place in ["ignored.model.layers.{layer}.hyper.alpha", "config.hyper_connections"] {
        assert!(uncertain.contains_key(place), "{place}: {uncertain:?}");
    }
    assert!(
        drafted["misfit"]
            .as_str()
            .unwrap()
            .contains("norm.input of layer 0")
    );
}

#[test]
fn built_in_tables_are_listed_and_shown() {
    let scratch = Scratch::new();
    let rows = scratch.json("arch list");
    assert!(rows.as_array().unwrap().len() > 15);
    let shown = scratch.ok("arch show deepseek_v3").stdout;
    let file = shardwright_testing::root().join("configs/arch/deepseek_v3.json");
    assert_eq!(shown.trim_end(), fs::read_to_string(file).unwrap().trim_end());
    scratch.refused(
        "arch show nothing",
        "error: there is no built-in table `nothing`\nhelp: `shardwright arch list` names them",
    );
}

/// A table is proved by what transformers computes; one that turns other pairs is told, and where.
#[test]
fn a_table_is_held_against_another_implementation() {
    for case in ["llama2", "qwen3_moe", "qwen3_next"] {
        let scratch = renamed(case);
        scratch.ok("arch draft ckpt -o my.json");
        drop_marks(&scratch, "my.json");
        let golden = fixture(&format!("golden/{case}/golden.safetensors"));
        fs::copy(golden, scratch.path("golden.safetensors")).unwrap();
        let check = "arch check ckpt --arch my.json --against golden.safetensors";
        let report = scratch.json(check);
        assert_eq!(report["agrees"], json!(true), "{report}");
        assert_eq!(report["same_top"], report["tokens"]);
        scratch.edit_json("my.json", |table| {
            table["attention"]["rotary"]["pairing"] = json!("interleaved");
        });
        let ran = scratch.run(check);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(
            ran.stdout.contains("embedding       0.0e0") && ran.stdout.contains("verdict: differs"),
            "{ran:?}"
        );
    }
}
