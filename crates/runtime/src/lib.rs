//! The model's mathematics over any source of weights, inside a memory budget.
//!
//! One graph, two orders. [`Runtime`] takes a token through all layers and reads what it needs;
//! [`layerwise::LayerPass`] takes all tokens through a layer and reads every weight once. Both run
//! the same `block`s, on a bundle or on the checkpoint it came from.

pub mod ahead;
mod block;
mod cache;
pub mod draft;
pub mod error;
mod experts;
mod fetch;
mod head;
mod hook;
pub mod layerwise;
mod linear;
pub mod options;
mod pass;
pub mod plan;
mod prediction;
mod rate;
pub mod replay;
mod room;
pub mod saved;
mod store;
pub mod text;
mod threads;
mod token;
pub mod trace;
mod view;
mod vocab;

pub use block::capture::InputSite;
pub use block::delta_net::State as DeltaState;
pub use block::kv::CacheTypes;
pub use block::router::Routes;
pub use error::{Result, RuntimeError};
pub use head::Head;
pub use hook::{Activations, Hook};
pub use options::{LookAhead, Options};
pub use plan::{MemoryPlan, Mode};
pub use room::PassRoom;
pub use threads::thread_pool;
pub use token::{Runtime, Stats};
