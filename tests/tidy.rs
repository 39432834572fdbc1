//! Rules that no compiler checks. Each says why it is one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::root;

/// Longest file and function that a reader takes in at once.
const MAX_FILE_LINES: usize = 600;
const MAX_FN_LINES: usize = 70;

/// Every tracked kind of text below the repository, build output apart.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                let skipped = name.starts_with("target") || name.starts_with(".git");
                if !skipped && name != "corpus" && name != "artifacts" {
                    pending.push(path);
                }
            } else if extensions
                .iter()
                .any(|e| path.extension().is_some_and(|x| x == *e))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn rust() -> Vec<(String, String)> {
    read(&["rs"])
}

/// Relative path and text.
fn read(extensions: &[&str]) -> Vec<(String, String)> {
    let relative = |path: &Path| {
        path.strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let mut read = Vec::new();
    for path in files(extensions) {
        read.push((relative(&path), fs::read_to_string(&path).unwrap()));
    }
    read
}

fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn files_are_short() {
    let long: Vec<_> = rust()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > MAX_FILE_LINES)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    none("files above 600 lines", &long);
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for (path, text) in rust() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            if !is_fn(trimmed) || line.ends_with('}') {
                continue;
            }
            let opens = lines[start..]
                .iter()
                .find(|l| l.ends_with('{') || l.ends_with(';'));
            if opens.is_none_or(|l| l.ends_with(';')) {
                continue;
            }
            // rustfmt puts a function's closing brace under the line that opens it.
            let close = format!("{:indent$}}}", "");
            let len = lines[start..].iter().position(|l| *l == close);
            if let Some(len) = len.filter(|len| *len > MAX_FN_LINES) {
                long.push(format!("{path}:{}: {} lines", start + 1, len + 1));
            }
        }
    }
    none("functions above 70 lines", &long);
}

fn is_fn(line: &str) -> bool {
    let words = ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "async"];
    let mut rest = line
        .split_whitespace()
        .skip_while(|word| words.contains(word));
    // A name with `$` is a macro's, whose expansion is as long as its uses say.
    rest.next() == Some("fn") && rest.next().is_some_and(|name| !name.starts_with('$'))
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let roots = ["/wo", "/ho", "/Us", "/op", "/roo"].map(String::from);
    let places: Vec<_> = roots
        .iter()
        .zip(["rk/", "me/", "ers/", "t/hf", "t/"])
        .map(|(a, b)| a.clone() + b)
        .collect();
    let mut found = Vec::new();
    for (path, text) in read(&["rs", "md", "toml", "py", "sh", "json", "yml"]) {
        if path.starts_with("fixtures/text") || path.ends_with("tokenizer.json") {
            continue;
        }
        for (line, content) in text.lines().enumerate() {
            if let Some(place) = places.iter().find(|place| content.contains(place.as_str())) {
                found.push(format!("{path}:{}: {place}", line + 1));
            }
        }
    }
    none("paths of one machine", &found);
}

#[test]
fn nothing_is_left_for_later() {
    let marks =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("]].map(|m| m.concat());
    let mut found = Vec::new();
    for (path, text) in read(&["rs", "md", "py", "sh"]) {
        for (line, content) in text.lines().enumerate() {
            if marks.iter().any(|mark| content.contains(mark)) {
                found.push(format!("{path}:{}: {}", line + 1, content.trim()));
            }
        }
    }
    none("work left open; open an issue instead", &found);
}

#[test]
fn every_config_file_is_registered() {
    let mut missing = Vec::new();
    for (dir, code) in
        [("configs/arch", "crates/format/src"), ("configs/recipes", "crates/convert/src")]
    {
        let sources: String = rust()
            .into_iter()
            .filter(|(path, _)| path.starts_with(code))
            .map(|(_, t)| t)
            .collect();
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".json").unwrap_or(&name);
            if !sources.contains(&format!("\"{stem}\"")) && !sources.contains(&format!("/{name}\""))
            {
                missing.push(format!("{dir}/{name} is named nowhere in {code}"));
            }
        }
    }
    none("files that no program reads", &missing);
}

#[test]
fn every_architecture_has_a_golden() {
    let cases = fs::read_to_string(root().join("fixtures/golden/cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
    let covered: Vec<_> = cases["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["model_type"].as_str().unwrap())
        .collect();
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("configs/arch")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !covered.contains(&name.trim_end_matches(".json")) {
            missing.push(name);
        }
    }
    none("only a golden catches a wrong role; architectures without one", &missing);
}

fn dependencies(package: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(format!("crates/{package}/Cargo.toml"))).unwrap();
    let section = text.split("[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let name = |line: &str| {
        line.split(['.', ' ', '='])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    section
        .lines()
        .map(name)
        .filter(|n| !n.is_empty())
        .collect()
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let forbidden = [
        (
            "quant",
            &[
                "shardwright-format",
                "shardwright-runtime",
                "shardwright-convert",
                "shardwright-verify",
            ][..],
        ),
        ("format", &["shardwright-runtime", "shardwright-convert", "shardwright-verify"]),
        ("runtime", &["shardwright-convert", "shardwright-verify"]),
        // A verifier that calls the converter repeats its mistakes.
        ("verify", &["shardwright-convert"]),
        ("convert", &["shardwright-verify"]),
    ];
    let mut found = Vec::new();
    for (package, names) in forbidden {
        let depends = dependencies(package);
        for name in names.iter().chain(&["clap", "indicatif", "anyhow"]) {
            if depends.iter().any(|d| d == name) {
                found.push(format!("{package} depends on {name}"));
            }
        }
    }
    none("dependencies that point the wrong way", &found);
}

#[test]
fn unsafe_stays_in_the_kernels() {
    let word = ["unsafe", " "].concat();
    let mut found = Vec::new();
    for (path, text) in rust() {
        let kernel = path.starts_with("crates/quant/src/kernel");
        for (line, content) in text.lines().enumerate() {
            let code = content.split("//").next().unwrap_or_default();
            let found_here = ["{", "fn"]
                .iter()
                .any(|next| code.contains(&format!("{word}{next}")));
            if found_here && !kernel && !path.starts_with("fuzz/") {
                found.push(format!("{path}:{}: outside crates/quant/src/kernel", line + 1));
            }
        }
    }
    none("unsafe code", &found);
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = Vec::new();
    for (path, text) in read(&["md"]) {
        let dir = root().join(&path).parent().unwrap().to_owned();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            let outside =
                target.contains("://") || target.starts_with("mailto:") || file.is_empty();
            if !outside && !target.contains(' ') && !dir.join(file).exists() {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    none("links to nothing", &broken);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut without = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path().join("Cargo.toml");
        let text = fs::read_to_string(&path).unwrap_or_default();
        // quant denies instead of forbidding unsafe code, and repeats the rest.
        if !text.contains("[lints]\nworkspace = true") && !text.contains("unsafe_code = \"deny\"") {
            without.push(path.display().to_string());
        }
    }
    none("crates without lints", &without);
}
