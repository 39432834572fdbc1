use serde_json::json;
use shardwright_quant::Float;

use super::*;
use crate::checkpoint::Dtype;
use crate::checkpoint::testing::{Held, write_held};
use crate::unit::Unit;

/// The tensor called `name`.
fn find<'a>(tensors: &'a mut [Described], name: &str) -> &'a mut Described {
    tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
}

fn add(tensors: &mut Vec<Described>, name: &str, shape: &[u64]) {
    tensors.push((name.to_owned(), Float::F16, shape.to_vec()));
}

#[test]
fn tensors_without_a_row_are_named() {
    for name in [
        "model.layers.0.self_attn.sinks",
        "model.layers.00.input_layernorm.weight",
        "model.layers.{layer}.input_layernorm.weight",
    ] {
        assert_eq!(
            tensor_refusal("llama2", |tensors| add(tensors, name, &[64])),
            format!(
                "DIR/model.safetensors: tensor `{name}`: configs/arch/llama.json has no row for it: \
                 take the model that this one was made from, or name a table of its own with \
                 --arch, which `shardwright arch draft` starts"
            )
        );
    }
}

/// States of Transformer Engine are no weights, unless they hold numbers that could be some.
#[test]
fn states_of_transformer_engine_are_left_out() {
    let state = "model.layers.0.self_attn._extra_state";
    let empty = copy("llama2", |_| {}, |tensors| add(tensors, state, &[0]));
    let ignored = inventory(empty.path()).unwrap().ignored;
    let reason = "a state of Transformer Engine, no weights";
    assert!(
        ignored
            .iter()
            .any(|one| one.tensor == state && one.reason == reason),
        "{ignored:?}"
    );
    let told = tensor_refusal("llama2", |tensors| add(tensors, state, &[64]));
    assert!(told.contains("has no row for it"), "{told}");
}

/// Its releases have the first, an older one in NVFP4 the second, transformers 5 its own and, where it
/// writes the first, the last of these.
#[test]
fn layers_of_kimi_k25_have_several_names() {
    let arch = Arch::builtin("kimi_k25").unwrap();
    let begin = [
        "language_model.model.layers.",
        "language_model.layers.",
        "model.language_model.layers.",
        "language_model.model.blocks.",
    ];
    for begin in begin {
        let plain = arch
            .table
            .plain(&format!("{begin}3.mlp.gate.weight"))
            .into_owned();
        assert_eq!(plain, "model.layers.3.mlp.gate.weight", "{begin}");
    }
    let head = arch
        .table
        .plain("language_model.lm_head.weight")
        .into_owned();
    assert_eq!(head, "lm_head.weight");
}

#[test]
fn names_are_known_without_the_beginning_that_saving_the_base_model_drops() {
    let renamed = |case: &str, name: &dyn Fn(&str) -> String| {
        let dir = copy(
            case,
            |_| {},
            |tensors| {
                for tensor in tensors {
                    tensor.0 = name(&tensor.0);
                }
            },
        );
        inventory(dir.path()).unwrap().units.len()
    };
    for (case, units) in [("qwen3", 5), ("qwen3_moe-fused", 17)] {
        let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
        assert_eq!(renamed(case, &bare), units, "{case}");
        let called = |name: &str| match name.strip_prefix("model.") {
            Some(rest) => format!("transformer.{rest}"),
            None => name.to_owned(),
        };
        assert_eq!(renamed(case, &called), units, "{case}");
        for wrapper in [
            "_orig_mod.",
            "module.",
            "base_model.model.",
            "module._orig_mod.",
            "_fsdp_wrapped_module.",
            "language_model.",
            "actor.policy.",
            "model.",
        ] {
            let wrapped = |name: &str| format!("{wrapper}{name}");
            assert_eq!(renamed(case, &wrapped), units, "{case}: {wrapper}");
        }
    }
}

#[test]
fn missing_tensors_are_named() {
    let without = |case, name: &str| {
        tensor_refusal(case, |tensors| tensors.retain(|tensor| tensor.0 != name))
    };
    assert_eq!(
        without("llama2", "model.layers.1.self_attn.q_proj.weight"),
        "DIR: attention.q_proj of layer 1 [64, 64]: expected tensor \
         `model.layers.1.self_attn.q_proj.weight`, found none"
    );
    assert_eq!(
        without("llama2", "lm_head.weight"),
        "DIR: lm_head of head [256, 64]: expected tensor `lm_head.weight`, found none; if the head is the embedding, set tie_word_embeddings to true in config.json, else the checkpoint is incomplete"
    );
    assert_eq!(
        without("qwen3_moe", "model.layers.2.mlp.experts.5.down_proj.weight"),
        "DIR: expert.down_proj of layer 2 expert 5 [64, 96]: expected tensor \
         `model.layers.2.mlp.experts.5.down_proj.weight` or \
         `model.layers.2.mlp.experts.down_proj` or `model.layers.2.mlp.experts.down_proj.weight` \
         or `model.layers.2.mlp.switch_mlp.down_proj.weight`, found none"
    );
    assert_eq!(
        without("llama2", "model.norm.weight"),
        "DIR: norm.final of head [64]: expected tensor `model.norm.weight`, found none"
    );
}

#[test]
fn tensors_that_the_configuration_does_not_have_are_refused() {
    assert_eq!(
        tensor_refusal("llama2", |t| add(t, "model.layers.7.input_layernorm.weight", &[64])),
        "DIR/model.safetensors: tensor `model.layers.7.input_layernorm.weight`: expected the layers that \
         num_hidden_layers says, 0 to 2, found 0 to 2, 7"
    );
    let expert = "model.layers.0.mlp.experts.6.up_proj.weight";
    assert_eq!(
        tensor_refusal("qwen3_moe", |tensors| add(tensors, expert, &[96, 64])),
        format!(
            "DIR/model.safetensors: tensor `{expert}`: it is the expert.up_proj of layer 0 expert 6, \
             which the model in config.json does not have"
        )
    );
    let fused = "model.layers.1.mlp.experts.down_proj";
    assert_eq!(
        tensor_refusal("qwen3_moe", |tensors| add(tensors, fused, &[6, 64, 96])),
        format!(
            "DIR/model.safetensors: tensor `{fused}`: the configuration has no expert.down_proj in \
             layer 1 expert 0"
        )
    );
}

/// A config of another size of the model, and weights that were cut short.
#[test]
fn numbers_of_layers_and_tokens_that_files_contradict_say_what_to_set() {
    let layers = |case, count: u32| config_refusal(case, &[("num_hidden_layers", count.into())]);
    assert_eq!(
        layers("llama2", 2),
        "DIR/model.safetensors: tensor `model.layers.2.input_layernorm.weight`: expected the layers that \
         num_hidden_layers says, 0 to 1, found 0 to 2: set num_hidden_layers to 3 in config.json"
    );
    assert_eq!(
        layers("llama2", 4),
        "DIR: norm.input of layer 3 [64]: expected tensor `model.layers.3.input_layernorm.weight`, found \
         none; layers that are there: 0 to 2: set num_hidden_layers to 3 in config.json, or fetch what is \
         missing: num_hidden_layers says 4"
    );
    let hole = tensor_refusal("llama2", |tensors| {
        tensors.retain(|tensor| !tensor.0.starts_with("model.layers.0."));
    });
    assert!(
        hole.ends_with("found none; layers that are there: 1 to 2, or fetch what is missing: num_hidden_layers says 3"),
        "{hole}"
    );
    let predicting = layers("deepseek_v3", 2);
    assert!(
        predicting.contains(
            "to 4 in config.json, or num_nextn_predict_layers to 2 if the last ones predict"
        ),
        "{predicting}"
    );
    let rows = |count: u32| config_refusal("llama2", &[("vocab_size", count.into())]);
    for count in [200, 300] {
        assert_eq!(
            rows(count),
            format!(
                "DIR/model.safetensors: tensor `lm_head.weight`: expected shape [{count}, 64] of lm_head, \
         found [256, 64]: set vocab_size to 256 in config.json"
            )
        );
    }
    let apart = tensor_refusal("llama2", |tensors| {
        find(tensors, "model.embed_tokens.weight").2 = vec![260, 64];
    });
    assert_eq!(
        apart,
        "DIR/model.safetensors: tensor `model.embed_tokens.weight`: expected shape [256, 64] of embed_tokens, \
         found [260, 64] and [256, 64] of `lm_head.weight`: these are not of one model"
    );
}

#[test]
fn other_shapes_are_refused() {
    let reshaped = |case, name: &str, shape: &[u64]| {
        tensor_refusal(case, |tensors| find(tensors, name).2 = shape.to_vec())
    };
    let name = "model.layers.0.self_attn.k_proj.weight";
    assert_eq!(
        reshaped("llama3", name, &[64, 64]),
        format!(
            "DIR/model.safetensors: tensor `{name}`: expected shape [32, 64] of attention.k_proj, \
             found [64, 64]"
        )
    );
    assert_eq!(
        reshaped("llama2", "model.norm.weight", &[64, 1]),
        "DIR/model.safetensors: tensor `model.norm.weight`: expected shape [64] of norm.final, found \
         [64, 1]"
    );
    assert_eq!(
        reshaped("qwen3-head", "lm_head.weight", &[255, 64]),
        "DIR/model.safetensors: tensor `lm_head.weight`: expected shape [256, 64] of embed_tokens, \
         found [255, 64] and [256, 64] of `model.embed_tokens.weight`: these are not of one model"
    );
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    assert_eq!(
        reshaped("qwen3_moe-fused", name, &[6, 96, 64]),
        format!(
            "DIR/model.safetensors: tensor `{name}`: expected shape [6, 192, 64] or [6, 64, 192], \
             found [6, 96, 64]"
        )
    );
}

/// The copy's values are all zero; one value of the stored head is made another.
fn change_head(dir: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let head = &checkpoint.tensors()["lm_head.weight"];
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[(head.offset + head.len) as usize - 1] = 1;
    fs::write(&path, bytes).unwrap();
}

/// Where the configuration leaves it to the class, a stored head of other values is the head; transformers 5
/// ties it no more than that.
#[test]
fn a_stored_head_is_the_models_own_where_the_configuration_says_nothing() {
    let forget = |config: &mut Value| {
        config
            .as_object_mut()
            .unwrap()
            .remove("tie_word_embeddings");
    };
    let dir = copy("gemma2", forget, |tensors| {
        let embedding = tensors.iter().find(|t| t.0 == "model.embed_tokens.weight");
        let shape = embedding.unwrap().2.clone();
        add(tensors, "lm_head.weight", &shape);
    });
    assert!(inventory(dir.path()).unwrap().spec.tie_word_embeddings);
    change_head(dir.path());
    let found = inventory(dir.path()).unwrap();
    assert!(!found.spec.tie_word_embeddings);
    assert!(
        found
            .layout(Unit::Head)
            .unwrap()
            .find(Role::LmHead)
            .is_some()
    );
    assert!(
        found
            .ignored
            .iter()
            .all(|ignored| ignored.tensor != "lm_head.weight")
    );
}

/// What is outside the text model's object decides, or the class that it is of.
#[test]
fn the_whole_says_whether_the_head_is_tied() {
    let arch = Arch::builtin("mistral3").unwrap();
    let tied = |outer: Value| {
        let mut config = serde_json::json!({
            "model_type": "mistral3",
            "text_config": {"model_type": "mistral", "tie_word_embeddings": false},
        });
        config["tie_word_embeddings"] = outer;
        let spec = arch.spec_of(Path::new("config.json"), &config).unwrap();
        spec.tie_word_embeddings
    };
    assert!(!tied(false.into()) && tied(true.into()));
    let mut config = serde_json::json!({"model_type": "mistral3"});
    config["text_config"] =
        serde_json::json!({"model_type": "mistral", "tie_word_embeddings": false});
    let spec = arch.spec_of(Path::new("config.json"), &config).unwrap();
    assert!(spec.tie_word_embeddings);
}

#[test]
fn a_stored_head_must_be_the_embedding_it_is_tied_to() {
    let dir = copy("qwen3-head", |_| {}, |_| {});
    assert!(inventory(dir.path()).is_ok());
    change_head(dir.path());
    assert_eq!(
        message(dir.path(), inventory(dir.path())),
        "DIR/model.safetensors: tensor `lm_head.weight`: expected the values of \
         `model.embed_tokens.weight`, to which tie_word_embeddings ties it, found others; if the \
         head is its own, set tie_word_embeddings to false in config.json"
    );
}

#[test]
fn two_tensors_for_one_role_are_refused() {
    let name = "model.layers.0.mlp.gate.weight";
    assert_eq!(
        tensor_refusal("mixtral", |tensors| add(tensors, name, &[4, 64])),
        format!(
            "DIR/model.safetensors: tensor `{name}`: it gives the router of layer 0, as \
             `model.layers.0.block_sparse_moe.gate.weight` does"
        )
    );
    let name = "model.layers.0.mlp.experts.down_proj";
    assert_eq!(
        tensor_refusal("qwen3_moe", |tensors| add(tensors, name, &[6, 64, 96])),
        format!(
            "DIR/model.safetensors: tensor `{name}`: it gives the expert.down_proj of layer 0 expert \
             0, as `model.layers.0.mlp.experts.0.down_proj.weight` does"
        )
    );
}

#[test]
fn experts_of_a_layer_may_be_stored_in_several_ways() {
    let name = "model.layers.0.mlp.experts.4.up_proj.weight";
    let dir = copy("qwen3_moe", |_| {}, |tensors| find(tensors, name).1 = Float::F32);
    let inventory = inventory(dir.path()).unwrap();
    let experts: Vec<_> = inventory
        .experts(0)
        .iter()
        .map(|alike| &alike.experts[..])
        .collect();
    assert_eq!(experts, [&[0, 1, 2, 3, 5][..], &[4]]);
    assert_eq!(inventory.experts(0)[1].tensors[1].source.dtype, Float::F32);
}

/// A golden with fused experts as wide as the model, so that `down_proj` is square.
fn square(keep_gate_up: bool) -> TempDir {
    let config = |config: &mut Value| config["moe_intermediate_size"] = json!(64);
    copy("qwen3_moe-fused", config, |tensors| {
        let separate = [0, 2].iter().flat_map(|layer| {
            let name = move |expert, kind| {
                format!("model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight")
            };
            (0..6).flat_map(move |e| [name(e, "gate"), name(e, "up")])
        });
        let separate: Vec<_> = separate
            .map(|name| (name, Float::Bf16, vec![64, 64]))
            .collect();
        for tensor in tensors.iter_mut() {
            if tensor.0.ends_with("experts.down_proj") {
                tensor.2 = vec![6, 64, 64];
            } else if tensor.0.ends_with("experts.gate_up_proj") {
                tensor.2 = vec![6, 64, 128];
            }
        }
        if !keep_gate_up {
            tensors.retain(|tensor| !tensor.0.ends_with("experts.gate_up_proj"));
            tensors.extend(separate);
        }
    })
}

#[test]
fn a_square_fused_tensor_is_laid_out_as_the_one_beside_it() {
    let dir = square(true);
    let inventory = inventory(dir.path()).unwrap();
    let expert = &inventory.units[&Unit::Expert { layer: 0, expert: 1 }];
    let strides: Vec<_> = expert
        .tensors
        .iter()
        .map(|t| (t.source.start, t.source.row_stride, t.source.col_stride))
        .collect();
    assert_eq!(strides, [(8192, 1, 128), (8192 + 64, 1, 128), (4096, 1, 64)]);
}

#[test]
fn an_ambiguous_fused_tensor_is_refused_unless_the_table_decides() {
    let dir = square(false);
    assert_eq!(
        message(dir.path(), inventory(dir.path())),
        "DIR/model.safetensors: tensor `model.layers.0.mlp.experts.down_proj`: shape [6, 64, 64] can \
         be [.., out, in] as well as [.., in, out]: state \"layout\": \"out_in\" or \"in_out\" in its \
         row under `fused` of the architecture's table"
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (layout, strides) in [("out_in", (64, 1)), ("in_out", (1, 64))] {
        let roles = r#""roles": ["expert.down_proj"]"#;
        let json = include_str!("../../../../../configs/arch/qwen3_moe.json");
        let json = json.replacen(roles, &format!(r#"{roles}, "layout": "{layout}""#), 1);
        let arch = Arch::parse(Path::new("own.json"), &json).unwrap();
        let inventory = Inventory::new(&checkpoint, Some(&arch)).unwrap();
        let view = &inventory.experts(0)[0].tensors[2].source;
        assert_eq!(
            (view.row_stride, view.col_stride, view.expert_stride),
            (strides.0, strides.1, 4096)
        );
    }
}

/// Older `AutoGPTQ` put a bias of zeros beside every matrix; one that is not zero is another model.
#[test]
fn a_bias_of_zeros_beside_codes_of_gptq_is_left_out() {
    const BIAS: &str = "model.layers.1.mlp.down_proj.bias";
    let original = Checkpoint::open(&golden("qwen2-gptq")).unwrap();
    let with = |bias: Vec<u8>| {
        let dir = tempfile::tempdir().unwrap();
        let stored = original.stored().iter().map(|(name, stored)| {
            let mut bytes = vec![0; stored.len as usize];
            let file = &original.files()[stored.file].file;
            file.read_at(stored.offset, &mut bytes).unwrap();
            (&*name.clone().leak(), stored.dtype, stored.shape.clone(), bytes)
        });
        let bias = (BIAS, Dtype::Float(Float::F16), vec![64], bias);
        let held: Vec<Held> = stored.chain([bias]).collect();
        write_held(dir.path(), original.config(), &held);
        (inventory(dir.path()), dir)
    };
    let ignored = with(vec![0; 128]).0.unwrap().ignored;
    let ignored: Vec<_> = ignored
        .iter()
        .map(|i| (i.tensor.as_str(), &*i.reason))
        .collect();
    assert_eq!(ignored, [(BIAS, "a bias of zeros, which adds nothing")]);
    let mut bytes = vec![0; 128];
    bytes[127] = 0x3c;
    let (refused, dir) = with(bytes);
    let told = message(dir.path(), refused);
    assert!(told.contains("mlp.down_proj.bias`: "), "{told}");
}
