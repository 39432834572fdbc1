//! What is held against what: bytes, values, predictions. Nothing here knows how it will be shown.

pub mod divergence;
pub mod fidelity;
pub mod finding;
pub mod golden;
pub mod hashing;
pub mod integrity;
pub mod overlap;
pub mod signature;
pub mod structure;
pub mod tokens;
pub mod values;
