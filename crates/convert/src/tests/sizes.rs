//! What is written is what was planned, whatever the threads.

use shardwright_format::Bundle;

use super::{CHECKPOINTS, Case, contents, fixture};
use crate::{ConversionReport, PlanOptions, Recipe};

#[test]
fn every_file_has_its_planned_size() {
    for name in CHECKPOINTS {
        let moe = if name.contains("moe") || name.contains("mixtral") {
            "moe-mixed"
        } else {
            "dense-mixed"
        };
        for (recipe, alignment) in [("q4", 16384), ("q3", 4096), (moe, 65536)] {
            let recipe = Recipe::builtin(recipe).unwrap();
            let options = PlanOptions { alignment, ..PlanOptions::default() };
            let case = Case::new(&fixture(name), &recipe, options).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("b");
            let report = case.convert(&out, 2).unwrap();
            let mut planned: Vec<_> = case
                .plan
                .files
                .iter()
                .map(|f| (f.path.clone(), f.size))
                .collect();
            planned.sort();
            let written = contents(&out);
            let found: Vec<_> = written
                .iter()
                .map(|(path, b)| (path.clone(), b.len() as u64))
                .collect();
            assert_eq!(planned, found, "{name} {}", recipe.name);
            let total: u64 = found.iter().map(|(_, size)| size).sum();
            assert_eq!(case.plan.summary.bundle_bytes, total);
            let read: ConversionReport = serde_json::from_slice(&written["report.json"]).unwrap();
            assert_eq!(read, report);
            Bundle::open(&out).unwrap();
        }
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    for name in ["golden/qwen2_moe", "golden/qwen3_moe-fused-t", "golden/llama3"] {
        let recipe = Recipe::builtin("q4").unwrap();
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let one = dir.path().join("one");
        case.convert(&one, 1).unwrap();
        for threads in [2, 5] {
            let many = dir.path().join(threads.to_string());
            case.convert(&many, threads).unwrap();
            assert!(contents(&one) == contents(&many), "{name} {threads}");
        }
    }
}

#[test]
fn hashes_are_those_of_the_bytes() {
    for name in CHECKPOINTS {
        let recipe = Recipe::builtin("q2").unwrap();
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        case.convert(&out, 2).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let files = contents(&out);
        for file in &bundle.manifest().files {
            let bytes = &files[&file.path];
            assert_eq!(bytes.len() as u64, file.size, "{}", file.path);
            assert_eq!(file.blake3, blake3::hash(bytes).into(), "{name} {}", file.path);
        }
        for file in &bundle.manifest().checkpoint.files {
            let bytes = std::fs::read(fixture(name).join(&file.name)).unwrap();
            assert_eq!(file.blake3, blake3::hash(&bytes).into(), "{name} {}", file.name);
        }
        for shard in &bundle.manifest().dense {
            let bytes = &files[&shard.file][shard.offset as usize..][..shard.len as usize];
            assert_eq!(shard.blake3, blake3::hash(bytes).into(), "{name} {}", shard.unit);
        }
        for shards in &bundle.manifest().experts {
            for expert in 0..shards.blake3.len() as u32 {
                let extent = shards.extent(expert).unwrap();
                let bytes = &files[&shards.file][extent.offset as usize..][..extent.len as usize];
                assert_eq!(extent.blake3, blake3::hash(bytes).into());
            }
        }
    }
}
