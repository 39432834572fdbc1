//! Headers of published models at their true size: what `inspect` counts is what their makers say.

use std::fs;

use serde_json::Value;
use shardwright_testing::fixture;

use crate::harness::{Scratch, python};

/// A skeleton of a model as `ckpt/`.
fn skeleton(model: &str) -> Scratch {
    let scratch = Scratch::new();
    let made = python("fixtures/make_skeleton.py", &[model, "ckpt"], &scratch.path(""));
    assert!(made.status.success(), "{model}: {}", String::from_utf8_lossy(&made.stderr));
    scratch
}

fn published() -> serde_json::Map<String, Value> {
    let text = fs::read(fixture("skeletons/published.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// `"116.83B"` and what one more in its last digit would add.
fn figure(text: &str) -> (f64, f64) {
    let (digits, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "B" => 1e9,
        "T" => 1e12,
        other => panic!("unit {other}"),
    };
    let decimals = digits
        .split_once('.')
        .map_or(0, |(_, decimals)| decimals.len());
    (digits.parse::<f64>().unwrap() * unit, unit / 10_f64.powi(decimals as i32))
}

/// What `inspect` counted, by the names that `published.json` uses.
struct Counted(Value);

impl Counted {
    fn role(&self, list: &str, name: &str) -> u64 {
        let rows = self.0[list].as_array().into_iter().flatten();
        let row = rows.into_iter().find(|row| row["role"] == name);
        row.map_or(0, |row| row["parameters"].as_u64().unwrap())
    }

    fn count(&self, what: &str) -> u64 {
        let (total, active) = (&self.0["parameters"]["total"], &self.0["parameters"]["active"]);
        let (total, active) = (total.as_u64().unwrap(), active.as_u64().unwrap());
        let embedding = self.role("roles", "embed_tokens");
        match what {
            "language" => total,
            "language and vision" => total + self.role("parts", "vision"),
            "vision" | "mtp" => self.role("parts", what),
            "weights" => total + self.role("parts", "vision") + self.role("parts", "mtp"),
            "active" => active,
            "active but embedding" => active - embedding,
            "active layers" => active - embedding - self.role("roles", "lm_head"),
            other => panic!("nothing counts `{other}`"),
        }
    }
}

#[test]
#[ignore = "needs python3"]
fn parameters_are_those_published() {
    for (model, facts) in published() {
        let scratch = skeleton(&model);
        let counted = Counted(scratch.json("inspect ckpt"));
        for stated in [&facts["total"], &facts["active"]] {
            let (expected, step) = figure(stated["published"].as_str().unwrap());
            let found = counted.count(stated["counts"].as_str().unwrap()) as f64;
            let near = (found - expected).abs() < step;
            assert!(near || stated["differs"].is_string(), "{model}: {stated}: {found}");
        }
        for what in ["weights", "language", "vision", "mtp"] {
            if let Some(exact) = facts["exact"][what].as_u64() {
                assert_eq!(counted.count(what), exact, "{model}: {what}");
            }
        }
    }
}
