use serde_json::json;

use super::*;
use crate::model::{Ffn, ModelSpec, QkNorm, RopeScaling};

fn windows(spec: &ModelSpec) -> Vec<Option<u32>> {
    let window = |layer: &crate::model::LayerSpec| layer.mixer.attention().unwrap().sliding_window;
    spec.layers.iter().map(window).collect()
}

#[test]
fn unknown_architectures_name_the_known_ones() {
    let refused = config_refusal("llama2", &[("model_type", json!("gpt2"))]);
    let known: Vec<_> = Arch::builtin_names().collect();
    let start = format!(
        "DIR/config.json: `model_type`: expected one of {}, or a table of your own, found `gpt2`; its \
         tensors and keys have names that are known; the nearest table is llama; to start one: \
         shardwright arch draft DIR -o gpt2.json",
        known.join(", ")
    );
    assert_eq!(refused, start);
    assert_eq!(
        config_refusal("llama2", &[("model_type", json!(7))]),
        "DIR/config.json: `model_type`: expected a name, found 7"
    );
}

#[test]
fn a_table_for_another_model_is_refused() {
    let checkpoint = Checkpoint::open(&golden("llama2")).unwrap();
    let arch = Arch::builtin("qwen3").unwrap();
    assert_eq!(
        message(&golden("llama2"), Inventory::new(&checkpoint, Some(&arch))),
        "DIR/config.json: `model_type`: expected `qwen3`, as configs/arch/qwen3.json is for, found \
         `llama`"
    );
    let own = Arch::builtin("llama").unwrap();
    assert!(Inventory::new(&checkpoint, Some(&own)).is_ok());
}

#[test]
fn unsupported_values_are_refused() {
    let refusal = |key, value| config_refusal("llama3", &[(key, value)]);
    assert_eq!(
        refusal("hidden_act", json!("gelu")),
        r#"DIR/config.json: `hidden_act`: expected "silu" or "swish", found "gelu""#
    );
    assert_eq!(
        refusal("partial_rotary_factor", json!(0.5)),
        "DIR/config.json: `partial_rotary_factor`: expected null or 1 or 1.0, found 0.5"
    );
    assert_eq!(
        refusal("tie_word_embeddings", json!("yes")),
        "DIR/config.json: `tie_word_embeddings`: expected true or false, found \"yes\""
    );
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    let refusal = |key, value| config_refusal("qwen3_moe", &[(key, value)]);
    assert_eq!(
        refusal("num_hidden_layers", json!(0)),
        "DIR/config.json: `num_hidden_layers`: expected a whole number from 1 to 4096, found 0"
    );
    assert_eq!(
        refusal("num_hidden_layers", json!(1_000_000)),
        "DIR/config.json: `num_hidden_layers`: expected a whole number from 1 to 4096, found 1000000"
    );
    assert_eq!(
        refusal("num_experts", json!(1_u64 << 40)),
        "DIR/config.json: `num_experts`: expected a whole number from 1 to 65536, found \
         1099511627776"
    );
    assert_eq!(
        refusal("hidden_size", json!(-64)),
        "DIR/config.json: `hidden_size`: expected a whole number from 1 to 16777216, found -64"
    );
    assert_eq!(
        refusal("hidden_size", json!(64.5)),
        "DIR/config.json: `hidden_size`: expected a whole number from 1 to 16777216, found 64.5"
    );
    assert_eq!(
        refusal("num_experts_per_tok", json!(7)),
        "DIR/config.json: `num_experts_per_tok`: expected a whole number from 1 to 6, found 7"
    );
    assert_eq!(
        refusal("num_key_value_heads", json!(3)),
        "DIR/config.json: `num_key_value_heads`: expected a divisor of num_attention_heads 4, found 3"
    );
    assert_eq!(
        refusal("head_dim", json!(31)),
        "DIR/config.json: `head_dim`: expected an even number, found 31"
    );
    assert_eq!(
        refusal("decoder_sparse_step", json!(0)),
        "DIR/config.json: `decoder_sparse_step`: expected a whole number from 1 to 4294967295, \
         found 0"
    );
    assert_eq!(
        refusal("rms_norm_eps", json!(0)),
        "DIR/config.json: `rms_norm_eps`: expected a number above 0, found 0"
    );
    assert_eq!(
        refusal("eos_token_id", json!("x")),
        "DIR/config.json: `eos_token_id`: expected a token's number, a list of them or null, found \
         \"x\""
    );
}

#[test]
fn absurd_numbers_of_experts_are_refused() {
    let changes = [("num_hidden_layers", json!(4096)), ("num_experts", json!(512))];
    assert_eq!(
        config_refusal("qwen3_moe", &changes),
        "DIR/config.json: expected at most 1048576 experts in all layers, found 2096640"
    );
}

#[test]
fn missing_and_contradictory_keys_are_refused() {
    let dir = copy("llama2", |config| without(config, &["hidden_size"]), |_| {});
    assert_eq!(
        message(dir.path(), inventory(dir.path())),
        "DIR/config.json: `hidden_size`: expected a whole number from 1 to 16777216, found nothing"
    );
    assert_eq!(
        config_refusal("qwen3_moe", &[("num_local_experts", json!(8))]),
        "DIR/config.json: `num_local_experts`: expected 6 as in `num_experts`, found 8"
    );
    assert_eq!(
        config_refusal(
            "llama2",
            &[("num_attention_heads", json!(6)), ("num_key_value_heads", json!(6))]
        ),
        "DIR/config.json: `head_dim` is hidden_size / num_attention_heads: expected a whole number, \
         found 64 / 6"
    );
}

#[test]
fn unsupported_rotations_are_refused() {
    let refusal = |key, value| config_refusal("llama2", &[(key, value)]);
    assert_eq!(
        refusal("rope_scaling", json!({"type": "su", "factor": 4.0})),
        "DIR/config.json: `rope_scaling.type`: expected `default`, `linear`, `llama3`, \
         `yarn`, `longrope` or `dynamic`, found \"su\""
    );
    assert_eq!(
        refusal("rope_scaling", json!({"rope_type": "linear"})),
        "DIR/config.json: `rope_scaling.factor`: expected a number above 0, found nothing"
    );
    assert_eq!(
        refusal("rope_scaling", json!({"type": "default", "mrope_section": [1]})),
        "DIR/config.json: `rope_scaling`: expected only rope_type, type, rope_theta, factor, \
         low_freq_factor, high_freq_factor, original_max_position_embeddings, found \
         \"mrope_section\""
    );
    assert_eq!(
        refusal("rope_scaling", json!("linear")),
        "DIR/config.json: `rope_scaling`: expected an object or null, found \"linear\""
    );
    let llama3 =
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 5, "high_freq_factor": 4});
    assert_eq!(
        refusal("rope_scaling", llama3),
        "DIR/config.json: `rope_scaling.low_freq_factor`: expected at most high_freq_factor 4, found 5"
    );
    assert_eq!(
        refusal("rope_theta", json!(0)),
        "DIR/config.json: `rope_theta`: expected a number above 0, found 0"
    );
}

#[test]
fn rotations_of_both_generations_are_read() {
    let rope = |change: &dyn Fn(&mut Value)| {
        let spec = spec("llama2", |config| change(config));
        let attention = spec.layers[0].mixer.attention().unwrap();
        let rope = attention.rope.clone().unwrap();
        (rope.theta, rope.scaling)
    };
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(rope(&|c| c["rope_theta"] = json!(5000)), (5000.0, RopeScaling::None));
    let old = json!({"type": "linear", "factor": 2.0});
    assert_eq!(rope(&|c| c["rope_scaling"] = old.clone()), (10000.0, linear.clone()));
    let new = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0});
    let both = |c: &mut Value| {
        c["rope_scaling"] = json!({});
        c["rope_parameters"] = new.clone();
    };
    assert_eq!(rope(&both), (7.0, linear.clone()));
    assert_eq!(rope(&|c| c["rope_parameters"] = new.clone()), (7.0, linear));
    assert_eq!(rope(&|c| without(c, &["rope_theta"])), (10000.0, RopeScaling::None));
    let llama3 =
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4});
    let (_, scaling) = rope(&|c| c["rope_scaling"] = llama3.clone());
    let original = match scaling {
        RopeScaling::Llama3 { original_max_position_embeddings, .. } => {
            original_max_position_embeddings
        }
        _ => 0,
    };
    assert_eq!(original, 256, "max_position_embeddings when nothing else is said");
}

#[test]
fn layer_types_must_fit() {
    let refusal = |changes: &[(&str, Value)]| config_refusal("qwen2", changes);
    assert_eq!(
        refusal(&[("layer_types", json!(["full_attention"]))]),
        "DIR/config.json: `layer_types`: expected 3 entries, as num_hidden_layers says, found 1"
    );
    assert_eq!(
        refusal(&[("layer_types", json!(["full_attention", "linear_attention", "x"]))]),
        "DIR/config.json: `layer_types[1]`: expected `full_attention` or `sliding_attention`, found \
         \"linear_attention\""
    );
    assert_eq!(
        refusal(&[("use_sliding_window", json!(false))]),
        "DIR/config.json: `layer_types[1]`: expected `full_attention`, as no sliding_window is in \
         use, found \"sliding_attention\""
    );
    assert_eq!(
        refusal(&[("layer_types", json!(3))]),
        "DIR/config.json: `layer_types`: expected a list, found 3"
    );
}

#[test]
fn layers_slide_by_each_rule() {
    let slide = |case: &str, max: Option<u32>| {
        let spec = spec(case, |config| {
            without(config, &["layer_types"]);
            config["use_sliding_window"] = json!(true);
            config["sliding_window"] = json!(5);
            if let Some(max) = max {
                config["max_window_layers"] = json!(max);
            }
        });
        windows(&spec)
    };
    assert_eq!(slide("qwen3", Some(2)), [None, None, Some(5)]);
    assert_eq!(slide("qwen2_moe", Some(3)), [Some(5), None, Some(5), None]);
    assert_eq!(slide("qwen2_moe", Some(2)), [Some(5), None, None, None]);
    assert_eq!(slide("qwen3_moe", None), [Some(5); 3]);
    assert_eq!(slide("mixtral", None), [Some(5); 2]);
}

/// Without a list, classes of transformers make one from a key of theirs, or from none.
#[test]
fn kinds_are_made_as_in_transformers() {
    let slide = |model_type: &str, changes: Value| {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 8, "hidden_size": 64, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "sliding_window": 8,
            "intermediate_size": 64, "moe_intermediate_size": 64, "num_local_experts": 4, "num_experts": 4,
            "num_experts_per_tok": 2, "rms_norm_eps": 1e-6,
        });
        let members = changes.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(members);
        let arch = Arch::builtin(model_type).unwrap();
        let spec = arch.spec_of(Path::new("config.json"), &config).unwrap();
        let letter = |window: Option<u32>| if window.is_some() { 's' } else { 'f' };
        windows(&spec).into_iter().map(letter).collect::<String>()
    };
    let by_three = json!({"sliding_window_pattern": 3, "full_attention_interval": 3});
    for (model_type, expected) in [
        ("gemma2", "sfsfsfsf"),
        ("gemma3_text", "ssfssfss"),
        ("gpt_oss", "sfsfsfsf"),
        ("olmo3", "sssfsssf"),
        ("exaone4", "ssfssfss"),
        ("exaone_moe", "ssfssfss"),
    ] {
        assert_eq!(slide(model_type, by_three.clone()), expected, "{model_type}");
    }
    // What transformers saves beside the list, and does not read again.
    assert_eq!(slide("gemma3_text", json!({"_sliding_window_pattern": 3})), "sssssfss");
    assert_eq!(slide("smollm3", json!({"use_sliding_window": true})), "fffsfffs");
    // Their class knows no windows.
    let text = json!({"use_sliding_window": true, "max_window_layers": 0, "text_config": {}});
    assert_eq!(slide("qwen3_vl", text.clone()), "ffffffff");
    assert_eq!(slide("qwen3_vl_moe", text), "ffffffff");
    let own = json!({"use_sliding_window": true, "no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 1]});
    assert_eq!(slide("smollm3", own), "sfffffff");
}

/// transformers reads `mistral` with `layer_types` as `ministral` (`configuration_auto.py`), and heeds the list
/// of `dots1`, whose layers slide from `max_window_layers` on without it.
#[test]
fn a_list_of_kinds_counts_where_all_layers_or_none_slide_without_it() {
    let kinds = |kinds: &[&str]| json!(kinds);
    let [full, sliding] = ["full_attention", "sliding_attention"];
    let mistral = |list: Value| windows(&spec("mistral", |c| c["layer_types"] = list.clone()));
    assert_eq!(mistral(kinds(&[full, sliding, full])), [None, Some(8), None]);
    assert_eq!(mistral(kinds(&[full; 3])), [None; 3]);
    assert_eq!(mistral(Value::Null), [Some(8); 3]);
    let dots = |change: &[(&str, Value)]| {
        let mut config = json!({
            "model_type": "dots1", "vocab_size": 8, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 8,
        });
        for (key, value) in change {
            config[*key] = value.clone();
        }
        let arch = Arch::builtin("dots1").unwrap();
        windows(&arch.spec_of(Path::new("config.json"), &config).unwrap())
    };
    assert_eq!(dots(&[]), [None; 3]);
    assert_eq!(dots(&[("max_window_layers", json!(1))]), [None, Some(8), Some(8)]);
    assert_eq!(dots(&[("layer_types", kinds(&[full, sliding, full]))]), [None, Some(8), None]);
}

/// Defaults of transformers' configuration classes that shapes cannot correct.
#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let bare = |case: &str, keys: &[&str]| spec(case, |config| without(config, keys));
    let common = [
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "sliding_window",
        "norm_topk_prob",
        "num_experts_per_tok",
        "rope_parameters",
        "tie_word_embeddings",
        "rope_scaling",
    ];
    let numbers = |spec: &ModelSpec| {
        let attention = spec.layers[0].mixer.attention().unwrap();
        (spec.rms_norm_eps, attention.rope.clone().unwrap().theta, spec.max_position_embeddings)
    };
    let tokens = |spec: &ModelSpec| (spec.eos_token_ids.clone(), spec.bos_token_id);
    let llama = bare("llama2", &common);
    assert_eq!(numbers(&llama), (1e-6, 10000.0, 2048));
    assert_eq!((tokens(&llama), llama.tie_word_embeddings), ((vec![2], Some(1)), false));
    let mistral = bare("mistral", &common);
    assert_eq!(numbers(&mistral), (1e-6, 10000.0, 131_072));
    assert_eq!(windows(&mistral), [Some(4096); 3]);
    let mixtral = bare("mixtral", &common);
    assert_eq!(numbers(&mixtral), (1e-5, 1_000_000.0, 131_072));
    assert_eq!(windows(&mixtral), [None; 2]);
    let olmoe = bare("olmoe", &common);
    assert_eq!(numbers(&olmoe), (1e-5, 10000.0, 4096));
    assert_eq!(tokens(&olmoe), (vec![50279], None));
    let qwen = bare("qwen2", &["eos_token_id", "bos_token_id", "rms_norm_eps"]);
    assert_eq!((tokens(&qwen), qwen.rms_norm_eps), ((vec![], None), 1e-6));
    let picks = |spec: &ModelSpec| match &spec.layers.last().unwrap().ffn {
        Ffn::Moe(moe) => (moe.num_experts_per_tok, moe.norm_topk_prob),
        Ffn::Dense(_) => (0, false),
    };
    assert_eq!(picks(&mixtral), (2, true));
    assert_eq!(picks(&olmoe), (8, false));
    assert_eq!(picks(&bare("qwen2_moe", &common)), (4, false));
    let eight = spec("qwen3_moe", |config| {
        without(config, &["num_experts_per_tok", "norm_topk_prob"]);
        config["num_experts"] = json!(128);
    });
    assert_eq!(picks(&eight), (8, false));
    let attention = eight.layers[0].mixer.attention();
    assert_eq!(attention.unwrap().qk_norm, QkNorm::PerHead);
}

#[test]
fn heads_take_the_defaults_of_transformers() {
    let heads = |case: &str, change: &dyn Fn(&mut Value)| {
        let spec = spec(case, |config| {
            without(config, &["num_key_value_heads", "head_dim"]);
            config["num_attention_heads"] = json!(32);
            change(config);
        });
        let attention = spec.layers[0].mixer.attention().unwrap();
        (attention.kv_heads, attention.head_dim)
    };
    let null = |config: &mut Value| config["num_key_value_heads"] = Value::Null;
    assert_eq!(heads("llama2", &|_| {}), (32, 2));
    assert_eq!(heads("mistral", &|_| {}), (8, 2));
    assert_eq!(heads("mistral", &null), (32, 2));
    assert_eq!(heads("mixtral", &|_| {}), (8, 2));
    assert_eq!(heads("qwen2", &|_| {}), (32, 2));
    assert_eq!(heads("qwen3", &|_| {}), (32, 128));
    assert_eq!(heads("qwen2_moe", &|_| {}), (16, 2));
    assert_eq!(heads("qwen3_moe", &|_| {}), (4, 2));
    assert_eq!(heads("olmoe", &|_| {}), (32, 2));
}

#[test]
fn generation_config_says_where_to_stop() {
    let dir = copy("llama2", |_| {}, |_| {});
    let path = dir.path().join("generation_config.json");
    let ids = || inventory(dir.path()).map(|inventory| inventory.spec.eos_token_ids);
    fs::write(&path, r#"{"eos_token_id": [5, 6]}"#).unwrap();
    assert_eq!(ids().unwrap(), [5, 6]);
    fs::write(&path, r#"{"eos_token_id": null}"#).unwrap();
    assert_eq!(ids().unwrap(), [2]);
    fs::write(&path, r#"{"eos_token_id": [5, "six"]}"#).unwrap();
    assert_eq!(
        message(dir.path(), ids()),
        "DIR/generation_config.json: `eos_token_id`: expected a token's number, a list of them or \
         null, found [5,\"six\"]"
    );
    fs::write(&path, "{").unwrap();
    assert_eq!(
        message(dir.path(), ids()),
        "DIR/generation_config.json: EOF while parsing an object at line 1 column 1"
    );
}
