//! No ring of files inside a crate: where file A uses B, B uses nothing that leads back to A. A
//! reader can then start at the bottom, and a change moves in one direction.
//!
//! A module and the files directly below it are one room: what the module's own file defines, those
//! files may use, though it uses them. Between rooms nothing is exempt.
//!
//! The graph is made from paths that begin with `crate`, `super` or `self`, or with a module that
//! the file declares. A name that a module only passes on (`pub use`) leads to the file that it
//! comes from. Tests do not count: they may use what is above them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use shardwright_testing::root;

/// A file of a crate.
struct Module {
    file: String,
    /// Its text without comments, literals and tests.
    text: String,
    /// Paths of modules below it by name.
    children: BTreeSet<String>,
    /// Names that it has from elsewhere: where from, and whether it passes them on.
    uses: BTreeMap<String, (Vec<String>, bool)>,
}

type Modules = BTreeMap<Vec<String>, Module>;

/// Code without comments, literals and what is compiled for tests alone.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut skipped_above = None;
    for line in text.lines() {
        let (trimmed, indent) = (line.trim_start(), line.len() - line.trim_start().len());
        if let Some(above) = skipped_above {
            // rustfmt ends an item with a line that is not deeper than its attribute.
            let ends = indent <= above && !trimmed.is_empty() && !trimmed.starts_with('#');
            if ends && (trimmed.ends_with([';', '}']) || trimmed.ends_with("},")) {
                skipped_above = None;
            }
            continue;
        }
        if trimmed.starts_with("#[cfg(test)]") || trimmed.starts_with("#[cfg(all(test") {
            skipped_above = Some(indent);
        } else if !trimmed.starts_with("//") {
            let code = line.split(" // ").next().unwrap_or_default();
            // Who may see an item is no use of what the item is in.
            let code = match code.split_once("pub(in ") {
                Some((before, rest)) => {
                    format!("{before}pub{}", rest.split_once(')').map_or("", |r| r.1))
                }
                None => code.to_owned(),
            };
            for (i, piece) in code.split('"').enumerate().filter(|(i, _)| i % 2 == 0) {
                out.push_str(if i == 0 { "" } else { "\"\"" });
                out.push_str(piece);
            }
            out.push('\n');
        }
    }
    out
}

fn add_modules(dir: &Path, path: &[String], name: &str, modules: &mut Modules) {
    let beside = dir.join(format!("{name}.rs"));
    let file = if beside.is_file() { beside } else { dir.join(name).join("mod.rs") };
    let Ok(text) = fs::read_to_string(&file) else { return };
    let text = plain(&text);
    let folder = if path.is_empty() { dir.to_owned() } else { dir.join(name) };
    let mut children = BTreeSet::new();
    for line in text
        .lines()
        .map(str::trim_start)
        .filter(|l| l.ends_with(';'))
    {
        let declared = line.trim_end_matches(';').rsplit_once("mod ");
        if let Some((before, child)) =
            declared.filter(|(b, _)| b.is_empty() || b.starts_with("pub"))
        {
            let _ = before;
            add_modules(&folder, &[path, &[child.to_owned()]].concat(), child, modules);
            children.insert(child.to_owned());
        }
    }
    let shown = file
        .strip_prefix(root())
        .unwrap_or(&file)
        .display()
        .to_string();
    let module = Module { file: shown, text, children, uses: BTreeMap::new() };
    modules.insert(path.to_vec(), module);
}

/// The leaves of a use tree as paths, the last segment of each with the name it gets.
fn leaves(tree: &str, before: &[String], out: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    let (head, group) = match tree.split_once('{') {
        Some((head, rest)) => (head, rest.rsplit_once('}').map(|(inside, _)| inside)),
        None => (tree, None),
    };
    let mut path = before.to_vec();
    path.extend(
        head.split("::")
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned),
    );
    if let Some(group) = group {
        let mut depth = 0;
        let parts = group.split(|c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        parts
            .filter(|part| !part.trim().is_empty())
            .for_each(|part| leaves(part, &path, out));
        return;
    }
    let Some(last) = path.pop() else { return };
    let (last, name) = last.split_once(" as ").unwrap_or((&last, &last));
    if last == "self" {
        let name = path.last().cloned().unwrap_or_default();
        out.push((path, name));
    } else {
        path.push(last.to_owned());
        out.push((path, name.to_owned()));
    }
}

/// A path from the crate's root; none for one that leads out of the crate.
fn absolute(path: &[String], here: &[String], children: &BTreeSet<String>) -> Option<Vec<String>> {
    let first = path.first()?;
    let mut base = here.to_vec();
    match first.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => drop(base.pop()),
        child if children.contains(child) => base.push(child.to_owned()),
        _ => return None,
    }
    let mut rest = &path[1..];
    while let Some(("super", more)) = rest.split_first().map(|(f, more)| (f.as_str(), more)) {
        base.pop();
        rest = more;
    }
    base.extend_from_slice(rest);
    Some(base)
}

fn add_uses(modules: &mut Modules) {
    for (path, module) in modules {
        for statement in module.text.split(';') {
            let Some((before, tree)) = statement.rsplit_once("use ") else { continue };
            let public = before.trim_end().ends_with("pub") || before.ends_with(") ");
            let mut found = Vec::new();
            leaves(tree, &[], &mut found);
            for (used, name) in found {
                if let Some(used) = absolute(&used, path, &module.children) {
                    module.uses.insert(name, (used, public));
                }
            }
        }
    }
}

/// The module whose file defines what a path names.
fn home(path: &[String], modules: &Modules, depth: usize) -> Option<Vec<String>> {
    let known = (0..=path.len())
        .rev()
        .find(|n| modules.contains_key(&path[..*n]))?;
    let module = &path[..known];
    let passed = path
        .get(known)
        .and_then(|name| modules[module].uses.get(name));
    match passed.filter(|_| depth < 8) {
        Some((origin, _)) => home(origin, modules, depth + 1),
        None => Some(module.to_vec()),
    }
}

/// Paths in code, without those of use statements that pass names on.
fn mentioned(path: &[String], module: &Module) -> Vec<Vec<String>> {
    let private = module.uses.values().filter(|(_, public)| !public);
    let mut found: Vec<_> = private.map(|(used, _)| used.clone()).collect();
    let words = module
        .text
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    for word in words.filter(|word| word.contains("::")) {
        let word: Vec<_> = word.split("::").map(str::to_owned).collect();
        found.extend(absolute(&word, path, &module.children));
    }
    found
}

/// Which files of a crate each of its files uses.
fn graph(package: &str) -> BTreeMap<String, BTreeSet<String>> {
    let dir = root().join("crates").join(package).join("src");
    let mut modules = Modules::new();
    let start = if dir.join("lib.rs").is_file() { "lib" } else { "main" };
    add_modules(&dir, &[], start, &mut modules);
    add_uses(&mut modules);
    let mut graph = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, module) in &modules {
        let used = mentioned(path, module)
            .into_iter()
            .filter_map(|p| home(&p, &modules, 0));
        let parent = path.split_last().map(|(_, parent)| parent);
        let used = used.filter(|used| Some(&used[..]) != parent);
        let files = used.map(|path| modules[&path].file.clone());
        let files = files.filter(|file| *file != module.file).collect();
        graph.insert(module.file.clone(), files);
    }
    graph
}

/// Files that can be reached from `start`.
fn reached<'a>(graph: &'a BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut pending) = (BTreeSet::new(), vec![start]);
    while let Some(file) = pending.pop() {
        for next in graph.get_key_value(file).into_iter().flat_map(|(_, to)| to) {
            if seen.insert(next.as_str()) {
                pending.push(next);
            }
        }
    }
    seen
}

/// The rings of a crate, each file with those of its ring that it uses.
fn rings(package: &str) -> Vec<String> {
    let graph = graph(package);
    let mut found = Vec::new();
    for (file, used) in &graph {
        let back = |next: &&String| reached(&graph, next).contains(file.as_str());
        let ring: Vec<_> = used.iter().filter(back).map(String::as_str).collect();
        if !ring.is_empty() {
            found.push(format!("{file} uses {}", ring.join(", ")));
        }
    }
    found
}

#[test]
fn no_crate_has_a_ring_of_files() {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let package = entry.unwrap().file_name().into_string().unwrap();
        found.extend(rings(&package));
    }
    assert!(found.is_empty(), "rings of files:\n  {}", found.join("\n  "));
}
