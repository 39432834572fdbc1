//! Experts of a layer in several entries.

use super::*;

/// The experts of the layer in two entries: 0 and 2, and 1.
fn with_two_entries() -> Manifest {
    let mut manifest = manifest();
    let mut other = manifest.experts[0].clone();
    let stride = other.stride;
    other.file = "experts/layer-000-1.bin".to_owned();
    manifest.experts.push(other);
    for (entry, experts) in manifest.experts.iter_mut().zip([vec![0, 2], vec![1]]) {
        entry.blake3.truncate(experts.len());
        entry.experts = Some(experts);
    }
    let file = manifest
        .files
        .iter_mut()
        .find(|file| file.path == "experts/layer-000.bin");
    let file = file.unwrap();
    file.size = 2 * stride;
    let added =
        FileEntry { path: "experts/layer-000-1.bin".to_owned(), size: stride, ..file.clone() };
    manifest.files.push(added);
    manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
    manifest
}

#[test]
fn each_expert_of_a_layer_lies_in_one_entry() {
    let manifest = with_two_entries();
    assert_eq!(manifest.validate(), Ok(()));
    let bytes = manifest.to_bytes();
    assert_eq!(
        Manifest::from_bytes(Path::new("m"), &bytes)
            .unwrap()
            .experts,
        manifest.experts
    );
    let stride = manifest.experts[0].stride;
    let place = |expert| {
        manifest
            .expert(0, expert)
            .map(|(e, at)| (e.first(), at.offset))
    };
    let unit = |expert| Unit::Expert { layer: 0, expert };
    assert_eq!(place(2), Some((unit(0), stride)));
    assert_eq!(place(1), Some((unit(1), 0)));
    assert_eq!((place(3), manifest.expert(1, 0)), (None, None));
    let shards: Vec<_> = manifest.shards().map(|shard| shard.unit).skip(3).collect();
    assert_eq!(shards, [unit(0), unit(2), unit(1)]);
    let told = |edit: &dyn Fn(&mut Manifest)| {
        let mut manifest = with_two_entries();
        edit(&mut manifest);
        manifest.validate().unwrap_err().to_string()
    };
    let named = |first: &[u32], second: &[u32]| {
        told(&|m| {
            for (entry, experts) in m.experts.iter_mut().zip([first, second]) {
                entry.experts = Some(experts.to_vec());
                entry.blake3 = vec![Hash::ZERO; experts.len()];
            }
        })
    };
    let ascending =
        "layer 0 experts: expected experts of the layer, ascending, each in one entry, found";
    assert_eq!(named(&[0, 2], &[2]), format!("{ascending} 2"));
    assert_eq!(named(&[2, 0], &[1]), format!("{ascending} 0"));
    assert_eq!(named(&[0, 2], &[3]), format!("{ascending} 3"));
    assert_eq!(named(&[0], &[1]), "layer 0 experts: expected 3 experts, found 2");
    let first = "layer 0 experts: entries: expected those with lower experts first";
    assert_eq!(named(&[1], &[0, 2]), first);
    assert_eq!(
        named(&[], &[0, 1, 2]),
        "layer 0 experts: expected experts in each entry, found none"
    );
    assert_eq!(
        told(&|m| m.experts[1].experts = None),
        "layer 0 experts: several entries: expected a list of experts in each"
    );
    assert_eq!(
        told(&|m| m.experts[0].blake3.truncate(1)),
        "layer 0 experts: hashes: expected 2, found 1"
    );
    let alone = told(&|m| {
        m.experts.truncate(1);
        m.experts[0].experts = Some(vec![0, 1, 2]);
    });
    assert_eq!(alone, "layer 0 experts: one entry: expected no list of experts");
    let many = told(&|m| m.experts = vec![m.experts[0].clone(); 17]);
    assert_eq!(many, "layer 0 experts: expected at most 16 entries, found 17");
}
