//! The three checks of `verify`, its limits and its reports. `bad_bundle` has what it must find.

use std::fs;

use serde_json::{Value, json};
use shardwright_format::manifest::{Calibration, Hash, LineHashes, Manifest};
use shardwright_testing::fixture;

use crate::harness::Scratch;

const TEXT: &str = "--against ckpt --text text.txt --windows 4";

/// The fixture, its bundle and the first part of the evaluation text.
fn scratch(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok(&format!("convert ckpt -o out {options}"));
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    scratch
}

#[test]
fn a_sound_bundle_holds() {
    let scratch = scratch("--bits 4");
    assert_eq!(scratch.json("verify out")["verdict"], json!("holds"));
    let report = scratch.json(&format!("verify out {TEXT} --html report.html"));
    assert_eq!(report["verdict"], json!("holds"));
    let plan = scratch.json("plan ckpt --bits 4");
    assert_eq!(report["bits_per_weight"], plan["summary"]["bits_per_weight"]);
    let divergence = &report["divergence"];
    let figure = |name: &str| {
        divergence[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(divergence["tokens"], json!(4 * 255));
    assert!(figure("kld_mean") > 0.0 && figure("kld_mean") < figure("kld_p99"));
    let order = ["kld_median", "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max"];
    assert!(
        order
            .windows(2)
            .all(|pair| figure(pair[0]) <= figure(pair[1])),
        "{divergence}"
    );
    assert!(figure("same_top") > 0.5 && figure("same_top") <= 1.0);
    assert!(figure("kld_mean_se") > 0.0 && figure("ppl") > 1.0 && figure("ppl_original") > 1.0);
    let html = fs::read_to_string(scratch.path("report.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("</html>"));
    for outside in ["http://", "https://", "src=", "@import"] {
        let loads = html
            .replace("http://www.w3.org/2000/svg", "")
            .contains(outside);
        assert!(!loads, "the page loads something: {outside}");
    }
}

#[test]
fn unquantized_weights_do_not_diverge() {
    let scratch = scratch("--bits 8 --set *=keep");
    let report = scratch.json(&format!("verify out {TEXT}"));
    assert_eq!(report["divergence"]["kld_max"], json!(0.0));
    assert_eq!(report["divergence"]["same_top"], json!(1.0));
    assert_eq!(report["divergence"]["ppl"], report["divergence"]["ppl_original"]);
}

#[test]
fn limits_decide_the_exit_code() {
    let scratch = scratch("--bits 3");
    for (limit, code) in [
        ("--max-kld 10", 0),
        ("--max-kld 0.0001", 1),
        ("--max-kld-p99 0.0001", 1),
        ("--min-same-top 0.1", 0),
        ("--min-same-top 0.999", 1),
        ("--max-ppl-ratio 3", 0),
        ("--max-ppl-ratio 0.5", 1),
    ] {
        let ran = scratch.run(&format!("verify out {TEXT} {limit} --quiet"));
        assert_eq!(ran.code, Some(code), "{limit}: {ran:?}");
        assert_eq!(
            ran.stdout.contains("====== Findings ======"),
            code == 1,
            "{limit}: {}",
            ran.stdout
        );
    }
    assert_eq!(scratch.run("verify out --max-bpw 3 --quiet").code, Some(1));
    assert_eq!(scratch.run("verify out --max-bpw 4 --quiet").code, Some(0));
    assert_eq!(
        scratch
            .run("verify out --against ckpt --max-rmse 0.001 --quiet")
            .code,
        Some(1)
    );
}

#[test]
fn a_verdict_survives_a_reader_that_goes_away() {
    let scratch = scratch("--bits 4");
    let ran = scratch.shell("shardwright verify out --max-bpw 1 | true; exit ${PIPESTATUS[0]}");
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn what_cannot_be_verified() {
    let scratch = scratch("--bits 4");
    fs::write(scratch.path("short.txt"), "too short").unwrap();
    scratch.refused(
        "verify out --against ckpt --text nowhere.txt",
        "error: nowhere.txt: No such file or directory (os error 2)",
    );
    scratch.refused(
        "verify out --against ckpt --text short.txt",
        "error: text: expected at least 256 tokens, one window, found 4",
    );
    fs::remove_file(scratch.path("out/tokenizer.json")).unwrap();
    let ran = scratch.run(&format!("verify out {TEXT} --quiet"));
    assert_eq!(ran.code, Some(1), "a missing file is a finding: {ran:?}");
}

#[test]
fn any_model_is_judged_by_any_other() {
    let scratch = scratch("--bits 4");
    let alone = scratch.json("verify ckpt");
    assert_eq!((&alone["verdict"], &alone["integrity"]), (&json!("holds"), &json!(null)));
    assert!(alone["structure"]["weights"].as_u64().unwrap() > 1_000_000);
    // A bundle may be the original; what is judged by it was not made from it.
    let report = scratch.json("verify ckpt --against out --text text.txt --windows 2");
    assert_eq!(report["verdict"], json!("holds"));
    assert!(report["divergence"]["kld_mean"].as_f64().unwrap() > 0.0);
    scratch.ok("verify out --against out --quiet");
    scratch.ok("convert ckpt -o other --bits 6");
    let ran = scratch.run("verify out --against other --quiet");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let expected = "source of the bundle: expected model.safetensors of";
    assert!(ran.stdout.contains(expected), "{ran:?}");
    scratch.ok("verify out --against other --other-source --quiet");
}

#[test]
fn several_candidates_are_a_ladder() {
    let scratch = scratch("--bits 4");
    scratch.ok("convert ckpt -o three --bits 3");
    let ladder = scratch.json(&format!("verify out three ckpt {TEXT} --html page.html"));
    assert_eq!(ladder["verdict"], json!("holds"));
    let alone = scratch.json(&format!("verify three {TEXT}"));
    assert_eq!(ladder["candidates"][1]["divergence"], alone["divergence"]);
    assert_eq!(ladder["candidates"][2]["divergence"]["kld_max"], json!(0.0));
    assert_eq!(ladder["original"]["name"], json!("ckpt"));
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(page.contains("MiB on disk") && page.contains("3 quantizations of ckpt"));
    let ran = scratch.run(&format!("verify out three {TEXT} --max-bpw 4 --quiet"));
    assert_eq!(ran.code, Some(1), "the limit is each candidate's: {ran:?}");
    assert!(ran.stdout.contains("verdict: "), "{ran:?}");
}

#[test]
fn unlike_tokenizers_are_refused() {
    let scratch = scratch("--bits 4");
    let path = scratch.path("out/tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let piece = vocab
        .iter()
        .find(|(_, id)| **id == json!(300))
        .unwrap()
        .0
        .clone();
    vocab.remove(&piece);
    vocab.insert("another piece".to_owned(), json!(300));
    json["model"]["merges"] = json!([]);
    let other = scratch.path("other");
    scratch.ok("export out --to hf -o other");
    fs::write(other.join("tokenizer.json"), json.to_string()).unwrap();
    let ran = scratch.run("verify other --against ckpt --text text.txt --windows 2 --quiet");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let expected = "error: tokenizers differ: token 300 is ";
    assert!(ran.stderr.starts_with(expected) && ran.stderr.contains("another piece"), "{ran:?}");
}

#[test]
fn a_tokenizer_that_cuts_or_fills_up_changes_nothing() {
    let scratch = scratch("--bits 4");
    let path = scratch.path("ckpt/tokenizer.json");
    let run = || scratch.json("run ckpt --prompt Once -n 4 --ignore-eos")["tokens"].clone();
    let before = run();
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    fs::write(&path, json.to_string()).unwrap();
    assert_eq!(run(), before);
}

#[test]
fn what_lies_beside_the_model_decides_nothing() {
    let scratch = Scratch::with("fixture-2m");
    fs::write(scratch.path("ckpt/USAGE.md"), "v1").unwrap();
    scratch.ok("convert ckpt -o out");
    fs::write(scratch.path("ckpt/USAGE.md"), "v2").unwrap();
    fs::create_dir_all(scratch.path("out/.cache/huggingface")).unwrap();
    fs::write(scratch.path("out/.gitattributes"), "*.bin filter=lfs").unwrap();
    let report = scratch.json("verify out --against ckpt");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("USAGE.md: copy") && notes.contains(".gitattributes"), "{notes}");
}

#[test]
fn a_config_written_anew_is_the_same_config() {
    let scratch = scratch("--bits 4");
    let rewrite = |name: &str, edit: &dyn Fn(&mut Value)| {
        let path = scratch.path(&format!("ckpt/{name}"));
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(&path, serde_json::to_string(&value).unwrap()).unwrap();
    };
    for name in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        rewrite(name, &|_| ());
    }
    let report = scratch.json("verify out --against ckpt");
    assert_eq!(report["verdict"], json!("holds"), "{report}");
    assert!(
        report["notes"]
            .to_string()
            .contains("config.json: the checkpoint's own says the same")
    );
    rewrite("generation_config.json", &|value| value["eos_token_id"] = json!(7));
    let ran = scratch.run("verify out --against ckpt");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("generation_config.json: copy"), "{ran:?}");
}

#[test]
fn text_from_a_bundle_steers_no_terminal() {
    let scratch = scratch("--bits 4");
    let path = scratch.path("out/manifest.json");
    let mut manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    "x\n\nverdict: holds\n\u{1b}[8m\u{202e}".clone_into(&mut manifest.generator);
    fs::write(&path, manifest.to_bytes()).unwrap();
    for command in ["verify out", "inspect out", "verify out --against ckpt"] {
        let ran = scratch.run(command);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        let printed = ran.stdout + &ran.stderr;
        assert!(!printed.contains(['\u{1b}', '\u{202e}']), "{printed}");
        assert!(printed.contains("x\\n\\nverdict: holds\\n\\u{1b}[8m\\u{202e}"), "{printed}");
    }
}

#[test]
fn an_exported_bundle_is_a_checkpoint() {
    let scratch = scratch("--bits 4");
    scratch.ok("export out --to hf -o back");
    let (one, two) = (scratch.json("inspect ckpt"), scratch.json("inspect back"));
    assert_eq!(one["parameters"], two["parameters"]);
    // The exported values are the bundle's own: both give the same logits.
    let run = |model: &str| -> Value { scratch.json(&format!("run {model} --prompt This -n 8")) };
    assert_eq!(run("out")["tokens"], run("back")["tokens"]);
    scratch.ok("export out --to hf -o narrow --dtype source");
    assert_eq!(scratch.json("inspect narrow")["tensor_bytes"], one["tensor_bytes"]);
}

/// Says in the manifest what the bundle was calibrated with, the manifest's own hash made right.
fn calibrate(scratch: &Scratch, text: &str) {
    let path = scratch.path("out/manifest.json");
    let mut manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    manifest.calibration = Some(Calibration {
        text_blake3: Some(blake3::hash(text.as_bytes()).into()),
        tokens: 2048,
        window: 256,
        statistics_blake3: None,
        line_hashes: LineHashes::from_text(text),
    });
    let report = scratch.path("out/report.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    told["calibration"] = json!({"tokens": 2048, "window": 256});
    fs::write(&report, told.to_string()).unwrap();
    let entry = manifest.files.iter_mut().find(|f| f.path == "report.json");
    let (entry, told) = (entry.unwrap(), told.to_string());
    (entry.size, entry.blake3) = (told.len() as u64, blake3::hash(told.as_bytes()).into());
    fs::write(&path, manifest.to_bytes()).unwrap();
}

#[test]
fn the_calibration_text_is_refused_and_its_lines_are_a_warning() {
    let scratch = scratch("--bits 4");
    let text = fs::read_to_string(scratch.path("text.txt")).unwrap();
    calibrate(&scratch, &text);
    scratch.refused(
        &format!("verify out {TEXT}"),
        "error: text.txt: expected a text that the bundle was not calibrated with, found its \
         calibration text: it would be judged on what it was fitted to",
    );
    fs::write(scratch.path("text.txt"), format!("{text}\nand one more line than that")).unwrap();
    let report = scratch.json(&format!("verify out {TEXT} --html page.html"));
    assert_eq!(report["verdict"], json!("holds"));
    let shared = &report["calibration"]["shared_lines"];
    assert_eq!(shared["shared"].as_u64().unwrap() + 1, shared["compared"].as_u64().unwrap());
    assert_eq!(report["warnings"][0]["kind"], json!("overlap"));
    assert!(
        report["divergence"]["noise_floor"]["kld_mean"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(page.contains("lines of the calibration text in this one"));
}

/// Flips the lowest bit of the first code of an expert, and makes every hash right again.
fn flip_a_code(scratch: &Scratch) {
    scratch.edit_bytes("out/experts/layer-002.bin", |bytes| bytes[0] ^= 1);
    let path = scratch.path("out/manifest.json");
    let mut manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    let bytes = fs::read(scratch.path("out/experts/layer-002.bin")).unwrap();
    let shards = &mut manifest.experts[2];
    shards.blake3[0] = Hash::from(blake3::hash(&bytes[..shards.len as usize]));
    let file = manifest
        .files
        .iter_mut()
        .find(|file| file.path == "experts/layer-002.bin");
    file.unwrap().blake3 = Hash::from(blake3::hash(&bytes));
    fs::write(&path, manifest.to_bytes()).unwrap();
}

#[test]
fn shards_are_made_again_from_the_original() {
    let scratch = scratch("--bits 4");
    let all = scratch.json("verify out --against ckpt --reproduce all");
    let found = &all["reproduction"];
    let units = |found: &Value| found["units"].as_array().unwrap().clone();
    // Embedding, four dense parts, head and 32 experts.
    assert_eq!((found["of"].as_u64(), units(found).len()), (Some(38), 38), "{found}");
    assert_eq!((&found["differing"], &all["verdict"]), (&json!([]), &json!("holds")));
    let three = scratch.json("verify out --against ckpt --reproduce 3");
    let seed = three["reproduction"]["seed"].as_u64().unwrap();
    let again =
        scratch.json(&format!("verify out --against ckpt --reproduce 3 --reproduce-seed {seed}"));
    assert_eq!(again["reproduction"], three["reproduction"]);
    assert_eq!(units(&three["reproduction"]).len(), 3);
    flip_a_code(&scratch);
    scratch.ok("verify out --against ckpt");
    let ran = scratch.run("verify out --against ckpt --reproduce all");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let finding = "layer 2 expert 0: bytes, made again from the original: expected ";
    assert!(ran.stdout.contains(finding), "{}", ran.stdout);
    let note = "38 of 38 shards were made again from the original: 37 have the same bytes";
    assert!(ran.stdout.contains(note), "{}", ran.stdout);
}

#[test]
fn what_cannot_be_made_again_says_why() {
    let scratch = scratch("--bits 4");
    scratch.refused(
        "verify ckpt --against ckpt --reproduce",
        "error: --reproduce: ckpt: expected the directory of a bundle",
    );
    let path = scratch.path("out/manifest.json");
    let mut manifest = Manifest::from_bytes(&path, &fs::read(&path).unwrap()).unwrap();
    let own = manifest.generator.clone();
    "shardwright 0.0.1".clone_into(&mut manifest.generator);
    fs::write(&path, manifest.to_bytes()).unwrap();
    let ran = scratch.run("verify out --against ckpt --reproduce");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr
            .contains("was made by shardwright 0.0.1, this is shardwright "),
        "{ran:?}"
    );
    manifest.generator = own;
    fs::write(&path, manifest.to_bytes()).unwrap();
    calibrate(&scratch, "a text that went through the model");
    let refused = "error: --reproduce: out: its codes depend on a text that went through the model";
    let ran = scratch.run("verify out --against ckpt --reproduce");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.starts_with(refused), "{ran:?}");
}

#[test]
fn what_a_cache_of_fewer_bits_costs_is_measured() {
    let scratch = scratch("--bits 4");
    let kld = |types: &str| {
        let line = format!("verify ckpt --against ckpt --text text.txt --windows 2 {types}");
        let report = scratch.json(&line);
        (report["divergence"]["kld_mean"].as_f64().unwrap(), report["text"]["cache"].clone())
    };
    assert_eq!(kld(""), (0.0, Value::Null));
    let (f16, types) = kld("--cache-type-k f16 --cache-type-v f16");
    assert_eq!(types, json!({"k": "f16", "v": "f16"}));
    let (bf16, _) = kld("--cache-type-k bf16 --cache-type-v bf16");
    assert!(0.0 < f16 && f16 < bf16 && bf16 < 1e-2, "{f16} and {bf16}");
}

#[test]
fn the_type_of_a_cache_is_priced_alone_on_every_model() {
    let scratch = scratch("--bits 4");
    let line = "verify out --against ckpt --text text.txt --windows 3";
    let price = |line: &str, k: &str, v: &str| {
        let report = scratch.json(&format!("{line} --cache-type-k {k} --cache-type-v {v}"));
        report["cache"].clone()
    };
    assert!(scratch.json(line).get("cache").is_none());
    let (q8, q4) = (price(line, "q8_0", "q8_0"), price(line, "q4_0", "q4_0"));
    // Four layers, two heads of 32, keys and values.
    assert_eq!((&q8["k"], &q8["position_bytes"]), (&json!("q8_0"), &json!(4 * 2 * 2 * 34)));
    assert_eq!((&q4["v"], &q4["position_bytes"]), (&json!("q4_0"), &json!(4 * 2 * 2 * 18)));
    assert_eq!(q4["position_bytes_f16"], json!(4 * 2 * 2 * 64));
    let kld = |price: &Value, side: &str| price[side]["kld_mean"].as_f64().unwrap();
    for side in ["original", "candidate"] {
        let (q8, q4) = (kld(&q8, side), kld(&q4, side));
        assert!(0.0 < q8 && q8 < q4 && q4 < 0.5, "{side}: {q8} and {q4}");
    }
    // Alone means: the same whatever else is judged beside, and of the original against itself.
    let itself = price("verify ckpt --against ckpt --text text.txt --windows 3", "q4_0", "q4_0");
    assert_eq!(itself["original"], q4["original"]);
    assert_eq!(itself["candidate"], q4["original"]);
    let types = "--cache-type-k q8_0 --cache-type-v q4_0 --html page.html";
    let shown = scratch.ok(&format!("{line} {types}")).stdout;
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(shown.contains("====== KV cache: keys in q8_0, values in q4_0 ======"), "{shown}");
    assert!(shown.contains("416 bytes per position, in f16 1024"), "{shown}");
    assert!(page.contains("keys in q8_0, values in q4_0: 416 bytes per position"), "{page}");
    let both = "verify out ckpt --against ckpt --text text.txt --windows 3";
    let ladder = scratch.ok(&format!("{both} {types}")).stdout;
    let page = fs::read_to_string(scratch.path("page.html")).unwrap();
    let section = ladder.split("====== KV cache").nth(1).unwrap();
    assert!(
        section.contains("\noriginal ")
            && section.contains("\nout ")
            && section.contains("\nckpt "),
        "{ladder}"
    );
    assert!(page.contains("<h2>KV cache</h2>") && page.contains("<td>ckpt</td>"), "{page}");
}
