//! Proves what a conversion cost: whether a bundle's bytes are those that were written, how far
//! each tensor is from its source, and how far the two models drift apart over a text.
//!
//! Nothing here knows the converter: provenance comes from the manifest, roles from the
//! checkpoint's own inventory, values from the scalar definition of the encodings.

mod allocation;
mod breakdown;
mod compare;
mod curve;
mod divergence;
mod error;
mod fidelity;
mod finding;
mod hashing;
mod html;
mod integrity;
mod monitor;
mod overlap;
mod plot;
mod report;
mod run;
mod text;
mod thresholds;

pub use allocation::Allocation;
pub use compare::{Comparison, Delta, Difference, DriftRow, Figures, Named, Row};
pub use curve::Point;
pub use divergence::{
    Bin, Bucket, DP_FRACTIONS, Divergence, LayerDrift, NoiseFloor, Windows, divergence,
};
pub use error::{Model, Result, VerifyError};
pub use fidelity::{Fidelity, FidelityOptions, RoleFidelity, TensorFidelity, fidelity};
pub use finding::{Finding, Kind};
pub use integrity::{FileCheck, Integrity, integrity};
pub use monitor::{Monitor, Progress, Stage};
pub use overlap::CalibrationRecord;
pub use report::{BundleSummary, Report, TextRecord, Verdict};
pub use run::{Request, verify};
pub use thresholds::Thresholds;
