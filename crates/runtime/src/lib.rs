//! Shardwright.
