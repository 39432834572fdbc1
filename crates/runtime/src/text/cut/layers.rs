//! What splits a text before the model of a tokenizer sees it, and how far each part of that reads ahead.

use fancy_regex::{Assertion, Expr, LookAround, Regex};
use serde_json::Value;

use crate::text::model::SPACE;

/// The expression of the byte-level splitter: GPT-2's.
const BYTE_LEVEL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Expressions that read further ahead are not taken apart.
const MOST_REACH: usize = 4096;

/// Splitters, one after the other: each splits the pieces that those before it left.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) all: Vec<Layer>,
    /// Characters that repetitions without an end may run over.
    classes: Vec<Class>,
    /// How often a decision may step from a character to the next without such a repetition.
    pub(super) reach: usize,
    /// Whether a text that begins with anything but a space is given one.
    pub(super) adds_space: bool,
    /// Whether the model sees bytes instead of characters.
    pub(super) bytewise: bool,
    /// Whether the model sees [`SPACE`] for a space.
    pub(super) metaspace: bool,
}

/// One splitter.
#[derive(Debug)]
pub(super) struct Layer {
    finder: Finder,
    /// Whether pieces end where a match begins, and where one ends.
    edges: (bool, bool),
}

#[derive(Debug)]
enum Finder {
    Regex(Regex),
    /// Each of these characters is a match.
    Each(fn(char) -> bool),
    /// Runs of these characters are matches.
    Runs(fn(char) -> bool),
}

/// Characters of one repetition.
#[derive(Debug)]
enum Class {
    Any,
    Of(fn(char) -> bool),
    Regex(Regex),
}

/// A stretch of a text.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) is_match: bool,
    /// Whether a piece begins at its start.
    pub(super) edge: bool,
}

impl Layers {
    /// Of a `pre_tokenizer` of a `tokenizer.json`; none if it has a part that is not known here.
    pub(super) fn new(json: &Value) -> Option<Self> {
        let mut layers = Self::default();
        layers.add(json, true)?;
        // Pieces that join matches are split further only if nothing comes after.
        let joining = |layer: &Layer| layer.edges != (true, true);
        let last = layers.all.len().saturating_sub(1);
        let fits = !layers.all.iter().take(last).any(joining);
        (fits && layers.reach <= MOST_REACH).then_some(layers)
    }

    fn add(&mut self, json: &Value, first: bool) -> Option<()> {
        let flag = |name: &str, default| json[name].as_bool().unwrap_or(default);
        match json["type"].as_str() {
            None if json.is_null() => Some(()),
            Some("Sequence") => {
                let parts = json["pretokenizers"].as_array()?;
                let alone = parts.len() == 1;
                parts.iter().enumerate().try_for_each(|(i, part)| {
                    let metaspace = part["type"] == "Metaspace";
                    if metaspace && !alone { None } else { self.add(part, first && i == 0) }
                })
            }
            Some("ByteLevel") => {
                let adds = flag("add_prefix_space", true);
                self.bytewise = true;
                self.adds_space |= adds;
                if adds && !first {
                    return None;
                }
                if flag("use_regex", true) {
                    self.regex(BYTE_LEVEL, (true, true))
                } else {
                    Some(())
                }
            }
            Some("Digits") if flag("individual_digits", false) => {
                self.simple(Finder::Each(char::is_numeric), (true, true));
                Some(())
            }
            Some("Digits") => {
                self.classes.push(Class::Of(char::is_numeric));
                self.simple(Finder::Runs(char::is_numeric), (true, true));
                Some(())
            }
            Some("Metaspace") => {
                self.metaspace = true;
                self.adds_space = json["prepend_scheme"] != "never";
                if json["replacement"] != SPACE.to_string() {
                    return None;
                }
                let spaces = |c| c == ' ' || c == SPACE;
                if flag("split", true) {
                    self.simple(Finder::Each(spaces), (true, false));
                }
                Some(())
            }
            Some("Split") => self.split(json),
            _ => None,
        }
    }

    fn split(&mut self, json: &Value) -> Option<()> {
        let edges = match json["behavior"].as_str()? {
            "Isolated" | "Removed" => (true, true),
            "MergedWithPrevious" => (false, true),
            "MergedWithNext" => (true, false),
            _ => return None,
        };
        // Inverted, gaps are matches: the merging would be the other way round.
        if edges != (true, true) && json["invert"].as_bool() != Some(false) {
            return None;
        }
        match (json["pattern"]["Regex"].as_str(), json["pattern"]["String"].as_str()) {
            (Some(regex), _) => self.regex(regex, edges),
            (None, Some(text)) => self.regex(&fancy_regex::escape(text), edges),
            _ => None,
        }
    }

    fn regex(&mut self, pattern: &str, edges: (bool, bool)) -> Option<()> {
        let expr = Expr::parse_tree(pattern).ok()?.expr;
        self.reach += reach(&expr, &mut self.classes)?;
        let finder = Finder::Regex(Regex::new(pattern).ok()?);
        self.all.push(Layer { finder, edges });
        Some(())
    }

    fn simple(&mut self, finder: Finder, edges: (bool, bool)) {
        self.reach += 1;
        self.all.push(Layer { finder, edges });
    }

    /// Whether no repetition without an end runs from `x` to `y` behind it.
    pub(super) fn stops(&self, x: char, y: char) -> bool {
        !self
            .classes
            .iter()
            .any(|class| class.has(x) && class.has(y))
    }
}

impl Class {
    fn has(&self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::Of(has) => has(c),
            Self::Regex(regex) => regex.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(true),
        }
    }
}

impl Layer {
    /// Matches and what lies between them, in order; none where the expression cannot be used.
    pub(super) fn spans(&self, text: &str) -> Option<Vec<Span>> {
        let mut spans: Vec<Span> = Vec::new();
        let mut push = |start: usize, end: usize, is_match: bool| {
            let after = spans.last().is_some_and(|before: &Span| before.is_match);
            let edge = (is_match && self.edges.0) || (after && self.edges.1);
            if start < end {
                spans.push(Span { start, end, is_match, edge });
            }
        };
        let mut at = 0;
        for (start, end) in self.finder.matches(text)? {
            push(at, start, false);
            push(start, end, true);
            at = end;
        }
        push(at, text.len(), false);
        Some(spans)
    }
}

impl Finder {
    fn matches(&self, text: &str) -> Option<Vec<(usize, usize)>> {
        let chars = || text.char_indices();
        Some(match self {
            Self::Regex(regex) => {
                let mut found = Vec::new();
                for part in regex.find_iter(text) {
                    let part = part.ok()?;
                    found.push((part.start(), part.end()));
                }
                found
            }
            Self::Each(is) => chars()
                .filter(|(_, c)| is(*c))
                .map(|(i, c)| (i, i + c.len_utf8()))
                .collect(),
            Self::Runs(is) => {
                let mut runs: Vec<(usize, usize)> = Vec::new();
                for (i, c) in chars().filter(|(_, c)| is(*c)) {
                    match runs.last_mut() {
                        Some((_, end)) if *end == i => *end += c.len_utf8(),
                        _ => runs.push((i, i + c.len_utf8())),
                    }
                }
                runs
            }
        })
    }
}

/// Steps from one character to the next that a match of `expr` may take outside of repetitions without
/// an end, whose characters go to `classes`. None of an expression that looks back, refers to what
/// it matched, or repeats more than single characters without an end.
fn reach(expr: &Expr, classes: &mut Vec<Class>) -> Option<usize> {
    match expr {
        Expr::Empty => Some(0),
        Expr::Any { .. } | Expr::Assertion(Assertion::EndText) => Some(1),
        Expr::Literal { val, .. } => Some(val.chars().count()),
        Expr::Delegate { size, .. } => Some((*size).max(1)),
        Expr::Concat(parts) | Expr::Alt(parts) => parts
            .iter()
            .try_fold(0usize, |sum, part| sum.checked_add(reach(part, classes)?)),
        Expr::Group(inner)
        | Expr::AtomicGroup(inner)
        | Expr::LookAround(inner, LookAround::LookAhead | LookAround::LookAheadNeg) => {
            reach(inner, classes)?.checked_add(1)
        }
        Expr::Repeat { child, lo, hi: usize::MAX, .. } => {
            class(child, classes)?;
            Some(lo + 1)
        }
        Expr::Repeat { child, hi, .. } => reach(child, classes)?.checked_mul(*hi),
        _ => None,
    }
}

/// Notes the characters of a repetition's part; none if it is more than one character.
fn class(expr: &Expr, classes: &mut Vec<Class>) -> Option<()> {
    let regex = |pattern: String| Some(Class::Regex(Regex::new(&pattern).ok()?));
    let insensitive = |casei: bool| if casei { "(?i)" } else { "" };
    let found = match expr {
        Expr::Any { .. } => Class::Any,
        Expr::Delegate { inner, size: 1, casei } => {
            regex(format!("{}^(?:{inner})$", insensitive(*casei)))?
        }
        Expr::Literal { val, casei } if val.chars().count() == 1 => {
            regex(format!("{}^{}$", insensitive(*casei), fancy_regex::escape(val)))?
        }
        Expr::Alt(parts) => return parts.iter().try_for_each(|part| class(part, classes)),
        Expr::Group(inner) | Expr::AtomicGroup(inner) => return class(inner, classes),
        _ => return None,
    };
    classes.push(found);
    Some(())
}
