use shardwright_format::Role;
use shardwright_format::manifest::{Calibration, Hash};
use shardwright_quant::{Affine, Float, Trellis, narrow, widen};

use super::*;
use crate::check::integrity::integrity;
use shardwright_testing::fixture;
use shardwright_testing::models::{Codes, FOUR_BITS, TestBundle};

const OPTIONS: FidelityOptions =
    FidelityOptions { max_rmse: None, hash_checkpoint: true, other_source: false, threads: 2 };

fn check_with(bundle: &TestBundle, options: &FidelityOptions) -> Fidelity {
    let [original, candidate] =
        [&bundle.checkpoint, bundle.root.path()].map(|path| Weights::open(path).unwrap());
    let party = |name, weights| Party { name, weights };
    let candidates = [party("candidate", &candidate)];
    let found =
        fidelity(party("original", &original), &candidates, options, &Monitor::silent()).unwrap();
    found.into_iter().next().unwrap()
}

fn check(bundle: &TestBundle) -> Fidelity {
    check_with(bundle, &OPTIONS)
}

pub(super) fn messages(bundle: &TestBundle) -> Vec<String> {
    check(bundle)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn role<'a>(result: &'a Fidelity, name: &str) -> &'a RoleFidelity {
    result.roles.iter().find(|r| r.role.name() == name).unwrap()
}

#[test]
fn an_exact_bundle_of_every_architecture_holds() {
    let plain = Codes::Plain;
    for case in [
        "llama2",
        "llama3-old",
        "mistral",
        "mixtral-fused",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe-fused-t",
    ] {
        let result = check(&TestBundle::new(case, plain));
        assert_eq!(result.findings, [], "{case}");
        assert_eq!(result.exact, result.tensors, "{case}");
        assert!(
            result
                .worst
                .iter()
                .all(|t| t.rmse == 0.0 && t.sqnr_db.is_none()),
            "{case}"
        );
    }
}

#[test]
fn errors_are_those_of_the_codes() {
    let mut last = 1.0;
    for (bits, low, high) in [(2, 0.2, 0.6), (3, 0.1, 0.3), (4, 0.05, 0.12), (8, 0.001, 0.01)] {
        let result = check(&TestBundle::new("qwen3_moe", Codes::Affine(bits)));
        assert_eq!(result.findings, [], "{bits}");
        assert!(result.rmse > low && result.rmse < high, "{bits}: {}", result.rmse);
        assert!(result.rmse < last);
        last = result.rmse;
        let experts = role(&result, "expert.gate_proj");
        let sqnr = -20.0 * experts.rmse.log10();
        assert!((experts.sqnr_db.unwrap() - sqnr).abs() < 1e-9);
        assert!(experts.worst_rmse >= experts.rmse && experts.max_abs_error > 0.0);
        assert_eq!(role(&result, "norm.input").sqnr_db, None);
        assert!(
            result
                .worst
                .is_sorted_by(|a, b| a.worst_rmse >= b.worst_rmse)
        );
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let bundle = TestBundle::new("qwen3_moe-fused-t", FOUR_BITS);
    let one = check_with(&bundle, &FidelityOptions { threads: 1, ..OPTIONS });
    assert_eq!(one, check(&bundle));
}

/// Exchanges the bytes of two tensors of a dense shard, and makes every hash right again.
fn exchange(bundle: &mut TestBundle, shard: usize, a: Role, b: Role, with_views: bool) {
    let shard = &mut bundle.manifest.dense[shard];
    let mut tensors = shard.tensors.to_vec();
    let at = |role| tensors.iter().position(|t| t.role == role).unwrap();
    let (a, b) = (at(a), at(b));
    let start = shard.offset as usize;
    let range = |t: &TensorEntry| {
        start + t.offset as usize..start + (t.offset + t.byte_len().unwrap()) as usize
    };
    let (first, second) = (range(&tensors[a]), range(&tensors[b]));
    if with_views {
        let view = tensors[a].source.clone();
        tensors[a].source = std::mem::replace(&mut tensors[b].source, view);
    }
    shard.tensors = tensors.into();
    let (len, offset) = (shard.len as usize, start);
    let path = bundle.path("dense-000.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    let copy = bytes[first.clone()].to_vec();
    bytes.copy_within(second.clone(), first.start);
    bytes[second].copy_from_slice(&copy);
    std::fs::write(&path, &bytes).unwrap();
    bundle.manifest.dense.iter_mut().for_each(|s| {
        if s.offset as usize == offset {
            s.blake3 = Hash::from(blake3::hash(&bytes[offset..offset + len]));
        }
    });
    let whole = Hash::from(blake3::hash(&bytes));
    bundle
        .manifest
        .files
        .iter_mut()
        .filter(|f| f.path == "dense-000.bin")
        .for_each(|f| f.blake3 = whole);
    bundle.rewrite(|_| ());
    let found = integrity(bundle.root.path(), 1, &Monitor::silent()).unwrap();
    assert!(found.findings.iter().all(|f| f.kind == Kind::NotFinite), "{:?}", found.findings);
}

#[test]
fn exchanged_bytes_under_right_hashes_are_far_from_their_sources() {
    let mut bundle = TestBundle::new("llama2", FOUR_BITS);
    exchange(&mut bundle, 1, Role::GateProj, Role::UpProj, false);
    let found = messages(&bundle);
    assert_eq!(found.len(), 2, "{found:?}");
    let expected =
        "dense-000.bin: layer 0: mlp.gate_proj: relative RMSE: expected at most 0.2667, found 1.4";
    assert!(found[0].starts_with(expected), "{}", found[0]);
    assert!(
        found[1].starts_with("dense-000.bin: layer 0: mlp.up_proj: relative RMSE: "),
        "{}",
        found[1]
    );
}

#[test]
fn exchanged_roles_are_found_though_provenance_agrees() {
    let mut bundle = TestBundle::new("llama2", FOUR_BITS);
    exchange(&mut bundle, 1, Role::GateProj, Role::UpProj, true);
    let [gate, up] = ["gate", "up"].map(|n| format!("model.layers.0.mlp.{n}_proj.weight"));
    assert_eq!(
        messages(&bundle),
        [
            format!("dense-000.bin: layer 0: mlp.gate_proj: source: expected {gate}, found {up}"),
            format!("dense-000.bin: layer 0: mlp.up_proj: source: expected {up}, found {gate}"),
        ]
    );
}

#[test]
fn exchanged_halves_of_a_fused_tensor_are_found() {
    let bundle = TestBundle::new("qwen3_moe-fused", FOUR_BITS);
    bundle.rewrite(|manifest| {
        let mut tensors = manifest.experts[0].tensors.to_vec();
        let start = tensors[0].source.start;
        tensors[0].source.start = std::mem::replace(&mut tensors[1].source.start, start);
        manifest.experts[0].tensors = tensors.into();
    });
    let found = messages(&bundle);
    let count = bundle.manifest.experts[0].blake3.len();
    // Each expert: two wrong sources; values are not looked at.
    assert_eq!(found.len(), 2 * count, "{found:?}");
    assert!(found[0].contains("layer 0 expert 0: expert.gate_proj: source: expected model.layers.0.mlp.experts.gate_up_proj"), "{}", found[0]);
}

#[test]
fn another_source_is_not_the_checkpoint() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    bundle.rewrite(|manifest| {
        manifest.checkpoint.files[0].blake3 = Hash::ZERO;
    });
    let right = bundle.manifest.checkpoint.files[0].blake3;
    let zero = Hash::ZERO;
    let expected =
        format!("model.safetensors: checkpoint file: BLAKE3: expected {zero}, found {right}");
    assert_eq!(messages(&bundle), [expected]);
    let quick = FidelityOptions { hash_checkpoint: false, ..OPTIONS };
    assert_eq!(check_with(&bundle, &quick).findings, []);
    // The tensors in other files, as after splitting them anew: their values decide.
    bundle.rewrite(|manifest| {
        manifest.checkpoint.files[0].size += 1;
        let mut second = manifest.checkpoint.files[0].clone();
        second.name = "more.safetensors".to_owned();
        manifest.checkpoint.files.push(second);
    });
    let found = check(&bundle);
    assert_eq!(found.findings, []);
    assert!(!found.by_role && found.notes.len() == 1, "{:?}", found.notes);
    assert!(found.notes[0].starts_with("the checkpoint lies in 1 files of "), "{:?}", found.notes);
}

/// Changes the entry of one tensor in the embedding, the first layer or the head.
fn change(bundle: &TestBundle, shard: usize, role: Role, change: impl Fn(&mut TensorEntry)) {
    bundle.rewrite(|manifest| {
        let mut tensors = manifest.dense[shard].tensors.to_vec();
        tensors
            .iter_mut()
            .filter(|t| t.role == role)
            .for_each(change);
        manifest.dense[shard].tensors = tensors.into();
    });
}

#[test]
fn provenance_that_does_not_exist_is_named() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let name = "model.layers.0.mlp.up_proj.weight";
    let place = "dense-000.bin: layer 0: mlp.up_proj";
    change(&bundle, 1, Role::UpProj, |t| t.source.tensor = "nowhere".to_owned());
    assert_eq!(
        messages(&bundle),
        [
            format!("{place}: source: expected {name}, found nowhere"),
            format!("{name}: use: expected once, or left out with a reason, found none"),
            format!(
                "{place}: source nowhere: expected a tensor of the checkpoint, found none by that name"
            ),
        ]
    );
    change(&bundle, 1, Role::UpProj, |t| t.source.shape[0] += 1);
    let found = messages(&bundle);
    assert!(
        found[2].starts_with(&format!("{place}: source {name}: shape: expected [")),
        "{found:?}"
    );
}

#[test]
fn values_used_twice_or_never_are_named() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let name = "model.layers.0.mlp.gate_proj.weight";
    change(&bundle, 1, Role::UpProj, |t| t.source.tensor = name.to_owned());
    let found = messages(&bundle);
    let unused = "model.layers.0.mlp.up_proj.weight";
    assert!(found.iter().any(|message| message.starts_with(unused)), "{found:?}");
    assert!(
        found.contains(&format!("{name}: use of value 0: expected once, found more than once")),
        "{found:?}"
    );
    bundle.rewrite(|manifest| {
        let reason = "a test".to_owned();
        manifest
            .checkpoint
            .ignored
            .push(Ignored { tensor: name.to_owned(), role: None, reason });
    });
    assert_eq!(
        messages(&bundle),
        [
            format!("{name}: left out of the bundle: expected a part of the model, found `a test`"),
            format!("{name}: use: expected none, as it is left out, found some"),
        ]
    );
}

#[test]
fn another_model_is_found() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let eps = bundle.manifest.model.rms_norm_eps;
    bundle.rewrite(|manifest| manifest.model.rms_norm_eps = 0.5);
    let [message] = &messages(&bundle)[..] else { panic!() };
    assert!(message.starts_with("manifest.json: model.rms_norm_eps: expected "), "{message} {eps}");
    assert!(message.ends_with(", found 0.5"), "{message}");
}

#[test]
fn a_changed_plain_value_is_named_with_its_place() {
    let mut bundle = TestBundle::new("llama2", FOUR_BITS);
    let shard = &bundle.manifest.dense[1];
    let norm = shard
        .tensors
        .iter()
        .find(|t| t.role == Role::InputNorm)
        .unwrap();
    let at = (shard.offset + norm.offset) as usize + 3 * norm.encoding.float().unwrap().size();
    bundle.edit("dense-000.bin", |bytes| bytes[at] ^= 1);
    exchange(&mut bundle, 1, Role::InputNorm, Role::InputNorm, false);
    let [message] = &messages(&bundle)[..] else { panic!() };
    let expected = "dense-000.bin: layer 0: norm.input: row 0, column 3: expected ";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn a_value_that_is_not_a_number_is_named_with_its_place() {
    let mut bundle = TestBundle::new("llama2", FOUR_BITS);
    let shard = &bundle.manifest.dense[1];
    let q = shard
        .tensors
        .iter()
        .find(|t| t.role == Role::QProj)
        .unwrap();
    let parts = q.encoding.parts(q.rows, q.cols).unwrap();
    let groups = q.cols / 32;
    // The scale of row 5's second group.
    let at = (shard.offset + q.offset + parts.weight + (5 * groups + 1) * 2) as usize;
    bundle.edit("dense-000.bin", |bytes| bytes[at..at + 2].copy_from_slice(&[0xc0, 0x7f]));
    exchange(&mut bundle, 1, Role::QProj, Role::QProj, false);
    let [message] = &messages(&bundle)[..] else { panic!() };
    let expected = "dense-000.bin: layer 0: attention.q_proj: row 5, column 32: expected finite weights, found NaN from ";
    assert!(message.starts_with(expected), "{message}");
}

/// Each matrix is as close as its limit's reason says, in one tile of 256 rows or less.
#[test]
fn trellis_codes_are_as_far_as_expected() {
    for (bits, expected) in [(2, 0.27), (3, 0.135), (4, 0.068)] {
        let storage = Codes::Trellis(bits);
        let bundle = TestBundle::new("qwen3_moe", storage);
        let result = check(&bundle);
        assert_eq!(result.findings, []);
        let label = format!("t{bits} s10");
        // The router's six rows are too few for a stream: its ends bind each other.
        let long = |r: &&RoleFidelity| r.encoding == label && r.role != Role::Router;
        let coded: Vec<_> = result.roles.iter().filter(long).collect();
        assert!(coded.len() >= 7, "{:?}", result.roles);
        for role in coded {
            assert!((0.9..1.35).contains(&(role.worst_rmse / expected)), "{role:?}");
        }
    }
}

/// Matrices of the same shape in each other's place, and rows of nothing.
#[test]
fn trellis_codes_of_another_matrix_are_found() {
    let storage = Codes::Trellis(2);
    let mut bundle = TestBundle::new("llama2", storage);
    exchange(&mut bundle, 1, Role::GateProj, Role::UpProj, false);
    let found = messages(&bundle);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("mlp.gate_proj: relative RMSE: expected at most 0.7500, found 1."));
    let mut bundle = TestBundle::new("llama2", storage);
    let shard = &bundle.manifest.dense[1];
    let q = shard
        .tensors
        .iter()
        .find(|t| t.role == Role::QProj)
        .unwrap();
    let parts = q.encoding.parts(q.rows, q.cols).unwrap();
    let at = (shard.offset + q.offset + parts.weight + 5 * 2) as usize;
    bundle.edit("dense-000.bin", |bytes| bytes[at..at + 2].fill(0));
    exchange(&mut bundle, 1, Role::QProj, Role::QProj, false);
    let found = messages(&bundle);
    let expected = "dense-000.bin: layer 0: attention.q_proj: row 5: expected several values, \
                    as in the source, found one value, at a relative RMSE of 1.0000";
    assert_eq!(found, [expected]);
}

#[test]
fn a_limit_of_ones_own_replaces_that_of_the_bits() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let strict = FidelityOptions { max_rmse: Some(0.001), ..OPTIONS };
    let result = check_with(&bundle, &strict);
    let quantized = result.tensors - result.exact;
    assert_eq!(result.findings.len() as u64, quantized);
    assert!(result.findings.iter().all(|f| f.kind == Kind::Error));
    for (bits, limit) in [(2, 0.9), (3, 4.0 / 7.0), (4, 4.0 / 15.0), (8, 4.0 / 255.0)] {
        let affine = Affine::new(bits, 64, Float::Bf16).unwrap();
        assert_eq!(OPTIONS.rmse_limit(Encoding::Affine(affine)), limit);
    }
    for (bits, limit) in [(2, 0.75), (3, 0.375), (4, 0.1875)] {
        let trellis = Encoding::Trellis(Trellis::new(bits, 12).unwrap());
        assert_eq!(OPTIONS.rmse_limit(trellis), limit);
        assert_eq!(strict.rmse_limit(trellis), 0.001);
    }
    assert_eq!(strict.rmse_limit(Encoding::F16), f64::INFINITY);
}

#[test]
fn a_copy_that_differs_from_the_checkpoint_is_named() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    bundle.rewrite(|manifest| {
        manifest
            .files
            .iter_mut()
            .filter(|f| f.path == "config.json")
            .for_each(|f| f.blake3 = Hash::ZERO);
    });
    let right = bundle
        .manifest
        .files
        .iter()
        .find(|f| f.path == "config.json")
        .unwrap()
        .blake3;
    let zero = Hash::ZERO;
    let expected =
        format!("config.json: copy: BLAKE3 in the checkpoint: expected {zero}, found {right}");
    assert_eq!(messages(&bundle), [expected]);
    bundle.rewrite(|manifest| manifest.files.retain(|f| f.path != "config.json"));
    assert_eq!(messages(&bundle), ["config.json: copy: expected one in the bundle, found none"]);
}

/// Zeroes scales and biases of one row of the first layer's `up_proj`, under right hashes.
fn with_zero_row(bits: u8, row: u64) -> TestBundle {
    let mut bundle = TestBundle::new("llama2", Codes::Affine(bits));
    let shard = &bundle.manifest.dense[1];
    let up = shard
        .tensors
        .iter()
        .find(|t| t.role == Role::UpProj)
        .unwrap();
    let parts = up.encoding.parts(up.rows, up.cols).unwrap();
    let (base, len) = (shard.offset + up.offset + parts.weight, up.cols / 32 * 2);
    let places = [base + row * len, base + parts.scales + row * len];
    bundle.edit("dense-000.bin", |bytes| {
        for at in places {
            bytes[at as usize..(at + len) as usize].fill(0);
        }
    });
    exchange(&mut bundle, 1, Role::UpProj, Role::UpProj, false);
    bundle
}

#[test]
fn a_row_of_zeros_is_found_at_every_width() {
    let place = "dense-000.bin: layer 0: mlp.up_proj";
    for (bits, expected) in [
        (
            2,
            "row 5: expected several values, as in the source, found one value, at a relative RMSE of 1.0000",
        ),
        (
            3,
            "row 5: expected several values, as in the source, found one value, at a relative RMSE of 1.0000",
        ),
        (4, "relative RMSE of row 5: expected at most 0.5490, found 1.0000"),
    ] {
        let found = messages(&with_zero_row(bits, 5));
        assert_eq!(found, [format!("{place}: {expected}")], "{bits}");
    }
}

#[test]
fn units_of_another_model_are_not_read() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let right = check(&bundle);
    change(&bundle, 1, Role::UpProj, |t| t.source.tensor = "nowhere".to_owned());
    let [original, candidate] =
        [&bundle.checkpoint, bundle.root.path()].map(|path| Weights::open(path).unwrap());
    // Whatever is read of it now is an error.
    let bytes = std::fs::read(bundle.path("dense-000.bin")).unwrap();
    bundle.edit("dense-000.bin", Vec::clear);
    let party = |name, weights| Party { name, weights };
    let candidates = [party("candidate", &candidate)];
    let run = || fidelity(party("original", &original), &candidates, &OPTIONS, &Monitor::silent());
    assert!(run().is_err());
    bundle.edit("dense-000.bin", |cleared| cleared.extend(bytes));
    bundle.rewrite(|manifest| manifest.model.rms_norm_eps = 0.5);
    let result = check(&bundle);
    assert!(right.tensors > 0);
    assert_eq!((result.tensors, result.findings.len()), (0, 1), "{:?}", result.findings);
}

/// The trained fixture.
fn trained(codes: Codes) -> TestBundle {
    TestBundle::from_checkpoint(&fixture("fixture-2m"), codes)
}

/// Takes each matrix of experts in codes to `change`: codes, then scales and biases as values.
fn change_experts(bundle: &TestBundle, change: &mut dyn FnMut(&mut [u8], &mut [f32])) {
    for shards in &bundle.manifest.experts {
        let records = (0..shards.blake3.len()).map(|expert| expert * shards.stride as usize);
        let records: Vec<_> = records.collect();
        bundle.edit(&shards.file, |bytes| {
            for (record, entry) in records
                .iter()
                .flat_map(|r| shards.tensors.iter().map(move |t| (r, t)))
            {
                let parts = entry.encoding.parts(entry.rows, entry.cols).unwrap();
                let place = &mut bytes[record + entry.offset as usize..][..parts.total() as usize];
                let (codes, scales) = place.split_at_mut(parts.weight as usize);
                let mut values = vec![0.0; scales.len() / 2];
                widen(Float::Bf16, scales, &mut values);
                change(codes, &mut values);
                narrow(Float::Bf16, &values, scales);
            }
        });
    }
}

/// What is found when experts are changed so; they are as they were afterwards.
fn with_changed_experts(
    bundle: &TestBundle,
    change: &mut dyn FnMut(&mut [u8], &mut [f32]),
) -> Vec<Finding> {
    let files = bundle.manifest.experts.iter().map(|shards| &shards.file);
    let kept: Vec<_> = files
        .map(|file| (file, std::fs::read(bundle.path(file)).unwrap()))
        .collect();
    change_experts(bundle, change);
    let found = check(bundle).findings;
    for (file, bytes) in kept {
        std::fs::write(bundle.path(file), bytes).unwrap();
    }
    found
}

/// Three matrices of each of eight experts in four layers.
const MATRICES: usize = 96;

#[test]
fn honest_codes_of_a_trained_model_hold() {
    for codes in [Codes::Affine(2), Codes::Affine(8), Codes::Trellis(2)] {
        assert_eq!(messages(&trained(codes)), [""; 0]);
    }
}

#[test]
fn values_that_were_scaled_on_purpose_are_found() {
    for (codes, factors) in [
        (Codes::Searched(2), &[0.85][..]),
        (Codes::Affine(4), &[0.95]),
        (Codes::Affine(8), &[0.99]),
    ] {
        let bundle = trained(codes);
        assert_eq!(messages(&bundle), [""; 0]);
        scaled(&bundle, factors);
    }
}

fn scaled(bundle: &TestBundle, factors: &[f32]) {
    for factor in factors {
        let scale =
            &mut |_: &mut [u8], scales: &mut [f32]| scales.iter_mut().for_each(|v| *v *= factor);
        let found = with_changed_experts(bundle, scale);
        assert_eq!(found.len(), MATRICES, "{factor}: {:?}", found.first());
        assert!(found.iter().all(|f| f.kind == Kind::Intent));
        assert!(found[0].what.starts_with("length"), "{}", found[0]);
    }
}

#[test]
fn codes_that_were_searched_for_tell_what_was_done_to_them() {
    let bundle = trained(Codes::Searched(4));
    assert_eq!(messages(&bundle), [""; 0]);
    scaled(&bundle, &[0.95, 0.85, 1.05]);
    a_row(&bundle);
    hidden_bits(&bundle);
}

fn a_row(bundle: &TestBundle) {
    let mut first = true;
    let found = with_changed_experts(bundle, &mut |_, scales| {
        if std::mem::take(&mut first) {
            let (scales, biases) = scales.split_at_mut(scales.len() / 2);
            // A row of 128 in groups of 32.
            scales[12..16].iter_mut().for_each(|v| *v *= 0.85);
            biases[12..16].iter_mut().for_each(|v| *v *= 0.85);
        }
    });
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let expected = "experts/layer-000.bin: layer 0 expert 0: expert.gate_proj: length of row 3 along \
                    the source: expected 0.8776 to 1.0961, found 0.8454";
    assert_eq!(found, [expected]);
}

/// The next of a fixed sequence of bytes.
fn noise(state: &mut u32) -> u8 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 24) as u8
}

fn hidden_bits(bundle: &TestBundle) {
    let mut state = 1;
    let hide = &mut |codes: &mut [u8], _: &mut [f32]| {
        let hide = |byte: &mut u8| *byte = *byte & 0xee | noise(&mut state) & 0x11;
        codes.iter_mut().for_each(hide);
    };
    let found = with_changed_experts(bundle, hide);
    assert_eq!(found.len(), MATRICES, "{:?}", found.first());
    assert!(
        found
            .iter()
            .all(|f| f.kind == Kind::Intent && f.what == "codes")
    );
    let share = found[0].found.as_deref().unwrap_or_default();
    assert_eq!(share, "a nearer one for 49.35 %");
    // What says that it was calibrated may have other codes than the nearest, but not these.
    bundle.rewrite(|manifest| {
        let text = Some(Hash::from(blake3::hash(b"text")));
        manifest.calibration = Some(Calibration { text_blake3: text, ..Calibration::default() });
    });
    let found = with_changed_experts(bundle, hide);
    assert_eq!(found.len(), MATRICES, "{:?}", found.first());
    let expected = Some("a mean squared distance of at most 0.25 steps");
    assert!(found.iter().all(|f| f.expected.as_deref() == expected), "{}", found[0]);
}
