//! A `tokenizer.json`, read so that the long lists of its model never lie in memory twice.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use shardwright_format::checkpoint::SpaceBefore;
use tokenizers::models::ModelWrapper;
use tokenizers::models::unigram::Unigram;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer, TokenizerImpl,
};

use super::bpe::Bpe;
use super::pieces::Pieces;
use super::space::Steps;
use super::{AnyModel, Inner};

/// The document. What it says of cutting or filling up texts is left from training: no token of a text may be
/// lost to it, and none added.
#[derive(Deserialize)]
struct Document {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Described,
}

/// An added token; its number follows from the vocabulary.
#[derive(Deserialize)]
struct Added {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// A model, whose lists are told apart by their form.
#[derive(Deserialize)]
struct Described {
    #[serde(default)]
    unk_token: Option<String>,
    unk_id: Option<usize>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Option<Merges>,
}

/// Names the kind of model.
#[derive(Deserialize)]
struct Kind {
    model: KindOf,
}

#[derive(Deserialize)]
struct KindOf {
    #[serde(rename = "type")]
    name: Option<String>,
    dropout: Option<f32>,
}

enum Vocab {
    Map(Pieces),
    Scored(Vec<(String, f64)>),
}

/// Pairs of pieces, one text for all of them.
#[derive(Default)]
struct Merges {
    text: String,
    /// Where each piece ends, two for each merge.
    ends: Vec<(u32, u32)>,
}

/// Reads the document, with spaces before a text as by `space` where that is not the document's to say.
///
/// # Errors
/// What the library says of it, in one line.
pub(in crate::text) fn read(json: &[u8], space: Option<SpaceBefore>) -> Result<Inner, String> {
    let text = |e: serde_json::Error| e.to_string();
    let Kind { model: KindOf { name, dropout } } = serde_json::from_slice(json).map_err(text)?;
    let random = dropout.is_some_and(|share| share != 0.0);
    match name.as_deref() {
        Some("BPE" | "Unigram") if !random => {}
        _ => return other(json),
    }
    let document: Document = serde_json::from_slice(json).map_err(text)?;
    if let Some(version) = document.version.filter(|version| version != "1.0") {
        return Err(format!("Unknown tokenizer version '{version}'"));
    }
    let bpe = name.as_deref() == Some("BPE");
    let model = if bpe { document.model.bpe()? } else { document.model.unigram()? };
    let Document { normalizer, pre_tokenizer, decoder, .. } = document;
    let steps = Steps { normalizer, pre_tokenizer, decoder };
    let steps = match space.filter(|_| bpe) {
        Some(space) => steps.with(space),
        None => steps,
    };
    let mut inner: Inner = TokenizerImpl::new(model);
    inner.with_normalizer(steps.normalizer);
    inner.with_pre_tokenizer(steps.pre_tokenizer);
    inner.with_post_processor(document.post_processor);
    inner.with_decoder(steps.decoder);
    let added: Vec<_> = document
        .added_tokens
        .into_iter()
        .map(|added| added.token)
        .collect();
    inner.add_tokens(&added);
    Ok(inner)
}

/// Reads a document with a model of a rarer kind as the library does it.
fn other(json: &[u8]) -> Result<Inner, String> {
    let read = Tokenizer::from_bytes(json)
        .map_err(|e| e.to_string())?
        .into_inner();
    let mut inner: Inner = TokenizerImpl::new(AnyModel::Other(read.get_model().clone()));
    inner.with_normalizer(read.get_normalizer().cloned());
    inner.with_pre_tokenizer(read.get_pre_tokenizer().cloned());
    inner.with_post_processor(read.get_post_processor().cloned());
    inner.with_decoder(read.get_decoder().cloned());
    inner.with_added_vocabulary(read.get_added_vocabulary().clone());
    Ok(inner)
}

impl Described {
    fn bpe(self) -> Result<AnyModel, String> {
        let (Vocab::Map(mut pieces), Some(merges)) = (self.vocab, self.merges) else {
            return Err("Missing vocab/merges".to_owned());
        };
        pieces.finish();
        let mut model = Bpe {
            pieces,
            unk_token: self.unk_token,
            prefix: self.continuing_subword_prefix,
            suffix: self.end_of_word_suffix,
            fuse_unk: self.fuse_unk.unwrap_or(false),
            byte_fallback: self.byte_fallback.unwrap_or(false),
            ignore_merges: self.ignore_merges.unwrap_or(false),
            ..Bpe::default()
        };
        let prefix = model.prefix.as_ref().map_or(0, String::len);
        model.merges.reserve(merges.ends.len());
        let missing = |piece: &str| format!("Token `{piece}` out of vocabulary");
        let token = |piece: &str| model.pieces.token(piece).ok_or_else(|| missing(piece));
        for (rank, (a, b)) in merges.iter().enumerate() {
            let rest = b.get(prefix..).ok_or_else(|| missing(b))?;
            let merged = (rank as u32, token(&format!("{a}{rest}"))?);
            model.merges.insert((token(a)?, token(b)?), merged);
        }
        Ok(AnyModel::Bpe(model))
    }

    fn unigram(self) -> Result<AnyModel, String> {
        let Vocab::Scored(vocab) = self.vocab else {
            return Err("Missing vocab".to_owned());
        };
        let model = Unigram::from(vocab, self.unk_id, self.byte_fallback.unwrap_or(false));
        let model = model.map_err(|e| format!("Unable to load vocab {e}"))?;
        Ok(AnyModel::Other(ModelWrapper::Unigram(model)))
    }
}

impl Merges {
    fn add(&mut self, a: &str, b: &str) -> Option<()> {
        self.text.push_str(a);
        let end = u32::try_from(self.text.len()).ok()?;
        self.text.push_str(b);
        self.ends.push((end, u32::try_from(self.text.len()).ok()?));
        Some(())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut from = 0;
        self.ends.iter().map(move |(middle, end)| {
            let pair =
                (&self.text[from..*middle as usize], &self.text[*middle as usize..*end as usize]);
            from = *end as usize;
            pair
        })
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut pieces = Pieces::default();
        while let Some((piece, token)) = map.next_entry::<String, u32>()? {
            let added = pieces.insert(&piece, token);
            added.ok_or_else(|| A::Error::custom("a vocabulary of more than 4 GiB"))?;
        }
        Ok(Vocab::Map(pieces))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
        let mut scored = Vec::new();
        while let Some(piece) = list.next_element()? {
            scored.push(piece);
        }
        Ok(Vocab::Scored(scored))
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = Merges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
        let mut merges = Merges::default();
        while let Some(merge) = list.next_element::<Merge>()? {
            let added = match &merge {
                // The first line of a file of merges.
                Merge::Line(line) if line.starts_with("#version") => continue,
                Merge::Line(line) => {
                    let pair = line.split_once(' ').filter(|(_, b)| !b.contains(' '));
                    let line = merges.ends.len() + 1;
                    let wrong =
                        || A::Error::custom(format!("Merges text file invalid at line {line}"));
                    let (a, b) = pair.ok_or_else(wrong)?;
                    merges.add(a, b)
                }
                Merge::Pair(a, b) => merges.add(a, b),
            };
            added.ok_or_else(|| A::Error::custom("merges of more than 4 GiB"))?;
        }
        Ok(merges)
    }
}

/// A merge in either form.
enum Merge {
    Line(String),
    Pair(String, String),
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two pieces")
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Merge, E> {
        Ok(Merge::Line(line.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
        let wrong = || A::Error::custom("expected two pieces");
        let a = pair.next_element()?.ok_or_else(wrong)?;
        let b = pair.next_element()?.ok_or_else(wrong)?;
        match pair.next_element::<IgnoredAny>()? {
            None => Ok(Merge::Pair(a, b)),
            Some(_) => Err(wrong()),
        }
    }
}
