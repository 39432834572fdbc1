//! The command line itself: help, usage errors, output modes.

use std::fs;

use shardwright_testing::root;

use crate::harness::Scratch;

const COMMANDS: [&str; 14] = [
    "inspect",
    "plan",
    "convert",
    "merge",
    "calibrate",
    "verify",
    "compare",
    "run",
    "bench",
    "export",
    "pack",
    "unpack",
    "recipes",
    "arch",
];

/// Compares with a file under `tests/expected`, or writes it when asked to.
fn expect(name: &str, found: &str) {
    let path = root().join("tests/expected").join(name);
    if std::env::var_os("SHARDWRIGHT_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "`just bless` rewrites {}", path.display());
}

#[test]
fn every_command_explains_itself() {
    let scratch = Scratch::new();
    expect("help.txt", &scratch.ok("--help").stdout);
    for command in COMMANDS {
        let help = scratch.ok(&format!("{command} --help")).stdout;
        assert!(help.contains("Examples:"), "{command}");
        expect(&format!("help-{command}.txt"), &help);
    }
}

#[test]
fn examples_in_help_texts_are_commands_that_parse() {
    let scratch = Scratch::new();
    for command in COMMANDS {
        let help = scratch
            .ok(&format!("{command} --help"))
            .stdout
            .replace("\\\n", " ");
        let examples = help
            .lines()
            .filter_map(|l| l.trim_start().strip_prefix("shardwright "));
        for example in examples {
            // What follows two spaces or a pipe is an explanation.
            let example = example
                .split("  ")
                .next()
                .unwrap()
                .split(['|', '>'])
                .next()
                .unwrap();
            let ran = scratch.shell(&format!("shardwright {example}"));
            assert!(!ran.stderr.contains("Usage:"), "{example}: {}", ran.stderr);
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let scratch = Scratch::new();
    for args in [
        "",
        "frobnicate",
        "inspect",
        "convert ckpt",
        "run out",
        "run out --prompt x --memory lots",
        "verify out --text x",
        "verify out --max-kld 1",
        "verify out --beside x.json",
        "compare x.json",
        "plan ckpt --bits 4 --recipe q4",
        "plan ckpt --group-size 64",
        "plan ckpt --calibrate x --statistics y",
        "plan ckpt --target-bpw 3",
        "plan ckpt --encodings affine",
        "plan ckpt --calibrate x --calibration-window 1",
        "calibrate ckpt text",
        "run out --prompt x --threads 0",
        "run out --prompt x --context 18446744073709551615",
        "bench out -n 16777217",
        "plan ckpt --bits 0",
        "plan ckpt --bits 4 --group-size 65535",
        "plan ckpt --calibrate x --calibration-tokens 0",
        "plan ckpt --calibrate x --calibration-tokens 18446744073709551615",
        "plan ckpt --calibrate x --target-bpw 3 --probe-tokens 0",
        "plan ckpt --calibrate x --target-bpw 3 --probe-tokens 18446744073709551615",
        "plan ckpt --calibrate x --target-bpw nan",
        "plan ckpt --calibrate x --target-bpw -1",
        "plan ckpt --calibrate x --target-size 0",
        "plan ckpt --calibrate x --target-size 99999999TiB",
        "verify out --max-bpw nan",
        "verify out --against x --max-rmse inf",
        "verify out --against x --text y --max-kld nan",
        "verify out --against x --text y --max-ppl-ratio -1",
        "verify out --against x --text y --window 4294967295",
        "verify out --against x --text y --windows 0",
    ] {
        let ran = scratch.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args}: {ran:?}");
        // Refused as an option is, before anything is opened.
        assert!(ran.stderr.contains("--help"), "{args}: {}", ran.stderr);
    }
}

#[test]
fn inspect_of_the_fixture() {
    let scratch = Scratch::with("fixture-2m");
    expect("inspect-checkpoint.txt", &scratch.ok("inspect ckpt").stdout);
    scratch.ok("convert ckpt -o out");
    expect("inspect-bundle.txt", &scratch.ok("inspect out").stdout);
    let plan = scratch.ok("plan ckpt").stdout;
    // What follows depends on the machine's cores.
    expect("plan.txt", plan.split("\nconverting reads").next().unwrap());
    let tensors = scratch.ok("inspect out --tensors").stdout;
    assert!(tensors.contains("layer 3 expert 7"), "{tensors}");
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let ran = Scratch::new().run("inspect nowhere --json");
    assert_eq!(ran.code, Some(2));
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"], "nowhere: there is no such directory");
}

#[test]
fn the_parts_of_an_error_are_members_of_its_json() {
    let scratch = Scratch::with("golden/llama2");
    scratch.edit_json("ckpt/config.json", |config| config["rms_norm_eps"] = "x".into());
    let ran = scratch.run("inspect ckpt --json");
    assert_eq!(ran.code, Some(2));
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    let expected = serde_json::json!({
        "error": "ckpt/config.json: `rms_norm_eps`: expected a number above 0, found \"x\"",
        "help": null,
        "file": "ckpt/config.json",
        "what": "`rms_norm_eps`",
        "expected": "a number above 0",
        "found": "\"x\"",
    });
    assert_eq!(error, expected);
}
