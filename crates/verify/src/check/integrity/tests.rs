use std::fs;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::VerifyError;
use crate::monitor::Progress;
use shardwright_testing::models::{Codes, FOUR_BITS, TestBundle};

/// The fixture's second layer is dense.
const EXPERTS: [&str; 2] = ["experts/layer-000.bin", "experts/layer-002.bin"];

fn bundle() -> TestBundle {
    TestBundle::new("qwen3_moe", FOUR_BITS)
}

fn check(bundle: &TestBundle) -> Integrity {
    integrity(bundle.root.path(), 2, &Monitor::silent()).unwrap()
}

fn messages(bundle: &TestBundle) -> Vec<String> {
    check(bundle)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The hash of a file's bytes.
fn hash(bundle: &TestBundle, file: &str) -> Hash {
    blake3::hash(&fs::read(bundle.path(file)).unwrap()).into()
}

fn recorded(bundle: &TestBundle, file: &str) -> Hash {
    bundle
        .manifest
        .files
        .iter()
        .find(|f| f.path == file)
        .unwrap()
        .blake3
}

#[test]
fn a_sound_bundle_holds() {
    let bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    let result = check(&bundle);
    assert!(result.holds() && result.weights_hold(), "{:?}", result.findings);
    assert_eq!(result.manifest, Some(bundle.manifest.blake3));
    assert_eq!(result.files.len(), bundle.manifest.files.len());
    assert!(result.files.iter().all(|f| f.sound));
    assert_eq!(result.bytes, bundle.manifest.files.iter().map(|f| f.size).sum::<u64>());
    let experts: usize = bundle.manifest.experts.iter().map(|e| e.blake3.len()).sum();
    assert_eq!(result.shards, (bundle.manifest.dense.len() + experts) as u64);
}

#[test]
fn a_flipped_bit_names_its_shard() {
    let bundle = bundle();
    let experts = &bundle.manifest.experts[1];
    let at = experts.stride as usize + 7;
    bundle.edit(EXPERTS[1], |bytes| bytes[at] ^= 1);
    let bytes = fs::read(bundle.path(EXPERTS[1])).unwrap();
    let found = blake3::hash(&bytes[experts.stride as usize..][..experts.len as usize]);
    let expected = experts.blake3[1];
    let message =
        format!("{}: layer 2 expert 1: BLAKE3: expected {expected}, found {found}", EXPERTS[1]);
    assert_eq!(messages(&bundle), [message]);
    let result = check(&bundle);
    assert!(!result.weights_hold());
    let damaged: Vec<_> = result
        .files
        .iter()
        .filter(|f| !f.sound)
        .map(|f| f.path.as_str())
        .collect();
    assert_eq!(damaged, [EXPERTS[1]]);
}

#[test]
fn every_damaged_shard_is_listed() {
    let bundle = bundle();
    let stride = bundle.manifest.experts[0].stride as usize;
    bundle.edit(EXPERTS[0], |bytes| bytes[0] ^= 1);
    bundle.edit(EXPERTS[1], |bytes| {
        bytes[0] ^= 1;
        bytes[2 * stride] ^= 128;
    });
    let shards: Vec<_> = check(&bundle)
        .findings
        .into_iter()
        .map(|f| f.shard.unwrap())
        .collect();
    assert_eq!(shards, ["layer 0 expert 0", "layer 2 expert 0", "layer 2 expert 2"]);
}

#[test]
fn padding_that_is_not_zero_is_found() {
    let bundle = bundle();
    let experts = &bundle.manifest.experts[0];
    assert!(experts.len < experts.stride);
    let at = experts.len as usize;
    bundle.edit(EXPERTS[0], |bytes| bytes[at] = 3);
    let message = format!(
        "{}: layer 0 expert 0: padding after the shard: expected zeros, found 3 at byte {at}",
        EXPERTS[0]
    );
    assert_eq!(messages(&bundle), [message]);
}

#[test]
fn a_changed_copy_is_found() {
    let bundle = bundle();
    bundle.edit("config.json", |bytes| bytes[1] = b'\t');
    let (expected, found) = (recorded(&bundle, "config.json"), hash(&bundle, "config.json"));
    assert_eq!(
        messages(&bundle),
        [format!("config.json: BLAKE3: expected {expected}, found {found}")]
    );
    assert!(check(&bundle).weights_hold());
}

/// As git leaves files on Windows.
#[test]
fn line_ends_that_git_changed_are_named() {
    for name in ["config.json", MANIFEST_FILE] {
        let bundle = bundle();
        bundle.edit(name, |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replace('\n', "\r\n").into_bytes();
        });
        let expected = format!(
            "{name}: line ends: expected LF, as written, found CR LF, which git puts there on Windows: run \
             `git config core.autocrlf false` and fetch the file again"
        );
        assert_eq!(messages(&bundle), [expected]);
        // A file in which more changed than that is damaged as any other.
        bundle.edit(name, |bytes| bytes[3] ^= 1);
        assert!(
            messages(&bundle)
                .iter()
                .all(|found| !found.contains("line ends"))
        );
    }
}

#[test]
fn a_flipped_bit_in_the_manifest_is_a_finding() {
    let bundle = bundle();
    bundle.edit(MANIFEST_FILE, |bytes| {
        let at = bytes.windows(6).position(|w| w == b"a test").unwrap();
        bytes[at] ^= 2;
    });
    let [message] = &messages(&bundle)[..] else { panic!() };
    let found = bundle.manifest.blake3;
    assert!(message.starts_with("manifest.json: manifest hash: expected "), "{message}");
    assert!(message.ends_with(&format!(", found {found}")), "{message}");
    let checked = check(&bundle);
    assert!(!checked.weights_hold());
    // The JSON report has the parts of the line.
    assert_eq!(checked.findings[0].what, "manifest hash");
    assert_eq!(checked.findings[0].found, Some(found.to_string()));
}

#[test]
fn a_hostile_manifest_is_a_finding() {
    let bundle = bundle();
    bundle.rewrite(|manifest| manifest.files[0].path = "../config.json".to_owned());
    let expected = "manifest.json: files: `../config.json` is not a path inside the bundle";
    assert_eq!(messages(&bundle), [expected]);
    bundle.edit(MANIFEST_FILE, Vec::clear);
    assert_eq!(messages(&bundle), ["manifest.json: EOF while parsing a value at line 1 column 0"]);
}

#[test]
fn a_directory_without_a_manifest_is_an_error() {
    let bundle = bundle();
    fs::remove_file(bundle.path(MANIFEST_FILE)).unwrap();
    let error = integrity(bundle.root.path(), 1, &Monitor::silent()).unwrap_err();
    let dir = bundle.root.path().display();
    assert_eq!(error.to_string(), format!("{dir}: is not a bundle: it has no manifest.json"));
}

#[test]
fn a_missing_file_is_found() {
    let bundle = bundle();
    fs::remove_file(bundle.path(EXPERTS[0])).unwrap();
    let size = bundle
        .manifest
        .files
        .iter()
        .find(|f| f.path == EXPERTS[0])
        .unwrap()
        .size;
    let message = format!("{}: missing: expected a file of {size} bytes, found none", EXPERTS[0]);
    assert_eq!(messages(&bundle), [message]);
    assert!(!check(&bundle).weights_hold());
}

#[test]
fn extra_files_and_directories_are_found() {
    let bundle = bundle();
    fs::write(bundle.path("experts/.notes"), "").unwrap();
    fs::create_dir_all(bundle.path("more/below")).unwrap();
    let expected = "directory entry: expected nothing by that name in the manifest, found a";
    assert_eq!(
        messages(&bundle),
        [format!("experts/.notes: {expected} file"), format!("more: {expected} directory")]
    );
    assert!(check(&bundle).weights_hold());
}

#[test]
fn links_are_not_followed() {
    let bundle = bundle();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("config.json");
    fs::rename(bundle.path("config.json"), &target).unwrap();
    std::os::unix::fs::symlink(&target, bundle.path("config.json")).unwrap();
    let folder = elsewhere.path().join("experts");
    fs::rename(bundle.path("experts"), &folder).unwrap();
    std::os::unix::fs::symlink(&folder, bundle.path("experts")).unwrap();
    assert_eq!(
        messages(&bundle),
        [
            "config.json: directory entry: expected a file, found a symbolic link",
            "experts: directory entry: expected a directory, found a symbolic link",
        ]
    );
    assert!(!check(&bundle).weights_hold());
}

#[test]
fn swapped_files_are_named() {
    let bundle = bundle();
    fs::rename(bundle.path(EXPERTS[0]), bundle.path("aside")).unwrap();
    fs::rename(bundle.path(EXPERTS[1]), bundle.path(EXPERTS[0])).unwrap();
    fs::rename(bundle.path("aside"), bundle.path(EXPERTS[1])).unwrap();
    let [a, b] = EXPERTS;
    assert_eq!(
        messages(&bundle),
        [
            format!("{a}: bytes: expected its own, found those of {b}"),
            format!("{b}: bytes: expected its own, found those of {a}"),
        ]
    );
}

#[test]
fn swapped_shards_are_named() {
    let bundle = bundle();
    let stride = bundle.manifest.experts[0].stride as usize;
    let len = bundle.manifest.experts[0].len as usize;
    bundle.edit(EXPERTS[0], |bytes| {
        let (a, b) = bytes.split_at_mut(stride);
        a[..len].swap_with_slice(&mut b[..len]);
    });
    let file = EXPERTS[0];
    assert_eq!(
        messages(&bundle),
        [
            format!(
                "{file}: layer 0 expert 0: bytes: expected its own, found those of layer 0 expert 1"
            ),
            format!(
                "{file}: layer 0 expert 1: bytes: expected its own, found those of layer 0 expert 0"
            ),
        ]
    );
}

#[test]
fn a_truncated_file_names_the_shards_it_lost() {
    let bundle = bundle();
    let experts = &bundle.manifest.experts[0];
    let last = experts.blake3.len() as u64 - 1;
    let (start, size) = (
        last * experts.stride,
        bundle
            .manifest
            .files
            .iter()
            .find(|f| f.path == EXPERTS[0])
            .unwrap()
            .size,
    );
    let len = start + 10;
    bundle.edit(EXPERTS[0], |bytes| bytes.truncate(len as usize));
    let (file, end) = (EXPERTS[0], start + experts.len);
    assert_eq!(
        messages(&bundle),
        [
            format!("{file}: size: expected {size} bytes, found {len}"),
            format!(
                "{file}: layer 0 expert {last}: range: expected bytes {start} to {end}, found the file's end at {len}"
            ),
        ]
    );
}

#[test]
fn a_file_that_is_too_long_is_found() {
    let bundle = bundle();
    bundle.edit(EXPERTS[0], |bytes| bytes.push(0));
    let size = bundle
        .manifest
        .files
        .iter()
        .find(|f| f.path == EXPERTS[0])
        .unwrap()
        .size;
    let message = format!("{}: size: expected {size} bytes, found {}", EXPERTS[0], size + 1);
    assert_eq!(messages(&bundle), [message]);
}

#[test]
fn progress_reaches_the_total_and_cancelling_stops() {
    let bundle = bundle();
    let last = std::sync::Mutex::new(None);
    let progress = |p: Progress| *last.lock().unwrap() = Some(p);
    let cancel = AtomicBool::new(false);
    let monitor = Monitor { progress: &progress, cancel: &cancel };
    integrity(bundle.root.path(), 1, &monitor).unwrap();
    let p = last.lock().unwrap().unwrap();
    assert_eq!((p.stage, p.done), (Stage::Integrity, p.total));
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = integrity(bundle.root.path(), 2, &monitor);
    assert!(matches!(stopped, Err(VerifyError::Cancelled)));
}

#[test]
fn threads_do_not_change_the_result() {
    let bundle = bundle();
    bundle.edit(EXPERTS[0], |bytes| bytes[0] ^= 1);
    bundle.edit("dense-000.bin", |bytes| bytes[0] ^= 1);
    let one = integrity(bundle.root.path(), 1, &Monitor::silent()).unwrap();
    assert_eq!(one, integrity(bundle.root.path(), 3, &Monitor::silent()).unwrap());
}

/// Changes a shard's bytes under right hashes.
fn forge(bundle: &mut TestBundle, expert: usize, change: impl FnOnce(&mut Vec<u8>)) {
    let experts = &mut bundle.manifest.experts[1];
    let start = expert * experts.stride as usize;
    let mut file = fs::read(bundle.root.path().join(EXPERTS[1])).unwrap();
    let mut bytes = file[start..start + experts.len as usize].to_vec();
    change(&mut bytes);
    experts.blake3[expert] = blake3::hash(&bytes).into();
    file[start..start + bytes.len()].copy_from_slice(&bytes);
    fs::write(bundle.root.path().join(EXPERTS[1]), &file).unwrap();
    let entry = bundle
        .manifest
        .files
        .iter_mut()
        .find(|f| f.path == EXPERTS[1]);
    entry.unwrap().blake3 = blake3::hash(&file).into();
    bundle.rewrite(|_| ());
}

#[test]
fn scales_and_biases_that_are_not_finite_are_named() {
    let mut bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    let up = bundle.manifest.experts[1].tensors[1].clone();
    let parts = up.encoding.parts(up.rows, up.cols).unwrap();
    let (groups, place) = (up.cols / 32, up.offset + parts.weight);
    // The bias of row 3's last group, then the scale of row 5's first.
    let bias = (place + parts.scales + (4 * groups - 1) * 2) as usize;
    forge(&mut bundle, 1, |b| b[bias..bias + 2].copy_from_slice(&[0x80, 0xff]));
    let file = format!("{}: layer 2 expert 1: expert.up_proj", EXPERTS[1]);
    let at = format!("row 3, group {}", groups - 1);
    let expected = format!("{file}: {at}: expected a finite bias, found -inf");
    assert_eq!(messages(&bundle), [expected]);
    let scale = (place + 5 * groups * 2) as usize;
    forge(&mut bundle, 1, |b| b[scale..scale + 2].copy_from_slice(&[0xc0, 0x7f]));
    let expected = format!("{file}: row 5, group 0: expected a finite scale, found NaN");
    assert_eq!(messages(&bundle), [expected]);
}

#[test]
fn trellis_scales_that_are_not_finite_are_named() {
    let mut bundle = TestBundle::new("qwen3_moe", Codes::Trellis(3));
    assert_eq!(messages(&bundle), Vec::<String>::new());
    let up = bundle.manifest.experts[1].tensors[1].clone();
    let parts = up.encoding.parts(up.rows, up.cols).unwrap();
    // Codes of all ones are codes like others; so are those before them.
    let scales = (up.offset + parts.weight) as usize;
    forge(&mut bundle, 1, |b| b[scales - 8..scales].fill(0xff));
    assert_eq!(messages(&bundle), Vec::<String>::new());
    let last = scales + 2 * (up.rows as usize - 1);
    forge(&mut bundle, 1, |b| b[last..last + 2].copy_from_slice(&[0x80, 0x7f]));
    let file = format!("{}: layer 2 expert 1: expert.up_proj", EXPERTS[1]);
    let expected = format!("{file}: row {}: expected a finite scale, found inf", up.rows - 1);
    assert_eq!(messages(&bundle), [expected]);
}
