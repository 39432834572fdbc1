//! Models that are elsewhere: behind a web server, on a hub, in an S3 bucket, each played by a server on this machine
//! that also fails as they do. What is read is right or refused in one line.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use shardwright_testing::models::flash_moe_checkpoint;
use shardwright_testing::server::{Faults, Manner, Server};
use shardwright_testing::{digest, golden};

use crate::harness::{Ran, Scratch};

/// How models are converted here.
pub const QUANTIZE: &str = "--bits 4 --group-size 32";

/// Variables that change what is asked, and of whom.
const NOT_SET: [&str; 8] = [
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
];

/// A command that knows this server and no other.
pub fn command(scratch: &Scratch, server: &Server, args: &str) -> Command {
    let mut command = scratch.command(args);
    for name in ["HF_HOME", "HF_HUB_CACHE"] {
        command.env(name, scratch.path("cache"));
    }
    fs::create_dir_all(scratch.path("temporary")).unwrap();
    command.env("TMPDIR", scratch.path("temporary"));
    for name in NOT_SET {
        command.env_remove(name);
    }
    command
        .env("HF_ENDPOINT", server.address())
        .env("AWS_ENDPOINT_URL", server.address())
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

/// Runs a command, which leaves nothing behind where temporary files are.
fn run(scratch: &Scratch, server: &Server, args: &str) -> Ran {
    let ran = Ran::from(command(scratch, server, args).output().unwrap());
    let left = fs::read_dir(scratch.path("temporary")).unwrap().count();
    assert_eq!(left, 0, "{args}: {ran:?}");
    ran
}

#[track_caller]
fn ok(scratch: &Scratch, server: &Server, args: &str) -> Ran {
    let ran = run(scratch, server, args);
    assert_eq!(ran.code, Some(0), "{args}: {ran:?}");
    ran
}

/// Refused in one line that contains `expected`.
#[track_caller]
fn refused(scratch: &Scratch, server: &Server, args: &str, expected: &str) {
    let ran = run(scratch, server, args);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args}: {ran:?}");
    assert!(ran.stderr.contains(expected), "{args}: {}", ran.stderr);
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
}

/// The bundle that a local checkpoint gives, beside the server's.
pub fn local(case: &str) -> Scratch {
    let scratch = Scratch::with(case);
    scratch.ok(&format!("convert ckpt -o local {QUANTIZE}"));
    scratch
}

fn converted(scratch: &Scratch, server: &Server, location: &str) {
    ok(scratch, server, &format!("convert {location} -o remote {QUANTIZE}"));
    assert_eq!(digest(&scratch.path("remote")), digest(&scratch.path("local")), "{location}");
    fs::remove_dir_all(scratch.path("remote")).unwrap();
}

/// With a fault in every fifth request and with none: one file, several with an index, experts.
#[test]
fn the_same_bundle_from_everywhere() {
    for case in ["golden/llama2", "golden/llama3", "golden/qwen3_moe"] {
        let scratch = local(case);
        for every in [None, Some(5)] {
            let faults = Faults { every, ..Faults::default() };
            for manner in [Manner::Web, Manner::Hub, Manner::S3] {
                let server = Server::start(&scratch.path("ckpt"), manner, faults);
                let location = match manner {
                    Manner::Hub => "hf://org/name".to_owned(),
                    Manner::S3 => "s3://bucket/models/name".to_owned(),
                    _ => server.address(),
                };
                converted(&scratch, &server, &location);
            }
        }
    }
}

/// Commands that only look read little more than headers; those that run a model give the same as from disk.
#[test]
fn every_command_takes_a_location() {
    let scratch = local("fixture-2m");
    let server = Server::start(&scratch.path("ckpt"), Manner::Hub, Faults::default());
    let there = ok(&scratch, &server, "inspect hf://org/name@v1 --json").stdout;
    let here = scratch.ok("inspect ckpt --json").stdout;
    assert_eq!(there.replace("hf://org/name@v1", "ckpt"), here);
    let (seen, whole) = (
        server.sent(),
        fs::metadata(scratch.path("ckpt/model.safetensors"))
            .unwrap()
            .len(),
    );
    assert!(seen < whole / 4, "{seen} of {whole} bytes to inspect");
    ok(&scratch, &server, "plan hf://org/name --bits 4");
    let run = "run MODEL --prompt Once --tokens 8";
    let there = ok(&scratch, &server, &run.replace("MODEL", "hf://org/name")).stdout;
    assert_eq!(there, scratch.ok(&run.replace("MODEL", "ckpt")).stdout);
    ok(&scratch, &server, "verify local --against hf://org/name");
}

/// Bytes that come are about those of the files: no range comes twice in a whole conversion.
#[test]
fn nothing_is_fetched_twice() {
    let scratch = local("fixture-2m");
    let server = Server::start(&scratch.path("ckpt"), Manner::S3, Faults::default());
    converted(&scratch, &server, "s3://bucket/models/name/");
    let files = fs::read_dir(scratch.path("ckpt")).unwrap().flatten();
    let all: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
    let sent = server.sent();
    assert!(sent < all + all / 10 + (1 << 20), "{sent} bytes came of {all}");
}

#[test]
fn a_gguf_file_elsewhere() {
    let scratch = Scratch::new();
    let gguf = shardwright_testing::fixture("gguf");
    let server = Server::start(&gguf, Manner::Web, Faults::default());
    let location = format!("{}/llama3-q8_0.gguf", server.address());
    let local = gguf.join("llama3-q8_0.gguf");
    let there = ok(&scratch, &server, &format!("inspect {location} --json")).stdout;
    let here = scratch
        .ok(&format!("inspect {} --json", local.display()))
        .stdout;
    assert_eq!(there.replace(&location, &local.display().to_string()), here);
    ok(&scratch, &server, &format!("convert {location} -o remote --bits 4 --group-size 32"));
    scratch.ok(&format!("convert {} -o local --bits 4 --group-size 32", local.display()));
    assert_eq!(digest(&scratch.path("remote")), digest(&scratch.path("local")));
}

/// A folder of flash-moe: the files of layers, in a directory there, are read by ranges.
#[test]
fn a_folder_of_flash_moe_elsewhere() {
    let scratch = Scratch::new();
    flash_moe_checkpoint(&scratch.path("ckpt"));
    scratch.ok("convert ckpt -o out --bits 4 --for flash-moe");
    scratch.ok("export out --to flash-moe -o packed");
    for (manner, location) in
        [(Manner::Hub, "hf://org/name"), (Manner::S3, "s3://bucket/models/name")]
    {
        let server = Server::start(&scratch.path("packed"), manner, Faults::default());
        let there = ok(&scratch, &server, &format!("inspect {location} --json")).stdout;
        let here = scratch.ok("inspect packed --json").stdout;
        assert_eq!(there.replace(location, "packed"), here);
        let run = "run MODEL --prompt Once --tokens 8";
        let there = ok(&scratch, &server, &run.replace("MODEL", location)).stdout;
        assert_eq!(there, scratch.ok(&run.replace("MODEL", "packed")).stdout);
    }
}

/// A conversion that was stopped goes on from the same revision, and from no other.
#[test]
fn an_interrupted_conversion_goes_on() {
    let scratch = local("golden/llama3");
    let server = Server::start(&scratch.path("ckpt"), Manner::Web, Faults::default());
    let stop = |server: &Server| -> Output {
        let args = format!("convert {} -o remote {QUANTIZE}", server.address());
        command(&scratch, server, &args)
            .env("SHARDWRIGHT_STOP_AFTER", "2")
            .output()
            .unwrap()
    };
    assert_eq!(stop(&server).status.code(), Some(130));
    let before = server.sent();
    let resume = format!("convert {} -o remote {QUANTIZE} --resume", server.address());
    ok(&scratch, &server, &resume);
    assert_eq!(digest(&scratch.path("remote")), digest(&scratch.path("local")));
    assert!(server.sent() > before);
    fs::remove_dir_all(scratch.path("remote")).unwrap();
    assert_eq!(stop(&server).status.code(), Some(130));
    let faults = Faults { change_after: Some(0), ..Faults::default() };
    let moved = Server::start(&scratch.path("ckpt"), Manner::Web, faults);
    let resume = format!("convert {} -o remote {QUANTIZE} --resume", moved.address());
    refused(&scratch, &moved, &resume, "with another checkpoint");
}

/// Never a bundle of two revisions, of a length that was not said, or of a server that cannot tell.
#[test]
fn what_changes_or_lies_is_refused() {
    let scratch = local("golden/llama3");
    let convert = |server: &Server| format!("convert {} -o remote {QUANTIZE}", server.address());
    let start = |manner, faults| Server::start(&scratch.path("ckpt"), manner, faults);
    // Enough requests to list everything, none left for the weights.
    let server = start(Manner::Web, Faults::default());
    ok(&scratch, &server, &format!("inspect {}", server.address()));
    let listed = server.requests();
    let server = start(Manner::Web, Faults { change_after: Some(listed), ..Faults::default() });
    refused(&scratch, &server, &convert(&server), "it changed");
    // A small file is held to what was listed, too.
    let faults =
        Faults { change_after: Some(20), change_only: Some("config.json"), ..Faults::default() };
    let server = start(Manner::Web, faults);
    refused(&scratch, &server, &convert(&server), "config.json: expected revision");
    let server = start(Manner::S3, Faults { longer: 8, ..Faults::default() });
    let args = format!("convert s3://bucket/models/name -o remote {QUANTIZE}");
    refused(&scratch, &server, &args, "it changed");
    let server = start(Manner::Rangeless, Faults::default());
    refused(&scratch, &server, &convert(&server), "the server gives no ranges");
    assert!(!scratch.path("remote").exists());
}

#[test]
fn tokens_go_to_the_hub_alone() {
    let scratch = local("golden/llama2");
    let faults = Faults { token: Some("secret"), ..Faults::default() };
    let server = Server::start(&scratch.path("ckpt"), Manner::Hub, faults);
    let args = "inspect hf://org/name";
    refused(&scratch, &server, args, "status 401");
    let mut with = command(&scratch, &server, args);
    let ran = Ran::from(with.env("HF_TOKEN", "secret").output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(server.leaks(), 0);
    let mut offline = command(&scratch, &server, args);
    let ran = Ran::from(offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("HF_HUB_OFFLINE is set"), "{}", ran.stderr);
}

/// What the cache has is not fetched.
#[test]
fn the_cache_of_this_machine_comes_first() {
    let scratch = local("golden/llama2");
    let snapshot = scratch.path("cache/models--org--name/snapshots/c0ffee");
    shardwright_testing::copy_dir(&golden("llama2"), &snapshot);
    let refs = scratch.path("cache/models--org--name/refs");
    fs::create_dir_all(&refs).unwrap();
    fs::write(refs.join("main"), "c0ffee").unwrap();
    let server = Server::start(Path::new("."), Manner::Hub, Faults::default());
    ok(&scratch, &server, "inspect hf://org/name");
    assert_eq!(server.requests(), 0);
    refused(
        &scratch,
        &server,
        "inspect hf://org/name@other",
        "there is no such repository or revision",
    );
}

/// What the cache holds below a repository's folder: links by what they lead to.
fn cache(scratch: &Scratch, below: &str) -> Vec<String> {
    let folder = scratch.path("cache/models--org--name").join(below);
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A source that is kept is found by its name afterwards, and every file of it is the original's, also where a
/// conversion was interrupted in between and its second run read a part alone.
#[test]
fn a_source_is_kept_as_the_hubs_client_keeps_it() {
    for stopped in [false, true] {
        let scratch = local("golden/llama3");
        let faults = Faults { every: Some(5), ..Faults::default() };
        let server = Server::start(&scratch.path("ckpt"), Manner::Hub, faults);
        let convert = format!("convert hf://org/name@v1 -o remote {QUANTIZE} --keep");
        if stopped {
            let mut first = command(&scratch, &server, &convert);
            let ran = first.env("SHARDWRIGHT_STOP_AFTER", "2").output().unwrap();
            assert_eq!(ran.status.code(), Some(130));
            assert!(
                cache(&scratch, "blobs")
                    .iter()
                    .all(|name| !name.starts_with("shardwright-"))
            );
        }
        let said = ok(&scratch, &server, &format!("{convert} --resume")).stdout;
        let snapshot = scratch.path("cache/models--org--name/snapshots/c0ffee");
        let line = format!("the source was kept: {}\n", snapshot.display());
        assert!(said.contains(&line), "{said}");
        assert_eq!(digest(&scratch.path("remote")), digest(&scratch.path("local")));
        for file in fs::read_dir(scratch.path("ckpt")).unwrap().flatten() {
            let kept = snapshot.join(file.file_name());
            assert!(kept.read_link().unwrap().starts_with("../../blobs"), "{}", kept.display());
            assert_eq!(fs::read(&kept).unwrap(), fs::read(file.path()).unwrap());
        }
        assert_eq!(cache(&scratch, "refs"), ["v1"]);
        let asked = server.requests();
        ok(&scratch, &server, "verify remote --against hf://org/name@v1");
        assert_eq!(server.requests(), asked);
    }
}

/// Content that is not what the hub lists has no name in the cache, and other places have no cache.
#[test]
fn what_cannot_be_kept_is_refused() {
    let scratch = local("golden/llama2");
    let faults = Faults { other_hash: true, ..Faults::default() };
    let server = Server::start(&scratch.path("ckpt"), Manner::Hub, faults);
    let convert = |model: &str| format!("convert {model} -o remote {QUANTIZE} --keep");
    refused(&scratch, &server, &convert("hf://org/name"), "expected content of SHA-256 e3b0c442");
    assert!(
        cache(&scratch, "blobs").iter().all(|name| name.len() < 64),
        "{:?}",
        cache(&scratch, "blobs")
    );
    let server = Server::start(&scratch.path("ckpt"), Manner::Web, Faults::default());
    let expected = "only models of the hub are kept";
    refused(&scratch, &server, &convert(&server.address()), expected);
    refused(&scratch, &server, &convert("ckpt"), "--keep: ckpt is no address");
}

/// Locations that name nothing, and names in messages: the location's, not those of a folder on this machine.
#[test]
fn locations_are_refused_in_one_line() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("empty")).unwrap();
    fs::write(scratch.path("empty/config.json"), "{}").unwrap();
    let server = Server::start(&scratch.path("empty"), Manner::Hub, Faults::default());
    for (args, expected) in [
        ("inspect hf://name", "hf://name: expected hf://ORG/NAME[@REVISION][/FILE.gguf]"),
        ("inspect s3://", "s3://: expected s3://BUCKET/PREFIX"),
        (
            "inspect hf://org/other",
            "hf://org/other@main: there is no such repository or revision (status 404)",
        ),
        ("inspect hf://org/name", "hf://org/name@main: expected .safetensors files, found none"),
    ] {
        refused(&scratch, &server, args, expected);
    }
}
