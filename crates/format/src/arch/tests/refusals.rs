//! What wrong configurations of each architecture are refused with.

use serde_json::json;

use super::*;

/// Case, changes to `config.json` (or to its text model's object), the message behind the file.
type Refusal = (&'static str, Value, &'static str);

fn cases() -> Vec<Refusal> {
    let mut all = latent_and_routed();
    all.extend(hybrid());
    all.extend(others());
    all
}

fn latent_and_routed() -> Vec<Refusal> {
    let yarn = json!({"type": "yarn", "original_max_position_embeddings": 0});
    vec![
        (
            "deepseek_v3",
            json!({"n_group": 3}),
            "`n_group`: expected a divisor of the 8 experts, found 3",
        ),
        (
            "deepseek_v3",
            json!({"num_experts_per_tok": 5}),
            "`num_experts_per_tok`: expected a whole number from 1 to 4, found 5",
        ),
        (
            "deepseek_v3",
            json!({"topk_method": "greedy"}),
            r#"`topk_method`: expected "noaux_tc", found "greedy""#,
        ),
        (
            "deepseek_v3",
            json!({"scoring_func": "softmax"}),
            r#"`scoring_func`: expected "sigmoid", found "softmax""#,
        ),
        (
            "deepseek_v3",
            json!({"rope_scaling": yarn}),
            "`rope_scaling.original_max_position_embeddings`: expected a whole number from 1 to \
             4294967295, found 0",
        ),
        (
            "glm4_moe",
            json!({"topk_group": 5}),
            "`topk_group`: expected a whole number from 1 to 4, found 5",
        ),
        (
            "glm4_moe",
            json!({"n_group": 5}),
            "`n_group`: expected a divisor of the 8 experts, found 5",
        ),
        (
            "glm4_moe",
            json!({"partial_rotary_factor": 0}),
            "`partial_rotary_factor`: expected a number above 0, found 0",
        ),
        (
            "minimax_m2",
            json!({"scoring_func": "softmax"}),
            r#"`scoring_func`: expected "sigmoid", found "softmax""#,
        ),
        (
            "minimax_m2",
            json!({"num_experts_per_tok": 9}),
            "`num_experts_per_tok`: expected a whole number from 1 to 8, found 9",
        ),
        (
            "minimax_m2",
            json!({"rotary_dim": 48}),
            "`rotary_dim`: expected a whole number from 1 to 32, found 48",
        ),
    ]
}

fn hybrid() -> Vec<Refusal> {
    let linear = "linear_attention";
    let mut cases = vec![
        (
            "qwen3_next",
            json!({"full_attention_interval": 0}),
            "`full_attention_interval`: expected a whole number from 1 to 4294967295, found 0",
        ),
        (
            "qwen3_next",
            json!({"rope_scaling": {"type": "su"}}),
            "`rope_scaling.type`: expected `default`, `linear`, `llama3`, `yarn`, `longrope` or `dynamic`, found \"su\"",
        ),
    ];
    for case in ["qwen3_next", "qwen3_5_moe", "qwen3_5"] {
        cases.push((
            case,
            json!({"linear_num_key_heads": 3}),
            "`linear_num_key_heads`: expected a divisor of linear_num_value_heads 4, found 3",
        ));
        cases.push((
            case,
            json!({"layer_types": [linear, "mamba", linear, "full_attention"]}),
            "`layer_types[1]`: expected `full_attention` or `linear_attention`, found \"mamba\"",
        ));
        cases.push((
            case,
            json!({"layer_types": [linear]}),
            "`layer_types`: expected 4 entries, as num_hidden_layers says, found 1",
        ));
    }
    cases
}

fn others() -> Vec<Refusal> {
    vec![
        (
            "gpt_oss",
            json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]}),
            "`layer_types[0]`: expected `full_attention` or `sliding_attention`, found \
             \"chunked_attention\"",
        ),
        (
            "gpt_oss",
            json!({"swiglu_limit": 0}),
            "`swiglu_limit`: expected a number above 0, found 0",
        ),
        (
            "gpt_oss",
            json!({"num_experts_per_tok": 3}),
            "`experts_per_token`: expected 3 as in `num_experts_per_tok`, found 2",
        ),
        (
            "gpt_oss",
            json!({"hidden_act": "gelu"}),
            r#"`hidden_act`: expected "silu" or "swish", found "gelu""#,
        ),
        (
            "llama4",
            json!({"no_rope_layers": [1, 0]}),
            "`no_rope_layers`: expected 4 entries, as num_hidden_layers says, found 2",
        ),
        (
            "llama4",
            json!({"no_rope_layers": [1, 2, 1, 0]}),
            "`no_rope_layers[1]`: expected 0 or 1, found 2",
        ),
        (
            "llama4",
            json!({"attention_chunk_size": 0}),
            "`attention_chunk_size`: expected a whole number from 1 to 4294967295, found 0",
        ),
        (
            "llama4",
            json!({"num_experts_per_tok": 5}),
            "`num_experts_per_tok`: expected a whole number from 1 to 4, found 5",
        ),
    ]
}

#[test]
fn wrong_configurations_of_every_architecture_name_file_key_expected_and_found() {
    for (case, changes, expected) in cases() {
        let change = |config: &mut Value| {
            let inside = config.get("text_config").is_some();
            let object = if inside { &mut config["text_config"] } else { config };
            for (key, value) in changes.as_object().unwrap() {
                object[key] = value.clone();
            }
        };
        let dir = copy(case, change, |_| {});
        let found = message(dir.path(), inventory(dir.path()));
        assert_eq!(found, format!("DIR/config.json: {expected}"), "{case}: {changes}");
    }
}
