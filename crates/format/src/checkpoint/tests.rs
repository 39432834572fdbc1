use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use shardwright_quant::Float;

use super::testing::{message, raw_file, write_zeros};
use super::*;
use crate::io::AlignedBuf;
use crate::unit::SourceView;

/// A directory with an empty configuration.
fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_NAME), "{}").unwrap();
    dir
}

/// Writes a checkpoint file of F16 vectors of two zeros.
fn file(dir: &TempDir, name: &str, tensors: &[&str]) {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|name| ((*name).to_owned(), Float::F16, vec![2]))
        .collect();
    write_zeros(&dir.path().join(name), &tensors);
}

fn index(dir: &TempDir, weight_map: &str) {
    let json = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{weight_map}}}"#);
    fs::write(dir.path().join(INDEX_NAME), json).unwrap();
}

fn refusal(dir: &TempDir) -> String {
    message(dir.path(), Checkpoint::open(dir.path()))
}

fn file_names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint
        .files()
        .iter()
        .map(|file| file.name.as_str())
        .collect()
}

/// Weights that training left apart are named with what makes whole ones of them.
#[test]
fn weights_that_training_left_apart_are_refused() {
    let (adapter, pruned) =
        ("merge it, with merge_and_unload of peft", "call prune.remove of torch.nn.utils");
    for (name, next) in [
        ("q_proj.lora_A.weight", adapter),
        ("embed_tokens.lora_embedding_A", adapter),
        ("embed_tokens.lora_embedding_B.default", adapter),
        ("q_proj.lora_magnitude_vector", adapter),
        ("lm_head.modules_to_save.default.weight", adapter),
        ("lm_head.original_module.weight", adapter),
        ("layers.0._flat_param", "save the model whole, with FULL_STATE_DICT"),
        ("q_proj.weight_orig", pruned),
        ("q_proj.weight_mask", pruned),
    ] {
        let dir = directory();
        file(&dir, SINGLE_NAME, &[name]);
        let told = refusal(&dir);
        let place = format!("DIR/model.safetensors: tensor `{name}`: ");
        assert!(told.starts_with(&place) && told.contains(next), "{told}");
    }
}

#[test]
fn without_an_index_every_file_counts() {
    let dir = directory();
    file(&dir, "b.safetensors", &["y", "x"]);
    file(&dir, "a.safetensors", &["z"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(file_names(&checkpoint), ["a.safetensors", "b.safetensors"]);
    let header_len = checkpoint.files()[1].header_len;
    let (offset, len) = (header_len + 4, 4);
    let x = TensorInfo { file: 1, dtype: Float::F16, shape: vec![2], offset, len, decoder: None };
    assert_eq!(checkpoint.tensors()["x"], x);
    assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), ["x", "y", "z"]);
}

#[test]
fn model_safetensors_is_the_whole_model_when_there_is_no_index() {
    let dir = directory();
    file(&dir, SINGLE_NAME, &["a"]);
    file(&dir, "consolidated.safetensors", &["b"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(file_names(&checkpoint), [SINGLE_NAME]);
    let reason = "weights that are not part of model.safetensors".to_owned();
    let skipped = Skipped { path: "consolidated.safetensors".to_owned(), reason };
    assert_eq!(checkpoint.skipped().unwrap(), [skipped]);
}

#[test]
fn files_beside_an_index_are_skipped_with_a_reason() {
    let dir = directory();
    file(&dir, "one.safetensors", &["a"]);
    file(&dir, "two.safetensors", &["b"]);
    index(&dir, r#"{"a":"one.safetensors"}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(file_names(&checkpoint), ["one.safetensors"]);
    let reason = "weights that are not part of model.safetensors.index.json".to_owned();
    let skipped = Skipped { path: "two.safetensors".to_owned(), reason };
    assert_eq!(checkpoint.skipped().unwrap(), [skipped]);
}

#[test]
fn missing_parts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(refusal(&dir), "DIR/config.json: No such file or directory (os error 2)");
    fs::write(dir.path().join(CONFIG_NAME), "[]").unwrap();
    assert_eq!(refusal(&dir), "DIR/config.json: expected a JSON object");
    fs::write(dir.path().join(CONFIG_NAME), "{").unwrap();
    let eof = "DIR/config.json: EOF while parsing an object at line 1 column 1";
    assert_eq!(refusal(&dir), eof);
    fs::write(dir.path().join(CONFIG_NAME), "{}").unwrap();
    assert_eq!(refusal(&dir), "DIR: expected .safetensors files, found none");
}

#[test]
fn a_file_that_the_index_names_must_exist() {
    let dir = directory();
    index(&dir, r#"{"a":"one.safetensors"}"#);
    assert_eq!(
        refusal(&dir),
        "DIR/one.safetensors: named by model.safetensors.index.json: no such file; fetch it, or \
         remove the index if it is of another save"
    );
}

#[test]
fn an_index_stays_in_its_directory() {
    for name in [
        "../one.safetensors",
        "/one.safetensors",
        "x\\\\..\\\\one",
        "",
        "c:one",
        "a/../b",
        "a//b",
        "a/",
    ] {
        let dir = directory();
        index(&dir, &format!(r#"{{"a":"{name}"}}"#));
        let name = name.replace("\\\\", "\\");
        assert_eq!(
            refusal(&dir),
            format!(
                "DIR/model.safetensors.index.json: tensor `a`: expected a file inside the \
                 checkpoint, found `{name}`"
            )
        );
    }
}

#[test]
fn malformed_indexes_are_refused() {
    let dir = directory();
    index(&dir, r#"{"a":"one.safetensors","a":"two.safetensors"}"#);
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors.index.json: index: `a` appears twice at line 1 column 68"
    );
    index(&dir, "{}");
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors.index.json: index: expected tensors in `weight_map`, found none"
    );
    fs::write(dir.path().join(INDEX_NAME), "{}").unwrap();
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors.index.json: index: missing field `weight_map` at line 1 column 2"
    );
}

#[test]
fn files_are_right_where_the_index_disagrees() {
    let dir = directory();
    file(&dir, "one.safetensors", &["a"]);
    file(&dir, "two.safetensors", &["b"]);
    let note = |map: &str| {
        index(&dir, map);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
        checkpoint.notes().join("; ")
    };
    let expected =
        "model.safetensors.index.json does not place `c` as the files do, which are right";
    assert_eq!(
        note(r#"{"a":"one.safetensors","b":"two.safetensors","c":"one.safetensors"}"#),
        expected
    );
    assert_eq!(
        note(r#"{"a":"one.safetensors","c":"two.safetensors"}"#),
        expected.replace("`c`", "`c` and 1 more")
    );
    assert_eq!(
        note(r#"{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}"#),
        expected.replace("`c`", "`b` and 1 more")
    );
    assert_eq!(note(r#"{"a":"one.safetensors","b":"two.safetensors"}"#), "");
}

#[test]
fn a_tensor_in_two_files_has_the_same_values_or_is_refused() {
    let dir = directory();
    file(&dir, "one.safetensors", &["a"]);
    file(&dir, "two.safetensors", &["a", "b"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.tensors()["a"].file, checkpoint.tensors()["b"].file), (0, 1));
    let note = "`a` is in several files with the same values: that of `one.safetensors` is read";
    assert_eq!(checkpoint.notes(), [note]);
    let other = dir.path().join("two.safetensors");
    let mut bytes = fs::read(&other).unwrap();
    let at = bytes.len() - 8;
    bytes[at] = 1;
    fs::write(&other, bytes).unwrap();
    assert_eq!(
        refusal(&dir),
        "DIR/two.safetensors: tensor `a`: `one.safetensors` holds it too, with another type, shape or \
         values"
    );
}

#[test]
fn a_config_may_have_numbers_that_python_writes() {
    let dir = directory();
    file(&dir, SINGLE_NAME, &["a"]);
    let config = dir.path().join(CONFIG_NAME);
    let text =
        r#"{"limits": [0.0, Infinity], "low": -Infinity, "x": NaN, "text": "NaN \" Infinity"}"#;
    fs::write(&config, format!("\u{feff}{text}")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let expected =
        json!({"limits": [0.0, null], "low": null, "x": null, "text": "NaN \" Infinity"});
    assert_eq!(*checkpoint.config(), expected);
    // What is no JSON for another reason is refused as it stands.
    fs::write(&config, r#"{"x": NaN,}"#).unwrap();
    assert_eq!(refusal(&dir), "DIR/config.json: expected value at line 1 column 7");
}

#[test]
fn a_bad_header_names_its_file() {
    let dir = directory();
    fs::write(dir.path().join(SINGLE_NAME), raw_file("{}", 3)).unwrap();
    assert_eq!(
        refusal(&dir),
        "DIR/model.safetensors: expected 0 bytes of data, as its tensors need, found 3"
    );
}

#[test]
fn a_snapshot_of_the_cache_is_followed() {
    let cache = directory();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    write_zeros(&blobs.join("11"), &[("a".to_owned(), Float::F16, vec![2])]);
    fs::write(blobs.join("22"), "{}").unwrap();
    symlink("../../blobs/11", snapshot.join(SINGLE_NAME)).unwrap();
    symlink("../../blobs/22", snapshot.join(CONFIG_NAME)).unwrap();
    symlink("../../blobs/33", snapshot.join("gone.txt")).unwrap();
    symlink("../../blobs", snapshot.join("elsewhere")).unwrap();
    fs::write(cache.path().join("private"), "").unwrap();
    symlink("../../private", snapshot.join("leak")).unwrap();
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.tensors().len(), 1);
    assert_eq!(checkpoint.copies().unwrap(), [CONFIG_NAME]);
    let reasons: Vec<_> = checkpoint
        .skipped()
        .unwrap()
        .into_iter()
        .map(|s| format!("{}: {}", s.path, s.reason))
        .collect();
    let expected = [
        "elsewhere: a link to a directory",
        "gone.txt: a link to nothing",
        "leak: a link to a file outside the checkpoint",
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn everything_that_is_not_weights_is_copied_or_skipped_with_a_reason() {
    let dir = directory();
    file(&dir, "one.safetensors", &["a"]);
    index(&dir, r#"{"a":"one.safetensors"}"#);
    for name in [".git", "original"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for name in [
        "tokenizer.json",
        "tokenizer.model",
        "README.md",
        ".gitattributes",
        "original/params.json",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.fp32.safetensors.index.json",
        ".git/HEAD",
    ] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let copies = checkpoint.copies().unwrap();
    assert_eq!(
        copies,
        ["config.json", "original/params.json", "tokenizer.json", "tokenizer.model"]
    );
    let skipped = checkpoint.skipped().unwrap();
    let skipped: Vec<_> = skipped
        .iter()
        .map(|s| (s.path.as_str(), s.reason.as_str()))
        .collect();
    assert_eq!(
        skipped,
        [
            (".git", "a tool's directory"),
            (".gitattributes", "a tool's file"),
            ("README.md", "a model card"),
            ("model.fp32.safetensors.index.json", "an index of other weights"),
            ("original/consolidated.00.pth", "weights in another form (.pth)"),
            ("pytorch_model.bin", "weights in another form (.bin)"),
            ("pytorch_model.bin.index.json", "weights in another form (.bin)"),
        ]
    );
}

/// A checkpoint of one F16 tensor `a` whose value `i` has the bits `i`.
fn counting(shape: &[u64]) -> (TempDir, Checkpoint) {
    let dir = directory();
    let path = dir.path().join(SINGLE_NAME);
    let mut bytes = header::encode(&path, &[], [("a", Float::F16, shape)]).unwrap();
    let count = shape.iter().product::<u64>();
    bytes.extend((0..count).flat_map(|i| (i as u16).to_le_bytes()));
    fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn view(shape: &[u64], start: u64, row_stride: u64, col_stride: u64) -> SourceView {
    let whole = SourceView::whole("a".to_owned(), Float::F16, shape.to_vec(), 0);
    SourceView { start, row_stride, col_stride, ..whole }
}

fn read(
    checkpoint: &Checkpoint,
    view: &SourceView,
    rows: std::ops::Range<u64>,
    cols: u64,
) -> Result<Vec<u16>> {
    let mut buf = AlignedBuf::default();
    read_view(checkpoint, view, rows, cols, &mut buf)?;
    let (pairs, _) = buf.as_slice().as_chunks();
    Ok(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
}

#[test]
fn views_outside_their_tensor_are_refused() {
    let shape = [4, 6];
    let (dir, checkpoint) = counting(&shape);
    let refusal =
        |view: &SourceView, rows, cols| message(dir.path(), read(&checkpoint, view, rows, cols));
    let outside = |rows, cols| {
        format!(
            "DIR/model.safetensors: tensor `a`: rows {rows} of {cols} columns lie outside shape [4, 6]"
        )
    };
    let whole = view(&shape, 0, 6, 1);
    assert_eq!(read(&checkpoint, &whole, 1..3, 6).unwrap(), (6..18).collect::<Vec<_>>());
    assert_eq!(refusal(&whole, 1..5, 6), outside("1..5", 6));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 3..1;
    assert_eq!(refusal(&whole, reversed, 6), outside("3..1", 6));
    assert_eq!(refusal(&view(&shape, 1, 6, 1), 0..4, 6), outside("0..4", 6));
    assert_eq!(
        refusal(&view(&shape, 0, 0, 1), 0..u64::MAX, 6),
        outside("0..18446744073709551615", 6)
    );
    assert_eq!(refusal(&view(&shape, 0, u64::MAX, 1), 0..3, 6), outside("0..3", 6));
    let other = SourceView { dtype: Float::Bf16, ..whole.clone() };
    assert_eq!(
        refusal(&other, 0..1, 6),
        "DIR/model.safetensors: tensor `a`: expected bf16 [4, 6], found f16 [4, 6]"
    );
    let other = SourceView { tensor: "b".to_owned(), ..whole };
    assert_eq!(refusal(&other, 0..1, 6), "DIR: tensor `b`: the checkpoint has no such tensor");
}

proptest! {
    /// Whatever the strides, element `(r, c)` is value `start + r * row_stride + c * col_stride`.
    #[test]
    fn strided_views_are_gathered(
        first in 0_u64..4, count in 1_u64..40, cols in 1_u64..40, start in 0_u64..8,
        steps in prop::sample::select(vec![(1_u64, 40_u64), (1, 400), (2, 80), (40, 1), (80, 2), (45, 1)]),
    ) {
        let (row_stride, col_stride) = steps;
        let shape = [45, 500];
        let (_dir, checkpoint) = counting(&shape);
        let view = view(&shape, start, row_stride, col_stride);
        let found = read(&checkpoint, &view, first..first + count, cols).unwrap();
        let value = |r, c| (start + r * row_stride + c * col_stride) as u16;
        let expected: Vec<_> =
            (first..first + count).flat_map(|r| (0..cols).map(move |c| value(r, c))).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_large_transposed_view_is_gathered_in_blocks() {
    let shape = [3000, 1600];
    let (_dir, checkpoint) = counting(&shape);
    let view = view(&shape, 800, 1, 1600);
    let found = read(&checkpoint, &view, 0..800, 3000).unwrap();
    let expected = (0..800_u64).flat_map(|r| (0..3000).map(move |c| (800 + r + c * 1600) as u16));
    assert!(found.into_iter().eq(expected));
}

/// `PowerShell` redirects a text in UTF-16.
#[test]
fn a_configuration_in_utf_16_is_named() {
    let units = "{\"model_type\": \"llama\"}".encode_utf16();
    let little: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
    for mark in [&b""[..], b"\xff\xfe"] {
        let dir = directory();
        fs::write(dir.path().join(CONFIG_NAME), [mark, &little].concat()).unwrap();
        assert_eq!(
            refusal(&dir),
            "DIR/config.json: expected text in UTF-8, found UTF-16: `iconv -f UTF-16LE -t UTF-8` changes it"
        );
    }
}
