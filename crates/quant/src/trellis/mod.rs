//! The trellis encoding: streams of codes, values computed from windows of them, a fixed rotation.

mod read;
pub mod rotate;
pub mod stream;
pub mod viterbi;

pub use read::{dequantize, matmul, matvec};

#[cfg(test)]
mod tests;
