//! Labels of what the tensors themselves show.

use super::*;

fn weight() -> Held {
    zeros("a.weight", Dtype::F8E4m3, &[256, 192])
}

fn scales(shape: &[u64]) -> Held {
    zeros("a.weight_scale", F32, shape)
}

/// How the one tensor is labeled.
fn label(config: &Value, tensors: &[Held]) -> String {
    let facts = opened(config, tensors);
    let named = config["quant_method"].as_str().unwrap_or("modelopt");
    assert_eq!(facts.method, named);
    let mut labels = facts.tensors.into_keys();
    let label = labels.next().unwrap();
    assert_eq!(labels.next(), None);
    label
}

/// `config.json` may have the description as `ModelOpt`'s own file has it, and any of its names.
#[test]
fn modelopt_is_described_in_either_form() {
    let algorithm = |name: &str| json!({ "quant_algo": name, "kv_cache_quant_algo": "FP8" });
    let within = |name: &str| {
        json!({ "producer": { "name": "modelopt", "version": "0.29" },
            "quantization": algorithm(name) })
    };
    let named = |method: &str, name: &str| json!({ "quant_method": method, "quant_algo": name });
    let nested = |name: &str| {
        let mut nested = within(name);
        nested["quant_method"] = json!("modelopt");
        nested
    };
    for (shape, name, expected) in [
        (&[][..], "FP8", "f8_e4m3 256x192"),
        (&[256], "FP8_PER_CHANNEL_PER_TOKEN", "f8_e4m3 1x192"),
        (&[2, 1, 2, 1], "FP8_PB_WO", "f8_e4m3 128x128"),
        (&[2, 1, 2, 1], "fp8_pb_wo", "f8_e4m3 128x128"),
        (&[2, 2], "FP8_PB_WO", "f8_e4m3 128x128"),
    ] {
        for config in
            [within(name), nested(name), named("modelopt", name), named("modelopt_fp8", name)]
        {
            assert_eq!(label(&config, &[weight(), scales(shape)]), expected, "{config}");
        }
    }
    assert_eq!(
        refusal(&within("W4A8_AWQ"), &[weight(), scales(&[])]),
        "DIR/config.json: `quantization_config`: `quant_algo`: expected one of FP8, \
         FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4, W4A16_NVFP4, MIXED_PRECISION of ModelOpt, found \
         \"W4A8_AWQ\""
    );
}

/// Quark's FP8 is that of others; what else it writes is refused by name.
#[test]
fn quark_is_read_where_weights_are_fp8() {
    let quark = |dtype: &str| {
        json!({ "quant_method": "quark", "algo_config": null,
            "global_quant_config": { "weight": { "dtype": dtype, "qscheme": "per_tensor" },
                "input_tensors": { "dtype": dtype } },
            "layer_quant_config": { "*v_proj": { "output_tensors": { "dtype": "fp8_e4m3" } } },
            "export": { "pack_method": "reorder", "weight_format": "real_quantized" } })
    };
    let fp8 = quark("fp8_e4m3");
    assert_eq!(label(&fp8, &[weight(), scales(&[])]), "f8_e4m3 256x192");
    assert_eq!(label(&fp8, &[weight(), scales(&[256, 1])]), "f8_e4m3 1x192");
    let refused = |config: &Value| refusal(config, &[weight(), scales(&[])]);
    let place = "DIR/config.json: `quantization_config`";
    assert_eq!(
        refused(&quark("fp4")),
        format!(
            "{place}: `global_quant_config`: `weight.dtype`: expected \"fp8_e4m3\", found \"fp4\": take the \
             model that it was made from"
        )
    );
    let mut mixed = fp8.clone();
    mixed["layer_quant_config"]["*q_proj"] = json!({ "weight": [{ "dtype": "int4" }] });
    assert_eq!(
        refused(&mixed),
        format!(
            "{place}: `layer_quant_config`: `*q_proj`: `weight.dtype`: expected \"fp8_e4m3\", found nothing: \
             take the model that it was made from"
        )
    );
    let mut turned = fp8;
    turned["algo_config"] = json!([{ "name": "rotation", "r1": true, "r4": true }]);
    assert_eq!(
        refused(&turned),
        format!(
            "{place}: `algo_config`: expected no rotation of activations, found \"rotation\": take the model \
             that it was made from"
        )
    );
}

/// How many scales there are of each shows the blocks, unless no power of two gives so many.
#[test]
fn scales_show_blocks_that_nothing_states() {
    let scales = |shape: &[u64]| zeros("a.weight_scale_inv", BF16, shape);
    for config in [
        json!({ "quant_method": "fp8" }),
        json!({ "quant_method": "fp8", "weight_block_size": null }),
    ] {
        for (shape, expected) in [
            (&[2, 2], "f8_e4m3 128x128"),
            (&[4, 3], "f8_e4m3 64x64"),
            (&[256, 2], "f8_e4m3 1x128"),
            (&[1, 3], "f8_e4m3 256x64"),
            (&[256, 1], "f8_e4m3 1x192"),
        ] {
            assert_eq!(label(&config, &[weight(), scales(shape)]), expected, "{shape:?}");
        }
        for shape in [[3, 2], [2, 4], [0, 2], [2, 193]] {
            let told = refusal(&config, &[weight(), scales(&shape)]);
            let expected =
                "DIR/model.safetensors: tensor `a.weight_scale_inv`: expected shape [1, 1]";
            assert!(told.starts_with(expected), "{told}");
        }
    }
    let stated = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let told = refusal(&stated, &[weight(), scales(&[4, 3])]);
    assert!(told.contains("expected shape [2, 2]"), "{told}");
}

/// Marlin has other codes of GPTQ under names of its own, whatever form the configuration names.
#[test]
fn codes_of_marlin_are_refused_by_name() {
    let config =
        json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "is_marlin_format": true });
    let tensors = [
        zeros("a.B", Dtype::I32, &[4, 32]),
        zeros("a.s", Dtype::Float(Float::F16), &[2, 16]),
        zeros("a.workspace", Dtype::I32, &[16]),
    ];
    assert_eq!(
        refusal(&config, &tensors),
        "DIR/model.safetensors: tensor `a.B`: it belongs to codes of Marlin, in the order of its kernels, \
         which are not read; take a copy of the model in the form gptq or gptq_v2"
    );
}
