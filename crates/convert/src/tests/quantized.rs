//! Checkpoints whose weights are quantized already: decoded as they are converted, or their codes
//! taken over.

use serde_json::{Value, json};
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Dtype, header, read_view};
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, Unit};
use shardwright_quant::{
    Affine, Backend, Encoding, Float, Job, Matrix, Method, Objective, PartsMut, Zeros, f8_e4m3,
    narrow, quantize, widen,
};

use super::SMALL_EXPORT;
use super::*;
use crate::{ExportDtype, ExportOptions, ExportTarget, Repacked, export};

/// A stored tensor.
pub(super) type Held = (String, Dtype, Vec<u64>, Vec<u8>);

/// Stores a matrix `[rows, cols]` of the given name as a scheme does.
pub(super) type Encode = fn(&str, &[f32], u64, u64) -> Vec<Held>;

/// The checkpoint `golden/{name}` with the matrices of its layers, routers apart, as `encode`
/// stores them.
pub(super) fn requantized(name: &str, dir: &Path, config: Value, encode: Encode) {
    let original = Checkpoint::open(&fixture(name)).unwrap();
    let mut held = Vec::new();
    for (name, info) in original.tensors() {
        let mut bytes = vec![0; info.len as usize];
        let file = &original.files()[info.file].file;
        file.read_at(info.offset, &mut bytes).unwrap();
        let router = name.ends_with("mlp.gate.weight");
        if info.shape.len() != 2 || !name.contains(".layers.") || router {
            held.push((name.clone(), info.dtype.into(), info.shape.clone(), bytes));
            continue;
        }
        let mut values = vec![0.0; bytes.len() / info.dtype.size()];
        widen(info.dtype, &bytes, &mut values);
        held.extend(encode(name, &values, info.shape[0], info.shape[1]));
    }
    let mut whole = original.config().clone();
    if config.get("quant_method").is_none() {
        held = stack(held);
    }
    whole["quantization_config"] = config;
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), whole.to_string()).unwrap();
    write(dir, &held);
}

/// Puts the experts of each layer, which follow one another by number, into one tensor, as MLX
/// stores them.
fn stack(held: Vec<Held>) -> Vec<Held> {
    let mut stacked = BTreeMap::<String, Held>::new();
    for (name, dtype, shape, bytes) in held {
        let Some((layer, rest)) = name.split_once(".mlp.experts.") else {
            stacked.insert(name.clone(), (name, dtype, shape, bytes));
            continue;
        };
        let name = format!("{layer}.mlp.switch_mlp.{}", rest.split_once('.').unwrap().1);
        let one = || (name.clone(), dtype, [&[0], &shape[..]].concat(), Vec::new());
        let (.., shape, all) = stacked.entry(name.clone()).or_insert_with(one);
        shape[0] += 1;
        all.extend(bytes);
    }
    stacked.into_values().collect()
}

fn write(dir: &Path, held: &[Held]) {
    let path = dir.join("model.safetensors");
    let listed = held
        .iter()
        .map(|(name, dtype, shape, _)| (name.as_str(), *dtype, &shape[..]));
    let mut bytes = header::encode(&path, &[], listed).unwrap();
    for (.., held) in held {
        bytes.extend(held);
    }
    std::fs::write(path, bytes).unwrap();
}

fn bf16(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 2];
    narrow(Float::Bf16, values, &mut bytes);
    bytes
}

/// FP8 in blocks of 32 rows and 48 columns, which leaves ragged edges.
fn fp8(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
    let (wide, high) = (cols.div_ceil(48), rows.div_ceil(32));
    let mut scales = vec![0.0_f32; (wide * high) as usize];
    let block = |i: usize| (i as u64 / cols / 32 * wide + i as u64 % cols / 48) as usize;
    for (i, value) in values.iter().enumerate() {
        scales[block(i)] = scales[block(i)].max(value.abs() / 448.0);
    }
    let nearest = |(i, value): (usize, &f32)| {
        let error = |code: &u8| (f8_e4m3(*code) * scales[block(i)] - value).abs();
        let codes = (0..=255_u8).filter(|code| code & 0x7f != 0x7f);
        codes.min_by(|a, b| error(a).total_cmp(&error(b))).unwrap()
    };
    let codes = values.iter().enumerate().map(nearest).collect();
    let stored = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    vec![
        (name.to_owned(), Dtype::F8E4m3, vec![rows, cols], codes),
        (format!("{name}_scale_inv"), Float::F32.into(), vec![high, wide], stored),
    ]
}

/// Symmetric four-bit codes in groups of 32, as compressed-tensors packs them.
fn int4(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
    let module = name.strip_suffix(".weight").unwrap();
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for group in values.chunks(32) {
        let most = group
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = Float::Bf16.round(most / 7.0);
        scales.push(scale);
        let code = |value: &f32| ((value / scale).round().clamp(-8.0, 7.0) + 8.0) as u8;
        let pairs = group
            .chunks(2)
            .map(|pair| code(&pair[0]) | code(&pair[1]) << 4);
        codes.extend(pairs);
    }
    let dims = [rows, cols]
        .iter()
        .flat_map(|dim| dim.to_le_bytes())
        .collect();
    vec![
        (format!("{module}.weight_packed"), Dtype::I32, vec![rows, cols / 8], codes),
        (
            format!("{module}.weight_scale"),
            Float::Bf16.into(),
            vec![rows, cols / 32],
            bf16(&scales),
        ),
        (format!("{module}.weight_shape"), Dtype::I64, vec![2], dims),
    ]
}

/// Four-bit codes in groups of 32, as MLX packs them.
fn mlx(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
    let module = name.strip_suffix(".weight").unwrap();
    let encoding = Encoding::Affine(Affine::new(4, 32, Float::Bf16).unwrap());
    let parts = encoding.parts(rows, cols).unwrap();
    let [mut weight, mut scales, mut biases] =
        [parts.weight, parts.scales, parts.biases].map(|len| vec![0; len as usize]);
    let out = PartsMut { weight: &mut weight, scales: &mut scales, biases: &mut biases };
    let (backend, method, objective) = (Backend::detect(), Method::MinMax, Objective::Weights);
    let how = (Zeros::Float, cols as usize);
    let job = Job { backend, x: values, cols: how.1, encoding, method, zeros: how.0, objective };
    quantize(&job, out).unwrap();
    let grid = vec![rows, cols / 32];
    vec![
        (name.to_owned(), Dtype::U32, vec![rows, cols / 8], weight),
        (format!("{module}.scales"), Float::Bf16.into(), grid.clone(), scales),
        (format!("{module}.biases"), Float::Bf16.into(), grid, biases),
    ]
}

fn fp8_config() -> Value {
    json!({ "quant_method": "fp8", "weight_block_size": [32, 48], "modules_to_not_convert": ["gate"] })
}

pub(super) fn int4_config() -> Value {
    let weights = json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 });
    json!({ "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
}

fn mlx_config() -> Value {
    json!({ "group_size": 32, "bits": 4 })
}

fn recipe(bits: u8) -> Recipe {
    let json = format!(
        r#"{{"name":"t","rules":[{{"match":{{"role":"router"}},"encoding":"f32"}},
        {{"match":{{"role":"expert.*"}},"encoding":"q{bits}g32:bf16"}},
        {{"match":{{"role":"attention.*"}},"encoding":"q{bits}g32:bf16"}},{{"encoding":"f32"}}]}}"#
    );
    Recipe::parse("t", &json).unwrap()
}

/// The values of every tensor, unit by unit.
fn values(weights: &Weights, unit: Unit) -> Vec<Vec<f32>> {
    let mut read = AlignedBuf::default();
    let tensors = &weights.checkpoint().unwrap().1.units[&unit].tensors;
    tensors
        .iter()
        .map(|tensor| {
            let (view, rows) = (&tensor.source, 0..tensor.rows);
            read_view(weights.checkpoint().unwrap().0, view, rows, tensor.cols, &mut read).unwrap();
            let mut values = vec![0.0; (tensor.rows * tensor.cols) as usize];
            widen(view.dtype, read.as_slice(), &mut values);
            values
        })
        .collect()
}

fn opened(dir: &Path) -> Weights {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    Weights::from_checkpoint(checkpoint, inventory)
}

/// A checkpoint with the decoded values of another in 32 bits.
fn write_decoded(weights: &Weights, dir: &Path) {
    let (checkpoint, inventory) = weights.checkpoint().unwrap();
    let mut held = Vec::new();
    for (unit, tensors) in &inventory.units {
        for (tensor, values) in tensors.tensors.iter().zip(values(weights, *unit)) {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            // By roles: a matrix of an expert may be a part of its tensor.
            let (name, shape) = match unit {
                Unit::Expert { layer, expert } => {
                    let role = tensor.role.name().trim_start_matches("expert.");
                    let name = format!("model.layers.{layer}.mlp.experts.{expert}.{role}.weight");
                    (name, vec![tensor.rows, tensor.cols])
                }
                _ => (tensor.source.tensor.clone(), tensor.source.shape.clone()),
            };
            held.push((name, Float::F32.into(), shape, bytes));
        }
    }
    let mut config = checkpoint.config().clone();
    config
        .as_object_mut()
        .unwrap()
        .remove("quantization_config");
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write(dir, &held);
}

/// The shards of a bundle.
fn shards(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = contents(dir).into_iter();
    let others = |name: &str| name.ends_with("json");
    files.filter(|(name, _)| !others(name)).collect()
}

fn case_of_bits(dir: &Path, bits: u8) -> Case {
    Case::new(dir, &recipe(bits), PlanOptions::default()).unwrap()
}

#[test]
fn decoding_on_the_way_gives_the_shards_of_the_decoded_checkpoint() {
    let schemes: [(Value, Encode); 3] =
        [(fp8_config(), fp8), (int4_config(), int4), (mlx_config(), mlx)];
    for (config, encode) in schemes {
        let dir = tempfile::tempdir().unwrap();
        let [source, decoded] = ["source", "decoded"].map(|name| dir.path().join(name));
        requantized("golden/qwen3_moe", &source, config, encode);
        write_decoded(&opened(&source), &decoded);
        let out = |name: &str| dir.path().join(name);
        // Three bits, which no source has: nothing is taken over.
        case_of_bits(&decoded, 3)
            .convert(&out("expected"), 1)
            .unwrap();
        for threads in [1, 2] {
            let case = case_of_bits(&source, 3);
            assert!(case.plan.repacked.is_empty());
            let found = out(&format!("found{threads}"));
            case.convert(&found, threads).unwrap();
            assert_eq!(shards(&found), shards(&out("expected")));
        }
    }
}

#[test]
fn codes_of_the_same_width_are_taken_over_and_mean_the_same() {
    let schemes: [(Value, Encode, &str); 2] =
        [(int4_config(), int4, "int4 g32"), (mlx_config(), mlx, "mlx q4 g32")];
    for (config, encode, label) in schemes {
        let dir = tempfile::tempdir().unwrap();
        let (source, out) = (dir.path().join("source"), dir.path().join("out"));
        requantized("golden/qwen3_moe", &source, config, encode);
        let case = case_of_bits(&source, 4);
        let first = |r: &Repacked| (r.source.clone(), r.encoding.clone());
        assert!(case.plan.repacked.len() > 10);
        let expected = (label.to_owned(), "q4 g32 bf16".to_owned());
        assert!(case.plan.repacked.iter().all(|r| first(r) == expected));
        let report = case.convert(&out, 2).unwrap();
        assert_eq!(report.repacked, case.plan.repacked);
        assert!(
            report
                .tensors
                .iter()
                .all(|t| t.relative_rmse == 0.0 && t.method.is_none())
        );
        assert!(
            report
                .experts
                .iter()
                .all(|e| e.relative_rmse == 0.0 && e.method.is_none())
        );
        holds_the_values_of(&out, &source, &case);
    }
}

/// Every value of a bundle is that of its source.
fn holds_the_values_of(bundle: &Path, source: &Path, case: &Case) {
    holds_some_of(bundle, source, case, |_| true);
}

/// Every value of some tensors.
pub(super) fn holds_some_of(
    bundle: &Path,
    source: &Path,
    case: &Case,
    some: impl Fn(Encoding) -> bool,
) {
    let (weights, bundle) = (opened(source), Bundle::open(bundle).unwrap());
    let mut stored = AlignedBuf::default();
    for unit in case.plan.units() {
        bundle.read(unit, &mut stored).unwrap();
        let layout = bundle.layout(unit).unwrap();
        let all = layout.tensors.iter().zip(values(&weights, unit));
        for (entry, expected) in all.filter(|(entry, _)| some(entry.encoding)) {
            let len = entry.byte_len().unwrap() as usize;
            let bytes = &stored.as_slice()[entry.offset as usize..][..len];
            let (rows, cols) = (entry.rows as usize, entry.cols as usize);
            let mut found = vec![0.0; rows * cols];
            let matrix = Matrix::new(entry.encoding, rows, cols, bytes).unwrap();
            matrix.dequantize(Backend::Scalar, 0..rows, &mut found);
            assert_eq!(found, expected, "{unit} {}", entry.role);
        }
    }
}

/// Weights of three values are kept in two bits, whatever number of bits a recipe wishes for.
#[test]
fn three_values_take_two_bits_and_lose_nothing() {
    for wished in ["q3", "q4", "t3s10"] {
        let dir = tempfile::tempdir().unwrap();
        let json = format!(
            r#"{{"name":"t","rules":[{{"match":{{"role":"embed_tokens"}},"encoding":"keep"}},
            {{"encoding":"{wished}"}}]}}"#
        );
        let source = fixture("golden/bitnet-packed");
        let recipe = Recipe::parse("t", &json).unwrap();
        let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
        let of = |encoding: &str| {
            let same = |r: &&Repacked| r.encoding == encoding && r.source == "ternary";
            let found = case.plan.repacked.iter().filter(same);
            found.map(|r| r.tensors).sum::<u64>()
        };
        // Six matrices of a layer have 128 columns, the down projection 192.
        assert_eq!([of("q2 g128 bf16"), of("q2 g64 bf16")], [18, 3], "{wished}");
        let out = dir.path().join("out");
        case.convert(&out, 2).unwrap();
        holds_the_values_of(&out, &source, &case);
    }
}

/// Blocks of GGUF that a rule asks for are those of the source, those of interleaved heads too.
#[test]
fn blocks_of_the_same_type_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"name":"t","rules":[{"match":{"role":"*norm*"},"encoding":"keep","optional":true},{"encoding":"q8_0"}]}"#;
    let (source, recipe) = (fixture("gguf/llama3-q8_0.gguf"), Recipe::parse("t", json).unwrap());
    let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
    let taken = case.plan.repacked.iter().map(|r| r.tensors).sum::<u64>();
    assert_eq!(taken, 22);
    let out = dir.path().join("out");
    let report = case.convert(&out, 2).unwrap();
    assert!(report.tensors.iter().all(|t| t.relative_rmse == 0.0));
    holds_the_values_of(&out, &source, &case);
}

/// The bias of a scale of 10000 leaves 16 bits: its rows are quantized instead, and the report
/// says so.
#[test]
fn codes_without_an_exact_bias_are_not_taken_over() {
    fn huge(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
        let mut held = int4(name, values, rows, cols);
        let mut scales = vec![0.01_f32; (rows * cols / 32) as usize];
        if name.contains("layers.2") && name.contains("experts.0.down") {
            scales[0] = 10000.0;
        }
        let mut bytes = vec![0; scales.len() * 2];
        narrow(Float::F16, &scales, &mut bytes);
        (held[1].1, held[1].3) = (Float::F16.into(), bytes);
        held
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    requantized("golden/qwen3_moe", &source, int4_config(), huge);
    let report = case_of_bits(&source, 4)
        .convert(&dir.path().join("out"), 1)
        .unwrap();
    assert!(
        report
            .tensors
            .iter()
            .all(|t| t.relative_rmse == 0.0 && t.method.is_none())
    );
    for experts in &report.experts {
        let broken = experts.layer == 2 && experts.tensor.contains("down");
        assert_eq!(experts.relative_rmse > 0.0, broken, "{}", experts.tensor);
        assert_eq!(experts.method, broken.then_some(Method::Search), "{}", experts.tensor);
    }
}

#[test]
fn a_code_that_is_no_number_is_refused_by_its_place() {
    fn broken(name: &str, values: &[f32], rows: u64, cols: u64) -> Vec<Held> {
        let mut held = fp8(name, values, rows, cols);
        if name.ends_with("layers.0.self_attn.k_proj.weight") {
            held[0].3[cols as usize + 3] = 0x7f;
        }
        held
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    requantized("golden/qwen3_moe", &source, fp8_config(), broken);
    let error = case_of_bits(&source, 4)
        .convert(&dir.path().join("out"), 1)
        .unwrap_err()
        .to_string();
    let expected = "tensor `model.layers.0.self_attn.k_proj.weight`: row 1, column 3: expected a \
                    finite weight, found NaN";
    assert!(error.ends_with(expected), "{error}");
}

/// A checkpoint of plain floats holds the values of another model.
fn holds_the_same(plain: &Path, source: &Path) {
    let (found, source) = (opened(plain), opened(source));
    assert!(found.checkpoint().unwrap().0.quantization().is_none());
    for unit in source.checkpoint().unwrap().1.units.keys() {
        let (found, expected) = (values(&found, *unit), values(&source, *unit));
        assert_eq!(found, expected, "{} {unit}", source.root().display());
    }
}

/// What is no bundle is exported as it is: every scheme, GGUF, and floats themselves.
#[test]
fn any_model_is_exported_as_plain_floats() {
    let golden = |case: &str| fixture(&format!("golden/{case}"));
    let coded = [
        "deepseek_v3-fp8",
        "kimi_k2-int4",
        "gpt_oss-mxfp4",
        "qwen2-gptq",
        "qwen2-awq",
        "qwen2-mlx",
        "bitnet-packed",
    ];
    let sources = coded.map(|case| (golden(case), true)).into_iter().chain([
        (fixture("gguf/llama3-q8_0.gguf"), true),
        (fixture("gguf/mixtral.gguf"), false),
        (golden("qwen3_5_moe"), false),
        (golden("qwen3_moe-fused-t"), false),
        (golden("qwen3_next-mlx"), true),
        (golden("qwen3_5_moe-mlx"), true),
        (golden("kimi_k2-mlx"), true),
        (golden("gpt_oss-mlx"), true),
        (golden("llama4-mlx"), true),
    ]);
    for (source, coded) in sources {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("hf");
        let options =
            ExportOptions { dtype: ExportDtype::Source, file_limit: 60_000, ..SMALL_EXPORT };
        let exported = export(&opened(&source), &out, ExportTarget::Hf, &options).unwrap();
        assert_eq!(!exported.unquantized.is_empty(), coded, "{}", source.display());
        assert!(exported.files.len() > 3);
        holds_the_same(&out, &source);
        assert_eq!(opened(&out).units().count(), opened(&source).units().count());
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(!config.contains("quantization"), "{config}");
        if let Some(base) = source.to_str().unwrap().strip_suffix("-mlx") {
            has_the_tensors_of(&out, Path::new(base));
        }
    }
}

/// An export of what MLX renamed, stacked and split has the names and shapes of the checkpoint that
/// transformers wrote, but for parts that mlx-lm leaves out.
fn has_the_tensors_of(out: &Path, base: &Path) {
    let shapes = |dir| -> BTreeMap<String, Vec<u64>> {
        let (dir, mut shapes) = (opened(dir), BTreeMap::new());
        let (checkpoint, inventory) = dir.checkpoint().unwrap();
        let extras = inventory
            .extras
            .values()
            .flat_map(|extra| extra.layout.tensors.iter());
        let extras: Vec<_> = extras.map(|tensor| &tensor.source.tensor).collect();
        for (name, info) in checkpoint.tensors() {
            if !extras.contains(&name) {
                shapes.insert(name.clone(), info.shape.clone());
            }
        }
        shapes
    };
    let (mut found, mut expected) = (shapes(out), shapes(base));
    if base.ends_with("qwen3_5_moe") {
        // Of which transformers reads experts alone as well as together.
        for shapes in [&mut found, &mut expected] {
            shapes.retain(|name, _| !name.contains(".mlp.experts."));
        }
    }
    assert!(found == expected, "{}: {:?}", base.display(), found.keys());
}

#[test]
fn an_export_is_of_plain_floats_and_says_so() {
    let cases = [("golden/gpt_oss-mxfp4", "golden/gpt_oss"), ("golden/deepseek_v3-fp8", "")];
    for (name, plain) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (made, out) = (dir.path().join("made"), dir.path().join("hf"));
        let json = r#"{"name":"t","rules":[{"encoding":"f32"}]}"#;
        let recipe = Recipe::parse("t", json).unwrap();
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        case.convert(&made, 1).unwrap();
        let options = SMALL_EXPORT;
        assert!(
            !export(&Weights::open(&made).unwrap(), &out, ExportTarget::Hf, &options)
                .unwrap()
                .unquantized
                .is_empty()
        );
        holds_the_same(&out, &fixture(name));
        let found = opened(&out);
        if !plain.is_empty() {
            let original = Checkpoint::open(&fixture(plain)).unwrap();
            let shapes = |c: &Checkpoint| -> Vec<_> {
                c.tensors()
                    .iter()
                    .map(|(n, t)| (n.clone(), t.shape.clone()))
                    .collect()
            };
            assert_eq!(shapes(found.checkpoint().unwrap().0), shapes(&original));
        }
    }
}
