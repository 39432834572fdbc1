//! Conversion: a recipe and a checkpoint give a plan, the plan gives a bundle.
//!
//! A [`Plan`] is a value: every byte range of the bundle, known from headers alone. [`convert()`]
//! carries it out in a directory beside the output, unit by unit, so that a killed conversion
//! goes on where it was. [`export()`] writes any model in a form that
//! other engines read.

pub mod allocate;
pub mod calibrate;
mod companions;
mod convert;
pub mod engine;
mod error;
mod export;
mod plan;
pub mod recipe;
mod time;

pub use convert::{
    Buffers, Calibration, ConvertOptions, MergeOptions, Merged, PartReport, Phase, Progress,
    ReproduceOptions, convert, convert_part, merge, reproduce,
};
pub use error::{ConvertError, Remedy, Result};
pub use export::{
    ExportDtype, ExportOptions, ExportTarget, Exported, ExportedFile, Requantized, RequantizedRole,
    export,
};
pub use plan::{
    ConversionReport, Cost, ExpertReport, FallbackUsed, Known, OmittedExtra, Plan, PlanOptions,
    PlannedFile, Repacked, RoleSummary, RuleMatch, SkippedFile, Summary, TensorReport,
    UnquantizedMatrix,
};
pub use recipe::Recipe;
pub use time::{ExpectedTime, expected_time};

#[cfg(test)]
mod tests;
