//! Drafts: the same text with and without them, to the byte.

use std::fs;

use serde_json::{Value, json};
use shardwright_testing::{copy_dir, widen};

use crate::harness::Scratch;

/// Text that repeats itself, so that there is something to look up.
const PROMPT: &str = "The cat sat on the mat. The dog sat on the mat. The cat sat on the";

fn model() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o out --bits 4");
    fs::write(scratch.path("prompt"), PROMPT).unwrap();
    scratch
}

fn assert_same(drafted: &Value, plain: &Value, what: &str) {
    for field in ["text", "tokens", "stopped", "logits_blake3"] {
        assert_eq!(drafted[field], plain[field], "{what}: {field}");
    }
    for phase in ["prompt", "decode"] {
        assert_eq!(drafted[phase]["tokens"], plain[phase]["tokens"], "{what}: {phase}");
    }
}

#[test]
fn drafts_do_not_change_the_text_greedy_or_sampled() {
    let scratch = model();
    for sampling in ["", "--temperature 0.7 --top-p 0.9 --seed 3", "--temperature 1 --top-k 5"] {
        for more in ["-n 60 --ignore-eos", "-n 1", "-n 0", "-n 60 --context 40 --threads 1"] {
            let args = format!("run out --prompt-file prompt {sampling} {more}");
            let (plain, drafted) =
                (scratch.json(&args), scratch.json(&format!("{args} --draft ngram")));
            assert_same(&drafted, &plain, &args);
            assert!(plain.get("draft").is_none());
            let draft = &drafted["draft"];
            assert_eq!(draft["source"], json!("ngram"), "{draft}");
            if more == "-n 60 --ignore-eos" {
                assert!(draft["offered"].as_u64().unwrap() > 0, "{draft}");
                let steps = draft["steps"].as_u64().unwrap();
                assert!(steps > 0 && draft["accepted"].as_u64() <= draft["offered"].as_u64());
            }
        }
    }
}

#[test]
fn drafts_do_not_change_the_text_under_any_budget() {
    let scratch = model();
    let args = "run out --prompt-file prompt -n 40 --ignore-eos";
    let plain = scratch.json(args);
    let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
    let (floor, resident) = (bytes("floor_bytes"), bytes("resident_bytes"));
    // What the process itself takes differs a little from run to run.
    for budget in [floor + (1 << 20), resident - (resident - floor) / 4, 2 * resident] {
        for more in
            ["--draft ngram", "--draft ngram --look-ahead on", "--look-ahead on --threads 1"]
        {
            let more = format!("{more} --memory {budget}");
            assert_same(&scratch.json(&format!("{args} {more}")), &plain, &more);
        }
    }
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps() {
    let scratch = model();
    let args = "run out --prompt-file prompt -n 60 --ignore-eos --quiet";
    let plain = scratch.ok(args).stdout;
    let ran = scratch.ok(&args.replace("--quiet", "--draft ngram"));
    assert_eq!(ran.stdout, plain);
    let line = ran
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("draft    "));
    let words: Vec<&str> = line.unwrap().split(' ').collect();
    let (accepted, offered): (u64, u64) = (words[0].parse().unwrap(), words[2].parse().unwrap());
    assert!(accepted > 0 && accepted <= offered, "{}", ran.stderr);
}

#[test]
fn drafts_in_a_conversation() {
    let scratch = model();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    fs::write(scratch.path("out/chat_template.jinja"), template).unwrap();
    fs::write(scratch.path("lines"), format!("{PROMPT}\n{PROMPT}\n")).unwrap();
    let said = |draft: &str| {
        let args = format!("run out --chat -n 30 --quiet --ignore-eos {draft}");
        let stdin = fs::File::open(scratch.path("lines")).unwrap();
        let output = scratch.command(&args).stdin(stdin).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = said("");
    assert!(!plain.is_empty());
    assert_eq!(said("--draft ngram"), plain);
}

#[test]
fn a_smaller_model_drafts_and_changes_nothing() {
    let scratch = model();
    scratch.ok("convert ckpt -o small --bits 3");
    for sampling in ["", "--temperature 0.7 --top-p 0.9 --seed 3"] {
        let args = format!("run out --prompt-file prompt {sampling} -n 60 --ignore-eos");
        let plain = scratch.json(&args);
        // The original agrees with its own bundle on most tokens, one of 3 bits on some.
        for small in ["ckpt", "small"] {
            let drafted = scratch.json(&format!("{args} --draft {small}"));
            assert_same(&drafted, &plain, &format!("{args} --draft {small}"));
            let draft = &drafted["draft"];
            assert_eq!(draft["source"], json!(small), "{draft}");
            let (offered, accepted) = (draft["offered"].as_u64(), draft["accepted"].as_u64());
            assert!(accepted > Some(0) && accepted <= offered, "{draft}");
        }
        let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
        // The draft's weights count too.
        let budget = bytes("resident_bytes") + (5 << 20);
        let drafted = scratch.json(&format!("{args} --draft small --memory {budget}"));
        assert_same(&drafted, &plain, &budget.to_string());
        let floor = |run: &Value| run["memory"]["floor_bytes"].as_u64().unwrap();
        assert!(floor(&drafted) > bytes("floor_bytes") + (1 << 20));
        assert_eq!(drafted["draft"]["fits"], json!(true));
        // At the floor of both no two tokens can be tried, so the small one is not opened.
        let least = floor(&drafted) - (1 << 20);
        let declined = scratch.json_within(&format!("{args} --draft small"), least);
        assert_same(&declined, &plain, "at the floor of both");
        assert_eq!(declined["draft"]["fits"], json!(false));
        assert!(floor(&drafted) > floor(&declined) + (1 << 20));
    }
}

#[test]
fn drafts_of_other_tokens_are_refused() {
    let scratch = model();
    copy_dir(&scratch.path("ckpt"), &scratch.path("other"));
    scratch.edit_json("other/tokenizer.json", |json| widen(json, 1030));
    let args = "run out --prompt This -n 4";
    let start = "error: --draft other: tokenizers differ: 1024 tokens in out, 1030 in other; token 1024 is nothing in out, ";
    let ran = scratch.run(&format!("{args} --draft other"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    assert!(ran.stderr.starts_with(start) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    scratch
        .refused(&format!("{args} --draft nowhere"), "error: nowhere: there is no such directory");
    let ran = scratch.run(&format!("{args} --draft ckpt --memory 22MiB"));
    assert!(ran.code == Some(2) && ran.stderr.contains("is too small"), "{}", ran.stderr);
}
