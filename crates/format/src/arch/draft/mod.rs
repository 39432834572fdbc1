//! A first table for an architecture that has none: the nearest built-in one, fitted to what
//! `config.json` and the tensors' names and shapes show. What they do not show is marked, and a
//! table with marks is refused until someone has looked.

mod blocks;
mod kinds;
mod names;
mod settings;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::inventory::Inventory;
use super::table::{Table, Target};
use super::{Arch, BUILTIN, model_type};
use crate::checkpoint::Checkpoint;
use crate::error::{FormatError, Result};
use crate::role::Role;
use blocks::Seen;
use kinds::{Kind, Kinds};
use names::Guess;

/// Uncertain rows by their place in the table, and why.
type Marks = BTreeMap<String, String>;

/// Tables that are tried on the checkpoint, nearest first.
const TRIED: usize = 6;
/// Names and keys that an error shows.
const SHOWN: usize = 4;

/// A first table for a checkpoint.
#[derive(Debug)]
pub struct Draft {
    /// The table, in the form of `configs/arch`.
    pub json: String,
    /// The built-in table that it was made from.
    pub nearest: &'static str,
    /// Uncertain rows by their place in the table, and why: the table's `_uncertain`.
    pub uncertain: BTreeMap<String, String>,
    /// Why the table, its marks aside, does not yet describe the checkpoint; none if it does.
    pub misfit: Option<String>,
}

fn mark(marks: &mut Marks, place: impl Into<String>, why: impl Into<String>) {
    marks.insert(place.into(), why.into());
}

impl Draft {
    /// Drafts a table for the checkpoint's `model_type`.
    ///
    /// # Errors
    /// A `config.json` without a `model_type`.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let work = Work::new(checkpoint)?;
        let mut ranked: Vec<_> = work
            .tables
            .iter()
            .map(|base| (work.distance(base), base))
            .collect();
        ranked.sort_by_key(|(distance, _)| *distance);
        let mut best = None;
        for (_, base) in ranked.into_iter().take(TRIED) {
            let draft = work.draft(base);
            let fits = draft.misfit.is_none();
            best = if fits { Some(draft) } else { best.or(Some(draft)) };
            if fits {
                break;
            }
        }
        let none =
            || FormatError::file(checkpoint.config_path(), "no built-in table to start from");
        best.ok_or_else(none)
    }
}

/// A built-in table, as text and read.
struct Base {
    name: &'static str,
    raw: Value,
    table: Table,
}

/// A checkpoint and the tables to compare it with.
struct Work<'a> {
    checkpoint: &'a Checkpoint,
    model_type: &'a str,
    config: Map<String, Value>,
    kinds: Kinds,
    tables: Vec<Base>,
}

/// The rows of `tensors`, `fused` and `ignored` that a checkpoint's names give.
#[derive(Default)]
struct Rows {
    tensors: BTreeMap<Role, Vec<String>>,
    fused: Vec<Value>,
    ignored: Map<String, Value>,
    seen: Seen,
}

impl<'a> Work<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let model_type = model_type(checkpoint.config_path(), checkpoint.config())?;
        let config = settings::flat(checkpoint.config());
        let layers = config.get("num_hidden_layers").and_then(Value::as_u64);
        let kinds = Kinds::from_checkpoint(checkpoint, layers);
        let base = |(name, json): &(&'static str, &str)| {
            let raw = serde_json::from_str(json).ok()?;
            Some(Base { name, raw, table: Table::parse(json).ok()? })
        };
        let tables = BUILTIN.iter().filter_map(base).collect();
        Ok(Self { checkpoint, model_type, config, kinds, tables })
    }

    /// Orders tables, the nearest first: between equally near ones that with the fewest oddities.
    fn distance(&self, base: &Base) -> (i64, usize) {
        (-self.score(base), blocks::oddities(&base.raw))
    }

    /// How near a table is: kinds in common and foreign ones, then what `config.json` states.
    fn score(&self, base: &Base) -> i64 {
        let known = |pattern: &&String| base.table.targets.contains_key(*pattern);
        let common = self.kinds.text.keys().filter(known).count() as i64;
        let foreign = self.kinds.text.len() as i64 - common;
        let roles = self.kinds.text.iter().filter(|(pattern, kind)| {
            let guess = names::guess(pattern, kind.shape.len());
            matches!(guess, Some(Guess::Role(role)) if base.table.names.contains_key(&role))
        });
        8 * (common - foreign)
            + 2 * roles.count() as i64
            + settings::agreement(&base.raw, &self.config)
    }

    /// The table made from `base`, tried on the checkpoint.
    fn draft(&self, base: &Base) -> Draft {
        let mut marks = Marks::new();
        let mut table = base.raw.clone();
        table["model_type"] = Value::from(self.model_type);
        let rows = self.rows(base, &mut marks);
        self.wrap(&mut table, base, &mut marks);
        settings::fit(&mut table, base.name, &self.config, &mut marks);
        blocks::fit(&mut table, &self.config, &rows.seen, &mut marks);
        put_rows(&mut table, rows);
        blocks::mark_hidden(&table, base.name, &self.config, &mut marks);
        let misfit = self.misfit(&table);
        if !marks.is_empty() {
            table["_uncertain"] = json!(marks);
        }
        Draft { json: text::write(&table), nearest: base.name, uncertain: marks, misfit }
    }

    /// Where `config.json` and the names hold the text model, and what lies beside it.
    fn wrap(&self, table: &mut Value, base: &Base, marks: &mut Marks) {
        let Some(members) = table.as_object_mut() else { return };
        members.remove("aliases");
        members.remove("config");
        members.remove("prefixes");
        if let Some(key) = settings::wrapper(self.checkpoint.config()) {
            members.insert("config".to_owned(), Value::from(key));
        }
        if !self.kinds.prefixes.is_empty() {
            members.insert("prefixes".to_owned(), json!(self.kinds.prefixes));
        }
        let counted = |row: &&Value| {
            let key = row.get("layers").and_then(Value::as_str);
            key.is_some_and(|key| self.config.contains_key(key))
        };
        let beyond = base.raw["extras"].as_array().into_iter().flatten();
        let mut extras: Vec<Value> = beyond.filter(counted).cloned().collect();
        for row in extras.iter_mut().filter_map(Value::as_object_mut) {
            row.remove("beginnings");
        }
        for (beginning, (role, reason)) in &self.kinds.extras {
            put_extra(&mut extras, *role, beginning, reason);
            if !base
                .table
                .extras
                .iter()
                .any(|row| row.beginnings.contains(beginning))
            {
                mark(marks, format!("extras.{beginning}"), format!("{role}, by its name"));
            }
        }
        members.remove("extras");
        if !extras.is_empty() {
            members.insert("extras".to_owned(), Value::from(extras));
        }
    }

    /// What each kind of tensor is for.
    fn rows(&self, base: &Base, marks: &mut Marks) -> Rows {
        let mut rows = Rows::default();
        for (pattern, kind) in &self.kinds.text {
            if let Some(target) = base.table.targets.get(pattern) {
                rows.add(base, target, pattern, kind);
            } else if let Some((other, target)) = self.elsewhere(pattern) {
                rows.add(other, target, pattern, kind);
                mark(marks, format!("tensors.{pattern}"), format!("as in {}", other.name));
            } else {
                rows.guess(pattern, kind, marks);
            }
        }
        rows
    }

    /// Another table that knows a name.
    fn elsewhere(&self, pattern: &str) -> Option<(&Base, &Target)> {
        let mut bases = self.tables.iter();
        bases.find_map(|base| Some((base, base.table.targets.get(pattern)?)))
    }

    fn misfit(&self, table: &Value) -> Option<String> {
        let arch = Arch::parse(Path::new("the draft"), &table.to_string());
        let tried = arch.and_then(|arch| Inventory::new(self.checkpoint, Some(&arch)));
        tried.err().map(|error| error.to_string())
    }
}

impl Rows {
    /// Takes over what a table says of a name.
    fn add(&mut self, base: &Base, target: &Target, pattern: &str, kind: &Kind) {
        match target {
            Target::Role(role) => self.role(*role, pattern, kind),
            Target::Ignored(reason) => {
                self.ignored
                    .insert(pattern.to_owned(), Value::from(reason.as_str()));
            }
            Target::Fused(at) => {
                let mut row = base.raw["fused"][*at].clone();
                row["tensor"] = Value::from(pattern);
                self.fused.push(row);
                for role in &base.table.fused[*at].roles {
                    self.seen.entry(*role).or_insert_with(|| kind.shape.clone());
                }
            }
        }
    }

    fn role(&mut self, role: Role, pattern: &str, kind: &Kind) {
        self.tensors
            .entry(role)
            .or_default()
            .push(pattern.to_owned());
        self.seen.entry(role).or_insert_with(|| kind.shape.clone());
    }

    /// Guesses what a name that no table knows is for, and marks the guess.
    fn guess(&mut self, pattern: &str, kind: &Kind, marks: &mut Marks) {
        match names::guess(pattern, kind.shape.len()) {
            Some(Guess::Role(role)) => {
                self.role(role, pattern, kind);
                mark(marks, format!("tensors.{pattern}"), format!("{role}, by its name"));
            }
            Some(Guess::Fused(roles)) => {
                self.fused.push(json!({"tensor": pattern, "roles": roles}));
                for role in roles {
                    self.seen.entry(role).or_insert_with(|| kind.shape.clone());
                }
                mark(marks, format!("fused.{pattern}"), "these roles in this order, by its name");
            }
            None => {
                let reason = "no role is known for it";
                self.ignored.insert(pattern.to_owned(), Value::from(reason));
                let why =
                    format!("shape {:?}: {reason}; without it this is another model", kind.shape);
                mark(marks, format!("ignored.{pattern}"), why);
            }
        }
    }
}

/// Adds a beginning to the row of its role: each role has one.
fn put_extra(extras: &mut Vec<Value>, role: Role, beginning: &str, reason: &str) {
    let own = extras.iter_mut().find(|row| row["role"] == role.name());
    let Some(row) = own else {
        extras.push(json!({"role": role, "beginnings": [beginning], "reason": reason}));
        return;
    };
    match row.get_mut("beginnings").and_then(Value::as_array_mut) {
        Some(beginnings) => beginnings.push(Value::from(beginning)),
        None => row["beginnings"] = json!([beginning]),
    }
}

/// Puts rows in place of those that the table came with.
fn put_rows(table: &mut Value, rows: Rows) {
    let named = |(role, mut names): (Role, Vec<String>)| {
        let value = if names.len() == 1 { Value::from(names.remove(0)) } else { json!(names) };
        (role.name().to_owned(), value)
    };
    table["tensors"] = Value::Object(rows.tensors.into_iter().map(named).collect());
    let Some(members) = table.as_object_mut() else { return };
    members.remove("fused");
    members.remove("ignored");
    if !rows.fused.is_empty() {
        members.insert("fused".to_owned(), Value::from(rows.fused));
    }
    if !rows.ignored.is_empty() {
        members.insert("ignored".to_owned(), Value::Object(rows.ignored));
    }
}

/// What of a checkpoint of an unknown architecture no built-in table knows, and how to go on.
pub(super) fn unknown(checkpoint: &Checkpoint) -> Result<String> {
    let work = Work::new(checkpoint)?;
    let nearest = work.tables.iter().min_by_key(|base| work.distance(base));
    let known = |pattern: &String| {
        work.tables
            .iter()
            .any(|base| base.table.targets.contains_key(pattern))
    };
    let kinds: Vec<_> = work.kinds.text.keys().filter(|kind| !known(kind)).collect();
    let raw: Vec<_> = work.tables.iter().map(|base| base.raw.clone()).collect();
    let keys = settings::unread(&work.config, &|key| settings::is_read(&raw, key));
    let keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
    let parts = [few("tensors", &kinds), few("keys", &keys)];
    let foreign: Vec<_> = parts.into_iter().flatten().collect();
    let foreign = match &foreign[..] {
        [] => "its tensors and keys have names that are known".to_owned(),
        some => format!("no table knows the {}", some.join(", nor the ")),
    };
    let nearest = nearest.map_or("none", |base| base.name);
    let (dir, name) = (checkpoint.root().display(), work.model_type);
    Ok(format!(
        "{foreign}; the nearest table is {nearest}; to start one: shardwright arch draft {dir} -o \
         {}.json",
        file_name(name)
    ))
}

/// A name as part of a file name.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().map(plain).collect()
}

/// Some of the names, and how many more there are.
fn few(what: &str, names: &[&String]) -> Option<String> {
    let shown: Vec<_> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!shown.is_empty()).then(|| format!("{what} {}{more}", shown.join(", ")))
}
