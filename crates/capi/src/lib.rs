//! Bundles for programs in other languages: what `include/shardwright.h` declares.
//!
//! `border` has the functions that C calls, and nothing else: each looks at its pointers, calls one of the modules
//! below, which know no pointers, and turns what comes of it into a [`Status`]. A panic ends there too.

mod border;
mod bundle;
mod compute;
mod generate;
mod status;

pub use border::*;
pub use bundle::{Bundle, EncodingKind, Extent, Place, Span, Tensor, UnitKind};
pub use generate::{Generated, Request, Runtime, Settings, Stop};
pub use status::{Failure, Status};
