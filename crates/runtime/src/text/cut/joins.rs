//! Which characters stand side by side in a piece of a vocabulary.

use crate::text::model::{AnyModel, Inner};

/// Bits of the table, of which a pair has one: vocabularies have some hundred thousand pairs.
const BITS: u64 = 1 << 22;

/// Words of a table with a bit for each character.
const CHARS: usize = char::MAX as usize / 64 + 1;

/// Pairs of characters that a BPE may ever join, and the characters that are pieces.
#[derive(Debug)]
pub(super) struct Joins {
    pairs: Vec<u64>,
    single: Vec<u64>,
}

impl Joins {
    /// Of a tokenizer whose model merges characters by its table alone; none of others.
    ///
    /// A merge makes a piece of the vocabulary of two that lie side by side. So where the last
    /// character before a place and the first one after it are pieces, and no piece has one behind
    /// the other, no merge ever crosses the place, and both sides are merged as if alone.
    pub(super) fn new(tokenizer: &Inner) -> Option<Self> {
        let AnyModel::Bpe(model) = tokenizer.get_model() else { return None };
        let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        // A character that is no piece and has no stand-in is dropped, after which tokens do not tell where they begin.
        let bytes = || (0..=255u8).all(|b| model.pieces.token(&format!("<{b:#04X}>")).is_some());
        let complete = model.unk_token.is_some() || (model.byte_fallback && bytes());
        let plain = !model.ignore_merges && empty(&model.prefix) && empty(&model.suffix);
        let mut joins = Self { pairs: vec![0; (BITS / 64) as usize], single: vec![0; CHARS] };
        model.pieces.iter().for_each(|(piece, _)| joins.add(piece));
        (complete && plain).then_some(joins)
    }

    fn place(x: char, y: char) -> (usize, u64) {
        let pair = u64::from(u32::from(x)) << 21 | u64::from(u32::from(y));
        // The highest bits of a product depend on all bits of the pair (Knuth's multiplicative hashing).
        let bit = pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & (BITS - 1);
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn add(&mut self, piece: &str) {
        let mut chars = piece.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            self.single[c as usize / 64] |= 1 << (c as usize % 64);
        }
        for (x, y) in piece.chars().zip(piece.chars().skip(1)) {
            let (word, bit) = Self::place(x, y);
            self.pairs[word] |= bit;
        }
    }

    /// Whether both characters are pieces and no piece has `y` behind `x`. Two pairs may share a bit: then it
    /// says no without need.
    pub(super) fn apart(&self, x: char, y: char) -> bool {
        let is_piece = |c: char| self.single[c as usize / 64] >> (c as usize % 64) & 1 == 1;
        let (word, bit) = Self::place(x, y);
        is_piece(x) && is_piece(y) && self.pairs[word] & bit == 0
    }
}
