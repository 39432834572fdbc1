//! Models of `SentencePiece`: `tokenizer.model`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use super::class::{self, GEMMA};
use super::document::Added;
use super::pieces::{Kind, Prefix, Style, Vocabulary};
use super::settings::Settings;
use crate::refusal::{Refusal, mismatch};

/// `TrainerSpec.ModelType`.
const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

/// `ModelProto`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, tag = "3")]
    kind: i32,
}

/// `TrainerSpec`.
#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    treat_whitespace_as_suffix: bool,
    #[prost(bool, tag = "35")]
    byte_fallback: bool,
    #[prost(int32, tag = "40")]
    unk_id: i32,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
}

/// `NormalizerSpec`.
#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// The `tokenizer.json` of a model's file, with the settings beside it.
///
/// # Errors
/// No such file, or one with a part that no document says.
pub(super) fn make(
    bytes: &[u8],
    settings: &Settings,
    model_type: &str,
) -> Result<Vec<u8>, Refusal> {
    let model = Model::decode(bytes);
    let model =
        model.map_err(|e| mismatch("a model of SentencePiece", format_args!("none ({e})")))?;
    let Model { pieces, trainer, normalizer } = &model;
    let (trainer, normalizer) =
        (trainer.clone().unwrap_or_default(), normalizer.clone().unwrap_or_default());
    trainer.check(pieces)?;
    normalizer.check()?;
    let mut tokens: Vec<_> = pieces.iter().map(|p| Cow::from(p.text.as_str())).collect();
    settings.rename(&mut tokens);
    let kinds = pieces.iter().map(|p| Kind::new(p.kind as u64)).collect();
    let vocabulary = Vocabulary { tokens, kinds };
    let merges = trainer.model_type == Some(BPE);
    let class = class::deciding(settings.class(), model_type).filter(|_| merges);
    let style = normalizer.style(&vocabulary, settings, class, trainer.byte_fallback);
    let used = trainer.used(&vocabulary, settings, class);
    let named = |added: &Added<'_>| settings.takes_own() || used.contains(&added.content);
    let whole = |added: &Added<'_>| added.special || style.isolated.is_empty();
    let own = vocabulary
        .added()
        .into_iter()
        .filter(|added| named(added) && whole(added))
        .collect();
    let added = settings.added(&vocabulary.tokens, own);
    let scores: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
    let unk = trainer.unk_id as usize;
    let around = trainer.around(&vocabulary, settings, &added);
    let document = if merges {
        let unk = vocabulary.tokens.get(unk).map(Cow::as_ref);
        vocabulary.merging(&scores, &style, unk, added)
    } else {
        check_numbers(pieces.len(), &added)?;
        vocabulary.summing(&scores, &style, unk, added)
    };
    serde_json::to_vec(&document.with_ends(around)).map_err(|e| e.to_string().into())
}

/// Added tokens behind a vocabulary that is a list get the numbers that follow.
fn check_numbers(count: usize, added: &[Added<'_>]) -> Result<(), Refusal> {
    let behind = added.iter().filter(|token| token.id >= count);
    for (expected, token) in (count..).zip(behind) {
        if token.id != expected {
            let found = format!("{} for `{}`", token.id, token.content);
            return Err(mismatch(expected, found).at("number of the next added token"));
        }
    }
    Ok(())
}

impl Trainer {
    fn check(&self, pieces: &[Piece]) -> Result<(), Refusal> {
        let kind = self.model_type.unwrap_or(UNIGRAM);
        if ![UNIGRAM, BPE].contains(&kind) {
            let found = match kind {
                3 => "WORD".to_owned(),
                4 => "CHAR".to_owned(),
                other => other.to_string(),
            };
            return Err(mismatch("UNIGRAM or BPE", found).at("model_type"));
        }
        if self.treat_whitespace_as_suffix {
            return Err(mismatch(false, true).at("treat_whitespace_as_suffix"));
        }
        let unused = |piece: &&Piece| Kind::new(piece.kind as u64) == Kind::Unused;
        if let Some(piece) = pieces.iter().find(unused) {
            return Err(format!("`{}` is a piece that is not used", piece.text).into());
        }
        let unknown = usize::try_from(self.unk_id).ok();
        if unknown.is_none_or(|id| id >= pieces.len()) {
            return Err(
                mismatch(format_args!("one of {} pieces", pieces.len()), self.unk_id).at("unk_id")
            );
        }
        if let Some(piece) = pieces.iter().find(|piece| !piece.score.is_finite()) {
            return Err(mismatch("a number", piece.score).at(format_args!("`{}`", piece.text)));
        }
        Ok(())
    }

    /// The text of a piece.
    fn piece<'v>(vocabulary: &'v Vocabulary<'_>, id: i32) -> Option<&'v str> {
        let text = vocabulary.tokens.get(usize::try_from(id).ok()?)?;
        Some(text.as_ref())
    }

    /// The pieces before and after a text.
    fn ends<'v>(&self, vocabulary: &'v Vocabulary<'_>) -> [Option<&'v str>; 2] {
        [self.bos_id.unwrap_or(1), self.eos_id.unwrap_or(2)].map(|id| Self::piece(vocabulary, id))
    }

    /// Pieces that have a use by themselves, unless the settings have a word on that use.
    fn used<'v>(
        &self,
        vocabulary: &'v Vocabulary<'_>,
        settings: &Settings,
        class: Option<&str>,
    ) -> Vec<&'v str> {
        let [bos, eos] = self.ends(vocabulary);
        let unk = Self::piece(vocabulary, self.unk_id);
        let of_class = |text| Some(text).filter(|_| class == Some(GEMMA));
        let uses = [
            ("bos_token", bos),
            ("eos_token", eos),
            ("unk_token", unk),
            ("pad_token", of_class("<pad>")),
            ("mask_token", of_class("<mask>")),
        ];
        let own = uses.into_iter().filter(|(name, _)| !settings.states(name));
        own.filter_map(|(_, text)| text).collect()
    }

    /// What is put around a text.
    fn around(
        &self,
        vocabulary: &Vocabulary<'_>,
        settings: &Settings,
        added: &[Added<'_>],
    ) -> serde_json::Value {
        let bos = settings.class().is_some_and(class::is_own);
        settings.around(added, self.ends(vocabulary), bos)
    }
}

impl Normalizer {
    fn check(&self) -> Result<(), Refusal> {
        match self.escape_whitespaces {
            Some(false) => Err(mismatch(true, false).at("escape_whitespaces")),
            _ => Ok(()),
        }
    }

    /// How text is read before the vocabulary sees it; `class`: the one that decides about it beside the file.
    fn style<'v>(
        &self,
        vocabulary: &'v Vocabulary<'_>,
        settings: &Settings,
        class: Option<&str>,
        byte_fallback: bool,
    ) -> Style<'v> {
        let own = self.add_dummy_prefix.unwrap_or(true);
        let first = settings.flag("add_prefix_space").unwrap_or(own);
        let prefix = match class::is_legacy(class, settings.flag("legacy")) {
            _ if !first || class == Some(GEMMA) => Prefix::Never,
            true => Prefix::Each,
            false => Prefix::First,
        };
        let table = &self.precompiled_charsmap;
        let defined = vocabulary.tokens.iter().zip(&vocabulary.kinds);
        let defined = defined.filter(|(text, kind)| {
            **kind == Kind::UserDefined && class.is_none() && !text.is_empty()
        });
        Style {
            charsmap: (!table.is_empty()).then(|| STANDARD.encode(table)),
            trims: self.remove_extra_whitespaces.unwrap_or(true),
            byte_fallback,
            isolated: defined.map(|(text, _)| text.as_ref()).collect(),
            ..Style::plain(prefix)
        }
    }
}
