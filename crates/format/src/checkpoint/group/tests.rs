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
        "DIR/config.json: `quantization_config`: `quant_algo`: expected one of FP8, \
         FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4, W4A16_NVFP4, MIXED_PRECISION of ModelOpt, found \"W4A8_AWQ\""
    );
    let nvfp4 = json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" });
    let name = "DIR/model.safetensors: tensor `a.weight`:";
    assert_eq!(
        refusal(&nvfp4, &[zeros("a.weight", Dtype::U8, &[256, 64])]),
        format!("{name} expected `a.weight_scale_2` with it, found none")
    );
}

/// Scales for a tensor or a row say all, and so do those of blocks whose sides are powers of two.
#[test]
fn scales_alone_may_show_the_scheme() {
    let weight = |name| zeros(name, Dtype::F8E4m3, &[256, 130]);
    let opened = |tensors: &[Held]| {
        let dir = tempfile::tempdir().unwrap();
        write_held(dir.path(), &json!({}), tensors);
        match Checkpoint::open(dir.path()) {
            Ok(found) => Ok(found.quantization().unwrap().clone()),
            found => Err(message(dir.path(), found)),
        }
    };
    let by_tensor = [weight("a.weight"), zeros("a.weight_scale", F32, &[])];
    let by_row = [weight("b.weight"), zeros("b.weight_scale_inv", BF16, &[256, 1])];
    let facts = opened(&[by_tensor.clone(), by_row].concat()).unwrap();
    assert_eq!(facts.method, "fp8");
    let labels: Vec<_> = facts.tensors.keys().map(String::as_str).collect();
    assert_eq!(labels, ["f8_e4m3 1x130", "f8_e4m3 256x130"]);
    let blocks = |shape: &[u64]| [weight("b.weight"), zeros("b.weight_scale", F32, shape)];
    let facts = opened(&[by_tensor.clone(), blocks(&[2, 2])].concat()).unwrap();
    let labels: Vec<_> = facts.tensors.keys().map(String::as_str).collect();
    assert_eq!(labels, ["f8_e4m3 128x128", "f8_e4m3 256x130"]);
    let blocks = blocks(&[3, 2]);
    assert_eq!(
        opened(&[by_tensor, blocks].concat()).unwrap_err(),
        "DIR/model.safetensors: tensor `a.weight_scale`: it belongs to codes of FP8, NVFP4 \
         or another scheme, but config.json has no quantization_config: take it from the model that \
         this is a copy of"
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
        "DIR/hf_quant_config.json: `quant_algo`: expected one of FP8, \
         FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4, W4A16_NVFP4, MIXED_PRECISION of \
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
         modelopt, quark, mxfp4, compressed-tensors, gptq, awq, auto-round, bitnet, or MLX's group_size \
         and bits, found \"bitsandbytes\""
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
}

/// Codes of four bits in groups of 32 inputs, as GPTQ and AWQ pack 64 of them for 16 outputs.
fn transposed(awq: bool) -> [Held; 3] {
    let codes: &[u64] = if awq { &[64, 2] } else { &[8, 16] };
    [
        zeros("a.qweight", Dtype::I32, codes),
        zeros("a.qzeros", Dtype::I32, &[2, 2]),
        zeros("a.scales", Dtype::Float(Float::F16), &[2, 16]),
    ]
}

/// How the one tensor is decoded that a configuration or a file beside it describes; or why it is not.
fn decoded(config: &Value, beside: Option<(&str, &Value)>, awq: bool) -> Result<Decoder, String> {
    let dir = tempfile::tempdir().unwrap();
    write_held(dir.path(), config, &transposed(awq));
    if let Some((name, text)) = beside {
        std::fs::write(dir.path().join(name), text.to_string()).unwrap();
    }
    match Checkpoint::open(dir.path()) {
        Ok(found) => Ok(found.tensors()["a.weight"].decoder.clone().unwrap()),
        found => Err(message(dir.path(), found)),
    }
}

/// Whether zero points are stored less one.
fn less_one(decoder: &Decoder) -> bool {
    matches!(decoder, Decoder::Gptq { zeros_stored_minus_one: true, .. })
}

/// Zero points of the second form are as they are; `GPTQModel` names it under either of two keys.
#[test]
fn either_key_names_the_form_of_gptq() {
    let width = json!({ "bits": 4, "group_size": 32 });
    let with = |keys: &[(&str, &str)]| {
        let mut config = width.clone();
        for (key, form) in keys {
            config[*key] = json!(form);
        }
        config
    };
    let within = |own: &Value| {
        let mut own = own.clone();
        own["quant_method"] = json!("gptq");
        decoded(&json!({ "quantization_config": own }), None, false)
    };
    let beside = |own: &Value| decoded(&json!({}), Some(("quantize_config.json", own)), false);
    for (keys, less) in [
        (&[][..], true),
        (&[("format", "gptq")], true),
        (&[("format", "gptq_v2")], false),
        (&[("checkpoint_format", "GPTQ_V2")], false),
        (&[("checkpoint_format", "gptq_v2"), ("format", "gptq_v2")], false),
    ] {
        let config = with(keys);
        assert_eq!(less_one(&within(&config).unwrap()), less, "{config}");
        assert_eq!(less_one(&beside(&config).unwrap()), less, "{config}");
    }
    let both = with(&[("checkpoint_format", "gptq"), ("format", "gptq_v2")]);
    let told = "`format`: expected \"gptq\", as `checkpoint_format` says, found \"gptq_v2\"";
    let place = "DIR/config.json: `quantization_config`";
    assert_eq!(within(&both).unwrap_err(), format!("{place}: {told}"));
    assert_eq!(beside(&both).unwrap_err(), format!("DIR/quantize_config.json: {told}"));
    for other in ["marlin", "bitblas", "triton", "FORMAT.GPTQ_V2"] {
        let told = format!(
            "{place}: `format`: expected \"gptq\" or \"gptq_v2\", found {other:?}: take a \
                           copy of the model in that form"
        );
        assert_eq!(within(&with(&[("format", other)])).unwrap_err(), told);
    }
}

/// Some programs read the file beside, and others the configuration.
#[test]
fn two_descriptions_of_gptq_agree() {
    let own = |form: &str| json!({ "bits": 4, "group_size": 32, "checkpoint_format": form });
    let mut within = own("gptq");
    within["quant_method"] = json!("gptq");
    let config = json!({ "quantization_config": within });
    let opened = |form: &str| decoded(&config, Some(("quantize_config.json", &own(form))), false);
    assert!(less_one(&opened("gptq").unwrap()));
    assert_eq!(
        opened("gptq_v2").unwrap_err(),
        "DIR/quantize_config.json: the form of GPTQ: expected \"gptq\", as config.json has it, found \
         \"gptq_v2\": make both say what the codes are"
    );
}

/// `AutoRound`'s names of packings, and before 0.4 of the backend that it packed for.
#[test]
fn either_key_names_the_packing_of_auto_round() {
    let described = |method: &str, key: &str, packing: &str| {
        json!({ "quantization_config": { "quant_method": method, "bits": 4, "group_size": 32,
            "data_type": "int", key: packing } })
    };
    for (key, packing, less) in [
        ("packing_format", "auto_round:auto_gptq", true),
        ("packing_format", "auto_round:gptqmodel", false),
        ("packing_format", "auto_round", false),
        ("backend", "auto_round:gptq:exllamav2", true),
        ("backend", "gptq:cuda", true),
        ("backend", "auto_round:exllamav2", false),
    ] {
        for method in ["auto-round", "intel/auto-round"] {
            let found = decoded(&described(method, key, packing), None, false).unwrap();
            assert_eq!(less_one(&found), less, "{method} {packing}");
        }
    }
    let method = "intel/auto-round";
    let awq = decoded(&described(method, "backend", "auto_round:awq:gemm"), None, true);
    assert!(matches!(awq.unwrap(), Decoder::Awq { .. }));
    for (key, other) in
        [("backend", "auto_round:gptq:marlin"), ("packing_format", "auto_round:llm_compressor")]
    {
        assert_eq!(
            decoded(&described(method, key, other), None, false).unwrap_err(),
            format!(
                "DIR/config.json: `quantization_config`: `{key}`: expected \"auto_round:auto_gptq\", \
                 \"auto_round:gptqmodel\" or \"auto_round:auto_awq\", found {other:?}"
            )
        );
    }
    let mut floats = described(method, "packing_format", "auto_round");
    floats["quantization_config"]["data_type"] = json!("mx_fp");
    let told = decoded(&floats, None, false).unwrap_err();
    assert!(told.ends_with("`data_type`: expected \"int\", found \"mx_fp\""), "{told}");
}

/// `AutoAWQ` and llm-awq have names of their own for the file and in it.
#[test]
fn awq_has_other_names_too() {
    let own = json!({ "zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM" });
    let beside = decoded(&json!({}), Some(("quant_config.json", &own)), true);
    assert!(matches!(beside.unwrap(), Decoder::Awq { group_size: 32, .. }));
    let mut within = own.clone();
    within["quant_method"] = json!("awq");
    let found = decoded(&json!({ "quantization_config": within }), None, true).unwrap();
    assert!(matches!(found, Decoder::Awq { group_size: 32, .. }));
    within["version"] = Value::Null;
    within["format"] = json!("gemv");
    assert_eq!(
        decoded(&json!({ "quantization_config": within }), None, true).unwrap_err(),
        "DIR/config.json: `quantization_config`: `format`: expected \"gemm\", found \"gemv\": take \
         a copy of the model in that form"
    );
    let mut wide = own;
    wide["w_bit"] = json!(8);
    let told = decoded(&json!({}), Some(("quant_config.json", &wide)), true).unwrap_err();
    assert_eq!(told, "DIR/quant_config.json: `w_bit`: expected one of 4, found 8");
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

mod labels;
mod own;
