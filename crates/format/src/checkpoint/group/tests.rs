use serde_json::{Value, json};
use shardwright_quant::Float;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::testing::{Held, message, write_held};

const F32: Dtype = Dtype::Float(Float::F32);
const BF16: Dtype = Dtype::Float(Float::Bf16);

/// A tensor of zeros.
fn zeros(name: &'static str, dtype: Dtype, shape: &[u64]) -> Held {
    let len = shape.iter().product::<u64>() as usize * dtype.size();
    (name, dtype, shape.to_vec(), vec![0; len])
}

fn opened(config: &Value, tensors: &[Held]) -> Quantization {
    let dir = tempfile::tempdir().unwrap();
    write_held(dir.path(), &json!({ "quantization_config": config }), tensors);
    Checkpoint::open(dir.path())
        .unwrap()
        .quantization()
        .unwrap()
        .clone()
}

fn refusal(config: &Value, tensors: &[Held]) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_held(dir.path(), &json!({ "quantization_config": config }), tensors);
    message(dir.path(), Checkpoint::open(dir.path()))
}

fn fp8() -> Value {
    json!({ "quant_method": "fp8", "weight_block_size": [128, 128] })
}

#[test]
fn parts_that_disagree_are_refused() {
    let weight = || zeros("a.weight", Dtype::F8E4m3, &[256, 130]);
    let scales = |dtype, shape: &[u64]| zeros("a.weight_scale_inv", dtype, shape);
    opened(&fp8(), &[weight(), scales(BF16, &[2, 2])]);
    assert_eq!(
        refusal(&fp8(), &[weight()]),
        "DIR/model.safetensors: tensor `a.weight`: expected `a.weight_scale_inv` with it, found none"
    );
    assert_eq!(
        refusal(&fp8(), &[weight(), scales(F32, &[2, 1])]),
        "DIR/model.safetensors: tensor `a.weight_scale_inv`: expected shape [2, 2] with `a.weight` \
         of shape [256, 130], found [2, 1]"
    );
    assert_eq!(
        refusal(&fp8(), &[weight(), scales(Dtype::I32, &[2, 2])]),
        "DIR/model.safetensors: tensor `a.weight_scale_inv`: expected F32 or BF16 or F16 or \
         F8_E8M0 with `a.weight`, found I32"
    );
    assert_eq!(
        refusal(&fp8(), &[zeros("a.weight", BF16, &[256, 130]), scales(F32, &[2, 2])]),
        "DIR/model.safetensors: tensor `a.weight_scale_inv`: it belongs to a quantized \
         `a.weight`, found none"
    );
}

/// Scales without `_inv`: one for the tensor, or one for each row.
#[test]
fn scales_have_other_names_and_may_be_one_for_each_row() {
    let weight = || zeros("a.weight", Dtype::F8E4m3, &[256, 130]);
    let scales = |shape: &[u64]| zeros("a.weight_scale", F32, shape);
    let spare = || zeros("a.input_scale", F32, &[1]);
    for (method, shape, label) in [
        ("fp8", &[][..], "f8_e4m3 256x130"),
        ("fbgemm_fp8", &[256, 1][..], "f8_e4m3 1x130"),
        ("modelopt", &[][..], "f8_e4m3 256x130"),
    ] {
        let config = json!({ "quant_method": method, "quant_algo": "FP8" });
        let facts = opened(&config, &[weight(), scales(shape), spare()]);
        assert_eq!(facts.tensors, BTreeMap::from([(label.to_owned(), 1)]), "{method}");
        assert!(facts.auxiliary.contains_key("a.input_scale"));
    }
    let left = refusal(&json!({ "quant_method": "fp8" }), &[scales(&[]), spare()]);
    assert!(left.ends_with("it belongs to a quantized `a.weight`, found none"), "{left}");
    let other = json!({ "quant_method": "modelopt", "quant_algo": "W4A8_AWQ" });
    assert_eq!(
        refusal(&other, &[zeros("a.weight", Dtype::U8, &[256, 64])]),
        "DIR/config.json: `quantization_config`: `quant_algo`: expected one of FP8, NVFP4, \
         MIXED_PRECISION of ModelOpt, found \"W4A8_AWQ\""
    );
    let nvfp4 = json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" });
    let name = "DIR/model.safetensors: tensor `a.weight`:";
    assert_eq!(
        refusal(&nvfp4, &[zeros("a.weight", Dtype::U8, &[256, 64])]),
        format!("{name} expected `a.weight_scale_2` with it, found none")
    );
}

/// Codes of three bits run on over three words, and not all who write them agree on zero points.
#[test]
fn three_bits_fill_three_words() {
    let codes = |rows| zeros("a.qweight", Dtype::I32, &[rows, 64]);
    let rest = || {
        let scales = zeros("a.scales", Dtype::Float(Float::F16), &[3, 64]);
        [zeros("a.qzeros", Dtype::I32, &[3, 6]), scales]
    };
    let gptq = json!({ "quant_method": "gptq", "bits": 3, "group_size": 32 });
    let [zero_points, scales] = rest();
    let facts = opened(&gptq, &[codes(9), zero_points, scales]);
    assert_eq!(facts.tensors, BTreeMap::from([("gptq int3 g32".to_owned(), 1)]));
    let [zero_points, scales] = rest();
    let found = refusal(&gptq, &[codes(8), zero_points, scales]);
    assert!(
        found.ends_with("expected rows in threes for codes of 3 bits, found 8 rows"),
        "{found}"
    );
    let mut other = gptq;
    other["meta"] = json!({ "quantizer": ["gptqmodel:2.2.0"] });
    let [zero_points, scales] = rest();
    let found = refusal(&other, &[codes(9), zero_points, scales]);
    assert!(found.ends_with("save it with format \"gptq_v2\""), "{found}");
    other["checkpoint_format"] = "gptq_v2".into();
    let [zero_points, scales] = rest();
    opened(&other, &[codes(9), zero_points, scales]);
}

#[test]
fn a_file_beside_the_configuration_may_describe_the_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let tensors =
        [zeros("a.weight", Dtype::F8E4m3, &[256, 130]), zeros("a.weight_scale", F32, &[])];
    write_held(dir.path(), &json!({}), &tensors);
    let describe = |algorithm: &str| {
        let config =
            json!({ "quantization": { "quant_algo": algorithm, "exclude_modules": ["lm_head"] } });
        std::fs::write(dir.path().join("hf_quant_config.json"), config.to_string()).unwrap();
        Checkpoint::open(dir.path())
    };
    let facts = describe("FP8").unwrap().quantization().unwrap().clone();
    assert_eq!((facts.method.as_str(), facts.tensors.len()), ("modelopt", 1));
    assert_eq!(
        message(dir.path(), describe("INT8")),
        "DIR/hf_quant_config.json: `quant_algo`: expected one of FP8, NVFP4, MIXED_PRECISION of \
         ModelOpt, found \"INT8\""
    );
}

/// A configuration that speaks of codes says nothing of plain floats.
#[test]
fn a_description_left_over_from_codes_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "quantization_config": { "quant_method": "bitsandbytes" } });
    write_held(dir.path(), &config, &[zeros("a.weight", BF16, &[256, 130])]);
    assert!(
        Checkpoint::open(dir.path())
            .unwrap()
            .quantization()
            .is_none()
    );
    assert_eq!(
        refusal(&config["quantization_config"], &[zeros("a.weight", Dtype::U8, &[256, 64])]),
        "DIR/config.json: `quantization_config`: `quant_method`: expected one of fp8, fbgemm_fp8, \
         modelopt, mxfp4, compressed-tensors, gptq, awq, auto-round, bitnet, or MLX's group_size and \
         bits, found \"bitsandbytes\""
    );
    let codes = [
        zeros("a.weight", Dtype::U8, &[256, 1]),
        zeros("a.weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[80]),
    ];
    assert_eq!(
        refusal(&config["quantization_config"], &codes),
        "DIR/model.safetensors: tensor `a.weight.quant_state.bitsandbytes__nf4`: it belongs to codes \
         of bitsandbytes, which are not read; load the model with transformers, dequantize it and \
         save it again"
    );
}

#[test]
fn what_the_list_names_must_be_floats() {
    let listed = |list: Value| {
        let mut config = fp8();
        config["modules_to_not_convert"] = list;
        config
    };
    let tensors = [
        zeros("model.layers.0.q.weight", Dtype::F8E4m3, &[128, 128]),
        zeros("model.layers.0.q.weight_scale_inv", F32, &[1, 1]),
        zeros("model.layers.0.gate.weight", BF16, &[8, 128]),
        zeros("model.layers.1.gate.weight", BF16, &[8, 128]),
        zeros("model.layers.0.norm.weight", BF16, &[128]),
        zeros("lm_head.weight", BF16, &[300, 128]),
    ];
    let facts = opened(&listed(json!(["gate", "re:.*nothing", "re:(?<x"])), &tensors);
    assert_eq!(facts.method, "fp8");
    assert_eq!(facts.tensors, BTreeMap::from([("f8_e4m3 128x128".to_owned(), 1)]));
    assert_eq!(facts.kept, BTreeMap::from([("model.layers.*.gate.weight".to_owned(), 2)]));
    assert_eq!(facts.unnamed, BTreeMap::from([("lm_head.weight".to_owned(), 1)]));
    assert_eq!(facts.unread, ["re:(?<x"]);
    let refused = |entry: &str| {
        assert_eq!(
            refusal(&listed(json!([entry])), &tensors),
            format!(
                "DIR/model.safetensors: tensor `model.layers.0.q.weight`: expected plain floats, \
                 as the quantization_config says by `{entry}`, found f8_e4m3 128x128"
            )
        );
    };
    for entry in ["q", "model.layers.0", "re:.*q$", "model.layers.*.q"] {
        refused(entry);
    }
    for other in ["layers.0", "model.layers.0.q_proj", "re:q", "model.layers.*.k"] {
        opened(&listed(json!([other])), &tensors);
    }
}

#[test]
fn configurations_that_mean_nothing_known_are_refused() {
    // Over plain floats alone such a configuration says nothing, and is left.
    let refused = |config: Value| refusal(&config, &[zeros("a.weight", Dtype::U8, &[2, 2])]);
    assert_eq!(
        refused(json!({ "quant_method": "fp8", "weight_block_size": [0, 128] })),
        "DIR/config.json: `quantization_config`: `weight_block_size`: expected two numbers above \
         0, found [0,128]"
    );
    assert_eq!(
        refused(json!({ "quant_method": "fp8", "modules_to_not_convert": "lm_head" })),
        "DIR/config.json: `quantization_config`: `modules_to_not_convert`: expected a list, found \
         \"lm_head\""
    );
}

#[test]
fn every_scheme_names_what_is_missing_or_wrong() {
    let name = |detail: &str| format!("DIR/model.safetensors: tensor {detail}");
    let mxfp4 = json!({ "quant_method": "mxfp4" });
    assert_eq!(
        refusal(&mxfp4, &[zeros("a_blocks", Dtype::U8, &[2, 3, 4, 16])]),
        name("`a_blocks`: expected `a_scales` with it, found none")
    );
    assert_eq!(
        refusal(&mxfp4, &[zeros("a_blocks", Dtype::U8, &[2, 3, 4, 8])]),
        name("`a_blocks`: expected shape [2, 3, 4, 16], found [2, 3, 4, 8]")
    );
    let mlx = json!({ "bits": 4, "group_size": 32, "a": { "bits": 8, "group_size": 32 } });
    let part = |name, dtype| zeros(name, dtype, &[2, 2]);
    let words = |name, count| zeros(name, Dtype::U32, &[2, count]);
    opened(&mlx, &[words("a.weight", 16), part("a.scales", BF16), part("a.biases", BF16)]);
    assert_eq!(
        refusal(&mlx, &[words("b.weight", 16), part("b.scales", BF16), part("b.biases", BF16)]),
        name("`b.scales`: expected shape [2, 4] with `b.weight` of shape [2, 16], found [2, 2]")
    );
    assert_eq!(
        refusal(&mlx, &[words("a.weight", 16), part("a.scales", BF16), part("a.biases", F32)]),
        name("`a.biases`: expected BF16 with `a.weight`, found F32")
    );
    assert_eq!(
        refusal(&mlx, &[part("a.biases", BF16)]),
        name("`a.biases`: it belongs to a quantized `a.weight`, found none")
    );
    let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 });
    assert_eq!(
        refusal(&gptq, &[zeros("a.qweight", Dtype::I32, &[8, 16]), part("a.scales", BF16)]),
        name("`a.scales`: expected shape [2, 16] with `a.qweight` of shape [8, 16], found [2, 2]")
    );
}

fn pack_quantized() -> Value {
    let weights = json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 });
    json!({ "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
}

#[test]
fn packed_integers_have_the_shape_that_is_stored_with_them() {
    let dims = |dims: [i64; 2]| {
        let bytes = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        ("a.weight_shape", Dtype::I64, vec![2], bytes)
    };
    let codes = || zeros("a.weight_packed", Dtype::I32, &[4, 8]);
    let scales = || zeros("a.weight_scale", BF16, &[4, 2]);
    opened(&pack_quantized(), &[codes(), scales(), dims([4, 64])]);
    for wrong in [[4, 65], [0, 0], [5, 64], [-1, 64]] {
        let found = refusal(&pack_quantized(), &[codes(), scales(), dims(wrong)]);
        let expected = "DIR/model.safetensors: tensor `a.weight_packed`: expected codes and scales";
        assert!(found.starts_with(expected), "{found}");
    }
    assert_eq!(
        refusal(&pack_quantized(), &[codes(), scales()]),
        "DIR/model.safetensors: tensor `a.weight_packed`: expected `a.weight_shape` with it, found none"
    );
    let mut other = pack_quantized();
    other["format"] = json!("marlin-24");
    assert_eq!(
        refusal(&other, &[codes()]),
        "DIR/config.json: `quantization_config`: `format`: expected one of pack-quantized, \
         float-quantized, int-quantized, naive-quantized, mixed-precision, nvfp4-pack-quantized, \
         mxfp4-pack-quantized, found \"marlin-24\""
    );
}

#[test]
fn scales_of_activations_are_set_aside_with_a_reason() {
    let tensors = [
        zeros("a.weight", Dtype::F8E4m3, &[128, 128]),
        zeros("a.weight_scale_inv", F32, &[1, 1]),
        zeros("a.input_scale", F32, &[1]),
    ];
    let facts = opened(&fp8(), &tensors);
    let reason = "scale of quantized activations; activations are not quantized";
    assert_eq!(facts.auxiliary, BTreeMap::from([("a.input_scale".to_owned(), reason.to_owned())]));
}

/// Width of a module is that of the first pattern that fits from the start of its name.
#[test]
fn widths_of_modules_follow_the_first_pattern() {
    let module = |name: &str, words: u64, groups: u64| {
        let name = |part: &str| -> &'static str { format!("{name}.{part}").leak() };
        [
            zeros(name("qweight"), Dtype::I32, &[words, 16]),
            zeros(name("qzeros"), Dtype::I32, &[groups, words * 16 / 64]),
            zeros(name("scales"), Dtype::Float(Float::F16), &[groups, 16]),
        ]
    };
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32,
        "dynamic": { "+:.*up": { "bits": 8, "group_size": -1 }, ".*up2": { "bits": 2 } } });
    let tensors = [module("m.down", 8, 2), module("m.up2", 16, 1)].concat();
    let facts = opened(&config, &tensors);
    let labels: Vec<_> = facts.tensors.keys().map(String::as_str).collect();
    assert_eq!(labels, ["gptq int4 g32", "gptq int8 g64"]);
    let wrong = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32,
        "dynamic": { "(": { "bits": 8 } } });
    let told = refusal(&wrong, &tensors);
    assert!(told.ends_with("`dynamic`: `(`: expected a regular expression"), "{told}");
    let packed = json!({ "quant_method": "auto-round", "packing_format": "auto_round", "bits": 4 });
    let told = refusal(&packed, &tensors);
    assert!(told.contains("`packing_format`: expected \"auto_round:auto_gptq\""), "{told}");
}

/// mlx-lm reads `quantization` first: what its source was quantized by may lie beside it, and counts only where the
/// tensors are not MLX's.
#[test]
fn tensors_of_mlx_are_read_by_its_own_key() {
    let tensors = || {
        [
            zeros("a.weight", Dtype::U32, &[8, 8]),
            zeros("a.scales", BF16, &[8, 1]),
            zeros("a.biases", BF16, &[8, 1]),
        ]
    };
    let method = |config: &Value, tensors: &[Held]| {
        let dir = tempfile::tempdir().unwrap();
        write_held(dir.path(), config, tensors);
        Checkpoint::open(dir.path())
            .unwrap()
            .quantization()
            .unwrap()
            .method
            .clone()
    };
    let own = json!({"group_size": 64, "bits": 4, "mode": null});
    for other in [
        fp8(),
        pack_quantized(),
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
        json!({"quant_method": "mxfp4"}),
    ] {
        let config = json!({"quantization": own, "quantization_config": other});
        assert_eq!(method(&config, &tensors()), "mlx", "{config}");
        let config = json!({"quantization": own, "text_config": {"quantization_config": other}});
        assert_eq!(method(&config, &tensors()), "mlx", "{config}");
    }
    let named = json!({"quant_method": "mlx", "group_size": 64, "bits": 4});
    assert_eq!(method(&json!({"quantization_config": named}), &tensors()), "mlx");
    let weight = zeros("a.weight", Dtype::F8E4m3, &[256, 130]);
    let scales = zeros("a.weight_scale_inv", BF16, &[2, 2]);
    let config = json!({"quantization": own, "quantization_config": fp8()});
    assert_eq!(method(&config, &[weight, scales]), "fp8");
}
