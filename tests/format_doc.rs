//! `docs/FORMAT.md` says what the code does: its tables are read and compared, its dump is remade.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde_json::Value;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::TENSOR_ALIGNMENT;
use shardwright_format::manifest::{self, Manifest};
use shardwright_format::{ModelSpec, Role, Unit, pack};
use shardwright_quant::{Affine, Backend, Blocks, Encoding, Matrix, Trellis};
use shardwright_testing::{each_golden, fixture, root};

use crate::harness::Scratch;

/// What the dump shows: small, with experts, layers without them, and two encodings.
const EXAMPLE: &str = "golden/qwen3_moe";
const EXAMPLE_ARGS: &str =
    "--bits 4 --group-size 32 --method minmax --align 4KiB --set router=bf16";

fn document() -> String {
    fs::read_to_string(root().join("docs/FORMAT.md")).unwrap()
}

/// The cells of the table under a heading, header and rule left out.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = document();
    let section = text.split(heading).nth(1).unwrap();
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    let cell = |cell: &str| cell.trim().to_owned();
    rows.map(|row| row.trim_matches('|').split('|').map(cell).collect())
        .collect()
}

/// The `code` in a cell.
fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

fn list<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn example_spec(name: &str) -> ModelSpec {
    let checkpoint = Checkpoint::open(&fixture("golden").join(name)).unwrap();
    Inventory::new(&checkpoint, None).unwrap().spec
}

#[test]
fn constants_are_those_of_the_code() {
    let stated: BTreeMap<_, _> = table("\n## 11. Constants")
        .into_iter()
        .map(|row| (code(&row[0]).to_owned(), code(&row[1]).to_owned()))
        .collect();
    let mut limits = Vec::new();
    for name in ["MAX_LAYERS", "MAX_EXPERTS", "MAX_WIDTH"] {
        limits.push((name, stated[name].clone()));
    }
    let expected = [
        ("FORMAT", manifest::FORMAT.to_owned()),
        ("VERSION", manifest::VERSION.to_string()),
        ("MAX_DEPTH", manifest::MAX_DEPTH.to_string()),
        ("INDEX_LIMIT", shardwright_format::io::INDEX_LIMIT.to_string()),
        ("MANIFEST_FILE", manifest::MANIFEST_FILE.to_owned()),
        ("REPORT_FILE", manifest::REPORT_FILE.to_owned()),
        ("MANIFEST_HASH_OFFSET", "{\n  \"blake3\": \"".len().to_string()),
        ("DEFAULT_ALIGNMENT", manifest::DEFAULT_ALIGNMENT.to_string()),
        ("MIN_ALIGNMENT", manifest::ALIGNMENTS.start().to_string()),
        ("MAX_ALIGNMENT", manifest::ALIGNMENTS.end().to_string()),
        ("TENSOR_ALIGNMENT", TENSOR_ALIGNMENT.to_string()),
        ("DENSE_FILE_LIMIT", manifest::DENSE_FILE_LIMIT.to_string()),
        ("MAX_EXPERT_ENTRIES", manifest::MAX_EXPERT_ENTRIES.to_string()),
        ("MAX_CALIBRATION_LINES", manifest::MAX_CALIBRATION_LINES.to_string()),
        ("MIN_LINE", shardwright_format::text::MIN_LINE.to_string()),
        ("PACK_MAGIC", String::from_utf8_lossy(pack::PACK_MAGIC).into_owned()),
        ("PACK_VERSION", pack::PACK_VERSION.to_string()),
        ("PIECE_LEN", pack::PIECE_LEN.to_string()),
        ("BITS", list(&Affine::BITS)),
        ("GROUP_SIZES", list(&Affine::GROUP_SIZES)),
        ("TRELLIS_BITS", list(&Trellis::BITS)),
        ("STATE_BITS", list(&Trellis::STATE_BITS)),
        ("TILE_ROWS", Trellis::TILE_ROWS.to_string()),
        ("ROW_STEP", Trellis::ROW_STEP.to_string()),
        ("MIN_ROTATION", Trellis::MIN_ROTATION.to_string()),
        ("MAX_ROTATION", Trellis::MAX_ROTATION.to_string()),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().chain(limits).collect();
    let stated: BTreeMap<_, _> = stated
        .iter()
        .map(|(k, v)| (k.as_str(), v.clone()))
        .collect();
    assert_eq!(stated, expected);
}

/// The limits are the validator's: the stated one is accepted, one more is not.
#[test]
fn limits_are_those_of_the_validator() {
    let limit = |name: &str| {
        let rows = table("\n## 11. Constants");
        let row = rows.iter().find(|row| code(&row[0]) == name).unwrap();
        code(&row[1]).parse::<u32>().unwrap()
    };
    let spec = example_spec("llama2");
    let valid = |edit: &dyn Fn(&mut ModelSpec)| {
        let mut spec = spec.clone();
        edit(&mut spec);
        spec.validate().is_ok()
    };
    for over in [0, 1] {
        let width = limit("MAX_WIDTH") + over;
        let layers = (limit("MAX_LAYERS") + over) as usize;
        assert_eq!(valid(&|spec| spec.vocab_size = width), over == 0);
        assert_eq!(valid(&|spec| spec.hidden_size = width), over == 0);
        assert_eq!(valid(&|spec| spec.layers = vec![spec.layers[0].clone(); layers]), over == 0);
    }
    let json = serde_json::to_value(example_spec("qwen3_moe")).unwrap();
    for over in [0, 1] {
        let mut json = json.clone();
        json["layers"][0]["ffn"]["num_experts"] = (limit("MAX_EXPERTS") + over).into();
        let spec: ModelSpec = serde_json::from_value(json).unwrap();
        assert_eq!(spec.validate().is_ok(), over == 0);
    }
}

#[test]
fn the_table_of_tensors_names_the_roles_in_order() {
    let rows = table("\n## 14. ");
    let roles: Vec<_> = rows.iter().map(|row| code(&row[0])).collect();
    let expected: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
    assert_eq!(roles, expected);
}

/// Section 14 gives a golden model the tensors that the code gives it.
fn the_table_of_tensors_is_that_of_the_code(case: &str) {
    let rows = table("\n## 14. ");
    let spec = example_spec(case);
    for unit in spec.units() {
        let found: Vec<_> = spec
            .tensors(unit)
            .iter()
            .map(|t| (t.role.name().to_owned(), vec![t.rows, t.cols]))
            .collect();
        assert_eq!(stated_tensors(&rows, &spec, unit), found, "{unit}");
    }
}

each_golden!(the_table_of_tensors_is_that_of_the_code);

/// What the table gives a unit.
fn stated_tensors(rows: &[Vec<String>], spec: &ModelSpec, unit: Unit) -> Vec<(String, Vec<u64>)> {
    let json = serde_json::to_value(spec).unwrap();
    let layer = unit
        .layer()
        .map_or(Value::Null, |layer| json["layers"][layer as usize].clone());
    let shard = match unit {
        Unit::Embedding => "embedding",
        Unit::Layer(_) => "layer",
        Unit::Expert { .. } => "expert",
        Unit::Head => "head",
        Unit::Vision | Unit::Mtp | Unit::Indexer => unreachable!("{unit} in a model"),
    };
    let present = |row: &&Vec<String>| row[1] == shard && holds(&row[3], &json, &layer);
    let shape = |text: &str| {
        // The q and k norms have one shape per head and another across all heads.
        let mut choices = text.split(" or ");
        let first = choices.next().unwrap();
        let full = layer["mixer"]["qk_norm"] == "full";
        let chosen = choices.next().filter(|_| full).unwrap_or(first);
        let sides = chosen.trim_matches('`').trim_matches(['[', ']']).split(',');
        sides.map(|side| product(side, &json, &layer)).collect()
    };
    rows.iter()
        .filter(present)
        .map(|row| (code(&row[0]).to_owned(), shape(&row[2])))
        .collect()
}

/// A sum of products of numbers and of fields of the model or the layer, or of what section 14
/// derives from them.
fn product(text: &str, model: &Value, layer: &Value) -> u64 {
    let derived = |name: &str| {
        let latent = layer["mixer"]["kind"] == "latent";
        Some(match name {
            "q_width" if latent => "heads * qk_nope_head_dim + heads * qk_rope_head_dim",
            "q_width" if layer["mixer"]["output_gate"] == true => "2 * heads * head_dim",
            "o_width" if latent => "heads * v_head_dim",
            "q_width" | "o_width" => "heads * head_dim",
            "qk_head_dim" => "qk_nope_head_dim + qk_rope_head_dim",
            "conv_width" => "2 * key_heads * key_head_dim + value_heads * value_head_dim",
            _ => return None,
        })
    };
    let field = |name: &str| {
        let path = format!("/{}", name.replace('.', "/"));
        let places = [model, &layer["mixer"], &layer["ffn"]];
        let found = places
            .iter()
            .find_map(|place| place.pointer(&path)?.as_u64());
        found.unwrap_or_else(|| panic!("no field `{name}`"))
    };
    let factor = |name: &str| match (name.parse(), derived(name)) {
        (Ok(number), _) => number,
        (_, Some(text)) => product(text, model, layer),
        _ => field(name),
    };
    let term = |text: &str| {
        text.split('*')
            .map(|name| factor(name.trim()))
            .product::<u64>()
    };
    text.split('+').map(term).sum()
}

/// Whether a condition of the table's last column holds.
fn holds(condition: &str, model: &Value, layer: &Value) -> bool {
    let (mixer, ffn) = (&layer["mixer"], &layer["ffn"]);
    let shared = &ffn["shared_expert"];
    let (latent, ranked) = (mixer["kind"] == "latent", mixer["q_lora_rank"].is_u64());
    match condition.replace('`', "").as_str() {
        "always" => true,
        "never: left out" => false,
        "latent" => latent,
        "latent with q_lora_rank" => latent && ranked,
        "latent with q_lora_rank and bias" => latent && ranked && mixer["bias"] == true,
        "latent with bias" => latent && mixer["bias"] == true,
        "attention" => mixer["kind"] == "attention",
        "attention or latent" => mixer["kind"] == "attention" || latent,
        "attention, or latent without q_lora_rank" => {
            mixer["kind"] == "attention" || latent && !ranked
        }
        "attention with inner_norm" => mixer["inner_norm"] == true,
        kind @ ("delta_net" | "short_conv") => mixer["kind"] == kind,
        "projection is grouped" => mixer["projection"] == "grouped",
        "projection is split" => mixer["projection"] == "split",
        "o_bias, or latent with bias" => mixer["o_bias"] == true || latent && mixer["bias"] == true,
        "qk_norm is per_head, per_head_rotated or full" => ["per_head", "per_head_rotated", "full"]
            .iter()
            .any(|kind| mixer["qk_norm"] == *kind),
        kind @ ("dense" | "moe") => ffn["kind"] == kind,
        "dense, not ungated" => ffn["kind"] == "dense" && ffn["ungated"] != true,
        "dense with bias, not ungated" => ffn["bias"] == true && ffn["ungated"] != true,
        "dense with inner_norm" => ffn["inner_norm"] == true,
        "dense with bias" => ffn["kind"] == "dense" && ffn["bias"] == true,
        "shared_expert" => shared.is_object(),
        "shared_expert with gated" => shared["gated"] == true,
        "not no_input_norms" => layer["no_input_norms"] != true,
        "output_norms" => layer["output_norms"] == true,
        "not tie_word_embeddings" => model["tie_word_embeddings"] == false,
        flag @ ("qkv_bias" | "sinks") => mixer[flag] == true,
        flag @ ("router_bias" | "correction_bias" | "expert_bias") => ffn[flag] == true,
        other => panic!("a condition that no model is asked for: {other}"),
    }
}

/// The dump in section 12 is what the program writes. `SHARDWRIGHT_BLESS=1` remakes it.
#[test]
fn the_dump_is_of_a_real_bundle() {
    let scratch = Scratch::with(EXAMPLE);
    scratch.ok(&format!("convert ckpt -o made.bundle {EXAMPLE_ARGS}"));
    let read = |name: &str| fs::read(scratch.path("made.bundle").join(name)).unwrap();
    let bytes = read("manifest.json");
    let manifest = Manifest::from_bytes("manifest.json".as_ref(), &bytes).unwrap();
    let mut dump = format!("```\n$ shardwright convert fixtures/{EXAMPLE} -o made.bundle \\\n");
    writeln!(dump, "      {EXAMPLE_ARGS}\n\nmanifest.json").unwrap();
    hex(&mut dump, &bytes, 0, 15, "");
    writeln!(dump, "{:10}64 digits of the manifest's own hash", "").unwrap();
    hex(&mut dump, &bytes, 79, 15, "");
    for unit in [Unit::Layer(0), Unit::Expert { layer: 0, expert: 1 }] {
        dump_unit(&mut dump, &manifest, unit, &read);
    }
    dump.push_str("```\n");

    remade("dump", &dump);
}

/// What stands between the marks of `name` is `expected`; with `SHARDWRIGHT_BLESS`, it becomes so.
fn remade(name: &str, expected: &str) {
    let (start, end) = (
        format!("<!-- {name}: remade by tests/format_doc.rs -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let text = document();
    let (before, rest) = text.split_once(&start).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    if std::env::var_os("SHARDWRIGHT_BLESS").is_some() {
        let text = format!("{before}{start}{expected}{end}{after}");
        fs::write(root().join("docs/FORMAT.md"), text).unwrap();
    } else {
        assert_eq!(found, expected, "remake it with SHARDWRIGHT_BLESS=1");
    }
}

/// Section 12.2 is what its own words say, and its values are those of the code. States are read
/// here bit by bit, the rotation is summed up from the matrix that the butterflies come to.
#[test]
fn the_worked_trellis_is_that_of_the_code() {
    const ROWS: usize = 8;
    const COLS: usize = 16;
    let encoding = Encoding::Trellis(Trellis::new(2, 10).unwrap());
    let code = |i: u32| (i * i).wrapping_mul(2_654_435_761).to_be_bytes()[0];
    let mut bytes: Vec<u8> = (1..=32).map(code).collect();
    bytes.extend((0..ROWS).flat_map(|r| [0x80 - 16 * r as u8, 0x3d]));
    let mut values = [0.0; ROWS * COLS];
    let matrix = Matrix::new(encoding, ROWS, COLS, &bytes).unwrap();
    matrix.dequantize(Backend::detect(), 0..ROWS, &mut values);
    let mut text = "```\n".to_owned();
    hex(&mut text, &bytes, 0, 32, "codes");
    hex(&mut text, &bytes, 32, 16, "scales");
    for row in [0, ROWS - 1] {
        let state = |col: usize| {
            let bit = |k: usize| u32::from(bytes[2 * col + k / 8] >> (k % 8) & 1);
            (0..10).map(|i| bit((2 * row + i) % 16) << i).sum::<u32>()
        };
        let value = |state: u32| {
            let product = state.wrapping_mul(0x8E9E_37D1).to_le_bytes();
            (product.into_iter().map(f32::from).sum::<f32>() - 510.0) / 128.0
        };
        let states: Vec<u32> = (0..COLS).map(state).collect();
        let scale =
            f32::from_bits(u32::from_le_bytes([0, 0, bytes[32 + 2 * row], bytes[33 + 2 * row]]));
        let found = &values[row * COLS..(row + 1) * COLS];
        for (col, found) in found.iter().enumerate() {
            let term = |(k, s): (usize, &u32)| match (col & k).count_ones() % 2 {
                0 => value(*s),
                _ => -value(*s),
            };
            let sum: f32 = states.iter().enumerate().map(term).sum();
            let sign = if "--++-+--+----++-".as_bytes()[col] == b'-' { -1.0 } else { 1.0 };
            assert!((sign * scale * sum / 4.0 - found).abs() < 1e-6, "row {row}, column {col}");
        }
        let line = |cells: Vec<String>| cells[..8].join(" ");
        writeln!(text, "\nrow {row}, scale {scale}, columns 0 to 7").unwrap();
        writeln!(text, "states  {}", line(states.iter().map(|s| format!("{s:10}")).collect()))
            .unwrap();
        let cells = states.iter().map(|s| format!("{:10}", value(*s))).collect();
        writeln!(text, "values  {}", line(cells)).unwrap();
        writeln!(text, "w       {}", line(found.iter().map(|w| format!("{w:10.6}")).collect()))
            .unwrap();
    }
    text.push_str("```\n");
    remade("trellis", &text);
}

/// Section 12.5 gives what the code makes of the bytes that its rule gives, and section 5.4 says how many these are.
#[test]
fn the_blocks_are_those_of_the_code() {
    let stated: Vec<_> = table("\n### 5.4 Blocks")
        .iter()
        .map(|row| (code(&row[0]).to_owned(), [1, 2, 4].map(|cell| row[cell].clone())))
        .collect();
    let of = |blocks: Blocks| {
        let form = blocks.form();
        (blocks.name().to_owned(), [form.values, form.group, form.bytes].map(|n| n.to_string()))
    };
    assert_eq!(stated, Blocks::ALL.map(of));
    let mut text = "```\n".to_owned();
    for blocks in Blocks::ALL {
        let form = blocks.form();
        let byte = |k: u32| (k * k).wrapping_mul(2_654_435_761).to_be_bytes()[0];
        let mut bytes: Vec<u8> = (1..=form.bytes as u32).map(byte).collect();
        // 0.0625 and 0.125 as f16.
        for (at, high) in form.halves.iter().zip([0x2c, 0x30]) {
            bytes[*at..*at + 2].copy_from_slice(&[0, high]);
        }
        let mut values = vec![0.0; form.values];
        let matrix = Matrix::new(Encoding::Ggml(blocks), 1, form.values, &bytes).unwrap();
        matrix.dequantize(Backend::detect(), 0..1, &mut values);
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writeln!(text, "{} BLAKE3 {}", blocks.name(), blake3::hash(&raw).to_hex()).unwrap();
        for start in [0, form.values - 4] {
            let four = values[start..start + 4].iter();
            let four: Vec<_> = four.map(|v| format!("{:08x}", v.to_bits())).collect();
            writeln!(text, "columns {start:3} on  {}", four.join(" ")).unwrap();
        }
    }
    text.push_str("```\n");
    remade("blocks", &text);
}

/// Section 12.6 lists the points that the code has.
#[test]
fn the_points_are_those_of_the_code() {
    let mut text = "```\n".to_owned();
    for blocks in Blocks::ALL {
        let Some(kind) = blocks.form().points else { continue };
        let file = format!("crates/quant/src/ggml/grids/{}.bin", blocks.name());
        let bytes = fs::read(root().join(file)).unwrap();
        let words: Vec<_> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| format!("{:04x}", u16::from_le_bytes(*word)))
            .collect();
        assert!(kind.columns == 4 || kind.levels == [8.0, 25.0, 43.0]);
        writeln!(text, "{}, {} points", blocks.name(), words.len()).unwrap();
        for line in words.chunks(32) {
            writeln!(text, "{}", line.concat()).unwrap();
        }
    }
    text.push_str("```\n");
    remade("points", &text);
}

/// Section 12.3 gives what the code makes of the bytes that its rule gives.
#[test]
fn the_larger_trellis_codes_are_those_of_the_code() {
    let mut text = "```\n".to_owned();
    for (rows, cols, bits, state_bits, places) in [
        (270, 48, 3, 16, &[(0, 0), (255, 44), (256, 0), (269, 44)][..]),
        (8, 256, 2, 12, &[(0, 0), (7, 252)]),
    ] {
        let encoding = Encoding::Trellis(Trellis::new(bits, state_bits).unwrap());
        let parts = encoding.parts(rows, cols).unwrap();
        let code = |i: u64| ((i * i * 2_654_435_761) >> 24) as u8;
        let mut bytes: Vec<u8> = (1..=parts.weight).map(code).collect();
        bytes.extend((0..rows as u16).flat_map(|r| (0x3c00 + r).to_le_bytes()));
        let (rows, cols) = (rows as usize, cols as usize);
        let matrix = Matrix::new(encoding, rows, cols, &bytes).unwrap();
        let mut values = vec![0.0; rows * cols];
        matrix.dequantize(Backend::Scalar, 0..rows, &mut values);
        let raw: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
        writeln!(text, "[{rows}, {cols}], {bits} bits, states of {state_bits}").unwrap();
        writeln!(text, "BLAKE3  {}", blake3::hash(&raw)).unwrap();
        for (row, col) in places {
            let four = &values[row * cols + col..][..4];
            let four: Vec<_> = four
                .iter()
                .map(|v| format!("{:08x}", v.to_bits()))
                .collect();
            writeln!(text, "row {row:3}, columns {col:3} on  {}", four.join(" ")).unwrap();
        }
    }
    text.push_str("```\n");
    remade("vectors", &text);
}

/// The first bytes of each part of the unit's first tensors, and what follows the unit.
fn dump_unit(dump: &mut String, manifest: &Manifest, unit: Unit, read: &dyn Fn(&str) -> Vec<u8>) {
    let (file, extent, tensors, len) = match unit {
        Unit::Expert { layer, expert } => {
            let (entry, extent) = manifest.expert(layer, expert).unwrap();
            (&entry.file, extent, &entry.tensors, entry.len)
        }
        unit => {
            let shard = manifest.dense.iter().find(|s| s.unit == unit).unwrap();
            (&shard.file, shard.extent(), &shard.tensors, shard.len)
        }
    };
    let bytes = read(file);
    let end = extent.offset + len;
    writeln!(dump, "\n{file}: {unit}, bytes {} to {end}", extent.offset).unwrap();
    for tensor in tensors.iter() {
        let parts = tensor.encoding.parts(tensor.rows, tensor.cols).unwrap();
        let (role, shape) = (tensor.role, format!("[{}, {}]", tensor.rows, tensor.cols));
        let mut at = extent.offset + tensor.offset;
        for (name, len) in
            [("", parts.weight), (" scales", parts.scales), (" biases", parts.biases)]
        {
            let name = if parts.scales > 0 && name.is_empty() { " codes" } else { name };
            if len > 0 {
                let shape = if name.len() < 7 { &shape } else { "" };
                hex(dump, &bytes, at, 16, &format!("{role}{name} {shape}"));
                at += len;
            }
        }
    }
    let padded = end.next_multiple_of(manifest.alignment);
    if padded > end {
        hex(dump, &bytes, end, 8, &format!("padding, {} bytes of zero", padded - end));
    }
}

/// Lines of sixteen bytes: offset, digits, and a label or the text they are.
fn hex(dump: &mut String, bytes: &[u8], offset: u64, len: usize, label: &str) {
    let start = offset as usize;
    for (line, bytes) in (0..).zip(bytes[start..start + len].chunks(16)) {
        let digits: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let digits = digits.join(" ");
        let plain = |b: &u8| if (b' '..=b'~').contains(b) { char::from(*b) } else { '.' };
        let text: String = bytes.iter().map(plain).collect();
        let label = if label.is_empty() { &text } else { label };
        let line = format!("{:08x}  {digits:<48}  {label}", start + line * 16);
        writeln!(dump, "{}", line.trim_end()).unwrap();
    }
}
