//! Text from bundles and checkpoints: the same however the weights come into memory.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::Scratch;

fn converted(options: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    scratch.ok(&format!("convert ckpt -o out {options}"));
    scratch
}

/// A budget half-way between the least that a run of `model` needs and what holds all of it, for
/// what the process itself takes differs a little from run to run.
fn middle(scratch: &Scratch, model: &str) -> u64 {
    let report = scratch.json(&format!("run {model} --prompt This -n 20"));
    let bytes = |name: &str| report["memory"][name].as_u64().unwrap();
    bytes("floor_bytes").midpoint(bytes("resident_bytes"))
}

#[test]
fn streamed_and_resident_runs_are_the_same_to_the_bit() {
    // Of 8 bits, so that the half-way is farther from both ends than runs of one program differ.
    let scratch = converted("--bits 8");
    for model in ["out", "ckpt"] {
        let args = format!("run {model} --prompt This -n 20");
        let resident = scratch.json(&args);
        let budget = middle(&scratch, model);
        let streamed = scratch.json(&format!("{args} --memory {budget}"));
        assert_eq!(resident["memory"]["mode"], json!("resident"));
        assert_eq!(streamed["memory"]["mode"], json!("streamed"), "{streamed}");
        assert!(streamed["decode"]["bytes_read"].as_u64().unwrap() > 0);
        for field in ["text", "tokens", "logits_blake3"] {
            assert_eq!(resident[field], streamed[field], "{model} {field}");
        }
        let one = scratch.json(&format!("{args} --memory {budget} --threads 1"));
        assert_eq!(one["logits_blake3"], resident["logits_blake3"], "{model}");
    }
}

#[test]
fn memory_stays_below_the_budget() {
    let scratch = converted("--bits 4");
    let budget = middle(&scratch, "out");
    let report = scratch.json(&format!("run out --prompt This -n 20 --memory {budget}"));
    let Some(peak) = report["memory"]["peak_bytes"].as_u64() else { return };
    assert!(peak <= budget, "peak {peak} with a budget of {budget}");
}

#[test]
fn a_budget_below_the_floor() {
    let scratch = converted("--bits 4");
    let ran = scratch.run("run out --prompt x --memory 1MiB");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    let lines: Vec<_> = ran.stderr.lines().collect();
    let start = "error: a memory budget of 1048576 bytes is too small: this model needs at least ";
    assert!(lines[0].starts_with(start), "{}", ran.stderr);
    assert!(lines[1].starts_with("help: --memory ") && lines[1].ends_with("MiB is enough"));
}

#[test]
fn sampling_follows_its_seed() {
    let scratch = converted("--bits 4");
    let text = |options: &str| {
        let args = format!("run out --prompt This -n 24 --ignore-eos --quiet {options}");
        scratch.ok(&args).stdout
    };
    let hot = "--temperature 1.2 --top-k 40 --top-p 0.95";
    assert_eq!(text(&format!("{hot} --seed 1")), text(&format!("{hot} --seed 1")));
    assert_ne!(text(&format!("{hot} --seed 1")), text(&format!("{hot} --seed 2")));
    assert_eq!(text("--seed 1"), text("--seed 2"));
    assert_eq!(text("--temperature 1 --top-k 1"), text(""));
}

#[test]
fn prompts_from_files_and_standard_input() {
    let scratch = converted("--bits 4");
    fs::write(scratch.path("prompt.txt"), "This PEP").unwrap();
    let from_file = scratch
        .ok("run out --prompt-file prompt.txt -n 8 --quiet")
        .stdout;
    let mut command = scratch.command("run out --prompt-file - -n 8 --quiet");
    let stdin = fs::File::open(scratch.path("prompt.txt")).unwrap();
    let output = command.stdin(stdin).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), from_file);
    let mut command = scratch.command("run out -n 8 --quiet --prompt");
    let output = command.arg("This PEP").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), from_file);
    scratch.refused(
        "run out --prompt-file nowhere",
        "error: nowhere: No such file or directory (os error 2)",
    );
}

#[test]
fn settings_that_mean_nothing() {
    let scratch = converted("--bits 4");
    scratch.refused(
        "run out --prompt x --temperature NaN",
        "error: --temperature: expected 0 or more, found NaN",
    );
    scratch.refused(
        "run out --prompt x --top-p 0",
        "error: --top-p: expected above 0, at most 1, found 0",
    );
    scratch.refused(
        "run out --prompt-file /dev/null",
        "error: the prompt has no tokens: expected at least one",
    );
    scratch.refused(
        "run out --prompt-file ckpt/tokenizer.json --context 16",
        "error: ckpt/tokenizer.json: the prompt has more than 16 tokens: expected at most 16, as --context says",
    );
}

#[test]
fn a_missing_or_damaged_tokenizer() {
    let scratch = converted("--bits 4");
    fs::remove_file(scratch.path("ckpt/tokenizer.json")).unwrap();
    scratch.refused("run ckpt --prompt x", "error: ckpt/tokenizer.json: no such file; copy the tokenizer.json of the original model there");
    fs::write(scratch.path("ckpt/tokenizer.json"), "{}").unwrap();
    let ran = scratch.run("run ckpt --prompt x");
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr
            .starts_with("error: ckpt/tokenizer.json: is not a usable tokenizer ("),
        "{ran:?}"
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_text_quietly() {
    let scratch = converted("--bits 4");
    let mut command = scratch.command("run out --prompt This -n 2000 --ignore-eos --quiet");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn statistics_go_to_standard_error() {
    let scratch = converted("--bits 4");
    let ran = scratch.ok("run out --prompt This -n 4");
    let starts: Vec<_> = ran
        .stderr
        .lines()
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    assert_eq!(starts, ["prompt", "first", "decode", "cache", "memory"], "{}", ran.stderr);
    assert_eq!(scratch.ok("run out --prompt This -n 4 --quiet").stderr, "");
}

#[test]
fn bench_measures_every_test_at_every_depth() {
    let scratch = Scratch::with("fixture-2m");
    let report = scratch.json("bench ckpt -p 0,5 -n 3 -d 0,4 -r 2 --threads 2");
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<&str> = tests.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp5", "tg3", "pp5 @ d4", "tg3 @ d4"]);
    for test in tests {
        assert_eq!(test["samples"].as_array().unwrap().len(), 2);
        assert!(test["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    let size = fs::metadata(scratch.path("ckpt/model.safetensors"))
        .unwrap()
        .len();
    let stored = report["size_bytes"].as_u64().unwrap();
    assert!(stored > size / 2 && stored < 2 * size, "{stored} of {size}");
    let table = scratch.ok("bench ckpt -p 5 -n 0 -r 1").stdout;
    let titles: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["model", "size", "params", "backend", "threads", "test", "t/s"]);
    assert!(table.contains(" pp5 ") && table.contains(" \u{b1} 0.00"), "{table}");
    scratch.refused(
        "bench ckpt -p 0 -n 0",
        "error: expected something to measure, found neither -p nor -n",
    );
}

/// A checkpoint whose template shows what it is given.
pub fn conversing(template: &str) -> Scratch {
    let scratch = Scratch::with("fixture-2m");
    fs::write(scratch.path("ckpt/chat_template.jinja"), template).unwrap();
    scratch
}

pub const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                     {% if add_generation_prompt %}assistant:{% endif %}";

#[test]
fn a_turn_is_given_in_the_template_of_the_model() {
    let scratch = conversing(PLAIN);
    scratch.ok("convert ckpt -o out");
    assert!(scratch.path("out/chat_template.jinja").is_file());
    for model in ["ckpt", "out"] {
        let mut command = scratch.command(&format!("run {model} --json -n 9 --prompt"));
        let output = command
            .arg("system: Be brief\nuser: Hi\nassistant:")
            .output()
            .unwrap();
        let plain: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut command = scratch.command(&format!("run {model} --json -n 9 --chat --prompt Hi"));
        let output = command.args(["--system", "Be brief"]).output().unwrap();
        let chat: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(chat["logits_blake3"], plain["logits_blake3"], "{model}");
        assert!(chat.get("notes").is_none(), "{chat}");
        let note = plain["notes"][0].as_str().unwrap();
        assert!(note.starts_with("the model has a chat template, and the prompt is "), "{note}");
    }
}

/// Gives a token of the vocabulary another text, as a special token that nothing else is merged with.
fn becomes_special(tokenizer: &mut serde_json::Map<String, Value>, id: &Value, text: &str) {
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let old = vocabulary
        .iter()
        .find(|(_, other)| *other == id)
        .unwrap()
        .0
        .clone();
    vocabulary.remove(&old);
    vocabulary.insert(text.to_owned(), id.clone());
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| {
        let pair: Vec<&str> = match merge {
            Value::String(pair) => pair.split(' ').collect(),
            pair => pair
                .as_array()
                .unwrap()
                .iter()
                .filter_map(Value::as_str)
                .collect(),
        };
        pair.concat() != old && !pair.contains(&old.as_str())
    });
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    (token["id"], token["content"]) = (id.clone(), json!(text));
    added.push(token);
}

/// The first two tokens of a turn become those with which an answer begins, as `<|channel|>` and
/// `<|message|>` of gpt-oss are: what stands before the end of them is no answer.
#[test]
fn what_is_said_aside_is_no_answer() {
    let scratch = conversing(PLAIN);
    let run = |n: usize| format!("run ckpt --chat --prompt Hi -n {n} --ignore-eos");
    let tokens = scratch.json(&run(8))["tokens"].as_array().unwrap().clone();
    assert_ne!(tokens[0], tokens[1]);
    // Up to where one of the two comes again, which has no text as a special token.
    let rest = tokens[2..]
        .iter()
        .take_while(|token| !tokens[..2].contains(token))
        .count();
    let args = &run(2 + rest);
    let plain = scratch.json(args);
    scratch.edit_json("ckpt/tokenizer.json", |tokenizer| {
        becomes_special(tokenizer, &tokens[0], "<|channel|>");
        becomes_special(tokenizer, &tokens[1], "<|message|>");
    });
    let template = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}\
                    <|channel|><|message|>{% else %} {% endif %}{{ m.content }}\n{% endfor %}assistant:";
    fs::write(scratch.path("ckpt/chat_template.jinja"), template).unwrap();
    let chat = scratch.json(args);
    assert_eq!(chat["tokens"], plain["tokens"]);
    assert_eq!(chat["reasoning"], json!("[]\n"));
    let (answer, whole) = (chat["text"].as_str().unwrap(), plain["text"].as_str().unwrap());
    assert!(!answer.is_empty() && whole.ends_with(answer) && whole != answer, "{whole}: {answer}");
    let ran = scratch.ok(args);
    assert!(ran.stdout.starts_with(answer), "{ran:?}");
    assert!(ran.stderr.contains("[]\n"), "{ran:?}");
    // Cut short before the answer there is none.
    let cut = scratch.json(&run(1));
    assert_eq!((&cut["text"], &cut["reasoning"]), (&json!(""), &json!("[")));
}

#[test]
fn a_conversation_is_read_whole_at_every_turn() {
    let scratch = conversing(PLAIN);
    fs::write(scratch.path("lines"), "Hi\n\nAnd now?\n").unwrap();
    let mut command = scratch.command("run ckpt --chat -n 6 --quiet --ignore-eos");
    let stdin = fs::File::open(scratch.path("lines")).unwrap();
    let output = command.stdin(stdin).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let turn = |prompt: &str| {
        let mut command = scratch.command("run ckpt -n 6 --quiet --ignore-eos --prompt");
        let output = command.arg(prompt).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let first = turn("user: Hi\nassistant:");
    let text = first.strip_suffix('\n').unwrap();
    let second = turn(&format!("user: Hi\nassistant: {text}\nuser: And now?\nassistant:"));
    assert_eq!(said, first + &second);
}

#[test]
fn chat_without_a_template_or_with_one_that_refuses() {
    let scratch = Scratch::with("fixture-2m");
    scratch.refused(
        "run ckpt --chat --prompt Hi",
        "error: ckpt: the model has no chat template, which --chat needs\n\
         help: leave out --chat, or put the chat_template.jinja of the original model there",
    );
    let template = "{{ raise_exception('no users') }}";
    fs::write(scratch.path("ckpt/chat_template.jinja"), template).unwrap();
    scratch.refused(
        "run ckpt --chat --prompt Hi",
        "error: ckpt/chat_template.jinja: line 1 of the chat template: the template refuses the conversation: no users",
    );
    let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    fs::write(scratch.path("ckpt/chat_template.jinja"), endless).unwrap();
    scratch.refused(
        "run ckpt --chat --prompt Hi",
        "error: ckpt/chat_template.jinja: the chat template does not end, or makes too much text",
    );
    scratch.refused(
        "run ckpt --chat --json",
        r#"{"error":"a conversation has no report for --json","help":"give the one turn with --prompt or --prompt-file"}"#,
    );
}
