//! Large buffers that wait to be used again.

use std::sync::{Mutex, PoisonError};

/// Buffers that nobody uses: fresh memory costs a page fault for every 4 KiB, which for the sums and factors of many
/// experts was a sixth of their conversion.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<Vec<f32>>>);

impl Spares {
    /// A buffer of `len` values, of which nothing is known: one that waits, or a new one where none is as long.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spares.iter().position(|spare| spare.len() == len);
        let found = found.map(|at| spares.swap_remove(at));
        // Not held while memory is asked for.
        drop(spares);
        found.unwrap_or_else(|| vec![0.0; len])
    }

    /// Leaves `buffer` for the next who asks for one of its length.
    pub fn put(&self, buffer: Vec<f32>) {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spares.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_to_who_asks_for_its_length() {
        let spares = Spares::default();
        spares.put(vec![3.0; 100]);
        assert_eq!(spares.take(99), [0.0; 99]);
        assert_eq!(spares.take(100), [3.0; 100]);
        assert_eq!(spares.take(100), [0.0; 100]);
    }
}
