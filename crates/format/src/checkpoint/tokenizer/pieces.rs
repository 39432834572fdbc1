//! A vocabulary: tokens, what kind each is, and what `tokenizer.json` it makes.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use serde_json::{Value as Json, json};

use super::document::{Added, Bpe, Document, Model, Unigram, byte_level, replace};
use super::split::Split;

/// What a space is in a vocabulary of `SentencePiece`.
pub(crate) const SPACE: &str = "\u{2581}";
/// Longer tokens have no merges: they are whole phrases, found before any merge.
const LONGEST_MERGED: usize = 256;

/// `enum llama_token_type`, and the `Type` of a piece of `SentencePiece`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    pub(in crate::checkpoint) const fn new(number: u64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Which parts of a text, cut at added tokens, begin with a space of the tokenizer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) enum Prefix {
    Never,
    /// All, beside their own.
    Each,
    /// The first one, unless it begins with one.
    First,
}

/// Which parts of a text no token joins, so that the sums of their scores are sums of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// It is not known.
    None,
    /// Those that begin with spaces.
    Runs,
    /// Those that begin with a space.
    Single,
}

impl Words {
    /// Of all tokens: none has a space behind another character, or behind any. A space that is no token
    /// is one with the unknown characters before it.
    fn new<'t>(tokens: &(impl Iterator<Item = &'t str> + Clone)) -> Self {
        let is_space = |c: char| SPACE.contains(c);
        let behind_any = |text: &str| text.chars().skip(1).any(is_space);
        let behind_other = |text: &str| text.trim_start_matches(SPACE).contains(SPACE);
        if !tokens.clone().any(|text| text == SPACE) || tokens.clone().any(behind_other) {
            return Self::None;
        }
        if tokens.clone().any(behind_any) { Self::Runs } else { Self::Single }
    }
}

/// How text is read before a vocabulary with scores sees it.
#[derive(Debug)]
pub(in crate::checkpoint) struct Style<'a> {
    /// Characters and what stands for them: a table of the library's, in base64.
    pub(in crate::checkpoint) charsmap: Option<String>,
    /// Whether spaces at the ends, and all but one of a run, are left out.
    pub(in crate::checkpoint) trims: bool,
    pub(in crate::checkpoint) prefix: Prefix,
    /// Whether characters without a token are bytes.
    pub(in crate::checkpoint) byte_fallback: bool,
    /// Tokens that are whole wherever the text has them, once it is normalized.
    pub(in crate::checkpoint) isolated: Vec<&'a str>,
}

impl Style<'_> {
    /// Text as it stands.
    pub(in crate::checkpoint) const fn plain(prefix: Prefix) -> Self {
        Self { charsmap: None, trims: false, prefix, byte_fallback: true, isolated: Vec::new() }
    }

    fn normalizer(&self) -> Json {
        let mut all = Vec::new();
        if let Some(table) = &self.charsmap {
            all.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
        }
        if self.trims {
            let regex = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"Regex": from}, "content": to});
            all.extend([regex(r"\A +| +\z", ""), regex(" {2,}", " ")]);
        }
        if self.prefix == Prefix::Each {
            all.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        all.push(replace(" ", SPACE));
        json!({"type": "Sequence", "normalizers": all})
    }

    fn pre_tokenizer(&self, words: Words) -> Json {
        let mut all = Vec::new();
        if self.prefix == Prefix::First {
            all.push(json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first",
                            "split": words == Words::Single}));
        }
        if !self.isolated.is_empty() {
            let mut longest_first = self.isolated.clone();
            longest_first.sort_by_key(|text| std::cmp::Reverse(text.len()));
            let any: Vec<_> = longest_first.into_iter().map(regex::escape).collect();
            all.push(json!({"type": "Split", "pattern": {"Regex": any.join("|")},
                            "behavior": "Isolated", "invert": false}));
        }
        if words != Words::None && self.prefix != Prefix::First {
            all.push(json!({"type": "Split", "pattern": {"Regex": format!("{SPACE}+")},
                            "behavior": "MergedWithNext", "invert": false}));
        }
        match all.len() {
            0 => Json::Null,
            1 => all.swap_remove(0),
            _ => json!({"type": "Sequence", "pretokenizers": all}),
        }
    }

    fn document<'b>(&self, words: Words, added: Vec<Added<'b>>, model: Model<'b>) -> Document<'b> {
        Document {
            normalizer: self.normalizer(),
            pre_tokenizer: self.pre_tokenizer(words),
            decoder: self.decoder(),
            ..Document::new(added, model)
        }
    }

    fn decoder(&self) -> Json {
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let strip = (self.prefix != Prefix::Never).then_some(strip);
        let all = [replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        let all: Vec<_> = all.into_iter().chain(strip).collect();
        json!({"type": "Sequence", "decoders": all})
    }
}

/// Tokens and what is said of each.
#[derive(Debug)]
pub(in crate::checkpoint) struct Vocabulary<'a> {
    pub(in crate::checkpoint) tokens: Vec<Cow<'a, str>>,
    pub(in crate::checkpoint) kinds: Vec<Kind>,
}

impl Vocabulary<'_> {
    /// Tokens of a kind that is found in a text before it is cut.
    pub(in crate::checkpoint) fn added(&self) -> Vec<Added<'_>> {
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        let found = |kind, content: &str| match kind {
            Kind::Unknown | Kind::Control => true,
            // What would be found in no text.
            Kind::UserDefined => content.chars().any(|c| !SPACE.contains(c)),
            Kind::Normal | Kind::Unused | Kind::Byte => false,
        };
        tokens
            .filter(|(_, (content, kind))| !content.is_empty() && found(**kind, content))
            .map(|(id, (content, kind))| Added::new(id, content, *kind != Kind::UserDefined))
            .collect()
    }

    /// The first token of a kind.
    pub(in crate::checkpoint) fn first(&self, kind: Kind) -> Option<(usize, &str)> {
        let id = self.kinds.iter().position(|found| *found == kind)?;
        Some((id, &self.tokens[id]))
    }

    /// Tokens by text, the first of equal ones; those `without` left out.
    fn ids(&self, without: Option<Kind>) -> Vec<(&str, usize)> {
        let mut seen = BTreeSet::new();
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        tokens
            .map(|(id, (text, kind))| (text.as_ref(), id, *kind))
            .filter(|(text, _, kind)| Some(*kind) != without && seen.insert(*text))
            .map(|(text, id, _)| (text, id))
            .collect()
    }

    /// The same with those added tokens that lie behind the vocabulary.
    fn ids_with<'b>(&'b self, without: Option<Kind>, added: &[Added<'b>]) -> Vec<(&'b str, usize)> {
        let mut ids = self.ids(without);
        let behind = added.iter().filter(|token| token.id >= self.tokens.len());
        ids.extend(behind.map(|token| (token.content, token.id)));
        ids
    }

    /// Bytes as letters, and merges in their order.
    ///
    /// # Errors
    /// A pair that does not make a token of two.
    pub(in crate::checkpoint) fn bytewise<'b>(
        &'b self,
        split: &Split,
        merges: Vec<(&'b str, &'b str)>,
        added: Vec<Added<'b>>,
    ) -> Result<Document<'b>, (&'b str, &'b str)> {
        // What fills a vocabulary up to the rows of a matrix is no token.
        let ids = self.ids_with(Some(Kind::Unused), &added);
        let known: BTreeSet<_> = ids.iter().map(|(text, _)| *text).collect();
        let strange = |(a, b): &&(&str, &str)| {
            ![*a, *b, &format!("{a}{b}")]
                .iter()
                .all(|text| known.contains(text))
        };
        if let Some(pair) = merges.iter().find(strange) {
            return Err(*pair);
        }
        let model = Bpe { ignore_merges: split.ignore_merges, ..Bpe::new(ids, merges) };
        Ok(Document {
            normalizer: split.normalizer(),
            pre_tokenizer: split.pre_tokenizer(),
            decoder: byte_level(),
            ..Document::new(added, Model::Bpe(model.into()))
        })
    }

    /// Characters, and merges by the scores of their tokens, of which there are as many.
    pub(in crate::checkpoint) fn merging<'b>(
        &'b self,
        scores: &[f32],
        style: &Style<'_>,
        unk_token: Option<&'b str>,
        added: Vec<Added<'b>>,
    ) -> Document<'b> {
        let ids = self.ids_with(None, &added);
        let isolates = !style.isolated.is_empty();
        let model = Bpe {
            unk_token,
            fuse_unk: true,
            byte_fallback: style.byte_fallback,
            // What is whole wherever it stands is made by no merge.
            ignore_merges: isolates,
            ..Bpe::new(ids, self.merges(scores, isolates))
        };
        style.document(Words::None, added, Model::Bpe(model.into()))
    }

    /// The tokens whose scores add up to most; `unk_id` stands for characters that none has.
    pub(in crate::checkpoint) fn summing<'b>(
        &'b self,
        scores: &[f32],
        style: &Style<'_>,
        unk_id: usize,
        added: Vec<Added<'b>>,
    ) -> Document<'b> {
        let tokens = self.tokens.iter().map(Cow::as_ref);
        let scored = tokens
            .clone()
            .zip(scores.iter().map(|score| f64::from(*score)));
        let words = Words::new(&tokens);
        let model = Unigram::new(scored.collect(), unk_id, style.byte_fallback);
        style.document(words, added, Model::Unigram(model))
    }

    /// Every pair of tokens that makes another: the best score of the whole first, equal ones by
    /// number, then the longest first part. What users defined has no score of its own and keeps
    /// its place among the numbers; or, as all that is not `normal`, has no part in this.
    fn merges(&self, scores: &[f32], only_normal: bool) -> Vec<(&str, &str)> {
        let mut ids = self.ids(None);
        ids.retain(|(_, id)| !only_normal || self.kinds[*id] == Kind::Normal);
        let known: HashMap<_, _> = ids.iter().copied().collect();
        let mut last = f32::INFINITY;
        let own = self.kinds.iter().zip(scores).map(|(kind, score)| {
            last = if *kind == Kind::Normal { *score } else { last };
            if *kind == Kind::UserDefined { last } else { *score }
        });
        let scores: Vec<f32> = own.collect();
        let mut order: Vec<usize> = ids
            .iter()
            .filter(|(text, _)| text.len() <= LONGEST_MERGED)
            .map(|(_, id)| *id)
            .collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let mut merges = Vec::new();
        for id in order {
            let whole = self.tokens[id].as_ref();
            let cuts = whole
                .char_indices()
                .skip(1)
                .map(|(at, _)| whole.split_at(at));
            let pairs = cuts.filter(|(a, b)| known.contains_key(a) && known.contains_key(b));
            let first = merges.len();
            merges.extend(pairs);
            merges[first..].reverse();
        }
        merges
    }
}
