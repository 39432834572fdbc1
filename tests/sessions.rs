//! A prompt's cache in a file, and that of a conversation: what is kept never changes the text.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use crate::harness::Scratch;

const PROMPT: &str = "The cat sat on the mat and looked at the moon";

fn model() -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok("convert ckpt -o out --bits 4");
    scratch
}

/// Goes on from the file `prompt`.
const PROMPTED: &str = "run out --prompt-file prompt -n 12 --ignore-eos";

fn prompted(scratch: &Scratch, prompt: &str, options: &str) -> Value {
    fs::write(scratch.path("prompt"), prompt).unwrap();
    scratch.json(&format!("{PROMPTED} {options}"))
}

fn assert_same(found: &Value, expected: &Value, what: &str) {
    for field in ["text", "tokens", "prompt_tokens", "logits_blake3"] {
        assert_eq!(found[field], expected[field], "{what}: {field}");
    }
}

#[test]
fn a_prompt_in_a_file_is_not_computed_again() {
    let scratch = model();
    let longer = format!("{PROMPT} above the hill");
    let (plain, extended) = (prompted(&scratch, PROMPT, ""), prompted(&scratch, &longer, ""));
    assert!(plain.get("session").is_none());
    let with = |prompt: &str, more: &str| {
        let ran = prompted(&scratch, prompt, &format!("--session s {more}"));
        let session = &ran["session"];
        let reused = session["reused"].as_u64().unwrap();
        assert_eq!(ran["prompt"]["tokens"].as_u64().unwrap() + reused, ran["prompt_tokens"]);
        (reused, session["written"] == json!(true), ran)
    };
    let all = plain["prompt_tokens"].as_u64().unwrap();
    let (reused, written, ran) = with(PROMPT, "");
    assert_same(&ran, &plain, "first");
    assert_eq!((reused, written), (0, true));
    let bytes = fs::read(scratch.path("s")).unwrap();
    for more in ["", "--threads 1", "--draft ngram", "--context 60"] {
        let (reused, written, ran) = with(PROMPT, more);
        assert_same(&ran, &plain, more);
        assert_eq!((reused, written), (all, false), "{more}");
    }
    assert_eq!(fs::read(scratch.path("s")).unwrap(), bytes);
    let (reused, written, ran) = with(&longer, "");
    assert_same(&ran, &extended, "a longer prompt");
    assert!(written && reused > all / 2 && reused <= all, "{reused} of {all}");
    let (reused, written, ran) = with(PROMPT, "");
    assert_same(&ran, &plain, "a shorter prompt");
    assert!(written && reused > 0 && reused < all, "{reused} of {all}");
    // A prompt that begins otherwise takes the place of the one before.
    let (reused, written, _) = with("Once", "");
    assert_eq!((reused, written), (0, true));
    assert!(!scratch.path("s.partial").exists());
}

#[test]
fn sampled_and_streamed_texts_go_on_alike() {
    let scratch = model();
    for options in [
        "--temperature 0.9 --seed 5",
        "--cache-type-k f32 --cache-type-v bf16",
        "--cache-type-k q8_0 --cache-type-v q4_0",
    ] {
        let plain = prompted(&scratch, PROMPT, options);
        let bytes = |name: &str| plain["memory"][name].as_u64().unwrap();
        // Floors of two runs differ by what the process itself takes, so that the room is nearer to all of it.
        let resident = bytes("resident_bytes");
        let budget = resident - (resident - bytes("floor_bytes")) / 4;
        let _ = fs::remove_file(scratch.path("s"));
        let options = format!("{options} --session s");
        assert_same(&prompted(&scratch, PROMPT, &options), &plain, &options);
        let streamed = scratch.json_within(&format!("{PROMPTED} {options}"), budget);
        assert_same(&streamed, &plain, "streamed");
    }
}

#[test]
fn a_session_of_something_else_or_damaged_is_refused() {
    let scratch = model();
    scratch.ok("convert ckpt -o other --bits 8");
    prompted(&scratch, PROMPT, "--session s");
    let refused = |args: &str, expected: &str| {
        let ran = scratch.run(&format!("{args} --prompt x"));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
        let line = ran
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap();
        assert!(line.starts_with(expected), "{line}");
    };
    refused("run other --session s", "error: s: expected a session of model ");
    refused("run ckpt --session s", "error: s: expected a session of model ");
    refused(
        "run out --session s --cache-type-k f32",
        "error: s: expected a session with keys and values in f32 and f16, found one with keys and values in f16 and f16",
    );
    refused(
        "run out --session s --cache-type-k q8_0 --cache-type-v q8_0",
        "error: s: expected a session with keys and values in q8_0 and q8_0, found one with keys and values in f16 and f16",
    );
    let bytes = fs::read(scratch.path("s")).unwrap();
    for at in [8, 20, 40, 300, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 16;
        fs::write(scratch.path("t"), flipped).unwrap();
        refused("run out --session t", "error: t: is damaged: its hash is not that of its bytes");
    }
    // A right hash around a logit that no model gives: the last one.
    let mut forged = bytes[..bytes.len() - 36].to_vec();
    forged.extend(f32::NAN.to_le_bytes());
    forged.extend(*blake3::hash(&forged).as_bytes());
    fs::write(scratch.path("t"), forged).unwrap();
    let ran = scratch.run("run out --session t --prompt-file prompt");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.stderr.contains("error: t: its logit of token "), "{}", ran.stderr);
    for len in [60, bytes.len() / 3, bytes.len() - 1] {
        fs::write(scratch.path("t"), &bytes[..len]).unwrap();
        refused("run out --session t", "error: t: is damaged");
    }
    for other in [&b""[..], b"short", &[7; 100]] {
        fs::write(scratch.path("t"), other).unwrap();
        refused("run out --session t", "error: t: expected a session that `run --session` wrote");
    }
    refused("run out --session out", "error: out: expected a session that `run --session` wrote");
    refused("run out --session none/s", "error: none: there is no such directory");
    // The open of a pipe would wait for a writer.
    scratch.shell("mkfifo pipe");
    refused("run out --session pipe", "error: pipe: expected a session that `run --session` wrote");
}

/// A template that does not repeat what it was given: replies are shown shortened, as models that
/// think do with their thoughts.
const FORGETFUL: &str = "{% for m in messages %}{{ m.role }}: \
    {{ m.content if m.role == 'user' else m.content[:3] }}\n{% endfor %}assistant:";

#[test]
fn a_conversation_keeps_what_a_turn_has_in_common_with_the_one_before() {
    let scratch = model();
    fs::write(scratch.path("out/chat_template.jinja"), FORGETFUL).unwrap();
    let asked = ["Tell me of the cat and the moon", "Why?", "The dog"];
    fs::write(scratch.path("lines"), asked.join("\n")).unwrap();
    let converse = |more: &str| {
        let args = format!("run out --chat -n 24 --ignore-eos {more}");
        let stdin = fs::File::open(scratch.path("lines")).unwrap();
        let output = scratch.command(&args).stdin(stdin).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    };
    // Each turn as a prompt of its own.
    let (mut prompt, mut expected, mut read) = (String::new(), String::new(), 0);
    for line in asked {
        write!(prompt, "user: {line}\nassistant:").unwrap();
        fs::write(scratch.path("prompt"), &prompt).unwrap();
        let ran = scratch.json("run out --prompt-file prompt -n 24 --ignore-eos");
        read += ran["prompt_tokens"].as_u64().unwrap();
        let text = ran["text"].as_str().unwrap();
        writeln!(expected, "{text}").unwrap();
        writeln!(prompt, " {}", text.chars().take(3).collect::<String>()).unwrap();
    }
    let (said, statistics) = converse("");
    assert_eq!(said, expected);
    let line = statistics
        .lines()
        .find_map(|line| line.strip_prefix("prompt   "))
        .unwrap();
    let computed: u64 = line.split(' ').next().unwrap().parse().unwrap();
    assert!(computed < read * 2 / 3, "{computed} of {read} tokens were computed");
    for _ in 0..2 {
        assert_eq!(converse("--session chat --quiet").0, expected);
        assert!(scratch.path("chat").is_file());
    }
}
