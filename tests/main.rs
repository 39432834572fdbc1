//! End-to-end tests: the binary on real files, as a user meets it.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod arch;
mod bad_bundle;
mod bad_checkpoint;
mod calibrate;
mod capi;
mod check_reads;
mod cli;
mod compare;
mod convert;
mod drafts;
mod engines;
mod excerpt;
mod format_doc;
mod gguf;
mod harness;
mod memory;
mod merge;
mod pack;
mod parts;
mod pressure;
mod reader;
mod remote;
mod requantize;
mod rings;
mod run;
mod sessions;
mod signing;
mod skeletons;
mod strangers;
mod surroundings;
mod tidy;
mod torture;
mod traces;
mod verify;
mod verify_parts;
