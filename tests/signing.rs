//! Signatures of bundles: by the key that is trusted, of this manifest, or a finding.

use std::fs;

use minisign::KeyPair;

use crate::harness::Scratch;

/// A bundle, and a key whose public half is in `key.pub`.
fn bundle() -> (Scratch, KeyPair) {
    let scratch = Scratch::with("golden/llama2");
    scratch.ok("convert ckpt -o b --bits 4 --group-size 32");
    let pair = KeyPair::generate_unencrypted_keypair().unwrap();
    let public = pair.pk.clone().to_box().unwrap().into_string();
    fs::write(scratch.path("key.pub"), public).unwrap();
    (scratch, pair)
}

/// Signs the manifest, as `minisign -S` does.
fn sign(scratch: &Scratch, pair: &KeyPair, to: &str) {
    let manifest = fs::File::open(scratch.path("b/manifest.json")).unwrap();
    let signature = minisign::sign(Some(&pair.pk), &pair.sk, manifest, Some("by us"), None);
    fs::write(scratch.path(to), signature.unwrap().into_string()).unwrap();
}

/// Something is found, and the report says this of it.
#[track_caller]
fn found(scratch: &Scratch, args: &str, expected: &str) {
    let ran = scratch.run(args);
    assert_eq!(ran.code, Some(1), "{args}: {ran:?}");
    assert!(ran.stdout.contains(expected), "{}", ran.stdout);
}

#[test]
fn a_signature_goes_with_its_bundle() {
    let (scratch, pair) = bundle();
    sign(&scratch, &pair, "b/manifest.json.minisig");
    let signed = "manifest.json is signed by the key in key.pub, with the comment `by us`";
    assert!(
        scratch
            .ok("verify b --trusted key.pub")
            .stdout
            .contains(signed)
    );
    // A key as one line, without the comment above it.
    let line = fs::read_to_string(scratch.path("key.pub")).unwrap();
    fs::write(scratch.path("line.pub"), line.lines().last().unwrap()).unwrap();
    scratch.ok("verify b --trusted line.pub");
    assert!(
        scratch
            .ok("verify b")
            .stdout
            .contains("manifest.json.minisig: not checked")
    );
    scratch.ok("pack b -o b.pack");
    assert!(
        scratch
            .ok("verify b.pack --trusted key.pub")
            .stdout
            .contains(signed)
    );
    scratch.ok("unpack b.pack -o again");
    assert!(
        scratch
            .ok("verify again --trusted key.pub")
            .stdout
            .contains(signed)
    );
}

#[test]
fn no_other_signature_will_do() {
    let (scratch, pair) = bundle();
    let verify = "verify b --trusted key.pub";
    found(
        &scratch,
        verify,
        "manifest.json.minisig: there is none; expected one by the key in key.pub",
    );
    sign(&scratch, &KeyPair::generate_unencrypted_keypair().unwrap(), "b/manifest.json.minisig");
    found(&scratch, verify, "is not of this manifest.json by the key in key.pub");
    fs::write(scratch.path("b/manifest.json.minisig"), "nothing").unwrap();
    found(&scratch, verify, "expected a signature of minisign");
    sign(&scratch, &pair, "b/manifest.json.minisig");
    // Whoever changes the bundle makes its hashes anew, and cannot sign them.
    scratch.edit_json("b/manifest.json", |manifest| {
        manifest["model"]["rms_norm_eps"] = 2e-5.into();
    });
    found(&scratch, verify, "manifest");
}

#[test]
fn what_is_no_key_or_no_bundle_is_refused() {
    let (scratch, _) = bundle();
    fs::write(scratch.path("bad.pub"), "no key").unwrap();
    let ran = scratch.run("verify b --trusted bad.pub");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("error: bad.pub: expected a public key of minisign"),
        "{}",
        ran.stderr
    );
    scratch.refused(
        "verify ckpt --trusted key.pub",
        "error: ckpt: expected a bundle: no other model is signed",
    );
}
