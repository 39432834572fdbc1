//! Standard error, where everything is said that is no result. That nobody can read it, because it is
//! closed, full or its reader gone, must not end the work: failures to write are ignored.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use shardwright_format::shown::{escaped, escaped_json, escaped_lines};

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

/// Says a part of a text in which nothing but the ends of lines steers a terminal.
pub fn part(text: &str) {
    put(&escaped_lines(text));
}

/// Asks for a line of input.
pub fn ask(prompt: &str) {
    put(prompt);
}

/// In one write, so that lines of several threads do not mix.
fn put(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(named(text).as_bytes());
}

/// Folders that stand for models elsewhere, and where those are.
static FOLDERS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// From now on messages name a location in place of the folder that stands for it.
#[cfg(feature = "remote")]
pub fn stand_for(folder: String, location: String) {
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders.push((folder, location));
}

/// A message with locations in place of the folders that stand for them.
fn named(message: &str) -> String {
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders
        .iter()
        .fold(message.to_owned(), |message, (folder, location)| message.replace(folder, location))
}
