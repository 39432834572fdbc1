//! Proves what a quantization cost: whether a bundle's bytes are those that were written, how far each
//! tensor of a model is from the original's, and how far the two drift apart over a text. A candidate and
//! an original are any models that can be read.
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
mod ladder;
mod monitor;
mod overlap;
mod plot;
mod report;
mod run;
mod structure;
mod text;
mod thresholds;
mod tokens;
mod values;

pub use allocation::Allocation;
pub use compare::{Delta, Difference, DriftRow, Figures, Named, ReportComparison, Row};
pub use curve::Point;
pub use divergence::{
    Bin, Bucket, DP_FRACTIONS, Divergence, EvalWindows, LayerDrift, NoiseFloor, Party, divergences,
};
pub use error::{Result, VerifyError};
pub use fidelity::{Fidelity, FidelityOptions, RoleFidelity, TensorFidelity, fidelity};
pub use finding::{Finding, Kind};
pub use integrity::{FileCheck, Integrity, integrity};
pub use ladder::{Ladder, Original};
pub use monitor::{Monitor, Progress, Stage};
pub use overlap::CalibrationRecord;
pub use report::{BundleSummary, Form, ModelSummary, Report, TextRecord, Verdict};
pub use run::{Candidate, VerifyRequest, verify};
pub use structure::{ModelFile, Structure};
pub use thresholds::Thresholds;
