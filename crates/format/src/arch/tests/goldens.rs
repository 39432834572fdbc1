use std::collections::BTreeMap;

use super::*;
use crate::io::AlignedBuf;
use crate::model::{AttentionSpec, Ffn, ModelSpec, MoeSpec, QkNorm, RopeScaling, RopeSpec};
use crate::role::Role;
use crate::unit::{TensorEntry, Unit};
use crate::weights::Weights;
use shardwright_quant::widen;

fn open(case: &str) -> Weights {
    let checkpoint = Checkpoint::open(&golden(case)).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    Weights::from_checkpoint(checkpoint, inventory)
}

/// Every entry of `cases.json`: its name and the file of expected values, which variants share.
fn cases() -> Vec<(String, String)> {
    let json = fs::read(golden("cases.json")).unwrap();
    let cases: Value = serde_json::from_slice(&json).unwrap();
    let text = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
    let cases = cases["cases"].as_array().unwrap();
    cases
        .iter()
        .map(|case| (text(case, "case"), text(case, "golden")))
        .collect()
}

/// The values of every tensor of the model, whatever type they are read in.
fn values(weights: &Weights) -> BTreeMap<(Unit, Role), Vec<f32>> {
    let mut buf = AlignedBuf::default();
    let mut values = BTreeMap::new();
    for unit in weights.spec().units() {
        weights.read(unit, &mut buf).unwrap();
        for entry in weights.layout(unit).unwrap().tensors.iter() {
            let start = entry.offset as usize;
            let bytes = &buf.as_slice()[start..start + entry.byte_len().unwrap() as usize];
            values.insert((unit, entry.role), widened(entry, bytes));
        }
    }
    values
}

fn widened(entry: &TensorEntry, bytes: &[u8]) -> Vec<f32> {
    let dtype = entry.encoding.float().unwrap();
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    widen(dtype, bytes, &mut values);
    values
}

#[test]
fn every_golden_maps_completely() {
    assert!(cases().len() >= 17);
    for (case, _) in cases() {
        let weights = open(&case);
        let (_, inventory) = weights.checkpoint().unwrap();
        for unit in inventory.spec.units() {
            let roles: Vec<_> = inventory.units[&unit]
                .tensors
                .iter()
                .map(|tensor| tensor.role)
                .collect();
            assert!(roles.is_sorted(), "{case}: {unit}");
            let expected = inventory.spec.tensors(unit);
            assert_eq!(
                roles,
                expected.iter().map(|t| t.role).collect::<Vec<_>>(),
                "{case}: {unit}"
            );
        }
        assert_eq!(inventory.units.len(), inventory.spec.units().count(), "{case}");
    }
}

#[test]
fn variants_of_a_model_hold_the_same_values() {
    let mut first = BTreeMap::new();
    for (case, model) in cases() {
        let weights = open(&case);
        let found = (weights.spec().clone(), values(&weights));
        match first.get(&model) {
            None => drop(first.insert(model, found)),
            Some(expected) => assert!(*expected == found, "{case}"),
        }
    }
}

#[test]
fn views_of_experts_come_from_one_template() {
    for case in ["qwen3_moe", "qwen3_moe-fused", "qwen3_moe-fused-t"] {
        let weights = open(case);
        let (_, inventory) = weights.checkpoint().unwrap();
        assert!(inventory.experts(1).is_empty(), "layer 1 is dense");
        for (expert, unit) in (0..6).map(|e| (e, Unit::Expert { layer: 2, expert: e })) {
            let templates = &inventory.experts(2)[0].tensors;
            let views: Vec<_> = templates
                .iter()
                .map(|t| t.source.of_expert(expert))
                .collect();
            let expected: Vec<_> = inventory.units[&unit]
                .tensors
                .iter()
                .map(|t| t.source.clone())
                .collect();
            assert_eq!(views, expected, "{case}");
        }
    }
}

#[test]
fn rows_are_read_alone() {
    let weights = open("qwen3_moe-fused-t");
    let unit = Unit::Expert { layer: 0, expert: 3 };
    let entry = weights.layout(unit).unwrap().tensors[1].clone();
    let all = &values(&weights)[&(unit, entry.role)];
    let (mut rows, row_len) = (AlignedBuf::default(), all.len() / entry.rows as usize);
    weights.read_rows(unit, &entry, 5..9, &mut rows).unwrap();
    assert_eq!(widened(&entry, rows.as_slice()), &all[5 * row_len..9 * row_len]);
}

fn attention(spec: &ModelSpec, layer: usize) -> &AttentionSpec {
    spec.layers[layer].mixer.attention().unwrap()
}

fn moe(spec: &ModelSpec, layer: usize) -> &MoeSpec {
    match &spec.layers[layer].ffn {
        Ffn::Moe(moe) => moe,
        Ffn::Dense(_) => panic!("layer {layer} is dense"),
    }
}

fn windows(spec: &ModelSpec) -> Vec<Option<u32>> {
    (0..spec.layers.len())
        .map(|layer| attention(spec, layer).sliding_window)
        .collect()
}

#[test]
fn llama2_has_heads_of_its_own_and_ignores_frequencies() {
    let weights = open("llama2-inv-freq");
    let Inventory { spec, ignored, .. } = weights.checkpoint().unwrap().1;
    let expected = AttentionSpec {
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
        rope: Some(RopeSpec { theta: 10000.0, ..RopeSpec::default() }),
        ..AttentionSpec::default()
    };
    assert_eq!(*attention(spec, 0), expected);
    assert_eq!((spec.rms_norm_eps, spec.max_position_embeddings), (1e-6, 256));
    assert_eq!((&spec.eos_token_ids[..], spec.bos_token_id), (&[2][..], Some(1)));
    assert_eq!(ignored.len(), 3);
    assert_eq!(ignored[2].tensor, "model.layers.2.self_attn.rotary_emb.inv_freq");
    assert_eq!(ignored[2].reason, "rotary frequencies, computed from the configuration");
}

#[test]
fn llama3_scales_its_rotation_and_ties_its_head() {
    for case in ["llama3", "llama3-old"] {
        let weights = open(case);
        let spec = weights.spec();
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        let expected = RopeSpec { theta: 500_000.0, scaling, ..RopeSpec::default() };
        assert_eq!(attention(spec, 2).rope, Some(expected), "{case}");
        assert!(spec.tie_word_embeddings, "{case}");
    }
}

#[test]
fn biases_follow_the_configuration() {
    let weights = open("llama-bias");
    let spec = weights.spec();
    let found = attention(spec, 0);
    assert_eq!((found.qkv_bias, found.o_bias, found.kv_heads), (true, true, 4));
    assert!(matches!(&spec.layers[0].ffn, Ffn::Dense(dense) if dense.bias));
    let weights = open("qwen2");
    let found = attention(weights.spec(), 0);
    assert_eq!((found.qkv_bias, found.o_bias), (true, false));
}

#[test]
fn windows_follow_the_configuration() {
    assert_eq!(windows(open("mistral").spec()), [Some(8); 3]);
    for case in ["qwen2", "qwen2-old"] {
        assert_eq!(windows(open(case).spec()), [None, Some(8), Some(8)], "{case}");
    }
    assert_eq!(windows(open("qwen2_moe").spec()), [None; 4]);
    assert_eq!(windows(open("mixtral").spec()), [None; 2]);
}

#[test]
fn queries_and_keys_are_normed_where_the_table_says() {
    for (case, norm) in
        [("qwen3", QkNorm::PerHead), ("qwen3_moe", QkNorm::PerHead), ("olmoe", QkNorm::Full)]
    {
        assert_eq!(attention(open(case).spec(), 0).qk_norm, norm, "{case}");
    }
    let weights = open("olmoe");
    assert_eq!(attention(weights.spec(), 0).clip_qkv, Some(1.5));
}

#[test]
fn a_stored_head_of_a_tied_model_is_ignored() {
    let weights = open("qwen3-head");
    let ignored = &weights.checkpoint().unwrap().1.ignored;
    assert_eq!(ignored.len(), 1);
    assert_eq!(
        (&*ignored[0].tensor, &*ignored[0].reason),
        ("lm_head.weight", "tied to embed_tokens")
    );
}

#[test]
fn experts_follow_the_configuration() {
    let options = |case: &str, layer| {
        let weights = open(case);
        let found = moe(weights.spec(), layer);
        let shared = found
            .shared_expert
            .as_ref()
            .map(|s| (s.intermediate_size, s.gated));
        let sizes = (found.num_experts, found.num_experts_per_tok, found.moe_intermediate_size);
        (sizes, found.norm_topk_prob, shared)
    };
    assert_eq!(options("mixtral", 0), ((4, 2, 96), true, None));
    assert_eq!(options("mixtral-fused", 1), ((4, 2, 96), true, None));
    assert_eq!(options("qwen2_moe", 1), ((8, 3, 32), false, Some((96, true))));
    assert_eq!(options("qwen3_moe", 0), ((6, 2, 96), true, None));
    assert_eq!(options("qwen3_moe-fused", 2), ((6, 2, 96), true, None));
    assert_eq!(options("olmoe", 1), ((8, 2, 96), false, None));
}

#[test]
fn dense_layers_among_sparse_ones() {
    let experts = |case: &str| -> Vec<u32> {
        open(case)
            .checkpoint()
            .unwrap()
            .1
            .spec
            .layers
            .iter()
            .map(crate::model::LayerSpec::num_experts)
            .collect()
    };
    assert_eq!(experts("qwen2_moe"), [0, 8, 0, 8]);
    assert_eq!(experts("qwen3_moe"), [6, 0, 6]);
}
