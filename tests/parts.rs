//! What is not the text model: left out and listed, kept, or quantized, as the recipe says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{RawTensors, contents, digest, fixture, root};

use crate::harness::Scratch;

/// Checkpoints and the parts that they have besides the text model.
const CASES: [(&str, &[&str]); 4] = [
    ("qwen3_next", &["mtp"]),
    ("qwen3_5_moe", &["vision", "mtp"]),
    ("llama4", &["vision"]),
    ("deepseek_v3", &["mtp"]),
];

/// The part that a tensor of the cases is of, by its name alone.
fn part(name: &str) -> Option<&'static str> {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|b| name.starts_with(b));
    if begins(&["model.visual.", "vision_model.", "multi_modal_projector."]) {
        Some("vision")
    } else if begins(&["mtp."]) || name.starts_with("model.layers.3.") {
        Some("mtp")
    } else {
        None
    }
}

/// The tensors of each part, with values and bytes, from the header of the checkpoint file.
fn parts(scratch: &Scratch, case: &str) -> BTreeMap<&'static str, BTreeMap<String, [u64; 2]>> {
    let file = RawTensors::read(&scratch.path("ckpt/model.safetensors"));
    let mut found = BTreeMap::<_, BTreeMap<_, _>>::new();
    for (name, info) in file
        .header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
    {
        // Only DeepSeek's fourth layer is beyond the model's three.
        let own = case != "deepseek_v3" && name.starts_with("model.layers.");
        let Some(role) = part(name).filter(|_| !own) else { continue };
        let dims = info["shape"].as_array().unwrap();
        let values = dims.iter().map(|dim| dim.as_u64().unwrap()).product();
        let bytes = file.range(name).len() as u64;
        found
            .entry(role)
            .or_default()
            .insert(name.clone(), [values, bytes]);
    }
    found
}

/// A list of the manifest's or a report's: tensor and role of what has a role.
fn listed(ignored: &Value) -> BTreeMap<String, String> {
    let each = ignored.as_array().unwrap().iter();
    let each = each.filter(|i| !i["role"].is_null());
    each.map(|i| {
        assert!(i["reason"].as_str().unwrap().len() > 10, "{i}");
        (i["tensor"].as_str().unwrap().to_owned(), i["role"].as_str().unwrap().to_owned())
    })
    .collect()
}

fn manifest(scratch: &Scratch, bundle: &str) -> Value {
    let path = scratch.path(&format!("{bundle}/manifest.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Names of the tensors of a part's shard with their encodings.
fn stored(manifest: &Value, role: &str) -> BTreeMap<String, Value> {
    let shards = manifest["dense"].as_array().unwrap().iter();
    let mut shards = shards.filter(|shard| shard["unit"] == role);
    let Some(shard) = shards.next() else { return BTreeMap::new() };
    assert!(shards.next().is_none());
    let tensors = shard["tensors"].as_array().unwrap().iter();
    let entry = |t: &Value| (t["source"]["tensor"].as_str().unwrap().to_owned(), t.clone());
    tensors.map(entry).collect()
}

/// Converts, with sizes as planned, and verifies against the checkpoint.
#[track_caller]
fn convert(scratch: &Scratch, out: &str, options: &str) -> Value {
    let plan = scratch.json(&format!("plan ckpt {options}"));
    let report = scratch.json(&format!("convert ckpt -o {out} {options}"));
    let planned: BTreeSet<_> = plan["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap().to_owned(), f["size"].as_u64().unwrap()))
        .collect();
    let found = contents(&scratch.path(out)).into_iter();
    let found: BTreeSet<_> = found
        .map(|(name, bytes)| (name, bytes.len() as u64))
        .collect();
    assert_eq!(found, planned, "{options}");
    let verified = scratch.json(&format!("verify {out} --against ckpt"));
    assert_eq!(verified["verdict"], json!("holds"), "{options}: {}", verified["findings"]);
    assert_eq!(verified["bits_per_weight"], plan["summary"]["bits_per_weight"]);
    assert_eq!(
        scratch.json(&format!("inspect {out}"))["bits_per_weight"],
        verified["bits_per_weight"]
    );
    for key in ["ignored", "left_out", "fallbacks", "leftovers"] {
        assert_eq!(plan[key], report[key], "{options}: {key}");
    }
    report
}

#[test]
fn what_no_rule_names_is_left_out_and_listed() {
    for (case, roles) in CASES {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let parts = parts(&scratch, case);
        assert_eq!(parts.keys().copied().collect::<BTreeSet<_>>(), roles.iter().copied().collect());
        let report = convert(&scratch, "out", "--recipe q4");
        let expected: BTreeMap<_, _> = parts
            .iter()
            .flat_map(|(role, names)| names.keys().map(|name| (name.clone(), (*role).to_owned())))
            .collect();
        let manifest = manifest(&scratch, "out");
        assert_eq!(listed(&report["ignored"]), expected, "{case}");
        assert_eq!(listed(&manifest["checkpoint"]["ignored"]), expected, "{case}");
        let text = scratch.ok("plan ckpt --recipe q4").stdout;
        let rows = report["left_out"].as_array().unwrap();
        assert_eq!(rows.len(), roles.len());
        for row in rows {
            let role = row["role"].as_str().unwrap();
            let [values, bytes] = parts[role]
                .values()
                .fold([0, 0], |[v, b], [values, bytes]| [v + values, b + bytes]);
            assert_eq!(row["tensors"], json!(parts[role].len()), "{case} {role}");
            assert_eq!((&row["parameters"], &row["bytes"]), (&json!(values), &json!(bytes)));
            let line = format!("left out: {role}: {} tensors, ", parts[role].len());
            assert_eq!(text.matches(&line).count(), 1, "{text}");
            assert!(text.contains(row["reason"].as_str().unwrap()), "{text}");
            assert!(stored(&manifest, role).is_empty());
        }
        let exported = scratch.json("export out --to hf -o back");
        assert_eq!(listed(&exported["left_out"]), expected);
        let back = RawTensors::read(&scratch.path("back/model.safetensors"));
        assert!(expected.keys().all(|name| !back.header.contains_key(name)));
    }
}

#[test]
fn inspect_tells_the_parts_from_the_text_model() {
    for (case, roles) in CASES {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let parts = parts(&scratch, case);
        let text = scratch.ok("inspect ckpt").stdout;
        let report = scratch.json("inspect ckpt");
        let rows = report["parts"].as_array().unwrap();
        assert_eq!(rows.len(), roles.len());
        for row in rows {
            let role = row["role"].as_str().unwrap();
            let names: Vec<_> = parts[role].keys().collect();
            assert_eq!(row["tensors"], json!(names), "{case}");
            let values: u64 = parts[role].values().map(|[values, _]| values).sum();
            assert_eq!(row["parameters"], json!(values));
            let line = format!("  {role:16} ");
            assert!(text.contains(&line), "{text}");
        }
        let all = RawTensors::read(&scratch.path("ckpt/model.safetensors"));
        let values = |info: &Value| {
            let dims = info["shape"].as_array()?.iter();
            Some(dims.map(|dim| dim.as_u64().unwrap()).product::<u64>())
        };
        let all: u64 = all.header.values().filter_map(values).sum();
        let extra: u64 = rows
            .iter()
            .map(|row| row["parameters"].as_u64().unwrap())
            .sum();
        assert_eq!(report["parameters"]["total"], json!(all - extra), "{case}");
        scratch.ok("convert ckpt -o out --recipe q4");
        let bundle = scratch.json("inspect out");
        assert_eq!(bundle["parameters"], report["parameters"]);
        assert!(bundle.get("parts").is_none());
        let text = scratch.ok("inspect out").stdout;
        for role in roles {
            let line = format!("left out: {role}: {} tensors: ", parts[role].len());
            assert!(text.contains(&line), "{text}");
        }
    }
}

#[test]
fn what_is_kept_comes_back_byte_for_byte() {
    for (case, roles) in CASES {
        let scratch = Scratch::with(&format!("golden/{case}"));
        let parts = parts(&scratch, case);
        let sets: Vec<_> = roles
            .iter()
            .map(|role| format!("--set {role}=keep"))
            .collect();
        let report = convert(&scratch, "out", &format!("--recipe q4 {}", sets.join(" ")));
        assert!(report.get("left_out").is_none(), "{report}");
        let kept = manifest(&scratch, "out");
        for (role, names) in &parts {
            assert!(stored(&kept, role).keys().eq(names.keys()), "{case} {role}");
        }
        scratch.ok("export out --to hf --dtype source -o back");
        let (from, back) = (
            RawTensors::read(&scratch.path("ckpt/model.safetensors")),
            RawTensors::read(&scratch.path("back/model.safetensors")),
        );
        for name in parts.values().flat_map(BTreeMap::keys) {
            assert_eq!(from.header[name]["shape"], back.header[name]["shape"], "{name}");
            assert_eq!(from.data[from.range(name)], back.data[back.range(name)], "{name}");
        }
        // The text model is where it was, and what it was.
        scratch.ok("convert ckpt -o without --recipe q4");
        let without = manifest(&scratch, "without");
        let model = without["dense"].as_array().unwrap();
        assert_eq!(&kept["dense"].as_array().unwrap()[..model.len()], model);
        assert_eq!(kept["experts"], without["experts"]);
    }
}

#[test]
fn quantized_parts_keep_what_codes_cannot_hold() {
    for (case, roles) in CASES {
        for encoding in ["q4g32", "q2g128", "t3"] {
            let scratch = Scratch::with(&format!("golden/{case}"));
            let parts = parts(&scratch, case);
            let sets: Vec<_> = roles
                .iter()
                .map(|role| format!("--set {role}={encoding}"))
                .collect();
            let recipe = r#"{"name": "keep", "rules": [{"encoding": "keep"}]}"#;
            fs::write(scratch.path("keep.json"), recipe).unwrap();
            let report =
                convert(&scratch, "out", &format!("--recipe keep.json {}", sets.join(" ")));
            let manifest = manifest(&scratch, "out");
            let fallbacks = report["fallbacks"].as_array().unwrap();
            let fell: BTreeSet<_> = fallbacks
                .iter()
                .map(|f| f["tensor"].as_str().unwrap())
                .collect();
            let mut codes = 0;
            for (role, names) in &parts {
                let stored = stored(&manifest, role);
                assert!(stored.keys().eq(names.keys()), "{case} {role}");
                for (name, entry) in &stored {
                    let matrix = entry["source"]["shape"].as_array().unwrap().len() > 1;
                    let cols = entry["cols"].as_u64().unwrap();
                    let step = match encoding {
                        "q4g32" => 32,
                        "q2g128" => 128,
                        _ => 16,
                    };
                    let fits = cols % step == 0;
                    let coded =
                        !["f32", "bf16"].contains(&entry["encoding"]["kind"].as_str().unwrap());
                    assert_eq!(coded, matrix && fits, "{case} {name} {entry}");
                    assert_eq!(fell.contains(name.as_str()), matrix && !fits, "{case} {name}");
                    codes += u32::from(coded);
                }
            }
            // No matrix of Llama 4's small tower has 128 columns.
            assert!(codes > 0 || (case, encoding) == ("llama4", "q2g128"), "{case} {encoding}");
        }
    }
}

#[test]
fn rules_may_treat_each_part_and_tensor_otherwise() {
    let scratch = Scratch::with("golden/qwen3_5_moe");
    let parts = parts(&scratch, "qwen3_5_moe");
    let recipe = json!({"name": "mixed", "rules": [
        {"match": {"role": "mtp", "name": "*experts*"}, "encoding": "q4g32"},
        {"match": {"role": "mtp"}, "encoding": "leave_out"},
        {"match": {"role": "vision", "name": "*.merger.*"}, "encoding": "keep"},
        {"encoding": "q8g32", "fallback": ["keep"]},
    ]});
    fs::write(scratch.path("mixed.json"), recipe.to_string()).unwrap();
    let report = convert(&scratch, "out", "--recipe mixed.json");
    let manifest = manifest(&scratch, "out");
    let left = listed(&manifest["checkpoint"]["ignored"]);
    for (role, glob) in [("mtp", "experts"), ("vision", ".merger.")] {
        let stored = stored(&manifest, role);
        for name in parts[role].keys() {
            let here = name.contains(glob);
            assert_eq!(
                (stored.contains_key(name), left.contains_key(name)),
                (here, !here),
                "{name}"
            );
        }
        assert!(!stored.is_empty());
    }
    // Experts' matrices lie one under another; codes go along their own rows.
    let entry = &stored(&manifest, "mtp")["mtp.layers.0.mlp.experts.down_proj"];
    assert_eq!((&entry["rows"], &entry["cols"]), (&json!(6 * 64), &json!(16)));
    assert_eq!(report["rules"][1]["encoding"], json!("leave_out"));
    assert_eq!(report["rules"][1]["bytes"], json!(0));
    // The command line comes before the recipe.
    convert(&scratch, "none", "--recipe mixed.json --set mtp=leave_out --set vision=leave_out");
    let manifest = self::manifest(&scratch, "none");
    assert_eq!(manifest["dense"].as_array().unwrap().last().unwrap()["unit"], json!("head"));
}

#[test]
fn threads_change_nothing() {
    let scratch = Scratch::with("golden/qwen3_5_moe");
    let options = "--recipe q4 --set vision=keep --set mtp=q4g32";
    convert(&scratch, "one", &format!("{options} --threads 1"));
    convert(&scratch, "two", &format!("{options} --threads 2"));
    assert_eq!(digest(&scratch.path("one")), digest(&scratch.path("two")));
}

/// An indexer lies inside the layers of the text model, and no text goes through it here.
#[test]
fn a_calibrated_conversion_passes_indexers_by() {
    let scratch = Scratch::with("fixture-2m");
    let table = fs::read(root().join("configs/arch/qwen3_moe.json")).unwrap();
    let mut table: Value = serde_json::from_slice(&table).unwrap();
    table["extras"] = json!([{
        "role": "indexer", "containing": [".indexer."], "reason": "the runtime looks at every position",
    }]);
    fs::write(scratch.path("mine.json"), table.to_string()).unwrap();
    scratch.edit_tensors("ckpt/model.safetensors", |file| {
        for layer in 0..4 {
            let at = file.data.len();
            file.data
                .extend((0..64 * 128).flat_map(|i: u32| ((i % 977) as u16 + 0x3000).to_le_bytes()));
            let info =
                json!({"dtype": "F16", "shape": [64, 128], "data_offsets": [at, file.data.len()]});
            file.header
                .insert(format!("model.layers.{layer}.self_attn.indexer.wq_b.weight"), info);
        }
    });
    let text = fixture("text/evaluation.txt");
    let calibrate = format!("--calibrate {} --calibration-tokens 1024", text.display());
    let options = format!("--arch mine.json --bits 4 --set indexer=q4 {calibrate}");
    scratch.ok(&format!("convert ckpt -o out {options}"));
    let report = fs::read(scratch.path("out/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let indexers: Vec<_> = tensors.iter().filter(|t| t["role"] == "indexer").collect();
    assert_eq!(indexers.len(), 4);
    assert!(
        indexers
            .iter()
            .all(|t| t["method"] == "search" && t["relative_output_error"].is_null())
    );
    assert!(tensors.iter().any(|t| t["method"] == "gptq"));
    scratch.ok("verify out --against ckpt --arch mine.json");
    scratch.ok("run out --prompt x -n 4");
}

#[test]
fn what_cannot_be_is_refused() {
    let scratch = Scratch::with("golden/llama2");
    scratch.refused(
        "plan ckpt --bits 4 --group-size 32 --set lm_head=leave_out",
        "error: recipe `uniform q4g32`: rule 1 (lm_head) leaves out tensor `lm_head.weight` (lm_head), which the text \
         model needs; only vision, mtp and indexer can be left out",
    );
    scratch.refused(
        "plan ckpt --bits 4 --group-size 32 --set vision=keep",
        "error: recipe `uniform q4g32`: rule 1 (vision) matches nothing in this checkpoint",
    );
    let everything =
        json!({"name": "x", "rules": [{"match": {"role": "*"}, "encoding": "leave_out"}]});
    fs::write(scratch.path("x.json"), everything.to_string()).unwrap();
    scratch.refused(
        "plan ckpt --recipe x.json",
        "error: recipe `x`: rule 1 (*) leaves out tensor `model.embed_tokens.weight` (embed_tokens), which the text \
         model needs; only vision, mtp and indexer can be left out",
    );
    let table = fs::read(root().join("configs/arch/llama.json")).unwrap();
    let table: Value = serde_json::from_slice(&table).unwrap();
    let row = |role: &str| json!({"role": role, "beginnings": ["x."], "reason": "a test"});
    for (extras, expected) in [
        (json!([row("router")]), "extras: expected role vision, mtp or indexer, found router"),
        (json!([row("mtp"), row("mtp")]), "extras: expected one row for mtp, found two"),
    ] {
        let mut table = table.clone();
        table["extras"] = extras;
        fs::write(scratch.path("mine.json"), table.to_string()).unwrap();
        scratch.refused("plan ckpt --arch mine.json", &format!("error: mine.json: {expected}"));
    }
}
