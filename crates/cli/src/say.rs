//! Standard error, where everything is said that is no result. That nobody can read it, because it is
//! closed, full or its reader gone, must not end the work: failures to write are ignored.

use std::io::Write as _;

use serde::Serialize;
use shardwright_format::shown::{escaped, escaped_json};

/// Says a line, in which nothing steers a terminal.
pub fn line(text: &str) {
    put(&(escaped(text) + "\n"));
}

/// Says a JSON object, on one line.
pub fn json(object: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(object) {
        put(&(escaped_json(&text) + "\n"));
    }
}

/// Asks for a line of input.
pub fn ask(prompt: &str) {
    put(prompt);
}

/// In one write, so that lines of several threads do not mix.
fn put(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
}
