//! The model of a tokenizer: our own where it takes most memory, the library's for the rest.

mod bpe;
mod document;
mod pieces;
mod space;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token,
    TokenizerImpl,
};

use bpe::Bpe;
pub(super) use document::read;
pub(super) use space::SPACE;

/// A tokenizer of the library around our model.
pub(super) type Inner = TokenizerImpl<
    AnyModel,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A model.
#[derive(Debug, PartialEq)]
pub(super) enum AnyModel {
    Bpe(Bpe),
    Other(ModelWrapper),
}

impl Model for AnyModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Bpe(model) => Ok(model.tokenize(word)?),
            Self::Other(model) => model.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Bpe(model) => model.pieces.token(token),
            Self::Other(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Bpe(model) => model.pieces.piece(id).map(str::to_owned),
            Self::Other(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Bpe(model) => model
                .pieces
                .iter()
                .map(|(p, id)| (p.to_owned(), id))
                .collect(),
            Self::Other(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Bpe(model) => model.pieces.len(),
            Self::Other(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("models are read, never written".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        ModelWrapper::BPE(tokenizers::models::bpe::BPE::default()).get_trainer()
    }
}

/// Bytes of an entry of a table of merges.
const MERGE_BYTES: usize = 17;
/// What the library keeps for a piece of a model of its own: its text twice, in tables.
const OTHER_BYTES: usize = 256;
/// What it keeps for an added token: its text three times, with what it is found by.
const ADDED_BYTES: usize = 1024;

/// About how many bytes a tokenizer takes.
pub(super) fn held(inner: &Inner) -> usize {
    let model = match inner.get_model() {
        AnyModel::Bpe(model) => model.pieces.held() + model.merges.capacity() * 8 / 7 * MERGE_BYTES,
        AnyModel::Other(model) => model.get_vocab_size() * OTHER_BYTES,
    };
    model + inner.get_added_vocabulary().get_vocab().len() * ADDED_BYTES
}

/// Whether two make the same tokens of every text, and the same text of every token.
pub(super) fn same(a: &Inner, b: &Inner) -> bool {
    let steps = |inner: &Inner| {
        let cut = (inner.get_normalizer(), inner.get_pre_tokenizer());
        serde_json::to_value((cut, inner.get_post_processor(), inner.get_decoder())).ok()
    };
    let (ours, added) = (steps(a), a.get_added_vocabulary().get_added_tokens_decoder());
    ours.is_some()
        && ours == steps(b)
        && added == b.get_added_vocabulary().get_added_tokens_decoder()
        && a.get_model() == b.get_model()
        && bytes_of_unknown(a.get_model()) == bytes_of_unknown(b.get_model())
}

/// Whether a model with scores has bytes for what is no piece, which the library does not compare.
fn bytes_of_unknown(model: &AnyModel) -> bool {
    matches!(model, AnyModel::Other(ModelWrapper::Unigram(model)) if model.byte_fallback())
}
