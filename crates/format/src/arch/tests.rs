use std::path::{Path, PathBuf};

use super::*;
use crate::Unit;
use crate::checkpoint::CheckpointWeights;
use crate::io::AlignedBuf;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/golden")
        .join(case)
}

fn open(dir: &Path) -> CheckpointWeights {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let inventory = Inventory::new(&checkpoint, None).unwrap();
    CheckpointWeights::new(checkpoint, inventory)
}

fn cases() -> Vec<Value> {
    let json = std::fs::read(golden("cases.json")).unwrap();
    let cases: Value = serde_json::from_slice(&json).unwrap();
    cases["cases"].as_array().unwrap().clone()
}

#[test]
fn every_builtin_table_parses_and_is_for_its_name() {
    for (name, json) in BUILTIN {
        let arch = Arch::parse(Path::new(name), json).unwrap();
        assert_eq!(arch.model_type(), *name);
    }
}

#[test]
fn every_golden_maps_completely() {
    for case in cases() {
        let name = case["case"].as_str().unwrap();
        let weights = open(&golden(name));
        let inventory = weights.inventory();
        let units: Vec<Unit> = inventory.spec.units().collect();
        assert_eq!(inventory.units.len(), units.len(), "{name}");
        let mut buf = AlignedBuf::default();
        for unit in units {
            weights.read(unit, &mut buf).unwrap();
            assert_eq!(weights.layout(unit).unwrap().len, buf.len() as u64, "{name}: {unit}");
        }
    }
}
