//! Interruptions anywhere end in the same bytes.

use crate::tests::SMALL_BUFFERS;
use shardwright_format::io::partial_path;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Case, Tiny, contents, copy_dir, fixture};
use crate::{Calibration, ConvertError, ConvertOptions, Phase, PlanOptions, Progress, Recipe};

/// Converts until `count` shards are done, then stops.
fn interrupt(case: &Case, out: &Path, count: usize) {
    let cancel = AtomicBool::new(count == 0);
    let options = ConvertOptions {
        threads: 2,
        resume: false,
        cancel: &cancel,
        calibration: Calibration::None,
        buffers: SMALL_BUFFERS,
    };
    let watch = |progress: Progress| {
        if progress.shards >= count {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    match case.run(out, &options, &watch) {
        Err(ConvertError::Cancelled { done, total, .. }) => assert!(done < total),
        // The last shards may be done before the flag is seen.
        other => assert!(other.is_ok(), "{other:?}"),
    }
}

#[test]
fn a_cancelled_conversion_ends_like_one_that_was_not() {
    let parts = ["vision=keep".to_owned(), "mtp=q4g32".to_owned()];
    for (name, sets) in [("golden/qwen3_moe-fused", &[][..]), ("golden/qwen3_5_moe", &parts)] {
        let recipe = Recipe::builtin("q4").unwrap().with_overrides(sets).unwrap();
        let case = Case::new(&fixture(name), &recipe, PlanOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        case.convert(&whole, 2).unwrap();
        let expected = contents(&whole);
        for count in 0..case.plan.units().count() {
            let out = dir.path().join(count.to_string());
            interrupt(&case, &out, count);
            if !out.exists() {
                case.resume(&out).unwrap();
            }
            assert!(contents(&out) == expected, "{name} {count}");
            assert!(!partial_path(&out).exists());
        }
    }
}

/// Stops a conversion of a copy of a checkpoint after its last shard, by a copied file that is not
/// what was planned; undoes that.
fn stop_at_copies(name: &str, dir: &Path, out: &Path) -> Case {
    let source = dir.join("source");
    copy_dir(&fixture(name), &source);
    std::fs::write(source.join("note.txt"), "a").unwrap();
    let recipe = Recipe::builtin("q4").unwrap();
    let case = Case::new(&source, &recipe, PlanOptions::default()).unwrap();
    std::fs::write(source.join("note.txt"), "ab").unwrap();
    let error = case.convert(out, 2).unwrap_err().to_string();
    assert!(error.ends_with("changed during the conversion: expected 1 bytes, found 2"), "{error}");
    std::fs::write(source.join("note.txt"), "a").unwrap();
    case
}

#[test]
fn a_ledger_cut_anywhere_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let case = stop_at_copies("golden/qwen2_moe", dir.path(), &left);
    let whole = dir.path().join("whole");
    case.convert(&whole, 2).unwrap();
    let expected = contents(&whole);
    let left = partial_path(&left);
    let ledger = std::fs::read(left.join("ledger.jsonl")).unwrap();
    for cut in (0..ledger.len()).step_by(ledger.len() / 23) {
        let out = dir.path().join(format!("cut-{cut}"));
        copy_dir(&left, &partial_path(&out));
        std::fs::write(partial_path(&out).join("ledger.jsonl"), &ledger[..cut]).unwrap();
        case.resume(&out).unwrap();
        assert!(contents(&out) == expected, "{cut}");
    }
}

#[test]
fn a_checkpoint_that_changed_anywhere_is_refused() {
    for name in ["golden/qwen2_moe", "golden/qwen3_moe-fused-t"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let case = stop_at_copies(name, dir.path(), &out);
        for info in case.checkpoint.tensors().values() {
            let path = case.checkpoint.path_of(info);
            let before = std::fs::read(path).unwrap();
            let mut after = before.clone();
            after[(info.offset + info.len / 2) as usize] ^= 1;
            std::fs::write(path, after).unwrap();
            let error = case.resume(&out).unwrap_err();
            assert!(matches!(error, ConvertError::Resume { .. }), "{error}");
            let file = format!("in `{}` differ", path.file_name().unwrap().display());
            assert!(error.to_string().ends_with(&file), "{error}");
            std::fs::write(path, before).unwrap();
        }
        case.resume(&out).unwrap();
    }
}

/// Stops a conversion after its first shard: the second holds what cannot be converted. Gives the
/// checkpoint without that.
fn fail_once(source: &Path, out: &Path) -> Case {
    let open = || {
        let recipe = Recipe::builtin("q4").unwrap();
        Case::new(source, &recipe, PlanOptions::default()).unwrap()
    };
    Tiny { edits: vec![("model.norm", 0, f32::NAN)], ..Tiny::default() }.write(source);
    open().convert(out, 1).unwrap_err();
    Tiny::default().write(source);
    open()
}

#[test]
fn a_shard_that_never_reached_the_disk_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = fail_once(&dir.path().join("source"), &out);
    let whole = dir.path().join("whole");
    case.convert(&whole, 1).unwrap();
    let shards = partial_path(&out).join("bundle/dense-000.bin");
    let len = std::fs::metadata(&shards).unwrap().len();
    std::fs::write(&shards, vec![0xa5; len as usize]).unwrap();
    case.resume(&out).unwrap();
    assert!(contents(&out) == contents(&whole));
}

#[test]
fn a_ledger_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    fail_once(&source, &out);
    let open = |recipe: &str, alignment| {
        let options = PlanOptions { alignment, ..PlanOptions::default() };
        Case::new(&source, &Recipe::builtin(recipe).unwrap(), options).unwrap()
    };
    let partial = partial_path(&out);
    let refused = |case: &Case, expected: &str| {
        let error = case.resume(&out).unwrap_err().to_string();
        let begun = format!("{}: cannot resume: it was begun with {expected}", partial.display());
        assert_eq!(error, begun);
    };
    refused(&open("q3", 16384), "another recipe (`q4`, now `q3`)");
    refused(&open("q4", 4096), "another alignment");
    Tiny { edits: vec![("embed_tokens", 5, 0.25)], ..Tiny::default() }.write(&source);
    refused(
        &open("q4", 16384),
        "another checkpoint: the weights of embedding in `model.safetensors` differ",
    );
    Tiny { intermediate: 192, ..Tiny::default() }.write(&source);
    refused(&open("q4", 16384), "another checkpoint: `model.safetensors` differs");
}

#[test]
fn a_bundle_that_only_lacks_the_removal_of_its_ledger_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = fail_once(&dir.path().join("source"), &out);
    let ledger = std::fs::read(partial_path(&out).join("ledger.jsonl")).unwrap();
    let report = case.resume(&out).unwrap();
    std::fs::create_dir(partial_path(&out)).unwrap();
    std::fs::write(partial_path(&out).join("ledger.jsonl"), ledger).unwrap();
    assert_eq!(case.resume(&out).unwrap(), report);
    assert!(!partial_path(&out).exists());
}

#[test]
fn an_empty_partial_directory_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    let case = fail_once(&source, &out);
    let report = case.resume(&out).unwrap();
    // Killed between the removal of its ledger and that of its directory.
    std::fs::create_dir(partial_path(&out)).unwrap();
    assert_eq!(case.resume(&out).unwrap(), report);
    assert!(!partial_path(&out).exists());
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::create_dir(partial_path(&out)).unwrap();
    case.convert(&out, 1).unwrap();
}

#[test]
fn what_does_not_belong_to_the_bundle_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (out, victim) = (dir.path().join("out"), dir.path().join("victim"));
    let case = fail_once(&dir.path().join("source"), &out);
    let partial = partial_path(&out);
    std::fs::write(&victim, "untouched").unwrap();
    let link = |name: &str| {
        let path = partial.join(name);
        let _ = std::fs::rename(&path, dir.path().join("kept"));
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        path
    };
    let refused = |path: &Path, why: &str| {
        let error = case.resume(&out).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()) && error.contains(why), "{error}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
        assert!(path.symlink_metadata().is_ok());
    };
    let stranger = partial.join("bundle/stranger");
    std::fs::write(&stranger, "mine").unwrap();
    refused(&stranger, "is no file of the bundle that is made here; remove it");
    std::fs::remove_file(stranger).unwrap();
    for (name, why) in [
        ("bundle/dense-000.bin", "is no file of the bundle"),
        ("bundle/config.json", "is no file of the bundle"),
        ("ledger.jsonl", "symbolic link"),
    ] {
        let linked = link(name);
        refused(&linked, why);
        std::fs::remove_file(&linked).unwrap();
        let _ = std::fs::rename(dir.path().join("kept"), &linked);
    }
    let moved = dir.path().join("moved");
    std::fs::rename(&partial, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &partial).unwrap();
    refused(&partial, "expected a directory, found a file or a link");
    std::fs::remove_file(&partial).unwrap();
    std::fs::rename(&moved, &partial).unwrap();
    case.resume(&out).unwrap();
}

#[test]
fn one_conversion_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = fail_once(&dir.path().join("source"), &out);
    let partial = partial_path(&out);
    let before = contents(&partial);
    let held = std::fs::File::open(partial.join("ledger.jsonl")).unwrap();
    held.lock().unwrap();
    let busy = format!("{}: another conversion is writing it", partial.display());
    assert_eq!(case.resume(&out).unwrap_err().to_string(), busy);
    assert_eq!(case.convert(&out, 1).unwrap_err().to_string(), busy);
    assert!(contents(&partial) == before);
    drop(held);
    case.resume(&out).unwrap();
}

#[test]
fn a_ledger_that_cannot_be_read_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = fail_once(&dir.path().join("source"), &out);
    let partial = partial_path(&out);
    let ledger = partial.join("ledger.jsonl");
    let text = std::fs::read_to_string(&ledger).unwrap();
    for (line, expected) in [
        ("garbage\n", "the first line of its ledger cannot be read: "),
        ("{\"ledger\":1,\"other\":2}\n", "expected a ledger of version 5, found 1"),
        ("{\"ledger\":5,\"other\":2}\n", "the first line of its ledger cannot be read: "),
    ] {
        std::fs::write(&ledger, line).unwrap();
        let before = contents(&partial);
        let error = case.resume(&out).unwrap_err().to_string();
        let refused = format!("{}: cannot resume: {expected}", partial.display());
        assert!(error.starts_with(&refused), "{error}");
        assert!(contents(&partial) == before);
    }
    let hostile = text.replacen("\"first\":", "\"first\":1844674407370955161", 1);
    assert_ne!(hostile, text);
    std::fs::write(&ledger, hostile).unwrap();
    assert!(matches!(case.resume(&out).unwrap_err(), ConvertError::Resume { .. }));
    // Cut in its first line: whatever lies beside it is of no known conversion.
    std::fs::write(&ledger, &text[..20]).unwrap();
    std::fs::write(partial.join("bundle/stranger"), "").unwrap();
    case.resume(&out).unwrap();
    assert!(!out.join("stranger").exists());
}

#[test]
fn a_complete_bundle_is_complete_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    let open = |recipe: &str| {
        Case::new(&source, &Recipe::builtin(recipe).unwrap(), PlanOptions::default()).unwrap()
    };
    Tiny::default().write(&source);
    let case = open("q4");
    let report = case.convert(&out, 1).unwrap();
    let before = contents(&out);
    let told = std::cell::Cell::new(None);
    let cancel = AtomicBool::new(false);
    let options = ConvertOptions {
        threads: 1,
        resume: true,
        cancel: &cancel,
        calibration: Calibration::None,
        buffers: SMALL_BUFFERS,
    };
    let again = case.run(&out, &options, &|progress| told.set(Some(progress.phase)));
    assert_eq!((again.unwrap(), told.get()), (report, Some(Phase::Complete)));
    let refused = |case: &Case| {
        let error = case.resume(&out).unwrap_err().to_string();
        assert!(error.ends_with("already exists; remove it or choose another name"), "{error}");
    };
    assert!(case.convert(&out, 1).is_err());
    refused(&open("q3"));
    std::fs::write(source.join("note.txt"), "a").unwrap();
    refused(&open("q4"));
    assert!(contents(&out) == before);
    std::fs::write(out.join("dense-000.bin"), "short").unwrap();
    refused(&case);
}
