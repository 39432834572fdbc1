//! Bundles made without the converter, so that it cannot repeat its mistakes in them.

mod bundle;
mod random;

pub use bundle::{ALIGNMENT, Codes, FOUR_BITS, TestBundle};
pub use random::bundle as random;
