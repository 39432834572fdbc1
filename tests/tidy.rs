//! Rules that no compiler checks. Each says why it is one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use shardwright_testing::root;

/// Longest file that a reader takes in at once. Clippy counts the lines of functions.
const MAX_FILE_LINES: usize = 600;

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
fn no_constructor_is_called_of() {
    let mark = ["fn ", "of("].concat();
    let named = rust().into_iter().filter(|(_, text)| text.contains(&mark));
    let paths: Vec<_> = named.map(|(path, _)| path).collect();
    none("constructors that do not say what they make a value from", &paths);
}

/// What a stranger may have put in a file's place, a pipe among it, is read by those who ask first what it is and how long.
#[test]
fn files_from_outside_have_one_reader() {
    let marks = ["read", "read_to_string", "copy"].map(|call| format!("fs::{call}("));
    // What asks first itself, what reads of the system's own, and copies of files that were opened before.
    let asked = [
        "crates/format/src/io.rs",
        "crates/format/src/checkpoint/wrong.rs",
        "crates/cli/src/process.rs",
        "crates/remote/src/hub.rs",
        "crates/convert/src/export/companions.rs",
    ];
    let mut found = Vec::new();
    for (path, text) in rust() {
        let inside = path.starts_with("crates/") && path.contains("/src/");
        let tests = ["tests", "fixtures.rs", "testing"]
            .iter()
            .any(|part| path.contains(part));
        if !inside || tests || asked.contains(&path.as_str()) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        found.extend(
            marks
                .iter()
                .filter(|mark| code.contains(*mark))
                .map(|mark| format!("{path}: {mark}")),
        );
    }
    none("files that are read whatever they are", &found);
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
    for (dir, code) in [
        ("configs/arch", "crates/format/src"),
        ("configs/recipes", "crates/convert/src"),
        ("configs/gguf", "crates/format/src"),
    ] {
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
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let covered: Vec<_> = cases["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["model_type"].as_str().unwrap())
        .collect();
    let published = published_types();
    let mut missing = Vec::new();
    for entry in fs::read_dir(root().join("configs/arch")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let model_type = name.trim_end_matches(".json");
        if !covered.contains(&model_type) && !published.contains(model_type) {
            missing.push(name);
        }
    }
    // Where only the way to the text model differs, the other table's golden speaks for both.
    let covered = covered.iter().map(|model_type| computed(model_type));
    let covered: Vec<_> = covered.collect();
    missing.retain(|name| !covered.contains(&computed(name.trim_end_matches(".json"))));
    none("only values of transformers catch a wrong role; architectures without any", &missing);
}

/// What a table says of tensors and of what is computed with them; none for an alias.
fn computed(model_type: &str) -> Option<Vec<Value>> {
    let path = root().join(format!("configs/arch/{model_type}.json"));
    let table: Value = serde_json::from_slice(&fs::read(path).ok()?).unwrap();
    let members =
        ["tensors", "fused", "layer_kinds", "attention", "latent", "delta_net", "mlp", "moe"];
    Some(members.map(|member| table[member].clone()).to_vec())
}

/// The model types of the shrunk releases in `fixtures/published`, which transformers was run on too.
fn published_types() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("fixtures/published")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let case: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let config = &case["config"];
        let types = [&config["model_type"], &config["text_config"]["model_type"]];
        found.extend(
            types
                .into_iter()
                .filter_map(Value::as_str)
                .map(str::to_owned),
        );
    }
    found
}

/// What Cargo says of the workspace's packages.
fn packages() -> Vec<Value> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root());
    let output = command.output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Names of a package's dependencies; of one kind, or of all.
fn dependencies(package: &Value, kind: Option<&Value>) -> Vec<String> {
    let all = package["dependencies"].as_array().unwrap().iter();
    let wanted = all.filter(|d| kind.is_none_or(|kind| d["kind"] == *kind));
    wanted
        .map(|d| d["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let above: [(&str, &[&str]); 6] = [
        ("quant", &["format", "runtime", "convert", "verify", "capi"]),
        ("format", &["runtime", "convert", "verify", "capi"]),
        ("runtime", &["convert", "verify", "capi"]),
        // A verifier that calls the converter repeats its mistakes.
        ("verify", &["convert", "capi"]),
        ("convert", &["verify", "capi"]),
        // What a phone links.
        ("capi", &["convert", "verify", "remote"]),
    ];
    let packages = packages();
    let mut found = Vec::new();
    for (name, above) in above {
        let name = format!("shardwright-{name}");
        let package = packages.iter().find(|p| p["name"] == name).unwrap();
        let depends = dependencies(package, Some(&Value::Null));
        let above = above.iter().map(|name| format!("shardwright-{name}"));
        let terminal = ["clap", "indicatif"].map(String::from);
        let forbidden = above.chain(terminal).filter(|name| depends.contains(name));
        found.extend(forbidden.map(|other| format!("{name} depends on {other}")));
    }
    none("dependencies that point the wrong way", &found);
}

#[test]
fn every_dependency_is_used() {
    let sources = rust();
    let mut unused = Vec::new();
    let mut named = Vec::new();
    for package in packages() {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
        let dir = manifest.parent().unwrap().strip_prefix(root()).unwrap();
        // The command line's tests lie beside the crates.
        let tests = package["name"] == "shardwright";
        let own =
            |path: &str| Path::new(path).starts_with(dir) || tests && path.starts_with("tests/");
        for name in dependencies(&package, None) {
            let ident = name.replace('-', "_");
            let uses = sources
                .iter()
                .any(|(path, text)| own(path) && mentions(text, &ident));
            if !uses {
                unused.push(format!("{}: {name}", package["name"]));
            }
            named.push(name);
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = manifest.split("[workspace.dependencies]\n").nth(1).unwrap();
    let lines = table.lines().take_while(|line| !line.is_empty());
    let offered = lines.map(|line| line.split(' ').next().unwrap().to_owned());
    unused.extend(offered.filter(|name| !named.contains(name)));
    none("dependencies that nothing uses", &unused);
}

/// Whether a word followed by `::`, `;` or ` ` stands in the code.
fn mentions(text: &str, ident: &str) -> bool {
    let whole = |at: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + ident.len()..].chars().next();
        let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !part(before) && !part(after)
    };
    text.match_indices(ident).any(|(at, _)| whole(at))
}

#[test]
fn unsafe_stays_in_the_kernels_and_at_the_border_to_c() {
    let words = [" {", " fn", " impl", " extern", "("].map(|next| ["unsafe", next].concat());
    let mut found = Vec::new();
    for (path, text) in rust() {
        let places = ["crates/quant/src/kernel", "crates/capi/src/border", "fuzz/"];
        let allowed = places.iter().any(|place| path.starts_with(place));
        for (line, content) in text.lines().enumerate() {
            let code = content.split("//").next().unwrap_or_default();
            let found_here = words.iter().any(|word| code.contains(word));
            if found_here && !allowed {
                found.push(format!("{path}:{}: outside of where it is allowed", line + 1));
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
        // quant and capi deny instead of forbidding unsafe code, and repeat the rest.
        if !text.contains("[lints]\nworkspace = true") && !text.contains("unsafe_code = \"deny\"") {
            without.push(path.display().to_string());
        }
    }
    none("crates without lints", &without);
}
