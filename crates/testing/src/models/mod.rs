//! Bundles made without the converter, so that it cannot repeat its mistakes in them, and what one is made of.

mod bundle;
mod flash_moe;
mod noise;

pub use bundle::{ALIGNMENT, Codes, FOUR_BITS, TestBundle};
pub use flash_moe::flash_moe_checkpoint;
