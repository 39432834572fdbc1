//! Folders for flash-moe, read as its loader reads them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, Role, Unit};
use shardwright_quant::{Matrix, widen};
use shardwright_testing::models::flash_moe_checkpoint;

use super::mlx::stored;
use super::*;
use crate::engine::{Engine, Limits};
use crate::error::{ConvertError, Remedy};
use crate::{ExportTarget, Exported, export};

/// What the engine looks up in each layer, in codes, and which tensor of ours that is.
const MODULES: &[(&str, Role)] = &[
    ("self_attn.q_proj", Role::QProj),
    ("self_attn.k_proj", Role::KProj),
    ("self_attn.v_proj", Role::VProj),
    ("self_attn.o_proj", Role::OProj),
    ("linear_attn.in_proj_qkv", Role::DeltaQkv),
    ("linear_attn.in_proj_z", Role::DeltaZ),
    ("linear_attn.in_proj_b", Role::DeltaB),
    ("linear_attn.in_proj_a", Role::DeltaA),
    ("linear_attn.out_proj", Role::DeltaOutProj),
    ("mlp.gate", Role::Router),
    ("mlp.shared_expert.gate_proj", Role::SharedGateProj),
    ("mlp.shared_expert.up_proj", Role::SharedUpProj),
    ("mlp.shared_expert.down_proj", Role::SharedDownProj),
    ("mlp.shared_expert_gate", Role::SharedExpertGate),
];

/// The same in floats, with what is added to each value.
const FLOATS: &[(&str, Role, f32)] = &[
    ("input_layernorm.weight", Role::InputNorm, 1.0),
    ("post_attention_layernorm.weight", Role::PostAttentionNorm, 1.0),
    ("self_attn.q_norm.weight", Role::QNorm, 1.0),
    ("self_attn.k_norm.weight", Role::KNorm, 1.0),
    ("linear_attn.conv1d.weight", Role::DeltaConv, 0.0),
    ("linear_attn.A_log", Role::DeltaALog, 0.0),
    ("linear_attn.dt_bias", Role::DeltaDtBias, 0.0),
    ("linear_attn.norm.weight", Role::DeltaNorm, 0.0),
];

/// A bundle for flash-moe, made from a recipe.
fn made(dir: &Path, recipe: Recipe) -> Vec<String> {
    flash_moe_checkpoint(&dir.join("ckpt"));
    let opened = Checkpoint::open(&dir.join("ckpt")).unwrap();
    let limits = Limits::new(Engine::FlashMoe, opened.config()).unwrap();
    let (recipe, changed) = limits.restrict(recipe);
    let case = Case::new(&dir.join("ckpt"), &recipe, PlanOptions::default()).unwrap();
    case.convert(&dir.join("b"), 1).unwrap();
    changed
}

fn exported(dir: &Path, out: &str, file_limit: u64) -> Result<Exported> {
    let options = ExportOptions { file_limit, ..SMALL_EXPORT };
    let weights = Weights::open(&dir.join("b")).unwrap();
    export(&weights, &dir.join(out), ExportTarget::FlashMoe, &options)
}

/// The folder as the engine maps it: one file, or two of which the second begins where the first ends.
struct Folder {
    list: Value,
    dense: Vec<u8>,
    seen: BTreeSet<String>,
}

impl Folder {
    fn open(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read(dir.join(name));
        let halves =
            || [read("model_weights_0.bin").unwrap(), read("model_weights_1.bin").unwrap()];
        let dense = read("model_weights.bin").unwrap_or_else(|_| halves().concat());
        let list = serde_json::from_slice(&read("model_weights.json").unwrap()).unwrap();
        Self { list, dense, seen: BTreeSet::new() }
    }

    fn bytes(&mut self, name: &str, dtype: &str, shape: &[u64]) -> &[u8] {
        let about = &self.list["tensors"][name];
        assert_eq!((&about["dtype"], &about["shape"]), (&json!(dtype), &json!(shape)), "{name}");
        self.seen.insert(name.to_owned());
        let [at, len] = ["offset", "size"].map(|key| about[key].as_u64().unwrap() as usize);
        assert!(at.is_multiple_of(64), "{name}");
        &self.dense[at..at + len]
    }

    /// The codes of a module are those of a tensor, to the bit.
    fn holds_codes(&mut self, module: &str, (bundle, unit, role): (&Bundle, Unit, Role)) {
        let layout = bundle.layout(unit).unwrap();
        let entry = layout.find(role).unwrap();
        let mut buf = AlignedBuf::default();
        bundle
            .read_rows(unit, entry, 0..entry.rows, &mut buf)
            .unwrap();
        let [rows, cols] = [entry.rows, entry.cols];
        let m = Matrix::new(entry.encoding, rows as usize, cols as usize, buf.as_slice()).unwrap();
        let name = |part: &str| format!("{module}.{part}");
        assert!(self.bytes(&name("weight"), "U32", &[rows, cols / 8]) == m.weight(), "{module}");
        for (part, bytes) in [("scales", m.scales()), ("biases", m.biases())] {
            assert!(self.bytes(&name(part), "BF16", &[rows, cols / 64]) == bytes, "{module}");
        }
    }

    /// The floats are those of a tensor and something more, rounded to 16 bits.
    fn holds_floats(&mut self, name: &str, found: (&Bundle, Unit, Role), more: f32) {
        let (bundle, unit, role) = found;
        let layout = bundle.layout(unit).unwrap();
        let entry: &TensorEntry = layout.find(role).unwrap();
        let [rows, cols] = [entry.rows, entry.cols];
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols, 1] };
        let (label, dtype) =
            if role == Role::DeltaALog { ("F32", Float::F32) } else { ("BF16", Float::Bf16) };
        let bytes = self.bytes(name, label, &shape);
        let mut values = vec![0.0; (rows * cols) as usize];
        widen(dtype, bytes, &mut values);
        let expected = stored(bundle, unit, entry);
        let expected = expected.into_iter().map(|value| dtype.round(value + more));
        assert_eq!(values, expected.collect::<Vec<_>>(), "{name}");
    }
}

/// Everything that the engine looks up in the dense part, and nothing else.
fn check_dense(dir: &Path, bundle: &Bundle) {
    let mut folder = Folder::open(dir);
    folder.holds_codes("model.embed_tokens", (bundle, Unit::Embedding, Role::EmbedTokens));
    folder.holds_codes("lm_head", (bundle, Unit::Head, Role::LmHead));
    folder.holds_floats("model.norm.weight", (bundle, Unit::Head, Role::FinalNorm), 1.0);
    for layer in 0..4 {
        let unit = Unit::Layer(layer);
        let layout = bundle.layout(unit).unwrap();
        for (name, role) in MODULES
            .iter()
            .filter(|(_, role)| layout.find(*role).is_some())
        {
            folder.holds_codes(&format!("model.layers.{layer}.{name}"), (bundle, unit, *role));
        }
        for (name, role, more) in FLOATS
            .iter()
            .filter(|(_, role, _)| layout.find(*role).is_some())
        {
            let name = format!("model.layers.{layer}.{name}");
            folder.holds_floats(&name, (bundle, unit, *role), *more);
        }
    }
    let listed: BTreeSet<_> = folder.list["tensors"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(listed, folder.seen);
    assert_eq!(folder.list["num_tensors"], json!(listed.len()));
    assert_eq!(folder.list["config"]["rope_theta"], json!(10_000_000));
}

/// Records of the size that the engine computes from `config.json`, each the bundle's own.
fn check_experts(dir: &Path, bundle: &Bundle, bits: u64) {
    let layout: Value =
        serde_json::from_slice(&std::fs::read(dir.join("layout.json")).unwrap()).unwrap();
    let matrix = 64 * 64 * bits / 8 + 2 * 64 * 2;
    assert_eq!(layout["expert_size"], json!(3 * matrix));
    for layer in 0..4u32 {
        let found = std::fs::read(dir.join(format!("layer_{layer:02}.bin"))).unwrap();
        assert_eq!(found.len() as u64, 3 * 3 * matrix);
        for (expert, record) in (0..).zip(found.chunks_exact(3 * matrix as usize)) {
            let mut buf = AlignedBuf::default();
            let own = bundle
                .read(Unit::Expert { layer, expert }, &mut buf)
                .unwrap();
            assert!(record == &buf.as_slice()[..own.len as usize], "layer {layer} expert {expert}");
        }
    }
}

#[test]
fn the_folder_is_what_the_engine_looks_up_with_the_codes_of_the_bundle() {
    for (recipe, bits, name) in [("q4", 4, "packed_experts"), ("moe-q2", 2, "packed_experts_2bit")]
    {
        let dir = tempfile::tempdir().unwrap();
        let changed = made(dir.path(), Recipe::builtin(recipe).unwrap());
        assert_eq!(changed[0], format!("routed experts in q{bits}g64:bf16"));
        let bundle = Bundle::open(&dir.path().join("b")).unwrap();
        let told = exported(dir.path(), "whole", 1 << 30).unwrap();
        assert!(told.differences[0].contains("rounded to bf16"), "{:?}", told.differences);
        let split = exported(dir.path(), "split", 140_000).unwrap();
        assert_eq!(split.files.len(), told.files.len() + 1);
        for out in ["whole", "split"] {
            let out = dir.path().join(out);
            check_dense(&out, &bundle);
            check_experts(&out.join(name), &bundle, bits);
        }
        check_config(&dir.path().join("whole"));
        check_vocabulary(&dir.path().join("whole"));
    }
}

/// What the engine reads of `config.json`.
fn check_config(dir: &Path) {
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let quantization = &config["quantization_config"];
    assert_eq!((&quantization["bits"], &quantization["group_size"]), (&json!(4), &json!(64)));
    assert_eq!(config["eos_token_id"], json!([2]));
    assert_eq!(config["text_config"]["rope_parameters"]["partial_rotary_factor"], json!(0.25));
}

/// Takes a number and a text off the start of what a file holds.
fn text<'a>(bytes: &mut &'a [u8]) -> &'a str {
    let (len, rest) = bytes.split_first_chunk().unwrap();
    let (text, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)));
    *bytes = rest;
    std::str::from_utf8(text).unwrap()
}

fn number(bytes: &mut &[u8]) -> u32 {
    let (number, rest) = bytes.split_first_chunk().unwrap();
    *bytes = rest;
    u32::from_le_bytes(*number)
}

/// Both files say what `tokenizer.json` says, in their order.
fn check_vocabulary(dir: &Path) {
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let (vocabulary, tokenizer) = (read("vocab.bin"), read("tokenizer.bin"));
    let document: Value = serde_json::from_slice(&read("tokenizer.json")).unwrap();
    let mut rest = vocabulary.as_slice();
    let (count, largest) = (number(&mut rest), number(&mut rest));
    assert_eq!(count, largest + 1);
    let pieces: Vec<_> = (0..count).map(|_| text(&mut rest)).collect();
    assert!(rest.is_empty());
    let vocab = document["model"]["vocab"].as_object().unwrap();
    for (piece, id) in vocab {
        assert_eq!(pieces[id.as_u64().unwrap() as usize], piece);
    }
    let (magic, mut rest) = tokenizer.split_at(4);
    assert_eq!((magic, number(&mut rest)), (&b"BPET"[..], 1));
    let added = document["added_tokens"].as_array().unwrap();
    let merges = document["model"]["merges"].as_array().unwrap();
    let counts = [vocab.len(), merges.len(), added.len()];
    assert_eq!([0; 3].map(|_: i32| number(&mut rest) as usize), counts);
    for at in 0..vocab.len() {
        let id = number(&mut rest);
        assert_eq!((pieces[id as usize], id as usize >= at), (text(&mut rest), true));
    }
    for merge in merges {
        let found = [text(&mut rest), text(&mut rest)];
        let line = merge
            .as_str()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let expected = line.unwrap_or_else(|| {
            merge
                .as_array()
                .unwrap()
                .iter()
                .map(|part| part.as_str().unwrap())
                .collect()
        });
        assert_eq!(found[..], expected[..]);
    }
    for token in added {
        assert_eq!(json!(number(&mut rest)), token["id"]);
        assert_eq!(json!(text(&mut rest)), token["content"]);
    }
    assert!(rest.is_empty());
}

#[test]
fn what_its_kernels_do_not_read_is_refused_with_the_option_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    flash_moe_checkpoint(&dir.path().join("ckpt"));
    for (rules, expected) in [
        (r#"[{"encoding":"q4g32:bf16","fallback":["keep"]}]"#, "found q4 g32 bf16"),
        (r#"[{"encoding":"q4g64:f16","fallback":["keep"]}]"#, "found q4 g64 f16"),
        (
            r#"[{"match":{"role":"router"},"encoding":"keep"},{"encoding":"q4g64:bf16","fallback":["keep"]}]"#,
            "router: expected q4 g64 bf16, found bf16",
        ),
        (
            r#"[{"match":{"role":"expert.*","layer":"last 1"},"encoding":"q2g64:bf16"},
                {"encoding":"q4g64:bf16","fallback":["keep"]}]"#,
            "or all in q2 g64 bf16, found q2 g64 bf16",
        ),
    ] {
        let recipe = format!(r#"{{"name":"t","rules":{rules}}}"#);
        let recipe = Recipe::parse("t", &recipe).unwrap();
        let case = Case::new(&dir.path().join("ckpt"), &recipe, PlanOptions::default()).unwrap();
        case.convert(&dir.path().join("b"), 1).unwrap();
        let refused = exported(dir.path(), "out", 1 << 30).unwrap_err();
        assert!(refused.to_string().ends_with(expected), "{refused}");
        assert!(matches!(refused, ConvertError::NotHeld { remedy: Remedy::PackedExperts, .. }));
        assert!(!dir.path().join("out").exists() && !dir.path().join("out.partial").exists());
        std::fs::remove_dir_all(dir.path().join("b")).unwrap();
    }
    let other = Limits::new(Engine::FlashMoe, &json!({"model_type": "llama"})).unwrap_err();
    assert!(other.to_string().ends_with("found `llama`"), "{other}");
}
