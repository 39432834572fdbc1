//! The modules that a configuration says are not quantized.

use regex::Regex;
use serde_json::Value;

use crate::refusal::{Refusal, mismatch};

/// A configuration's list.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    /// Its entries.
    pub(super) entries: Vec<String>,
    /// Those that are no pattern known here.
    pub(super) unread: Vec<String>,
    patterns: Vec<(usize, Pattern)>,
}

#[derive(Debug)]
enum Pattern {
    /// A module and what is inside it, or the end of a module's name.
    Plain(String),
    Regex(Regex),
}

/// Names under which a list stands.
const KEYS: &[&str] = &["ignore", "modules_to_not_convert", "ignored_layers"];

impl Ignore {
    /// The lists in `config`.
    ///
    /// # Errors
    /// A list that is none of texts: expected and found.
    pub(super) fn parse(config: &Value) -> Result<Self, Refusal> {
        let mut ignore = Self::default();
        for key in KEYS {
            match config.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(list)) => {
                    for entry in list {
                        let wrong = || mismatch("names", entry).at(format_args!("`{key}`"));
                        ignore.add(entry.as_str().ok_or_else(wrong)?);
                    }
                }
                Some(other) => return Err(mismatch("a list", other).at(format_args!("`{key}`"))),
            }
        }
        Ok(ignore)
    }

    /// An entry as compressed-tensors (`re:` and a regular expression from the start of the name)
    /// or transformers (a name, or an expression that ends where a part of the name does) reads it.
    pub(super) fn add(&mut self, entry: &str) {
        let at = self.entries.len();
        self.entries.push(entry.to_owned());
        let special = |c: char| "*+?^$()[]{}|\\".contains(c);
        let regex = match entry.strip_prefix("re:") {
            Some(regex) => format!("^(?:{regex})"),
            None if entry.contains(special) => format!(r"^(?:{entry})(?:\.|$)"),
            None => {
                self.patterns.push((at, Pattern::Plain(entry.to_owned())));
                return;
            }
        };
        match Regex::new(&regex) {
            Ok(regex) => self.patterns.push((at, Pattern::Regex(regex))),
            Err(_) => self.unread.push(entry.to_owned()),
        }
    }

    /// The entry that names a module.
    pub(super) fn names(&self, module: &str) -> Option<&str> {
        let mut patterns = self.patterns.iter();
        let found = patterns.find(|(_, pattern)| pattern.names(module));
        found.map(|(at, _)| self.entries[*at].as_str())
    }
}

impl Pattern {
    fn names(&self, module: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(module),
            Self::Plain(name) => {
                let inside = module.strip_prefix(name.as_str());
                let inside = inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
                let end = module.strip_suffix(name.as_str());
                inside || end.is_some_and(|before| before.ends_with('.'))
            }
        }
    }
}
