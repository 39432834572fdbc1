//! `compare`: reports of `verify --json` side by side.

use std::fs;
use std::sync::OnceLock;

use serde_json::json;
use shardwright_testing::{copy_dir, fixture};

use crate::harness::Scratch;

/// The fixture at 4 and 2 bits, and reports of both: made once, copied for each test.
fn reports() -> Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    let made = MADE.get_or_init(make);
    let scratch = Scratch::new();
    copy_dir(&made.path(""), &scratch.path(""));
    scratch
}

fn make() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::copy(fixture("text/evaluation.txt"), scratch.path("text.txt")).unwrap();
    for bits in [4, 2] {
        scratch.ok(&format!("convert ckpt -o q{bits} --bits {bits}"));
        let verify = format!("verify q{bits} --against ckpt --text text.txt --windows 2 --json");
        let report = scratch.ok(&verify).stdout;
        fs::write(scratch.path(&format!("q{bits}.json")), report).unwrap();
    }
    scratch
}

#[test]
fn reports_side_by_side() {
    let scratch = reports();
    fs::write(
        scratch.path("peers.jsonl"),
        "{\"name\": \"a peer\", \"bits_per_weight\": 3.5, \"kld_mean\": 0.05}\n",
    )
    .unwrap();
    let page = "--html page.html --beside peers.jsonl";
    let compared = scratch.json(&format!("compare q4.json q2.json {page}"));
    assert_eq!(compared["reports"][1]["name"], json!("q2"));
    let difference = &compared["differences"][0];
    assert!(difference["kld_ratio"].as_f64().unwrap() > 1.0, "{difference}");
    assert!(difference["kld_mean"]["sigmas"].as_f64().unwrap() > 2.0, "{difference}");
    assert_eq!(compared["drift"].as_array().unwrap().len(), 5);
    assert_eq!(compared["warnings"], json!([]));
    let html = fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("a peer") && html.contains("</html>"));
    let text = scratch.ok("compare q4.json q2.json").stdout;
    for block in ["====== Divergence ======", "====== Differences from q4 ======", "worse, "] {
        assert!(text.contains(block), "{block}: {text}");
    }
    let verify = "verify q4 --against ckpt --text text.txt --windows 1 --quiet";
    scratch.ok(&format!("{verify} --html own.html --beside q2.json --beside peers.jsonl"));
    let html = fs::read_to_string(scratch.path("own.html")).unwrap();
    assert!(html.contains("Divergence against bits per weight") && html.contains("a peer"));
}

#[test]
fn reports_that_are_not_comparable_are_a_warning() {
    let scratch = reports();
    scratch.edit_json("q2.json", |report| {
        report["text"]["blake3"] = json!("00".repeat(32));
        report["bundle"]["checkpoint_blake3"] = json!("11".repeat(32));
    });
    let compared = scratch.json("compare q4.json q2.json");
    assert_eq!(
        compared["warnings"],
        json!([
            "q2 and q4: not comparable: made from different checkpoints",
            "q2 and q4: not comparable: different texts",
        ])
    );
}

#[test]
fn files_that_are_no_reports() {
    let scratch = Scratch::new();
    fs::write(scratch.path("a.json"), "{\"verdict\": 1}").unwrap();
    fs::write(scratch.path("b.jsonl"), "not json\n").unwrap();
    scratch.refused(
        "compare nowhere.json a.json",
        "error: nowhere.json: No such file or directory (os error 2)",
    );
    scratch.refused(
        "compare a.json a.json",
        "error: a.json: expected a JSON report of verify, found other JSON or none: expected value \
         at line 1 column 13",
    );
    assert_eq!(scratch.run("compare a.json").code, Some(2));
}
