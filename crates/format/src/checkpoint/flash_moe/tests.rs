//! Small folders, whole and damaged.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use shardwright_quant::Float;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::testing::{described, message};
use crate::decoder::Decoder;

/// Bytes of an expert: three matrices of 64 by 64 in 4 bits.
const RECORD: usize = 3 * (64 * 64 / 2 + 2 * 64 * 2);

fn config() -> Value {
    let text = json!({
        "hidden_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_experts": 2,
    });
    json!({ "model_type": "qwen3_5_moe", "text_config": text })
}

/// The tensors besides experts, each at a multiple of 64 bytes.
fn list() -> Value {
    let tensor = |offset: u64, dtype: &str, shape: &[u64]| {
        let width = if dtype == "U32" { 4 } else { 2 };
        let size = shape.iter().product::<u64>() * width;
        json!({ "offset": offset, "size": size, "dtype": dtype, "shape": shape })
    };
    json!({ "tensors": {
        "lm_head.weight": tensor(0, "U32", &[4, 8]),
        "lm_head.scales": tensor(128, "BF16", &[4, 1]),
        "lm_head.biases": tensor(192, "BF16", &[4, 1]),
        "model.norm.weight": tensor(256, "BF16", &[64]),
    }})
}

/// As programs write it that say neither types nor shapes.
fn layout() -> Value {
    let mut offset = 0;
    let parts = EXPERT_MATRICES.iter().flat_map(|matrix| {
        [("weight", 2048), ("scales", 128), ("biases", 128)].map(|(part, size)| {
            offset += size;
            json!({ "name": format!("{matrix}.{part}"), "offset": offset - size, "size": size })
        })
    });
    let parts: Vec<_> = parts.collect();
    json!({ "expert_size": RECORD, "num_layers": 2, "num_experts": 2, "components": parts })
}

fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// A folder with experts of 4 bits.
fn folder() -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let packed = dir.join(DIRECTORIES[0].1);
    fs::create_dir(&packed).unwrap();
    write(&dir.join("config.json"), &config());
    write(&dir.join(LIST_NAME), &list());
    fs::write(dir.join(WHOLE_NAME), [0; 384]).unwrap();
    write(&packed.join(LAYOUT_NAME), &layout());
    for layer in 0..2 {
        fs::write(packed.join(layer_name(layer)), vec![0; 2 * RECORD]).unwrap();
    }
    temporary
}

/// What is said of a folder after a change.
fn refused(change: impl FnOnce(&Path)) -> String {
    let folder = folder();
    change(folder.path());
    message(folder.path(), Checkpoint::open(folder.path()))
}

#[test]
fn every_part_has_its_place_and_every_module_its_bits() {
    let folder = folder();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensors = described(&checkpoint);
    assert_eq!(tensors.len(), 2 + 2 * 2 * 3);
    assert!(tensors.contains(&("lm_head.weight".to_owned(), Float::F32, vec![4, 64])));
    assert!(tensors.contains(&("model.norm.weight".to_owned(), Float::Bf16, vec![64])));
    let last = &checkpoint.stored()["model.layers.1.mlp.experts.1.down_proj.biases"];
    assert_eq!(last.offset + last.len, 2 * RECORD as u64);
    assert_eq!(checkpoint.files()[last.file].name, "packed_experts/layer_01.bin");
    let file = &checkpoint.stored()["model.norm.weight"];
    assert_eq!((checkpoint.files()[file.file].name.as_str(), file.offset), (WHOLE_NAME, 256));
    assert_eq!(checkpoint.copies().unwrap(), ["config.json"]);
    assert_eq!(checkpoint.skipped().unwrap(), []);
}

/// Experts of 2 bits beside a configuration that speaks of 4, and of one module with 8.
#[test]
fn experts_have_the_bits_of_their_directory() {
    let folder = folder();
    let dir = folder.path();
    let [four, two] = DIRECTORIES.map(|(_, name)| dir.join(name));
    fs::rename(&four, &two).unwrap();
    fs::remove_file(two.join(LAYOUT_NAME)).unwrap();
    let record = 3 * (64 * 64 / 4 + 2 * 64 * 2);
    for layer in 0..2 {
        fs::write(two.join(layer_name(layer)), vec![0; 2 * record]).unwrap();
    }
    let bits = |name: &str| match &Checkpoint::open(dir).unwrap().tensors()[name].decoder {
        Some(Decoder::Mlx { bits, group_size: 64, .. }) => *bits,
        other => panic!("{other:?}"),
    };
    let expert = "model.layers.1.mlp.experts.1.up_proj.weight";
    assert_eq!((bits(expert), bits("lm_head.weight")), (2, 4));

    let mut said = config();
    let eight = json!({ "bits": 8, "group_size": 64 });
    said["quantization"] = json!({ "bits": 4, "group_size": 64, "language_model.lm_head": eight });
    write(&dir.join("config.json"), &said);
    let mut listed = list();
    listed["tensors"]["lm_head.weight"]["shape"] = json!([2, 16]);
    for part in ["scales", "biases"] {
        listed["tensors"][format!("lm_head.{part}")]["shape"] = json!([2, 1]);
        listed["tensors"][format!("lm_head.{part}")]["size"] = json!(4);
    }
    write(&dir.join(LIST_NAME), &listed);
    assert_eq!((bits(expert), bits("lm_head.weight")), (2, 8));
}

#[test]
fn the_dense_part_may_be_several_files() {
    for names in
        [["model_weights_0.bin", "model_weights_1.bin"], [WHOLE_NAME, "model_weights_1.bin"]]
    {
        let folder = folder();
        let dir = folder.path();
        fs::remove_file(dir.join(WHOLE_NAME)).unwrap();
        fs::write(dir.join(names[0]), [0; 192]).unwrap();
        fs::write(dir.join(names[1]), [0; 192]).unwrap();
        let mut listed = list();
        listed["split"] = json!({ "chunk_files": names, "split_offsets": [0, 192] });
        write(&dir.join(LIST_NAME), &listed);
        let checkpoint = Checkpoint::open(dir).unwrap();
        let norm = &checkpoint.stored()["model.norm.weight"];
        assert_eq!((checkpoint.files()[norm.file].name.as_str(), norm.offset), (names[1], 64));

        fs::write(dir.join(names[0]), [0; 128]).unwrap();
        let said = message(dir, Checkpoint::open(dir));
        let expected = format!(
            "DIR/model_weights.json: `split_offsets`: expected 128 for `{}`, where those before it end, found 192",
            names[1]
        );
        assert_eq!(said, expected);
    }
}

/// Changes a member of the JSON of a file.
fn set(path: &Path, pointer: &str, value: Value) {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (object, key) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(object).unwrap()[key] = value;
    write(path, &document);
}

#[test]
fn a_list_that_contradicts_itself_or_its_file_is_refused() {
    for (member, value, expected) in [
        ("offset", json!(-64), "invalid value: integer `-64`, expected u64"),
        ("offset", json!(u64::MAX), "tensor `model.norm.weight`: its end leaves 64 bits"),
        (
            "offset",
            json!(1_u64 << 60),
            "tensor `model.norm.weight`: expected 128 bytes at 1152921504606846976 in one file, found one that ends at 384",
        ),
        (
            "offset",
            json!(192),
            "tensor `model.norm.weight`: expected an offset of at least 200, where the one before it ends, found 192",
        ),
        (
            "size",
            json!(4),
            "tensor `model.norm.weight`: expected size 128, as shape [64] of BF16 takes, found 4",
        ),
        ("shape", json!([1_u64 << 60, 1_u64 << 60]), "its size in bytes leaves 64 bits"),
        ("dtype", json!("I5"), "tensor `model.norm.weight`: "),
    ] {
        let said = refused(|dir| {
            set(&dir.join(LIST_NAME), &format!("/tensors/model.norm.weight/{member}"), value);
        });
        assert!(said.starts_with("DIR/model_weights.json: ") && said.contains(expected), "{said}");
    }
    let said = refused(|dir| fs::write(dir.join(WHOLE_NAME), [0; 300]).unwrap());
    assert!(
        said.ends_with("expected 128 bytes at 256 in one file, found one that ends at 300"),
        "{said}"
    );
    let said = refused(|dir| fs::write(dir.join(WHOLE_NAME), [0; 385]).unwrap());
    let expected =
        "expected 384 bytes, where the last tensor of model_weights.json ends, found 385";
    assert_eq!(said, format!("DIR/model_weights.bin: {expected}"));
    for (text, expected) in
        [("[]", "expected a JSON object, found none"), ("{}", "missing field `tensors`")]
    {
        let said = refused(|dir| fs::write(dir.join(LIST_NAME), text).unwrap());
        assert!(said.starts_with(&format!("DIR/model_weights.json: {expected}")), "{said}");
    }
    let name = "model.layers.0.mlp.experts.0.up_proj.scales";
    let said = refused(|dir| {
        let again = json!({ "offset": 384, "size": 0, "shape": [0], "dtype": "U8" });
        set(&dir.join(LIST_NAME), &format!("/tensors/{name}"), again);
    });
    assert_eq!(said, format!("DIR/model_weights.bin: tensor `{name}`: packed experts have it too"));
    for file in ["../x.bin", "/x.bin"] {
        let split = json!({ "chunk_files": [file], "split_offsets": [0] });
        let said = refused(|dir| set(&dir.join(LIST_NAME), "/split", split));
        let expected = "`chunk_files`: expected files in the folder, each once, found";
        assert_eq!(said, format!("DIR/model_weights.json: {expected} `{file}`"));
    }
}

#[test]
fn a_layout_that_contradicts_the_configuration_is_refused() {
    for (member, value, expected) in [
        (
            "/expert_size",
            json!(7_077_888),
            "`expert_size`: expected 6912, as config.json says, found 7077888",
        ),
        ("/expert_size", json!(-1), "invalid value: integer `-1`, expected u64"),
        ("/num_experts", json!(u64::MAX), "`num_experts`: expected 2, as config.json says"),
        ("/num_layers", json!(3), "`num_layers`: expected 2, as config.json says, found 3"),
        ("/components", json!([]), "`components`: expected 9, as config.json says, found 0"),
        (
            "/components/1/offset",
            json!(1_u64 << 63),
            "`components`: expected `gate_proj.scales` with 128 bytes at 2048, BF16 [64, 1], as config.json says, \
             found `gate_proj.scales` with 128 bytes at 9223372036854775808",
        ),
        (
            "/components/8/dtype",
            json!("F16"),
            "found `down_proj.biases` with 128 bytes at 6784, F16 []",
        ),
        (
            "/components/0/shape",
            json!([32, 16]),
            "found `gate_proj.weight` with 2048 bytes at 0, untyped [32, 16]",
        ),
    ] {
        let said = refused(|dir| {
            let path = dir.join("packed_experts/layout.json");
            match member.strip_prefix("/components/") {
                Some(rest) => {
                    let (at, key) = rest.split_once('/').unwrap();
                    let mut parts = layout()["components"].clone();
                    parts[at.parse::<usize>().unwrap()][key] = value;
                    set(&path, "/components", parts);
                }
                None => set(&path, member, value),
            }
        });
        assert!(
            said.starts_with("DIR/packed_experts/layout.json: ") && said.contains(expected),
            "{said}"
        );
    }
}

#[test]
fn files_of_experts_that_are_not_as_the_configuration_says_are_refused() {
    let path = |dir: &Path, layer| dir.join(DIRECTORIES[0].1).join(layer_name(layer));
    let said = refused(|dir| fs::write(path(dir, 1), vec![0; 2 * RECORD - 1]).unwrap());
    assert_eq!(
        said,
        "DIR/packed_experts/layer_01.bin: expected 2 experts of 6912 bytes, as config.json says, found 13823 bytes"
    );
    let said = refused(|dir| fs::remove_file(path(dir, 1)).unwrap());
    assert!(said.starts_with("DIR/packed_experts/layer_01.bin: No such file"), "{said}");
    let said = refused(|dir| fs::write(path(dir, 2), "").unwrap());
    assert_eq!(
        said,
        "DIR/packed_experts/layer_02.bin: expected files of 2 layers, as config.json says, found one more"
    );
    let said = refused(|dir| fs::remove_dir_all(dir.join(DIRECTORIES[0].1)).unwrap());
    let expected =
        "DIR: expected packed_experts/layer_00.bin or one in packed_experts_2bit, found neither";
    assert_eq!(said, expected);
    for other in [DIRECTORIES[1].1, TIERED] {
        let said = refused(|dir| {
            fs::create_dir(dir.join(other)).unwrap();
            fs::write(dir.join(other).join(layer_name(0)), "").unwrap();
        });
        assert_eq!(said, "DIR: experts more than once: keep the directory that is meant");
    }
    let said = refused(|dir| fs::rename(dir.join(DIRECTORIES[0].1), dir.join(TIERED)).unwrap());
    assert_eq!(
        said,
        "DIR: packed_experts_tiered: experts of several widths in one layer are not read"
    );
}

#[test]
fn numbers_that_make_no_record_are_refused() {
    for (key, value, expected) in [
        (
            "num_experts",
            json!(0),
            "`num_experts`: expected a positive whole number of 32 bits, found 0",
        ),
        (
            "num_experts",
            json!(1 << 20),
            "expected at most 262144 experts in all layers, found 2097152",
        ),
        (
            "num_experts",
            json!(null),
            "`num_experts`: expected a positive whole number of 32 bits, found null",
        ),
        ("hidden_size", json!(1_u64 << 40), "`hidden_size`: expected a positive whole number"),
        (
            "hidden_size",
            json!(96),
            "gate_proj: expected columns of experts in whole groups of 64, found 96",
        ),
        ("num_hidden_layers", json!("2"), "`num_hidden_layers`: expected a positive whole number"),
    ] {
        let said =
            refused(|dir| set(&dir.join("config.json"), &format!("/text_config/{key}"), value));
        assert!(said.starts_with("DIR/config.json: ") && said.contains(expected), "{said}");
    }
    let largest = u64::from(u32::MAX) / 64 * 64;
    let said = refused(|dir| {
        for key in ["hidden_size", "moe_intermediate_size", "num_experts"] {
            set(&dir.join("config.json"), &format!("/text_config/{key}"), json!(largest));
        }
        fs::remove_file(dir.join("packed_experts/layout.json")).unwrap();
    });
    assert_eq!(said, "DIR/config.json: an expert's size leaves 64 bits");
}

/// The engine's files beside the checkpoint that they were made of: that is read.
#[test]
fn a_checkpoint_with_packed_experts_beside_it_is_itself() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    crate::checkpoint::testing::write_zeros(&path, &[("x".to_owned(), Float::F32, vec![2])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.stored().keys().collect::<Vec<_>>(), ["x"]);
}
