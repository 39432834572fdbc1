//! The model's mathematics over any source of weights, inside a memory budget.
//!
//! One graph, two orders. [`Runtime`] takes a token through all layers and reads what it needs;
//! [`layerwise::LayerPass`] takes all tokens through a layer and reads every weight once. Both run
//! the same `block`s, on a bundle or on the checkpoint it came from.

mod block;
mod cache;
pub mod error;
mod fetch;
pub mod layerwise;
mod linear;
pub mod plan;
pub mod probe;
mod store;
mod table;
pub mod text;
mod token;
mod view;

pub use block::delta_net::State as DeltaState;
pub use block::moe::Routes;
pub use block::record::Site;
pub use error::{Result, RuntimeError};
pub use plan::{MemoryPlan, Mode, Options};
pub use table::Head;
pub use token::{Runtime, Stats};
