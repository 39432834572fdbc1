//! Exported checkpoints hold what the bundle stands for.

use shardwright_format::Bundle;
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Checkpoint, read_view};
use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_quant::{Backend, Float, Matrix, widen};

use super::{CHECKPOINTS, Case, SMALL_EXPORT, contents, fixture};
use crate::{ExportDtype, ExportOptions, ExportTarget, PlanOptions, Recipe, export};

/// The values of every tensor of a unit, by the checkpoint's view of it.
fn check(bundle: &Bundle, exported: &Checkpoint, dtype: ExportDtype) {
    let inventory = Inventory::new(exported, None).unwrap();
    let (mut stored, mut read) = (AlignedBuf::default(), AlignedBuf::default());
    for (unit, tensors) in &inventory.units {
        bundle.read(*unit, &mut stored).unwrap();
        let layout = bundle.layout(*unit).unwrap();
        for (entry, tensor) in layout.tensors.iter().zip(tensors.tensors.iter()) {
            let len = entry.byte_len().unwrap() as usize;
            let bytes = &stored.as_slice()[entry.offset as usize..][..len];
            let (rows, cols) = (entry.rows as usize, entry.cols as usize);
            let matrix = Matrix::new(entry.encoding, rows, cols, bytes).unwrap();
            let mut expected = vec![0.0; rows * cols];
            matrix.dequantize(Backend::detect(), 0..rows, &mut expected);
            read_view(exported, &tensor.source, 0..tensor.rows, tensor.cols, &mut read).unwrap();
            let mut found = vec![0.0; rows * cols];
            widen(tensor.source.dtype, read.as_slice(), &mut found);
            if dtype == ExportDtype::Source {
                assert_eq!(tensor.source.dtype, entry.source.dtype);
                for x in &mut expected {
                    *x = entry.source.dtype.round(*x);
                }
            } else {
                assert_eq!(tensor.source.dtype, Float::F32);
            }
            assert_eq!(found, expected, "{unit} {}", entry.role);
        }
    }
}

/// The fixture's embedding has four blocks of rows and is read by them: it is no unit of 16 KiB.
#[test]
fn trellis_codes_are_exported_by_whole_blocks_of_rows() {
    for name in ["fixture-2m", "golden/qwen3_moe-fused-t"] {
        let json = r#"{"name":"t","rules":[{"match":{"role":"embed_tokens"},"encoding":"t3s10"},
            {"match":{"role":"expert.*"},"encoding":"t2s10"},{"encoding":"keep"}]}"#;
        let recipe = Recipe::parse("t", json).unwrap();
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        case.convert(&dir.path().join("b"), 2).unwrap();
        let bundle = Bundle::open(&dir.path().join("b")).unwrap();
        let out = dir.path().join("hf");
        let weights = Weights::open(&dir.path().join("b")).unwrap();
        export(&weights, &out, ExportTarget::Hf, &SMALL_EXPORT).unwrap();
        check(&bundle, &Checkpoint::open(&out).unwrap(), ExportDtype::F32);
    }
}

#[test]
fn exported_weights_are_the_dequantized_ones() {
    for name in CHECKPOINTS {
        for (dtype, file_limit) in
            [(ExportDtype::F32, 5_000_000_000), (ExportDtype::Source, 40_000)]
        {
            let case = Case::from_fixture(name, "q4");
            let dir = tempfile::tempdir().unwrap();
            case.convert(&dir.path().join("b"), 2).unwrap();
            let bundle = Bundle::open(&dir.path().join("b")).unwrap();
            let out = dir.path().join("hf");
            let weights = Weights::open(&dir.path().join("b")).unwrap();
            let exported = export(
                &weights,
                &out,
                ExportTarget::Hf,
                &ExportOptions { dtype, file_limit, ..SMALL_EXPORT },
            )
            .unwrap();
            let sizes: Vec<_> = exported
                .files
                .iter()
                .filter(|f| f.path.ends_with(".safetensors"))
                .collect();
            assert_eq!(sizes.len() > 1, dtype == ExportDtype::Source, "{name}");
            let exported = Checkpoint::open(&out).unwrap();
            let names: Vec<_> = exported.tensors().keys().collect();
            let original = case.checkpoint.tensors();
            assert!(
                names
                    .iter()
                    .all(|n| exported.tensors()[*n].shape == original[*n].shape)
            );
            check(&bundle, &exported, dtype);
            let config = String::from_utf8(contents(&out)["config.json"].clone()).unwrap();
            assert!(dtype == ExportDtype::Source || !config.contains("float16"), "{config}");
            let error = export(&weights, &out, ExportTarget::Hf, &SMALL_EXPORT)
                .unwrap_err()
                .to_string();
            assert!(error.ends_with("already exists; remove it or choose another name"), "{error}");
        }
    }
}

#[test]
fn a_killed_export_is_begun_anew_and_a_strangers_directory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("hf"), dir.path().join("hf.partial"));
    let weights = Weights::open(&fixture("golden/llama2")).unwrap();
    let exported = || export(&weights, &out, ExportTarget::Hf, &SMALL_EXPORT);
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("model-00002-of-00002.safetensors"), "half").unwrap();
    let refused = exported().unwrap_err().to_string();
    assert!(refused.ends_with("already exists; remove it or choose another name"), "{refused}");
    let mark = std::fs::File::create(partial.join("export.lock")).unwrap();
    mark.lock().unwrap();
    let refused = exported().unwrap_err().to_string();
    assert!(refused.ends_with("another export is writing it"), "{refused}");
    assert!(contents(&partial).contains_key("model-00002-of-00002.safetensors"));
    drop(mark);
    let files = exported().unwrap().files;
    let found = contents(&out);
    let names: Vec<_> = files.iter().map(|file| &file.path).collect();
    assert!(found.keys().eq(names));
    for file in &files {
        assert_eq!(file.blake3, blake3::hash(&found[&file.path]).into(), "{}", file.path);
        assert_eq!(file.size, found[&file.path].len() as u64);
    }
    assert!(!partial.exists());
}
