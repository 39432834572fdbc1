//! Proves what a quantization cost: whether a bundle's bytes are those that were written, how far each
//! tensor of a model is from the original's, and how far the two drift apart over a text. A candidate and
//! an original are any models that can be read.
//!
//! Nothing here knows the converter: provenance comes from the manifest, roles from the
//! checkpoint's own inventory, values from the scalar definition of the encodings.

mod check;
mod error;
mod monitor;
mod report;
mod run;
mod show;

pub use check::divergence::{
    Bin, Bucket, CacheCost, CachePrice, DP_FRACTIONS, Divergence, EvalWindows, LayerDrift,
    NoiseFloor, Party, Reading, divergences,
};
pub use check::fidelity::{Fidelity, FidelityOptions, RoleFidelity, TensorFidelity, fidelity};
pub use check::finding::{Finding, Kind};
pub use check::golden::{GOLDEN_LIMIT, GoldenCheck, HiddenDifference, check_golden};
pub use check::integrity::{FileCheck, Integrity, integrity};
pub use check::overlap::CalibrationRecord;
pub use check::signature::TrustedKey;
pub use check::structure::{ModelFile, Structure};
pub use error::{Result, VerifyError};
pub use monitor::{Monitor, Progress, Stage};
pub use report::allocation::Allocation;
pub use report::compare::{Delta, Difference, DriftRow, Figures, Named, ReportComparison, Row};
pub use report::curve::Point;
pub use report::ladder::{Ladder, Original};
pub use report::reproduction::{Differing, Reproduction};
pub use report::thresholds::Thresholds;
pub use report::{BundleSummary, Form, ModelSummary, Report, TextRecord, Verdict};
pub use run::{Candidate, MadePart, VerifyRequest, merge, verify, verify_part};
