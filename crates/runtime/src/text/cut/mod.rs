//! Where a text may be cut so that its parts have the tokens of the whole.
//!
//! A place is safe if nothing that decides about the tokens before it can see what comes after the
//! text that is at hand, and nothing that decides about the tokens behind it depends on what came
//! before. Each part of a tokenizer is answered for:
//!
//! - **Added tokens** are looked for from left to right. None has the two characters around the
//!   place side by side, so none lies across it; the character before it is no space, so none takes spaces
//!   away across it; and the longest one ends before the text at hand does.
//! - **Normalizers**: only those are taken that change a character by itself or with those that combine with it.
//!   The character after the place never combines with one before it.
//! - **Splitters** are expressions that match from left to right. A place where no match goes on is
//!   one where matching may as well begin, since none of them looks back. How far it looks ahead is bounded:
//!   outside of repetitions without an end it takes a known number of steps (`Layers::reach`), and such a
//!   repetition cannot pass two characters that it does not both have (`Layers::stops`). Behind a safe place
//!   there are more of those than there are steps.
//! - **The model** sees each piece alone, so an edge of pieces is safe. In a piece, a BPE joins
//!   nothing across two characters that no piece of its vocabulary has side by side ([`Joins`]).
//! - **What is put before a text** (a space, in many) is put before each part too: there a part begins at a
//!   space, which stops it, or behind one, for which it stands.
//!
//! A tokenizer with any other part (a Unigram model without splitter, an expression that looks back, a
//! normalizer that strips) has no safe places here.

mod joins;
mod layers;

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::normalizer::Range;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType};

use self::joins::Joins;
use self::layers::{Layer, Layers};
use super::model::{Inner, SPACE};

/// Safe places of one tokenizer.
#[derive(Debug)]
pub(super) struct Cuts {
    layers: Layers,
    joins: Option<Joins>,
    added: Added,
    start: Start,
    /// Whether a normalizer looks at clusters of characters.
    clusters: bool,
}

/// Where the next part may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Anywhere,
    /// With the space behind the place.
    AtSpace,
    /// Behind that space, which the tokenizer puts there again.
    BehindSpace,
}

/// What added tokens are made of.
#[derive(Debug, Default)]
struct Added {
    /// Characters side by side.
    pairs: HashSet<(char, char)>,
    /// The first ones: of those that want to stand alone, and of all.
    single_firsts: HashSet<char>,
    firsts: HashSet<char>,
    /// The last ones of those that take the spaces behind them.
    lasts: HashSet<char>,
    longest: usize,
}

/// A safe place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Tokens that begin before this byte are those of the whole text.
    pub(super) at: usize,
    /// Where the rest begins.
    pub(super) next: usize,
}

impl Cuts {
    /// Of a tokenizer; none if it has a part for which this cannot be told.
    pub(super) fn new(tokenizer: &Inner) -> Option<Self> {
        let json = |part: Result<Value, _>| part.ok();
        let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()))?;
        let layers = Layers::new(&json(serde_json::to_value(tokenizer.get_pre_tokenizer()))?)?;
        let mut start = if layers.adds_space { Start::AtSpace } else { Start::Anywhere };
        let mut clusters = false;
        for part in parts(&normalizer) {
            match part["type"].as_str()? {
                "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => {}
                "Precompiled" => clusters = true,
                "Replace" if part["pattern"]["String"].as_str()?.chars().count() == 1 => {}
                "Prepend" if part["prepend"] == SPACE.to_string() && start == Start::Anywhere => {
                    start = Start::BehindSpace;
                }
                _ => return None,
            }
        }
        let joins = if layers.bytewise { None } else { Joins::new(tokenizer) };
        let added = Added::new(tokenizer)?;
        Some(Self { layers, joins, added, start, clusters })
    }

    /// The last safe place that the beginning of a text, `text`, shows.
    pub(super) fn last(&self, tokenizer: &Inner, text: &str) -> Option<Cut> {
        let normalizer = tokenizer.get_normalizer();
        let added = tokenizer.get_added_vocabulary();
        let found = added.extract_and_normalize(normalizer, text);
        let pieces = found.get_splits(OffsetReferential::Original, OffsetType::Byte);
        // An added token that ends behind the text may begin here.
        let known = text.len().checked_sub(self.added.longest + 4)?;
        pieces
            .iter()
            .rev()
            .filter(|(.., token)| token.is_none())
            .find_map(|(normalized, (from, to), _)| {
                let mut piece = NormalizedString::from(text.get(*from..*to)?);
                normalizer
                    .map_or(Ok(()), |n| n.normalize(&mut piece))
                    .ok()?;
                let piece = Piece { text, from: *from, own: piece };
                (piece.own.get() == *normalized).then_some(())?;
                self.in_piece(&piece, known)
            })
    }

    /// The last safe place of a piece between added tokens, of which bytes up to `known` will stay.
    fn in_piece(&self, piece: &Piece<'_>, known: usize) -> Option<Cut> {
        let own = piece.own.get();
        // Places behind which more than the reach of all splitters is certain. Those up to a token that is known
        // are certain too, but they come with the next text at hand.
        let mut steps = 0;
        let enough = |i: &usize| {
            let stop = piece.at(*i).is_some_and(|place| {
                place.at <= known && self.is_firm(&place) && self.layers.stops(place.x, place.y)
            });
            steps += usize::from(stop);
            steps > self.layers.reach + 2
        };
        let before = own.char_indices().rev().map(|(i, _)| i).find(enough)?;
        // A splitter that puts a space before a text matches with it.
        let shift = usize::from(self.layers.adds_space && !own.starts_with(' '));
        let shifted = format!("{}{own}", &" "[..shift]);
        let safe = |i: usize| {
            let place = piece.at(i.checked_sub(shift)?)?;
            self.is_safe(&place).then_some(place)
        };
        let found =
            self.search(&self.layers.all, &shifted, 0..shifted.len(), before + shift, &safe)?;
        let next = if self.start == Start::BehindSpace { found.at + 1 } else { found.at };
        Some(Cut { at: found.at, next })
    }

    /// The last safe place below `before` in a range that the splitters before `layers` left whole.
    fn search(
        &self,
        layers: &[Layer],
        text: &str,
        range: std::ops::Range<usize>,
        before: usize,
        safe: &dyn Fn(usize) -> Option<Place>,
    ) -> Option<Place> {
        let Some((layer, rest)) = layers.split_first() else {
            let joins = self.joins.as_ref()?;
            let places = text[range.clone()].char_indices().rev();
            let places = places.map(|(i, _)| range.start + i);
            let seen = |c| if self.layers.metaspace && c == ' ' { SPACE } else { c };
            let apart = |place: &Place| joins.apart(seen(place.nx), seen(place.ny));
            return places
                .filter(|i| *i < before && *i > range.start)
                .find_map(|i| safe(i).filter(apart));
        };
        let spans = layer.spans(&text[range.clone()])?;
        spans.iter().rev().find_map(|span| {
            let (start, end) = (range.start + span.start, range.start + span.end);
            // Inside a match nothing is known of a match that would begin there.
            let within = !span.is_match && start < before;
            let inside = within.then(|| self.search(rest, text, start..end, before, safe));
            let edge = span.edge && start > range.start && start < before;
            inside
                .flatten()
                .or_else(|| edge.then(|| safe(start)).flatten())
        })
    }

    /// Whether normalizers and added tokens leave the sides of a place alone.
    fn is_firm(&self, place: &Place) -> bool {
        !place.x.is_whitespace()
            && place.x != SPACE
            && never_combines(place.y)
            && (!self.clusters || stands_alone(place.x))
    }

    fn is_safe(&self, place: &Place) -> bool {
        let (x, y) = (place.x, place.y);
        let added = &self.added;
        let untouched = [(x, y), (place.nx, place.ny)].iter().all(|(x, y)| {
            !added.pairs.contains(&(*x, *y))
                && !added.lasts.contains(x)
                && !added.single_firsts.contains(y)
        });
        let start = match self.start {
            Start::Anywhere => true,
            Start::AtSpace => y == ' ',
            Start::BehindSpace => {
                let word = |z: char| z.is_ascii_alphanumeric() && !added.firsts.contains(&z);
                y == ' ' && place.ny == SPACE && place.z.is_some_and(word)
            }
        };
        untouched && start && self.is_firm(place)
    }
}

/// A piece of a text between added tokens, and what normalizers made of it.
struct Piece<'a> {
    text: &'a str,
    from: usize,
    own: NormalizedString,
}

/// Two characters of a text, the place between them, and what they are once normalized.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    x: char,
    y: char,
    /// The one behind both.
    z: Option<char>,
    nx: char,
    ny: char,
}

impl Piece<'_> {
    /// The place before byte `i` of the normalized text; none where that is none of the text itself.
    fn at(&self, i: usize) -> Option<Place> {
        let own = self.own.get();
        let (nx, ny) = (own.get(..i)?.chars().next_back()?, own[i..].chars().next()?);
        let of = |range| self.own.convert_offsets(Range::Normalized(range));
        let before = of(i - nx.len_utf8()..i)?;
        let after = of(i..i + ny.len_utf8())?;
        let at = self.from + after.start;
        let mut behind = self.text.get(at..)?.chars();
        let x = self.text.get(..at)?.chars().next_back()?;
        let (y, z) = (behind.next()?, behind.next());
        (before.end == after.start && after.start > 0).then_some(Place { at, x, y, z, nx, ny })
    }
}

impl Added {
    fn new(tokenizer: &Inner) -> Option<Self> {
        let mut all = Self::default();
        for token in tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .values()
        {
            let mut normalized = NormalizedString::from(token.content.as_str());
            tokenizer
                .get_normalizer()
                .map_or(Ok(()), |n| n.normalize(&mut normalized))
                .ok()?;
            for content in [token.content.as_str(), normalized.get()] {
                all.pairs
                    .extend(content.chars().zip(content.chars().skip(1)));
                all.firsts.extend(content.chars().next());
                all.single_firsts
                    .extend(content.chars().next().filter(|_| token.single_word));
                all.lasts
                    .extend(content.chars().next_back().filter(|_| token.rstrip));
                all.longest = all.longest.max(content.len());
            }
        }
        Some(all)
    }
}

/// The normalizers of a list, or the one that there is.
fn parts(normalizer: &Value) -> Vec<&Value> {
    match normalizer["normalizers"].as_array() {
        Some(list) if normalizer["type"] == "Sequence" => list.iter().flat_map(parts).collect(),
        _ if normalizer.is_null() => Vec::new(),
        _ => vec![normalizer],
    }
}

/// Whether a character begins anew whatever stands before it, in any of Unicode's forms: ASCII,
/// punctuation and ideographs of East Asia, their wide forms.
const fn never_combines(c: char) -> bool {
    matches!(c, '\0'..='\x7f' | '\u{3001}'..='\u{3029}' | '\u{4e00}'..='\u{9fff}' | '\u{ff01}'..='\u{ff5e}')
}

/// Whether no cluster of characters goes on behind this one, unless what follows combines with it.
fn stands_alone(c: char) -> bool {
    c != '\r' && (never_combines(c) || (c.is_alphanumeric() && c < '\u{900}'))
}
