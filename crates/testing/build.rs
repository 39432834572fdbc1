//! Makes the macros that give each case of `cases.json`, and each published release, a test of its own, so that a
//! new case needs no line of code.
#![allow(clippy::unwrap_used)] // a broken list of cases should stop the build

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

fn main() {
    // Asked when it runs: a checkout that was moved since may still have the script compiled.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let fixtures = Path::new(&package).join("../../fixtures");
    let mut code = String::new();
    for (folder, macro_name) in [("golden", "each_golden"), ("gguf", "each_gguf")] {
        let list = fixtures.join(folder).join("cases.json");
        println!("cargo::rerun-if-changed={}", list.display());
        let list: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
        let cases = list["cases"].as_array().unwrap().iter();
        let names: Vec<_> = cases
            .map(|case| case["case"].as_str().unwrap().to_owned())
            .collect();
        tests(&mut code, macro_name, &names);
    }
    tests(&mut code, "each_published", &releases(&fixtures.join("published")));
    let out = std::env::var_os("OUT_DIR").unwrap();
    std::fs::write(Path::new(&out).join("cases.rs"), code).unwrap();
}

/// The releases whose files lie in a folder, in order.
fn releases(folder: &Path) -> Vec<String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::fs::DirEntry| {
        Some(
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".json")?
                .to_owned(),
        )
    };
    let mut names: Vec<_> = entries.filter_map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

/// Writes a macro that makes a module of tests, one per case, each calling the function of the
/// module's name with the case's.
fn tests(code: &mut String, macro_name: &str, names: &[String]) {
    assert!(!names.is_empty(), "{macro_name}: no cases");
    writeln!(
        code,
        "/// A test per case in a module named like `$check`, which is given the case's name."
    )
    .unwrap();
    writeln!(
        code,
        "#[macro_export]\nmacro_rules! {macro_name} {{\n    ($check:ident) => {{ mod $check {{"
    )
    .unwrap();
    for name in names {
        let ident = name
            .to_ascii_lowercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        writeln!(code, "        #[test] fn {ident}() {{ super::$check({name:?}); }}").unwrap();
    }
    code.push_str("    } };\n}\n");
}
