//! A valid manifest, then each way to lie in one.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use shardwright_quant::{Affine, Encoding, Float, Trellis};

mod entries;

use super::*;
use crate::layout::{place_dense, place_expert};
use crate::model::{AttentionSpec, Ffn, LayerSpec, Mixer, MoeSpec, QkNorm, RopeScaling, RopeSpec};
use crate::unit::{SourceView, UnitLayout};

const ALIGNMENT: u64 = 4096;

fn model() -> ModelSpec {
    let rope = Some(RopeSpec { theta: 10_000.0, ..RopeSpec::default() });
    let attention = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        rope,
        qk_norm: QkNorm::PerHead,
        ..AttentionSpec::default()
    };
    let moe = MoeSpec {
        num_experts: 3,
        num_experts_per_tok: 2,
        moe_intermediate_size: 64,
        norm_topk_prob: true,
        ..MoeSpec::default()
    };
    ModelSpec {
        model_type: "qwen3_moe".to_owned(),
        vocab_size: 100,
        hidden_size: 64,
        tie_word_embeddings: true,
        rms_norm_eps: 1e-6,
        max_position_embeddings: 128,
        eos_token_ids: vec![0],
        bos_token_id: None,
        layers: vec![LayerSpec {
            mixer: Mixer::Attention(attention),
            ffn: Ffn::Moe(moe),
            output_norms: false,
            no_input_norms: false,
        }],
        ..ModelSpec::default()
    }
}

fn four_bits() -> Encoding {
    Encoding::Affine(Affine::new(4, 64, Float::F16).unwrap())
}

fn trellis() -> Encoding {
    Encoding::Trellis(Trellis::new(3, 12).unwrap())
}

/// Matrices in `codes`, vectors in f16.
fn layout(model: &ModelSpec, unit: Unit, codes: Encoding) -> UnitLayout {
    let tensors = model.tensors(unit).into_iter().map(|t| {
        let source = SourceView::whole(
            format!("{}.{{expert}}", t.role),
            Float::F16,
            vec![t.rows, t.cols],
            t.cols,
        );
        let encoding = if t.rows > 1 { codes } else { Encoding::F16 };
        TensorEntry::new(t.role, [t.rows, t.cols], encoding, source)
    });
    match unit {
        Unit::Expert { .. } => place_expert(tensors.collect()).unwrap(),
        _ => place_dense(tensors.collect()).unwrap(),
    }
}

pub(crate) fn manifest() -> Manifest {
    stored(model(), four_bits())
}

/// A model with every matrix in `codes`.
fn stored(model: ModelSpec, codes: Encoding) -> Manifest {
    let mut end = 0u64;
    let dense: Vec<_> = [Unit::Embedding, Unit::Layer(0), Unit::Head]
        .into_iter()
        .map(|unit| {
            let UnitLayout { tensors, len } = layout(&model, unit, codes);
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + len;
            let (file, blake3) = ("dense-000.bin".to_owned(), Hash([7; 32]));
            DenseShard { unit, file, offset, len, blake3, tensors }
        })
        .collect();
    let expert = layout(&model, Unit::Expert { layer: 0, expert: 0 }, codes);
    let stride = expert.len.next_multiple_of(ALIGNMENT);
    let experts = ExpertShards {
        layer: 0,
        experts: None,
        file: "experts/layer-000.bin".to_owned(),
        stride,
        len: expert.len,
        tensors: expert.tensors,
        blake3: vec![Hash([9; 32]); 3],
    };
    let file = |path: &str, kind, size| FileEntry {
        path: path.to_owned(),
        kind,
        size,
        blake3: Hash([1; 32]),
    };
    Manifest {
        blake3: Hash::ZERO,
        format: FORMAT.to_owned(),
        version: VERSION,
        generator: "shardwright 0.1.0".to_owned(),
        alignment: ALIGNMENT,
        model,
        recipe: serde_json::json!({"name": "q4"}),
        checkpoint: CheckpointRecord::default(),
        calibration: None,
        files: vec![
            file("config.json", FileKind::Copy, 10),
            file("dense-000.bin", FileKind::Shards, end.next_multiple_of(ALIGNMENT)),
            file("experts/layer-000.bin", FileKind::Shards, 3 * stride),
            file(REPORT_FILE, FileKind::Report, 100),
        ],
        dense,
        experts: vec![experts],
    }
}

#[test]
fn a_valid_manifest_survives_the_round_trip() {
    let bytes = manifest().to_bytes();
    let read = Manifest::from_bytes(Path::new("manifest.json"), &bytes).unwrap();
    assert_eq!(Manifest { blake3: Hash::ZERO, ..read.clone() }, manifest());
    assert_eq!(read.to_bytes(), bytes);
}

#[test]
fn a_calibrated_manifest_survives_the_round_trip() {
    let calibration = Calibration {
        text_blake3: Some(Hash([3; 32])),
        tokens: 4096,
        window: 256,
        statistics_blake3: None,
        line_hashes: LineHashes::from_text("a line that is long enough to count"),
    };
    let calibrated = Manifest { calibration: Some(calibration), ..manifest() };
    let bytes = calibrated.to_bytes();
    let read = Manifest::from_bytes(Path::new("manifest.json"), &bytes).unwrap();
    assert_eq!(read.calibration, calibrated.calibration);
    assert_eq!(read.to_bytes(), bytes);
}

#[test]
fn each_lie_about_calibration_is_named() {
    let with = |calibration| move |m: &mut Manifest| m.calibration = Some(calibration);
    let nothing = Calibration::default();
    let statistics_blake3 = Some(Hash([3; 32]));
    let line_hashes = LineHashes::from_text("a line that is long enough to count");
    let textless = Calibration { statistics_blake3, line_hashes, ..Calibration::default() };
    for (found, expected) in [
        (told(with(nothing)), "expected text_blake3 or statistics_blake3"),
        (told(with(textless)), "line_hashes: of no text"),
    ] {
        assert_eq!(found, format!("manifest.json: calibration: {expected}"));
    }
}

#[test]
fn the_length_does_not_depend_on_hashes() {
    let mut other = manifest();
    other.files[0].blake3 = Hash([0xab; 32]);
    other.experts[0].blake3[1] = Hash([0; 32]);
    assert_eq!(other.to_bytes().len(), manifest().to_bytes().len());
}

/// What the reader says of the manifest after `lie`, its own hash made right again.
fn told(lie: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = manifest();
    lie(&mut manifest);
    let bytes = manifest.to_bytes();
    Manifest::from_bytes(Path::new("manifest.json"), &bytes)
        .unwrap_err()
        .to_string()
}

fn with_tensor(shard: &mut DenseShard, edit: impl FnOnce(&mut TensorEntry)) {
    let mut tensors = shard.tensors.to_vec();
    edit(&mut tensors[0]);
    shard.tensors = Arc::from(tensors);
}

fn with_expert(manifest: &mut Manifest, edit: impl FnOnce(&mut TensorEntry)) {
    let mut tensors = manifest.experts[0].tensors.to_vec();
    edit(&mut tensors[0]);
    manifest.experts[0].tensors = Arc::from(tensors);
}

/// Divides by zero between its bounds.
const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 5.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

fn scaling(manifest: &mut Manifest, scaling: RopeScaling) {
    let Mixer::Attention(attention) = &mut manifest.model.layers[0].mixer else { unreachable!() };
    attention.rope.as_mut().unwrap().scaling = scaling;
}

#[test]
fn trellis_codes_lie_where_the_layout_puts_them() {
    let manifest = stored(model(), trellis());
    let read = Manifest::from_bytes(Path::new("m"), &manifest.to_bytes()).unwrap();
    let text = serde_json::to_string(&read.dense[0].tensors[0].encoding).unwrap();
    assert_eq!(text, r#"{"kind":"trellis","bits":3,"state_bits":12}"#);
    // 100 rows are stored as 104, each with a scale; the second projection follows at once.
    let embedding = 104 * 64 * 3 / 8 + 100 * 2;
    assert_eq!(read.dense[0].len, embedding);
    let record = 64 * 64 * 3 / 8 + 64 * 2;
    let places: Vec<_> = read.experts[0].tensors.iter().map(|t| t.offset).collect();
    assert_eq!((places, read.experts[0].len), (vec![0, record, 2 * record], 3 * record));
    let layer = &read.dense[1].tensors;
    assert!(layer.iter().all(|t| t.offset.is_multiple_of(64)));
}

#[test]
fn each_lie_about_trellis_codes_is_named() {
    let text = String::from_utf8(stored(model(), trellis()).to_bytes()).unwrap();
    let told = |lie: &str| {
        let honest = "\"bits\": 3,\n            \"state_bits\": 12";
        assert!(text.contains(honest));
        Manifest::from_bytes(Path::new("m"), rehashed(&text.replace(honest, lie)).as_bytes())
            .unwrap_err()
            .to_string()
    };
    for (lie, expected) in [
        (r#""bits": 6, "state_bits": 12"#, "bits: expected 2, 3 or 4 in a trellis, found 6"),
        (r#""bits": 3, "state_bits": 11"#, "state_bits: expected 10, 12, 14 or 16, found 11"),
        (r#""bits": 3"#, "missing field `state_bits`"),
        (
            r#""bits": 3, "state_bits": 12, "group_size": 64"#,
            "unknown field `group_size`, expected `bits` or `state_bits`",
        ),
        (r#""bits": 2, "state_bits": 12"#, "embedding: length: expected 1864, found 2696"),
    ] {
        let found = told(lie);
        assert!(found.contains(expected), "{lie}: {found}");
    }
    let mut narrow = stored(model(), trellis());
    let Ffn::Moe(moe) = &mut narrow.model.layers[0].ffn else { unreachable!() };
    moe.moe_intermediate_size = 40;
    let mut tensors = narrow.experts[0].tensors.to_vec();
    for (tensor, (rows, cols)) in tensors.iter_mut().zip([(40, 64), (40, 64), (64, 40)]) {
        (tensor.rows, tensor.cols) = (rows, cols);
    }
    narrow.experts[0].tensors = Arc::from(tensors);
    let error = Manifest::from_bytes(Path::new("m"), &narrow.to_bytes()).unwrap_err();
    let expected = "m: layer 0 expert 0: a trellis needs columns in multiples of 16, found 40";
    assert_eq!(error.to_string(), expected);
}

/// A manifest's text with the hash of what it now says.
fn rehashed(text: &str) -> String {
    let start = "{\n  \"blake3\": \"".len();
    let zeros = "0".repeat(64);
    let blank = format!("{}{zeros}{}", &text[..start], &text[start + 64..]);
    let hash = blake3::hash(blank.as_bytes()).to_hex();
    format!("{}{hash}{}", &text[..start], &text[start + 64..])
}

#[test]
fn each_lie_is_named() {
    let path = |p: &'static str| move |m: &mut Manifest| m.files[0].path = p.to_owned();
    for (found, expected) in [
        (told(|m| m.version = 2), "version: expected 1, found 2"),
        (
            told(|m| m.alignment = 5000),
            "alignment: expected a power of two from 4096 to 1048576, found 5000",
        ),
        (told(path("../config.json")), "files: `../config.json` is not a path inside the bundle"),
        (told(path("/etc/passwd")), "files: `/etc/passwd` is not a path inside the bundle"),
        (told(path("a\\b")), "files: `a\\b` is not a path inside the bundle"),
        (told(path("dense-000.bin")), "files: `dense-000.bin` is repeated or out of order"),
        (
            told(|m| m.files[0].kind = FileKind::Report),
            "files: `config.json`: expected another kind than report, found report",
        ),
        (
            told(|m| m.files[3].kind = FileKind::Copy),
            "files: `report.json`: expected the kind report, found copy",
        ),
        (told(|m| m.files.truncate(3)), "files: expected `report.json`, found none"),
        (told(|m| m.model.hidden_size = 0), "hidden_size: expected 1 to 16777216, found 0"),
        (
            told(|m| scaling(m, RopeScaling::Linear { factor: 0.0 })),
            "rope factor: expected above 0, found 0",
        ),
        (told(|m| scaling(m, LLAMA3)), "rope low_freq_factor: expected at most 4, found 5"),
        (
            told(|m| m.model.vocab_size = 101),
            "embedding embed_tokens: shape: expected [101, 64], found [100, 64]",
        ),
        (told(|m| m.dense.truncate(2)), "dense: shards: expected 3, found 2"),
        (told(|m| m.dense.swap(0, 2)), "dense: expected embedding, found head"),
        (told(|m| m.dense[1].offset = 0), "layer 0: offset 0 overlaps the shard that ends at 3600"),
        (told(|m| m.dense[1].offset += 64), "layer 0: offset 4160 is not a multiple of 4096"),
        (told(|m| m.dense[1].offset = u64::MAX), "layer 0: range too large"),
        (told(|m| m.dense[0].len = 1), "embedding: length: expected 3600, found 1"),
        (
            told(|m| m.dense[0].file = "config.json".to_owned()),
            "`config.json` is not a shard file of the bundle",
        ),
        (
            told(|m| m.dense[0].file = "other.bin".to_owned()),
            "`other.bin` is not a shard file of the bundle",
        ),
    ] {
        assert_eq!(found, format!("manifest.json: {expected}"));
    }
}

#[test]
fn each_lie_about_tensors_and_experts_is_named() {
    for (found, expected) in [
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.offset = 64)),
            "embedding embed_tokens: offset: expected 0, found 64",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.rows = u64::MAX)),
            "embedding embed_tokens: shape: expected [100, 64], found [18446744073709551615, 64]",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.source.start = 1)),
            "embedding embed_tokens: source: leaves its tensor of shape [100, 64]",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.source.row_stride = u64::MAX)),
            "embedding embed_tokens: source: leaves its tensor of shape [100, 64]",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.source.shape = vec![u64::MAX, 2])),
            "embedding embed_tokens: source: leaves its tensor of shape [18446744073709551615, 2]",
        ),
        (
            told(|m| with_expert(m, |t| t.source.expert_stride = u64::MAX)),
            "layer 0 expert 0 expert.gate_proj: source: leaves its tensor of shape [64, 64]",
        ),
        (
            told(|m| with_expert(m, |t| t.source.expert_stride = 1)),
            "layer 0 expert 0 expert.gate_proj: source: leaves its tensor of shape [64, 64]",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.source.col_stride = 0)),
            "embedding embed_tokens: source: expected a stride of at least 1, so that no values overlap, found 0",
        ),
        (
            told(|m| with_tensor(&mut m.dense[0], |t| t.source.row_stride = 63)),
            "embedding embed_tokens: source: expected a stride of at least 64, so that no values overlap, found 63",
        ),
        (
            told(|m| with_origin(m, |origin| origin.start = 1)),
            "embedding embed_tokens: source: origin: leaves its tensor of shape [100, 64]",
        ),
        (
            told(|m| with_origin(m, |origin| origin.origin = Some(Box::new(origin.clone())))),
            "embedding embed_tokens: source: origin: has one itself",
        ),
        (told(|m| m.experts[0].layer = 1), "experts: expected layers [0], found [1]"),
        (told(|m| m.experts[0].stride = u64::MAX), "layer 0 expert 1: range too large"),
        (told(|m| m.experts[0].stride = 4096), "layer 0 experts: 6912 bytes in a stride of 4096"),
        (told(|m| m.experts[0].blake3.truncate(1)), "layer 0 experts: hashes: expected 3, found 1"),
        (
            told(|m| m.files[2].size += 4096),
            "`experts/layer-000.bin`: size: expected 23296 rounded up to 4096, found 28672",
        ),
        (
            told(|m| m.model.layers[0].ffn = many_experts()),
            "layer 0 router: shape: expected [65536, 64], found [3, 64]",
        ),
    ] {
        assert_eq!(found, format!("manifest.json: {expected}"));
    }
}

/// Lies about where a bundle that this one was made from had its embedding from.
fn with_origin(m: &mut Manifest, lie: impl Fn(&mut SourceView)) {
    with_tensor(&mut m.dense[0], |t| {
        let mut origin = t.source.clone();
        lie(&mut origin);
        t.source.origin = Some(Box::new(origin));
    });
}

fn many_experts() -> Ffn {
    let Ffn::Moe(moe) = model().layers.remove(0).ffn else { unreachable!() };
    Ffn::Moe(MoeSpec { num_experts: 65536, ..moe })
}

#[test]
fn bytes_that_are_no_manifest_are_told_apart() {
    let told = |text: &str| {
        Manifest::from_bytes(Path::new("m"), text.as_bytes())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(told("{}"), "m: format: expected shardwright-bundle, found none");
    assert_eq!(
        told(r#"{"format": "shardwright-bundle", "version": 9}"#),
        "m: version: expected 1, found 9; use a newer shardwright"
    );
    assert!(told("[").starts_with("m: EOF while parsing"));
}

#[test]
fn an_edit_without_the_hash_is_noticed() {
    let text = String::from_utf8(manifest().to_bytes()).unwrap();
    let edited = text.replace("shardwright 0.1.0", "shardwright 0.1.1");
    let error = Manifest::from_bytes(Path::new("m"), edited.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("m: manifest hash: expected "), "{error}");
}

proptest! {
    #[test]
    fn no_damage_panics_or_passes(at in 0usize..8000, byte: u8) {
        let mut bytes = manifest().to_bytes();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        prop_assert!(Manifest::from_bytes(Path::new("m"), &bytes).is_err());
    }
}

/// The manifest with `from` written as `to`, its hash made right, as a reader meets it.
fn respelled(from: &str, to: &str) -> String {
    let mut text = String::from_utf8(manifest().to_bytes()).unwrap();
    assert!(text.contains(from), "{from}");
    text = text.replacen(from, to, 1);
    read_again(text, |digits| digits)
}

fn read_again(mut text: String, digits: impl FnOnce(String) -> String) -> String {
    text.replace_range(15..79, &"0".repeat(64));
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    text.replace_range(15..79, &digits(hash));
    match Manifest::from_bytes(Path::new("manifest.json"), text.as_bytes()) {
        Ok(_) => "holds".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// What serde takes for the same thing is not: each has one spelling.
#[test]
fn another_spelling_is_refused() {
    let entry = format!("\"config.json\", \"copy\", 10, \"{}\"", "01".repeat(32));
    let object = format!(
        "{{\n      \"path\": \"config.json\",\n      \"kind\": \"copy\",\n      \"size\": 10,\n      \
         \"blake3\": \"{}\"\n    }}",
        "01".repeat(32)
    );
    let deep = format!("\"recipe\": {}{}", "[".repeat(70), "]".repeat(70));
    let recipe = "\"recipe\": {\n    \"name\": \"q4\"\n  }";
    let norm = "\"qk_norm\": \"per_head\",";
    let beta = "\"activation\": {\"clamped_swiglu\": {\"limit\": 1.0, \"alpha\": 1.0, \"beta\": 2}}, \
                \"num_experts\": 3";
    for (from, to, expected) in [
        (
            object.as_str(),
            format!("[{entry}]"),
            "`files[0]`: expected an object, found an array of 4",
        ),
        (
            "\"kind\": \"none\"",
            "\"kind\": 0".to_owned(),
            "`model.layers[0].mixer.rope.scaling.kind`: expected \"none\", found 0",
        ),
        (
            norm,
            format!("{norm} \"softmax_scale\": null,"),
            "`model.layers[0].mixer.softmax_scale`: expected a number or no field, found null",
        ),
        (
            "\"num_experts\": 3",
            beta.to_owned(),
            "unknown field `beta`, expected `limit` or `alpha`",
        ),
        (recipe, "\"recipe\": {\"name\": 1, \"name\": 1}".to_owned(), "`name` appears twice"),
        (recipe, deep, "nested deeper than 64 arrays and objects"),
        (
            "\"size\": 10",
            "\"size\": 1e1".to_owned(),
            "invalid type: floating point `10.0`, expected u64",
        ),
        (
            "\"theta\": 10000.0",
            "\"theta\": 1e39".to_owned(),
            "`model.layers[0].mixer.rope.theta`: expected null, found 1e+39",
        ),
        (
            "shardwright 0.1.0",
            "x\\u001b[8m".to_owned(),
            "\"x\\u{1b}[8m\": expected no control character, found U+001B",
        ),
        (
            "\"q4\"",
            "\"\\u202eq4\"".to_owned(),
            "\"\\u{202e}q4\": expected no control character, found U+202E",
        ),
        (
            "\"q4\"",
            "\"a\\u2028b\"".to_owned(),
            "\"a\\u{2028}b\": expected no control character, found U+2028",
        ),
    ] {
        let found = respelled(from, &to);
        assert!(found.starts_with(&format!("manifest.json: {expected}")), "{from}: {found}");
    }
}

#[test]
fn spellings_that_the_document_allows_are_read() {
    let text = String::from_utf8(manifest().to_bytes()).unwrap();
    let found = read_again(text, |hash| hash.to_uppercase());
    assert!(found.starts_with("manifest.json: `blake3`: expected \""), "{found}");
    let norm = "\"qk_norm\": \"per_head\",";
    let nothing = format!("{norm} \"temperature\": null, \"sinks\": false,");
    let theta = "\"theta\": 10000.0";
    for (from, to) in
        [(norm, nothing.as_str()), (theta, "\"theta\": 1e4"), (theta, "\"theta\": 10000")]
    {
        assert_eq!(respelled(from, to), "holds", "{to}");
    }
}

#[test]
fn names_that_some_disk_or_reader_confuses_are_refused() {
    let ignored = |names: &'static [&str]| {
        move |m: &mut Manifest| {
            let ignored = names.iter().map(|name| Ignored {
                tensor: (*name).to_owned(),
                role: None,
                reason: "not used".to_owned(),
            });
            m.checkpoint.ignored = ignored.collect();
        }
    };
    let source = |name: &str| SourceFile { name: name.to_owned(), size: 1, blake3: Hash([5; 32]) };
    for (found, expected) in [
        (
            told(|m| m.files[0].path = "MANIFEST.JSON".to_owned()),
            "files: `MANIFEST.JSON` is not a path inside the bundle",
        ),
        (
            told(|m| {
                let entry = FileEntry { path: "CONFIG.json".to_owned(), ..m.files[0].clone() };
                m.files.insert(0, entry);
            }),
            "files: `CONFIG.json` and `config.json` differ in case alone",
        ),
        (told(ignored(&["b", "a"])), "checkpoint: ignored: `a` is repeated or out of order"),
        (told(ignored(&["a", "a"])), "checkpoint: ignored: `a` is repeated or out of order"),
        (
            told(|m| m.checkpoint.files = vec![source("b"), source("a")]),
            "checkpoint: files: `a` is repeated or out of order",
        ),
        (
            told(|m| m.files[0].path = "a\nb".to_owned()),
            "\"a\\nb\": expected no control character, found U+000A",
        ),
    ] {
        assert_eq!(found, format!("manifest.json: {expected}"));
    }
}
