//! Byte pair encoding as the tokenizers library does it, to the token, in a fifth of its memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::Token;

use super::pieces::Pieces;

/// A model that merges the pairs of a list, the first of them first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::text) struct Bpe {
    pub(in crate::text) pieces: Pieces,
    /// Of two tokens: how late they merge, and into which.
    pub(super) merges: HashMap<(u32, u32), (u32, u32)>,
    pub(in crate::text) unk_token: Option<String>,
    /// Put before every character of a word but the first.
    pub(in crate::text) prefix: Option<String>,
    /// Put behind the last one.
    pub(in crate::text) suffix: Option<String>,
    pub(super) fuse_unk: bool,
    /// Characters that are no piece are their bytes.
    pub(in crate::text) byte_fallback: bool,
    /// A word that is a piece is not taken apart.
    pub(in crate::text) ignore_merges: bool,
}

/// A token of a word in the making, in a list that merging shortens.
#[derive(Clone, Copy)]
struct Symbol {
    token: u32,
    /// Bytes of the word; 0 once it is part of the one before.
    len: usize,
    before: Option<usize>,
    behind: Option<usize>,
}

impl Bpe {
    /// # Errors
    /// A stand-in for unknown characters that is no piece.
    pub(super) fn tokenize(&self, word: &str) -> Result<Vec<Token>, String> {
        if let Some(token) = self.pieces.token(word).filter(|_| self.ignore_merges) {
            return Ok(vec![Token::new(token, word.to_owned(), (0, word.len()))]);
        }
        let mut symbols = self.symbols(word)?;
        self.merge(&mut symbols);
        let mut at = 0;
        let tokens = symbols.iter().filter(|s| s.len > 0).map(|symbol| {
            let from = at;
            at += symbol.len;
            let piece = self.pieces.piece(symbol.token).unwrap_or_default();
            Token::new(symbol.token, piece.to_owned(), (from, at))
        });
        Ok(tokens.collect())
    }

    /// The characters of a word as tokens.
    fn symbols(&self, word: &str) -> Result<Vec<Symbol>, String> {
        let mut symbols = Vec::with_capacity(word.len());
        let mut add = |token: u32, len: usize| {
            let at: usize = symbols.len();
            symbols.push(Symbol { token, len, before: at.checked_sub(1), behind: Some(at + 1) });
        };
        // An unknown stretch waits for the next piece: bytes of later characters come before it.
        let mut unknown: Option<(u32, usize)> = None;
        for (i, c) in word.char_indices() {
            let len = c.len_utf8();
            let piece = self.dressed(&word[i..i + len], i == 0, i + len == word.len());
            if let Some(token) = self.pieces.token(&piece) {
                if let Some((token, len)) = unknown.take() {
                    add(token, len);
                }
                add(token, len);
            } else if let Some(bytes) = self.bytes(&piece) {
                for token in bytes {
                    add(token, 1);
                }
            } else if let Some(name) = &self.unk_token {
                let token = self.pieces.token(name);
                let token = token
                    .ok_or_else(|| format!("Unk token `{name}` not found in the vocabulary"))?;
                unknown = Some(match unknown {
                    Some((token, before)) if self.fuse_unk => (token, before + len),
                    Some((before, len_before)) => {
                        add(before, len_before);
                        (token, len)
                    }
                    None => (token, len),
                });
            }
        }
        if let Some((token, len)) = unknown {
            add(token, len);
        }
        if let Some(last) = symbols.last_mut() {
            last.behind = None;
        }
        Ok(symbols)
    }

    /// A character with what the vocabulary wants around it.
    fn dressed(&self, c: &str, first: bool, last: bool) -> String {
        let part = |part: &Option<String>, wanted: bool| {
            part.clone().filter(|_| wanted).unwrap_or_default()
        };
        format!("{}{c}{}", part(&self.prefix, !first), part(&self.suffix, last))
    }

    fn bytes(&self, piece: &str) -> Option<Vec<u32>> {
        let token = |b: u8| self.pieces.token(&format!("<{b:#04X}>"));
        self.byte_fallback
            .then(|| piece.bytes().map(token).collect())
            .flatten()
    }

    /// Merges pairs, the earliest of the list first and of equal ones the leftmost, until none is left.
    fn merge(&self, symbols: &mut [Symbol]) {
        let merge_of = |symbols: &[Symbol], at: usize| {
            let behind = symbols[at].behind?;
            self.merges
                .get(&(symbols[at].token, symbols[behind].token))
                .copied()
        };
        let entry = |symbols: &[Symbol], at: usize| {
            let (rank, into) = merge_of(symbols, at)?;
            Some(Reverse((rank, at, into)))
        };
        let mut queue: BinaryHeap<_> = (0..symbols.len())
            .filter_map(|at| entry(symbols, at))
            .collect();
        while let Some(Reverse((_, at, into))) = queue.pop() {
            // An entry holds as long as what stands there merges into the same, whatever it is by now.
            let holds =
                symbols[at].len > 0 && merge_of(symbols, at).is_some_and(|(_, now)| now == into);
            let Some(behind) = symbols[at].behind.filter(|_| holds) else { continue };
            let right = symbols[behind];
            symbols[behind].len = 0;
            let left = &mut symbols[at];
            (left.token, left.len, left.behind) = (into, left.len + right.len, right.behind);
            let before = left.before;
            if let Some(next) = right.behind {
                symbols[next].before = Some(at);
            }
            queue.extend(before.and_then(|before| entry(symbols, before)));
            queue.extend(entry(symbols, at));
        }
    }
}
