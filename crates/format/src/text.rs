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
    let mut kept = BTreeSet::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| line.len() >= MIN_LINE) {
        kept.insert(line_hash(line));
        if kept.len() > limit {
            kept.pop_last();
        }
    }
    kept.into_iter().collect()
}

fn line_hash(line: &str) -> u64 {
    let hash = *blake3::hash(line.as_bytes()).as_bytes();
    let [a, b, c, d, e, f, g, h, ..] = hash;
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
        assert!(hashes.contains(&line_hash("another line that is long enough")));
        assert!(line_hashes("short\n\n", 100).is_empty());
    }

    #[test]
    fn the_smallest_are_kept() {
        let all = line_hashes(TEXT, 2);
        assert_eq!(line_hashes(TEXT, 1), all[..1]);
        assert!(line_hashes(TEXT, 0).is_empty());
    }
}
