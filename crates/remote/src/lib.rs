//! Models that are not on this machine: on the Hugging Face hub, behind a web server, in an S3 bucket. Small files
//! are fetched into a folder of their own, which goes when the model is closed; of weights the ranges that are asked
//! for, each pinned to one revision.
//!
//! The only crate that talks to the network.

mod chunks;
mod client;
mod covered;
mod environment;
mod error;
mod file;
mod hub;
mod keep;
mod listing;
mod location;
mod s3;
mod stage;
mod trust;
mod web;

pub use client::Patience;
pub use error::{RemoteError, Result};
pub use location::Location;
pub use stage::{RemoteModel, Staged, open};
