//! `docs/FORMAT.md` says what the code does: its tables are read and compared, its dump is remade.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde_json::Value;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::layout::TENSOR_ALIGNMENT;
use shardwright_format::manifest::{self, Manifest};
use shardwright_format::{ModelSpec, Role, Unit};
use shardwright_quant::Affine;

use crate::harness::{Scratch, fixture, root};

/// What the dump shows: small, with experts, layers without them, and two encodings.
const EXAMPLE: &str = "golden/qwen3_moe";
const EXAMPLE_ARGS: &str =
    "--bits 4 --group-size 32 --method minmax --align 4KiB --set router=bf16";
const DUMP_START: &str = "<!-- dump: remade by tests/format_doc.rs -->\n";
const DUMP_END: &str = "<!-- end of dump -->\n";

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
        ("MANIFEST_FILE", manifest::MANIFEST_FILE.to_owned()),
        ("REPORT_FILE", manifest::REPORT_FILE.to_owned()),
        ("MANIFEST_HASH_OFFSET", "{\n  \"blake3\": \"".len().to_string()),
        ("DEFAULT_ALIGNMENT", manifest::DEFAULT_ALIGNMENT.to_string()),
        ("MIN_ALIGNMENT", manifest::ALIGNMENTS.start().to_string()),
        ("MAX_ALIGNMENT", manifest::ALIGNMENTS.end().to_string()),
        ("TENSOR_ALIGNMENT", TENSOR_ALIGNMENT.to_string()),
        ("DENSE_FILE_LIMIT", manifest::DENSE_FILE_LIMIT.to_string()),
        ("MAX_CALIBRATION_LINES", manifest::MAX_CALIBRATION_LINES.to_string()),
        ("MIN_LINE", shardwright_format::text::MIN_LINE.to_string()),
        ("BITS", list(&Affine::BITS)),
        ("GROUP_SIZES", list(&Affine::GROUP_SIZES)),
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

/// Section 4.1 gives every golden model the tensors that the code gives it.
#[test]
fn the_table_of_tensors_is_that_of_the_code() {
    let rows = table("\n### 4.1 ");
    let roles: Vec<_> = rows.iter().map(|row| code(&row[0])).collect();
    let expected: Vec<_> = Role::ALL.iter().map(|role| role.name()).collect();
    assert_eq!(roles, expected, "roles, in order");
    let mut units = 0;
    for case in fs::read_dir(fixture("golden")).unwrap() {
        let case = case.unwrap();
        if !case.path().is_dir() {
            continue;
        }
        let name = case.file_name().into_string().unwrap();
        let spec = example_spec(&name);
        for unit in spec.units() {
            let found: Vec<_> = spec
                .tensors(unit)
                .iter()
                .map(|t| (t.role.name().to_owned(), vec![t.rows, t.cols]))
                .collect();
            assert_eq!(stated_tensors(&rows, &spec, unit), found, "{name}: {unit}");
            units += 1;
        }
    }
    assert!(units > 50, "{units} units compared");
}

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

/// `a * b`, each a number or a field of the model or the layer.
fn product(text: &str, model: &Value, layer: &Value) -> u64 {
    let factor = |name: &str| {
        name.parse().unwrap_or_else(|_| {
            let path = format!("/{}", name.replace('.', "/"));
            let places = [model, &layer["mixer"], &layer["ffn"]];
            places
                .iter()
                .find_map(|place| place.pointer(&path)?.as_u64())
                .unwrap()
        })
    };
    text.split('*').map(|name| factor(name.trim())).product()
}

/// Whether a condition of the table's last column holds.
fn holds(condition: &str, model: &Value, layer: &Value) -> bool {
    let (mixer, ffn) = (&layer["mixer"], &layer["ffn"]);
    let shared = &ffn["shared_expert"];
    match condition.replace('`', "").as_str() {
        "always" => true,
        "qkv_bias" => mixer["qkv_bias"] == true,
        "o_bias" => mixer["o_bias"] == true,
        "qk_norm is per_head or full" => mixer["qk_norm"] != "none",
        "ffn is dense" | "dense" => ffn["kind"] == "dense",
        "dense with bias" => ffn["kind"] == "dense" && ffn["bias"] == true,
        "ffn is moe" => ffn["kind"] == "moe",
        "shared_expert" => shared.is_object(),
        "shared_expert with gated" => shared["gated"] == true,
        "not tie_word_embeddings" => model["tie_word_embeddings"] == false,
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

    let text = document();
    let (before, rest) = text.split_once(DUMP_START).unwrap();
    let (found, after) = rest.split_once(DUMP_END).unwrap();
    if std::env::var_os("SHARDWRIGHT_BLESS").is_some() {
        let text = format!("{before}{DUMP_START}{dump}{DUMP_END}{after}");
        fs::write(root().join("docs/FORMAT.md"), text).unwrap();
    } else {
        assert_eq!(found, dump, "remake it with SHARDWRIGHT_BLESS=1");
    }
}

/// The first bytes of each part of the unit's first tensors, and what follows the unit.
fn dump_unit(dump: &mut String, manifest: &Manifest, unit: Unit, read: &dyn Fn(&str) -> Vec<u8>) {
    let (file, extent, tensors, len) = match unit {
        Unit::Expert { layer, expert } => {
            let entry = manifest.experts.iter().find(|e| e.layer == layer).unwrap();
            (&entry.file, entry.extent(expert).unwrap(), &entry.tensors, entry.len)
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
