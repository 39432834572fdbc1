//! Tests of tables, configurations and inventories on the golden checkpoints and spoiled copies.

mod configs;
mod goldens;
mod refusals;
mod tables;
mod tensors;

use std::fs;
use std::path::Path;

use shardwright_testing::golden;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::testing::{Described, described, message, write_zeros};

/// A copy of a golden checkpoint, its configuration and tensors changed, its values zero.
fn copy(
    case: &str,
    config: impl FnOnce(&mut Value),
    tensors: impl FnOnce(&mut Vec<Described>),
) -> TempDir {
    let original = Checkpoint::open(&golden(case)).unwrap();
    let mut changed = (original.config().clone(), described(&original));
    config(&mut changed.0);
    tensors(&mut changed.1);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), changed.0.to_string()).unwrap();
    write_zeros(&dir.path().join("model.safetensors"), &changed.1);
    dir
}

fn inventory(dir: &Path) -> Result<Inventory> {
    Inventory::new(&Checkpoint::open(dir)?, None)
}

/// What a copy of a golden checkpoint with other values in its configuration is refused with.
fn config_refusal(case: &str, changes: &[(&str, Value)]) -> String {
    let change = |config: &mut Value| {
        for (key, value) in changes {
            config[*key] = value.clone();
        }
    };
    let dir = copy(case, change, |_| {});
    message(dir.path(), inventory(dir.path()))
}

/// What a copy of a golden checkpoint with other tensors is refused with.
fn tensor_refusal(case: &str, change: impl FnOnce(&mut Vec<Described>)) -> String {
    let dir = copy(case, |_| {}, change);
    message(dir.path(), inventory(dir.path()))
}

/// The model that a golden's configuration gives after a change.
fn spec(case: &str, change: impl FnOnce(&mut Value)) -> ModelSpec {
    let dir = copy(case, change, |_| {});
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    Arch::of_checkpoint(&checkpoint)
        .unwrap()
        .spec(&checkpoint)
        .unwrap()
}

/// Takes `keys` out of a configuration.
fn without(config: &mut Value, keys: &[&str]) {
    let members = config.as_object_mut().unwrap();
    for key in keys {
        members.remove(*key);
    }
}
