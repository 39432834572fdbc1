//! `tokenizer.json` made of what else says how a model's text becomes tokens.
//!
//! Sources: transformers, `convert_slow_tokenizer.py` (documents that it makes of vocabularies with scores and of
//! ranks); sentencepiece, `sentencepiece_model.proto`; tiktoken, `load.py`. The documents are those that
//! the tokenizers library reads.

mod beside;
mod class;
mod document;
mod pieces;
mod sentencepiece;
mod settings;
mod split;
mod tiktoken;

pub(super) use beside::Beside;
pub use class::SpaceBefore;
pub(super) use document::{Document, template};
pub(crate) use pieces::SPACE;
pub(super) use pieces::{Kind, Prefix, Style, Vocabulary};
pub use settings::{NamedToken, TokensBeside};
pub(crate) use split::Split;
