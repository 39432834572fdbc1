//! Every refusal, with its words.

use std::path::Path;

use shardwright_format::io::partial_path;
use shardwright_quant::Float;

use super::{Case, Tiny};
use crate::{PlanOptions, Recipe};

fn tiny(dir: &Path, tiny: &Tiny, recipe: &str) -> Case {
    tiny.write(dir);
    Case::new(dir, &Recipe::builtin(recipe).unwrap(), PlanOptions::default()).unwrap()
}

fn failure(source: &Tiny, recipe: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let case = tiny(&dir.path().join("source"), source, recipe);
    let out = dir.path().join("out");
    let error = case.convert(&out, 2).unwrap_err().to_string();
    assert!(!out.exists());
    let file = dir
        .path()
        .join("source/model.safetensors")
        .display()
        .to_string();
    error.replace(&file, "FILE")
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (tensor, index, value, expected) in [
        (
            "down_proj",
            3 * 128 + 7,
            f32::NAN,
            "tensor `model.layers.0.mlp.down_proj.weight`: row 3, column 7: expected a finite weight, found NaN",
        ),
        (
            "embed_tokens",
            63 * 64 + 63,
            f32::INFINITY,
            "tensor `model.embed_tokens.weight`: row 63, column 63: expected a finite weight, found inf",
        ),
        (
            "model.norm",
            9,
            f32::NEG_INFINITY,
            "tensor `model.norm.weight`: row 0, column 9: expected a finite weight, found -inf",
        ),
    ] {
        let source = Tiny { edits: vec![(tensor, index, value)], ..Tiny::default() };
        assert_eq!(failure(&source, "q4"), format!("FILE: {expected}"));
    }
}

#[test]
fn scales_beyond_f16_advise_bf16() {
    let source = Tiny { edits: vec![("gate_proj", 64 * 5 + 1, 1e9)], ..Tiny::default() };
    let error = failure(&source, "q4");
    assert!(
        error.starts_with("FILE: tensor `model.layers.0.mlp.gate_proj.weight`: row 5, column 0: "),
        "{error}"
    );
    assert!(error.ends_with("is too large for a scale or bias in f16; use bf16 scales"), "{error}");
    let source = Tiny { dtype: Float::Bf16, ..source };
    let dir = tempfile::tempdir().unwrap();
    tiny(&dir.path().join("source"), &source, "q4")
        .convert(&dir.path().join("out"), 1)
        .unwrap();
}

#[test]
fn outputs_in_the_way_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let case = tiny(&dir.path().join("source"), &Tiny::default(), "q4");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let exists = format!("{}: already exists; remove it or choose another name", out.display());
    assert_eq!(case.convert(&out, 1).unwrap_err().to_string(), exists);
    assert_eq!(case.resume(&out).unwrap_err().to_string(), exists);
    std::fs::remove_dir(&out).unwrap();
    let partial = partial_path(&out);
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("something"), "").unwrap();
    assert_eq!(
        case.convert(&out, 1).unwrap_err().to_string(),
        format!("{}: is what an interrupted run left", partial.display())
    );
}

#[test]
fn an_output_inside_the_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let case = tiny(&source, &Tiny::default(), "q4");
    std::fs::create_dir(source.join("deep")).unwrap();
    std::os::unix::fs::symlink(source.join("deep"), dir.path().join("link")).unwrap();
    for out in ["source/out", "source/deep/out", "source/new/out", "link/out", "link/../out"] {
        let out = dir.path().join(out);
        let expected = format!(
            "{}: lies inside the checkpoint {}, whose files a bundle copies; choose another place",
            out.display(),
            source.display()
        );
        assert_eq!(case.convert(&out, 1).unwrap_err().to_string(), expected);
        assert!(!partial_path(&out).exists());
    }
    case.convert(&dir.path().join("source-out"), 1).unwrap();
}

#[test]
fn a_destination_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let case = tiny(&dir.path().join("source"), &Tiny::default(), "q4");
    std::fs::write(dir.path().join("file"), "").unwrap();
    let out = dir.path().join("file/out");
    let error = case.convert(&out, 1).unwrap_err().to_string();
    assert!(error.contains("Not a directory"), "{error}");
}

#[test]
fn a_full_disk_is_told_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = tiny(&dir.path().join("source"), &Tiny::default(), "q4");
    case.plan.cost.peak_disk = 1 << 60;
    let error = case
        .convert(&dir.path().join("out"), 1)
        .unwrap_err()
        .to_string();
    let expected = format!(
        "{}: no room: expected {} bytes available, found ",
        dir.path().display(),
        1u64 << 60
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(!partial_path(&dir.path().join("out")).exists());
}
