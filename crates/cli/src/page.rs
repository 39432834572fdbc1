//! Pages to look at in a browser, and what is set beside in their curves.

use std::fs;
use std::path::{Path, PathBuf};

use shardwright_verify::Point;

use crate::failure::Failure;

/// The points of all files.
///
/// # Errors
/// A file that holds none.
pub fn points(files: &[PathBuf]) -> Result<Vec<Point>, Failure> {
    let read = files.iter().map(|file| Point::read(file));
    Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
}

/// Writes a page.
///
/// # Errors
/// Names the file.
pub fn write_page(path: &Path, page: &str) -> Result<(), Failure> {
    write_whole(path, page).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

/// Writes a file under another name beside it, so that the name never stands for half of it. What
/// is there and no plain file, such as a pipe, is written to as it is.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return fs::write(path, text);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error says more than that of the clean-up.
        let _ = fs::remove_file(&partial);
    }
    written
}
