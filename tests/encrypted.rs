//! Encrypted connections to servers that vouch for themselves alone: they are trusted where their certificate is named,
//! and nowhere else.

use std::fs;

use shardwright_testing::digest;
use shardwright_testing::server::{Faults, Manner, Server};
use shardwright_testing::tls::Encrypted;

use crate::harness::{Ran, Scratch};
use crate::remote::{QUANTIZE, command, local};

/// A checkpoint and its bundle, the server of the former, and the encrypted way to it.
fn encrypted(manner: Manner) -> (Scratch, Server, Encrypted) {
    let scratch = local("golden/llama3");
    let faults = Faults { every: Some(5), ..Faults::default() };
    let server = Server::start(&scratch.path("ckpt"), manner, faults);
    let encrypted = Encrypted::before(&server);
    fs::write(scratch.path("own.pem"), encrypted.certificate()).unwrap();
    (scratch, server, encrypted)
}

#[test]
fn a_server_is_trusted_by_the_certificate_that_is_named() {
    let (scratch, server, encrypted) = encrypted(Manner::Web);
    let convert = format!("convert {} -o remote {QUANTIZE}", encrypted.address());
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"] {
        let ran = command(&scratch, &server, &convert)
            .env(name, "own.pem")
            .output();
        let ran = Ran::from(ran.unwrap());
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
        assert_eq!(digest(&scratch.path("remote")), digest(&scratch.path("local")), "{name}");
        fs::remove_dir_all(scratch.path("remote")).unwrap();
    }
}

#[test]
fn a_bucket_is_read_over_an_encrypted_connection() {
    let (scratch, server, encrypted) = encrypted(Manner::S3);
    let ran = command(&scratch, &server, "inspect s3://bucket/models/name --json")
        .env("AWS_ENDPOINT_URL", encrypted.address())
        .env("AWS_CA_BUNDLE", "own.pem")
        .output();
    let ran = Ran::from(ran.unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let here = scratch.ok("inspect ckpt --json").stdout;
    assert_eq!(ran.stdout.replace("s3://bucket/models/name", "ckpt"), here);
}

#[test]
fn a_server_that_nobody_vouches_for_is_refused_at_once() {
    let (scratch, server, encrypted) = encrypted(Manner::Web);
    let other = Encrypted::before(&server);
    fs::write(scratch.path("other.pem"), other.certificate()).unwrap();
    fs::write(scratch.path("none.pem"), "no certificate\n").unwrap();
    let damaged = encrypted.certificate().replacen("MII", "!!!", 1);
    fs::write(scratch.path("damaged.pem"), damaged).unwrap();
    let untrusted = format!("error: {}: ", encrypted.address());
    let cases = [
        (None, &*untrusted),
        (Some("other.pem"), &*untrusted),
        (Some("none.pem"), "error: none.pem: expected certificates in PEM, as SSL_CERT_FILE says"),
        (
            Some("damaged.pem"),
            "error: damaged.pem: expected certificates in PEM, as SSL_CERT_FILE says",
        ),
        (Some("nowhere.pem"), "error: nowhere.pem: "),
    ];
    for (file, expected) in cases {
        let mut command = command(&scratch, &server, &format!("inspect {}", encrypted.address()));
        let ran = Ran::from(
            command
                .envs(file.map(|f| ("SSL_CERT_FILE", f)))
                .output()
                .unwrap(),
        );
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{file:?}: {ran:?}");
        assert!(ran.stderr.starts_with(expected), "{file:?}: {}", ran.stderr);
        let helped = ran.stderr.contains("set SSL_CERT_FILE to a file");
        assert_eq!(helped, expected == untrusted, "{file:?}: {}", ran.stderr);
    }
    assert_eq!(server.requests(), 0, "something was asked of a server that is not trusted");
}
