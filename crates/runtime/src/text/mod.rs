//! Text: tokens of it, text of tokens, and the choice of the next one. Nothing in the mathematics
//! needs it.

mod chat;
mod cut;
mod guard;
mod model;
mod reading;
mod sampler;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use reading::{LARGEST_WINDOW, More};
pub(crate) use sampler::greedy;
pub use sampler::{Sampler, Sampling};
pub use stream::TextStream;
pub use tokenizer::{MAKE_TOKENIZER, Tokenizer, other_form};
