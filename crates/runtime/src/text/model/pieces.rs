//! A vocabulary in little memory: its pieces in one string, and tables of numbers to find them by.

use std::hash::{BuildHasher, RandomState};

/// Pieces and their tokens.
#[derive(Debug, Default)]
pub(in crate::text) struct Pieces {
    text: String,
    /// Where each piece ends in the text, and its token.
    entries: Vec<(u32, u32)>,
    /// Entries by the hash of their piece, one more than their number; 0 where there is none.
    table: Vec<u32>,
    /// Entries by their token.
    by_token: Vec<u32>,
    hasher: RandomState,
}

/// The same pieces stand for the same tokens, in whatever order they came.
impl PartialEq for Pieces {
    fn eq(&self, other: &Self) -> bool {
        let same = |(piece, token)| other.token(piece) == Some(token);
        self.entries.len() == other.entries.len() && self.iter().all(same)
    }
}

impl Eq for Pieces {}

impl Pieces {
    /// Adds a piece; a second token of the same replaces the first.
    pub(in crate::text) fn insert(&mut self, piece: &str, token: u32) -> Option<()> {
        if let Some(entry) = self.entry(piece) {
            self.entries[entry].1 = token;
            return Some(());
        }
        self.text.push_str(piece);
        self.entries
            .push((u32::try_from(self.text.len()).ok()?, token));
        // At least half of the table stays empty.
        if self.entries.len() * 2 > self.table.len() {
            self.table = vec![0; (self.entries.len() * 4).next_power_of_two()];
            (0..self.entries.len()).for_each(|entry| self.place(entry));
        } else {
            self.place(self.entries.len() - 1);
        }
        Some(())
    }

    /// Gives back what growing took in advance, and prepares to find pieces by their tokens.
    pub(in crate::text) fn finish(&mut self) {
        self.text.shrink_to_fit();
        self.entries.shrink_to_fit();
        let mut by_token: Vec<u32> = (0..self.entries.len() as u32).collect();
        by_token.sort_by_key(|entry| self.entries[*entry as usize].1);
        self.by_token = by_token;
    }

    fn place(&mut self, entry: usize) {
        let mask = self.table.len() - 1;
        let mut at = self.hasher.hash_one(self.at(entry)) as usize & mask;
        while self.table[at] != 0 {
            at = (at + 1) & mask;
        }
        self.table[at] = entry as u32 + 1;
    }

    fn entry(&self, piece: &str) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut at = self.hasher.hash_one(piece) as usize & mask;
        while self.table[at] != 0 {
            let entry = self.table[at] as usize - 1;
            if self.at(entry) == piece {
                return Some(entry);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn at(&self, entry: usize) -> &str {
        let start = entry
            .checked_sub(1)
            .map_or(0, |before| self.entries[before].0);
        &self.text[start as usize..self.entries[entry].0 as usize]
    }

    /// The token of a piece.
    pub(in crate::text) fn token(&self, piece: &str) -> Option<u32> {
        self.entry(piece).map(|entry| self.entries[entry].1)
    }

    /// The piece of a token.
    pub(in crate::text) fn piece(&self, token: u32) -> Option<&str> {
        let of = |entry: &u32| self.entries[*entry as usize].1;
        let found = self.by_token.binary_search_by_key(&token, of).ok()?;
        Some(self.at(self.by_token[found] as usize))
    }

    /// All pieces, in the order in which they came.
    pub(in crate::text) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.entries.len()).map(|entry| (self.at(entry), self.entries[entry].1))
    }

    /// How many.
    pub(in crate::text) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes in memory.
    pub(super) const fn held(&self) -> usize {
        self.text.capacity()
            + 8 * self.entries.capacity()
            + 4 * (self.table.capacity() + self.by_token.capacity())
    }
}
