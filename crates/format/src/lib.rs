//! Files: checkpoints in, bundles in and out. Owns every on-disk constant and validator.

pub mod arch;
pub mod bundle;
pub mod bytes;
pub mod census;
pub mod check;
pub mod checkpoint;
pub mod decoder;
mod dtype;
mod entries;
pub mod error;
pub mod gguf;
pub mod io;
pub mod layout;
pub mod manifest;
pub mod model;
mod names;
pub mod pack;
pub mod part;
pub mod prose;
pub mod refusal;
pub mod report;
pub mod role;
mod shapes;
pub mod shown;
pub mod text;
pub mod treehash;
pub mod turns;
pub mod unit;
pub mod weights;
pub mod writer;
pub mod written_json;

pub use bundle::Bundle;
pub use decoder::Decoder;
pub use error::{FormatError, Result};
pub use manifest::Manifest;
pub use model::ModelSpec;
pub use part::Part;
pub use refusal::{Refusal, mismatch};
pub use role::Role;
pub use shapes::TensorShape;
pub use unit::{SourceView, TensorEntry, Unit, UnitLayout};

/// Program and version, as what it writes names them.
pub const GENERATOR: &str = concat!("shardwright ", env!("CARGO_PKG_VERSION"));
