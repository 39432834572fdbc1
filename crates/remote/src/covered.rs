//! Which bytes of a file are there.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that do not touch, by where they begin.
#[derive(Debug, Default)]
pub struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds a range, which may overlap what is there.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // All that touch it become one with it: they begin at or before its end, and end at or behind its start.
        while let Some((&from, &to)) = self.0.range(..=end).next_back()
            && to >= start
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// What is not there of the first `len` bytes, in order.
    pub fn missing(&self, len: u64) -> Vec<Range<u64>> {
        let (mut found, mut at) = (Vec::new(), 0);
        for (&start, &end) in self.0.range(..len) {
            if at < start {
                found.push(at..start);
            }
            at = end;
        }
        if at < len {
            found.push(at..len);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut covered = Covered::default();
        assert!(covered.missing(10).iter().eq([&(0..10)]));
        for range in [2..4, 6..8, 4..5, 8..8] {
            covered.add(range);
        }
        assert_eq!(covered.missing(10), [0..2, 5..6, 8..10]);
        covered.add(3..7);
        assert_eq!(covered.missing(10), [0..2, 8..10]);
        covered.add(0..20);
        assert_eq!((covered.missing(10), covered.0.len()), (vec![], 1));
    }

    /// Against a flag for each byte.
    #[test]
    fn it_says_what_a_flag_for_each_byte_says() {
        const LEN: u64 = 64;
        let (mut covered, mut flags, mut state) = (Covered::default(), [false; LEN as usize], 1u64);
        for _ in 0..40 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let start = (state >> 33) % LEN;
            let end = (start + (state >> 48) % 7).min(LEN);
            covered.add(start..end);
            (start..end).for_each(|at| flags[at as usize] = true);
            let missing = covered.missing(LEN);
            for at in 0..LEN {
                assert_eq!(missing.iter().any(|range| range.contains(&at)), !flags[at as usize]);
            }
            assert!(missing.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
