//! Which lines of a text another text has too, told by hashes alone.

use std::collections::BTreeSet;

/// Bytes of a line, spaces around it apart, from which on it is told apart: shorter ones recur in
/// any text.
pub const MIN_LINE: usize = 24;

/// Hashes of a text's distinct lines, ascending: the `limit` smallest of them.
///
/// A line is what stands between line ends, trimmed, if it has at least [`MIN_LINE`] bytes; its
/// hash is the first 8 bytes of its BLAKE3, little-endian. Keeping the smallest makes the kept
/// lines a sample that does not depend on their order: of another text's lines, those whose hash
/// is not above the largest kept one can be looked up, and the rest says nothing.
pub fn line_hashes(text: &str, limit: usize) -> Vec<u64> {
    let mut lines = Lines::new(limit);
    lines.push(text);
    lines.finish()
}

/// [`line_hashes`] of a text that comes in parts. Memory does not depend on its length, nor on its lines'.
#[derive(Debug)]
pub struct Lines {
    kept: BTreeSet<u64>,
    limit: usize,
    line: Line,
}

/// A line so far, trimmed.
#[derive(Debug, Default)]
struct Line {
    /// Of everything up to the last character that is no space.
    solid: blake3::Hasher,
    len: usize,
    /// Spaces since, or, where they are many, the hash with them.
    spaces: String,
    with_spaces: Option<(blake3::Hasher, usize)>,
}

/// Spaces that are kept as they are until it is known whether the line goes on.
const MOST_SPACES: usize = 4096;

impl Lines {
    /// Nothing yet.
    pub fn new(limit: usize) -> Self {
        Self { kept: BTreeSet::new(), limit, line: Line::default() }
    }

    /// More of the text.
    pub fn push(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            self.line.push(part.strip_suffix('\n').unwrap_or(part));
            if part.ends_with('\n') {
                self.end_line();
            }
        }
    }

    /// The hashes, ascending.
    pub fn finish(mut self) -> Vec<u64> {
        self.end_line();
        self.kept.into_iter().collect()
    }

    fn end_line(&mut self) {
        if self.line.len >= MIN_LINE {
            self.kept.insert(first_bytes(&self.line.solid.finalize()));
            if self.kept.len() > self.limit {
                self.kept.pop_last();
            }
        }
        if self.line.len > 0 {
            self.line = Line::default();
        }
    }
}

impl Line {
    fn push(&mut self, part: &str) {
        let part = if self.len == 0 { part.trim_start() } else { part };
        let (solid, spaces) = part.split_at(part.trim_end().len());
        if !solid.is_empty() {
            if let Some((hash, len)) = self.with_spaces.take() {
                (self.solid, self.len) = (hash, len);
            }
            self.solid.update(self.spaces.as_bytes());
            self.solid.update(solid.as_bytes());
            self.len += self.spaces.len() + solid.len();
            self.spaces.clear();
        }
        self.spaces.push_str(spaces);
        if self.spaces.len() > MOST_SPACES {
            let (hash, len) = self
                .with_spaces
                .get_or_insert_with(|| (self.solid.clone(), self.len));
            hash.update(self.spaces.as_bytes());
            *len += self.spaces.len();
            self.spaces.clear();
        }
    }
}

fn first_bytes(hash: &blake3::Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "  a line that is long enough to count\r\nshort\n\
                        another line that is long enough\n\
                        a line that is long enough to count\n";

    #[test]
    fn lines_are_trimmed_distinct_and_ascending() {
        let hashes = line_hashes(TEXT, 100);
        assert_eq!(hashes.len(), 2);
        assert!(hashes[0] < hashes[1]);
        let hash = first_bytes(&blake3::hash(b"another line that is long enough"));
        assert!(hashes.contains(&hash));
        assert!(line_hashes("short\n\n", 100).is_empty());
    }

    #[test]
    fn the_smallest_are_kept() {
        let all = line_hashes(TEXT, 2);
        assert_eq!(line_hashes(TEXT, 1), all[..1]);
        assert!(line_hashes(TEXT, 0).is_empty());
    }

    #[test]
    fn parts_of_a_text_have_the_lines_of_the_whole() {
        let spaces = " ".repeat(10_000);
        let long =
            format!("{TEXT}{spaces}x{spaces}\ty and more of the line{spaces}\r\n  {TEXT}\u{a0}end");
        let whole: BTreeSet<u64> = long
            .lines()
            .map(str::trim)
            .filter(|line| line.len() >= MIN_LINE)
            .map(|line| first_bytes(&blake3::hash(line.as_bytes())))
            .collect();
        for size in [1, 7, 4096, 9999, usize::MAX] {
            let mut lines = Lines::new(100);
            let mut left = long.as_str();
            while !left.is_empty() {
                let (now, then) = left.split_at(left.ceil_char_boundary(size.min(left.len())));
                lines.push(now);
                left = then;
            }
            assert_eq!(lines.finish(), whole.iter().copied().collect::<Vec<_>>(), "{size}");
        }
    }
}
