//! Bundles made without the converter, so that it cannot repeat its mistakes in them.

mod bundle;
mod noise;

pub use bundle::{ALIGNMENT, Codes, FOUR_BITS, TestBundle};
