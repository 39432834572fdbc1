//! Standard output: reports as JSON or as tables. A reader that went away is no error.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal as _, Write};

use serde::Serialize;
use shardwright_format::shown::{escaped_json, escaped_lines, escaped_prose, shown};

use crate::failure::Failure;

/// Where a command may write, and how.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The report as one JSON object, progress as JSON lines.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
}

impl Output {
    /// Prints a report: `text` for people, `value` for programs.
    ///
    /// # Errors
    /// When standard output cannot take it. That its reader has gone is not an error, so that
    /// `verify … | head` keeps the verdict's exit code.
    pub fn report(self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        let mut out = if self.json {
            escaped_json(&serde_json::to_string_pretty(value)?)
        } else {
            // The last guard, behind which every value is one line.
            escaped_lines(text)
        };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        put(out.as_bytes()).map(|_| ())
    }
}

/// Writes a piece of a text that a model makes, whose tokens are a stranger's words; `false` when the reader has gone.
///
/// # Errors
/// As [`put`].
pub fn made(piece: &str) -> Result<bool, Failure> {
    put(fit(piece, std::io::stdout().is_terminal()).as_bytes())
}

/// A piece as it is, or as a terminal may have it.
fn fit(piece: &str, terminal: bool) -> Cow<'_, str> {
    if terminal { escaped_prose(piece).into() } else { piece.into() }
}

/// Writes and flushes; `false` when the reader has gone.
///
/// # Errors
/// When standard output cannot take it for any other reason.
pub fn put(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::new(format!("standard output: {e}"))),
    }
}

/// Rows under a header; columns whose header starts with `>` are set to the right.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row as wide as the header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| shown(&cell).into_owned();
        self.rows.push(cells.into_iter().map(shown).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let titles: Vec<String> = self
            .header
            .iter()
            .map(|h| h.trim_start_matches('>').to_owned())
            .collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let width = |column: usize| {
            lines()
                .filter_map(|line| line.get(column))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..titles.len()).map(width).collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, width), title) in line.iter().zip(&widths).zip(&self.header) {
                let cell = if title.starts_with('>') {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                text = text + "  " + &cell;
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_text_steers_no_terminal_and_is_itself_elsewhere() {
        let piece = "\u{1b}[8mverdict\u{202e}\n";
        assert_eq!(fit(piece, false), piece);
        assert_eq!(fit(piece, true), "\\u{1b}[8mverdict\\u{202e}\n");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["role", ">bytes"]);
        table.row(["router".to_owned(), "7".to_owned()]);
        table.row(["x".to_owned(), "1234567".to_owned()]);
        assert_eq!(table.to_string(), "  role      bytes\n  router        7\n  x       1234567\n");
    }
}
