//! Which layers a bundle has of its checkpoint.

use serde::{Deserialize, Serialize};

use crate::refusal::{Refusal, mismatch};

/// Some layers of a checkpoint, one after the other, with its embedding and head: a model to
/// measure on, not one that says anything sensible. Layers count from 0 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excerpt {
    /// The checkpoint's layer that is the bundle's layer 0.
    pub first: u32,
    /// The checkpoint's first layer after them.
    pub end: u32,
    /// Layers of the checkpoint.
    pub of: u32,
}

impl Excerpt {
    /// Whether a layer of the checkpoint is among them.
    pub const fn has(&self, layer: u32) -> bool {
        self.first <= layer && layer < self.end
    }

    /// Refuses layers that the checkpoint does not have, and a model with another number of them.
    pub(super) fn validate(&self, layers: usize) -> Result<(), Refusal> {
        let Self { first, end, of } = *self;
        if first < end && end <= of && (end - first) as usize == layers {
            return Ok(());
        }
        Err(mismatch(format_args!("{layers} layers of {of}"), format_args!("{first} to {end}"))
            .at("checkpoint: excerpt"))
    }
}

impl std::fmt::Display for Excerpt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, end, of } = self;
        write!(f, "an excerpt: layers {first}..{end} of {of}, with embedding and head")
    }
}
