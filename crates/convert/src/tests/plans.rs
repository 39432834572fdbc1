//! Recipes against checkpoints.

use shardwright_format::{Role, Unit};

use super::{CHECKPOINTS, Case, Tiny, fixture};
use crate::recipe::EncodingSpec;
use crate::{PlanOptions, Recipe, Result};

fn plan(name: &str, json: &str) -> Result<Case> {
    let recipe = Recipe::parse("test", json)?;
    Case::new(&fixture(name), &recipe, PlanOptions::default())
}

fn refusal(name: &str, json: &str) -> String {
    plan(name, json).err().unwrap().to_string()
}

#[test]
fn rules_and_tensors_must_meet() {
    for (json, expected) in [
        (
            r#"{"name":"t","rules":[{"match":{"role":"router"},"encoding":"keep"},{"encoding":"keep"}]}"#,
            "recipe `t`: rule 1 (router) matches nothing in this checkpoint",
        ),
        (
            r#"{"name":"t","rules":[{"match":{"role":"mlp.*","layer":"9"},"encoding":"keep"},{"encoding":"keep"}]}"#,
            "recipe `t`: rule 1 (mlp.*; layers 9) matches nothing in this checkpoint",
        ),
        (
            r#"{"name":"t","rules":[{"match":{"role":["attention.*","norm.*"]},"encoding":"q4"}]}"#,
            "recipe `t`: no rule matches tensor `model.embed_tokens.weight` (embed_tokens)",
        ),
        (
            r#"{"name":"t","rules":[{"encoding":"q4g64"}]}"#,
            "recipe `t`: tensor `model.layers.0.mlp.down_proj.weight` (mlp.down_proj): group size 64 \
             does not divide 96 columns, and rule 1 (everything) names no fallback",
        ),
        (
            r#"{"name":"t","rules":[{"encoding":"q4g64","fallback":[128]}]}"#,
            "recipe `t`: tensor `model.layers.0.mlp.down_proj.weight` (mlp.down_proj): group size 64 \
             does not divide 96 columns, and rule 1 (everything) names none that does",
        ),
    ] {
        assert_eq!(refusal("golden/llama3", json), expected);
    }
}

/// With an inner width of 40, `mlp.down_proj` has columns that no trellis holds, nor any group.
#[test]
fn a_trellis_falls_back_where_columns_cannot_be_rotated() {
    let tiny = |intermediate, json: &str| {
        let dir = tempfile::tempdir().unwrap();
        Tiny { intermediate, ..Tiny::default() }.write(dir.path());
        let recipe = Recipe::parse("t", json)?;
        Case::new(dir.path(), &recipe, PlanOptions::default())
    };
    let refusal = |json| tiny(40, json).err().unwrap().to_string();
    let reason = "a trellis cannot rotate 40 columns, no multiple of 16";
    for (json, why) in [
        (r#"{"name":"t","rules":[{"encoding":"t3"}]}"#, "names no fallback"),
        (
            r#"{"name":"t","rules":[{"encoding":"t3","fallback":[32,"t4","q4g32"]}]}"#,
            "names none that does",
        ),
    ] {
        let expected = format!(
            "recipe `t`: tensor `model.layers.0.mlp.down_proj.weight` (mlp.down_proj): {reason}, \
             and rule 1 (everything) {why}"
        );
        assert_eq!(refusal(json), expected);
    }
    for (cols, used) in [(40, "f32"), (48, "t3 s16")] {
        let json = r#"{"name":"t","rules":[{"encoding":"t3s16","fallback":["q4g32","keep"]}]}"#;
        let case = tiny(cols, json).unwrap();
        let layout = case.plan.layout(Unit::Layer(0)).unwrap();
        assert_eq!(layout.find(Role::DownProj).unwrap().encoding.label(), used);
        assert_eq!(layout.find(Role::QProj).unwrap().encoding.label(), "t3 s16");
        assert_eq!(layout.find(Role::InputNorm).unwrap().encoding.label(), "f32");
        let found: Vec<_> = case
            .plan
            .fallbacks
            .iter()
            .map(|f| f.reason.as_str())
            .collect();
        assert_eq!(found, if cols == 40 { vec![reason] } else { vec![] });
    }
    // Groups are not what a trellis needs: 96 columns are 3 groups of 32 and 6 rotations of 16.
    let json = r#"{"name":"t","rules":[{"encoding":"q4g64","fallback":["t2"]}]}"#;
    let case = plan("golden/llama3", json).unwrap();
    let down = case
        .plan
        .fallbacks
        .iter()
        .find(|f| f.role == Role::DownProj);
    assert_eq!(down.unwrap().used, "t2 s12");
}

/// Rows left out of the last block take whole steps of 8; a token reads a block of the embedding.
#[test]
fn sizes_of_trellis_codes_are_planned() {
    let recipe = Recipe::uniform("t3".parse::<EncodingSpec>().unwrap(), false);
    let case = Case::new(&fixture("fixture-2m"), &recipe, PlanOptions::default()).unwrap();
    let layout = case.plan.layout(Unit::Embedding).unwrap();
    assert_eq!(layout.len, 1024 * 128 * 3 / 8 + 1024 * 2);
    let roles = &case.plan.summary.roles;
    let of = |role| roles.iter().find(|r| r.role == role).unwrap();
    // 8 rows of 128: no row is left out. 4 layers.
    assert_eq!(of(Role::Router).bytes, 4 * (8 * 128 * 3 / 8 + 8 * 2));
    assert_eq!(of(Role::EmbedTokens).bits_per_weight, 3.125);
    let case = plan("golden/qwen2_moe", r#"{"name":"t","rules":[{"encoding":"t3"}]}"#).unwrap();
    let gate = case
        .plan
        .summary
        .roles
        .iter()
        .find(|r| r.role == Role::SharedExpertGate);
    let gate = gate.unwrap();
    assert_eq!(gate.bytes, gate.weights * 8 * 3 / 8 + gate.tensors * 2, "one row stored as 8");
    let experts = &case.plan.manifest.experts[0];
    let table = &case.plan.manifest.dense[0].tensors[0];
    let dense: u64 = case.plan.manifest.dense[1..].iter().map(|s| s.len).sum();
    let block = table.rows.min(256) * (table.cols * 3 / 8 + 2);
    let tied = case.plan.manifest.model.tie_word_embeddings;
    let embedding = if tied { case.plan.manifest.dense[0].len } else { block };
    assert!(experts.len > 0);
    let cost = case.plan.cost;
    assert_eq!(cost.bytes_per_token - cost.expert_bytes_per_token, dense + embedding);
}

#[test]
fn experts_of_a_layer_may_be_stored_in_several_ways() {
    let json = r#"{"name":"t","rules":[
        {"match":{"name":"*.experts.3.*"},"encoding":"keep"},
        {"match":{"role":"expert.*","expert":["0","last 1"]},"encoding":"q8g32"},
        {"match":{"role":"expert.up_proj","layer":"0","expert":"1..3"},"encoding":"q4g32"},
        {"encoding":"q4g32"}]}"#;
    let case = plan("golden/qwen3_moe", json).unwrap();
    let manifest = &case.plan.manifest;
    let entries = manifest.experts.iter().map(|entry| {
        let labels = entry.tensors[1].encoding.label();
        (entry.layer, entry.experts.clone().unwrap(), entry.file.as_str(), labels)
    });
    // Rules that ask for the same make no entries of their own.
    let entry = |layer, experts: &[u32], file, label: &str| {
        (layer, experts.to_vec(), file, label.to_owned())
    };
    assert_eq!(
        entries.collect::<Vec<_>>(),
        [
            entry(0, &[0, 5], "experts/layer-000.bin", "q8 g32 bf16"),
            entry(0, &[1, 2, 4], "experts/layer-000-1.bin", "q4 g32 bf16"),
            entry(0, &[3], "experts/layer-000-2.bin", "bf16"),
            entry(2, &[0, 5], "experts/layer-002.bin", "q8 g32 bf16"),
            entry(2, &[1, 2, 4], "experts/layer-002-1.bin", "q4 g32 bf16"),
            entry(2, &[3], "experts/layer-002-2.bin", "bf16"),
        ]
    );
    let rules: Vec<_> = case
        .plan
        .rules
        .iter()
        .map(|rule| (&*rule.rule, rule.tensors))
        .collect();
    assert_eq!(rules[0], ("1 (name *.experts.3.*)", 6));
    assert_eq!(rules[1], ("2 (expert.*; experts 0, last 1)", 12));
    assert_eq!(rules[2], ("3 (expert.up_proj; layers 0; experts 1..3)", 2));
    let none = r#"{"name":"t","rules":[
        {"match":{"role":"expert.*","expert":"9"},"encoding":"keep"},{"encoding":"q4g32"}]}"#;
    assert_eq!(
        refusal("golden/qwen3_moe", none),
        "recipe `t`: rule 1 (expert.*; experts 9) matches nothing in this checkpoint"
    );
}

#[test]
fn fallbacks_and_leftovers_are_reported() {
    let json = r#"{"name":"t","rules":[
        {"match":{"role":"embed_tokens"},"encoding":"keep"},
        {"match":{"role":"lm_head"},"encoding":"keep","optional":true},
        {"match":{"role":"mlp.down_proj"},"encoding":"q4g64","fallback":[128,32]},
        {"encoding":"q4g128","fallback":["keep"]}]}"#;
    let case = plan("golden/llama3", json).unwrap();
    let down = &case
        .plan
        .fallbacks
        .iter()
        .find(|f| f.role == Role::DownProj)
        .unwrap();
    assert_eq!(
        (down.wanted.as_str(), down.used.as_str(), down.reason.as_str()),
        ("q4g64", "q4 g32 bf16", "group size 64 does not divide 96 columns")
    );
    let reasons = |role| {
        case.plan
            .leftovers
            .iter()
            .find(|l| l.role == role)
            .map(|l| l.reason.as_str())
    };
    assert_eq!(reasons(Role::EmbedTokens), Some("rule 1 (embed_tokens) keeps it"));
    assert_eq!(reasons(Role::QProj), Some("fallback of rule 4 (everything)"));
    // Vectors are no leftovers: they are never quantized.
    assert_eq!(reasons(Role::InputNorm), None);
    let layout = case.plan.layout(Unit::Layer(0)).unwrap();
    assert_eq!(layout.find(Role::InputNorm).unwrap().encoding.label(), "bf16");
}

#[test]
fn scales_take_the_type_of_the_source_unless_told() {
    for (name, recipe, expected) in [
        ("golden/llama3", r#"{"name":"t","rules":[{"encoding":"q4g32"}]}"#, "q4 g32 bf16"),
        ("golden/mistral", r#"{"name":"t","rules":[{"encoding":"q4g32"}]}"#, "q4 g32 f16"),
        (
            "golden/mistral",
            r#"{"name":"t","scale_dtype":"bf16","rules":[{"encoding":"q4g32"}]}"#,
            "q4 g32 bf16",
        ),
        (
            "golden/llama3",
            r#"{"name":"t","scale_dtype":"bf16","rules":[{"encoding":"q4g32:f16"}]}"#,
            "q4 g32 f16",
        ),
    ] {
        let case = plan(name, recipe).unwrap();
        let layout = case.plan.layout(Unit::Embedding).unwrap();
        assert_eq!(layout.tensors[0].encoding.label(), expected);
    }
}

#[test]
fn bits_per_weight_counts_everything_but_vectors() {
    let uniform = Recipe::uniform("q4g32".parse::<EncodingSpec>().unwrap(), false);
    let case = Case::new(&fixture("golden/qwen2_moe"), &uniform, PlanOptions::default()).unwrap();
    assert_eq!(case.plan.summary.bits_per_weight, 5.0);
    let rules: u64 = case.plan.rules.iter().map(|r| r.bytes).sum();
    assert_eq!(rules, case.plan.summary.tensor_bytes);
}

#[test]
fn the_recipe_in_the_manifest_makes_the_same_plan() {
    for name in CHECKPOINTS {
        let overrides = ["attention.*=q8g32:bf16".to_owned()];
        let recipe = Recipe::builtin("q3")
            .unwrap()
            .with_overrides(&overrides)
            .unwrap();
        let first = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let again = Recipe::parse("again", &first.plan.manifest.recipe.to_string()).unwrap();
        let second = Case::new(&fixture(name), &again, PlanOptions::default()).unwrap();
        assert_eq!(first.plan, second.plan);
    }
}

/// An override may take every tensor of the rule behind it, and a later override wins.
#[test]
fn overrides_may_starve_the_rules_behind_them() {
    let texts = ["expert.*=q3", "expert.*=q2g32", "embed_tokens=q8"].map(str::to_owned);
    let recipe = Recipe::builtin("moe-q4")
        .unwrap()
        .with_overrides(&texts)
        .unwrap();
    let case = Case::new(&fixture("fixture-2m"), &recipe, PlanOptions::default()).unwrap();
    let of = |role| {
        case.plan
            .summary
            .roles
            .iter()
            .find(|r| r.role.name() == role)
            .unwrap()
    };
    assert_eq!(of("expert.up_proj").encodings, ["q2 g32 f16"]);
    assert_eq!(of("embed_tokens").encodings, ["q8 g64 f16"]);
    let none = ["lm_head=q8".to_owned()];
    let recipe = Recipe::builtin("moe-q4")
        .unwrap()
        .with_overrides(&none)
        .unwrap();
    let error = Case::new(&fixture("fixture-2m"), &recipe, PlanOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("(lm_head) matches nothing"), "{error}");
}

#[test]
fn an_alignment_that_bundles_cannot_have_is_refused() {
    for alignment in [0, 2048, 5000, 1 << 21] {
        let options = PlanOptions { alignment, ..PlanOptions::default() };
        let error = Case::new(&fixture("golden/llama3"), &Recipe::builtin("q4").unwrap(), options);
        assert_eq!(
            error.err().unwrap().to_string(),
            format!("alignment: expected a power of two from 4096 to 1048576, found {alignment}")
        );
    }
}

/// With 4 bits, groups of 64 and bf16 scales an expert is the record that the flash-moe engines
/// read: components in their order, at their offsets, without gaps.
#[test]
fn expert_records_are_those_of_flash_moe() {
    let text = std::fs::read_to_string(fixture("vectors/mlx_affine.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = &vectors["expert_record"];
    let recipe = Recipe::parse(
        "t",
        r#"{"name":"t","rules":[{"encoding":"q4g64:bf16","fallback":["keep"]}]}"#,
    )
    .unwrap();
    let case = Case::new(&fixture("fixture-2m"), &recipe, PlanOptions::default()).unwrap();
    let shards = &case.plan.manifest.experts[0];
    let mut offset = 0;
    let mut components = expected["components"].as_array().unwrap().iter();
    for tensor in shards.tensors.iter() {
        let parts = tensor.encoding.parts(tensor.rows, tensor.cols).unwrap();
        assert_eq!(tensor.offset, offset);
        let short = tensor.role.name().strip_prefix("expert.").unwrap();
        for (part, bytes) in
            [("weight", parts.weight), ("scales", parts.scales), ("biases", parts.biases)]
        {
            let component = components.next().unwrap();
            assert_eq!(component["name"], format!("{short}.{part}"));
            offset += bytes;
        }
    }
    assert_eq!(shards.len, offset);
    assert!(components.next().is_none());
}
