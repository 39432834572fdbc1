//! The file of `--memory-file`: how much memory there is, now and when it is asked to look again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardwright_format::io::read_required;
use shardwright_runtime::Runtime;

use crate::bytes;
use crate::failure::Failure;
use crate::signal;

/// Longer files hold no size.
const LIMIT: u64 = 256;

/// A file with a size, read again after SIGUSR1.
pub(super) struct Limit {
    path: PathBuf,
    asked: Arc<AtomicBool>,
    /// Sizes that were taken in since the start.
    pub(super) changes: u64,
}

impl Limit {
    /// Reads the file, and listens from here on; gives the size.
    ///
    /// # Errors
    /// A file that holds no size; when the handler cannot be installed.
    pub(super) fn open(path: &Path) -> Result<(Self, u64), Failure> {
        let limit = Self { path: path.to_owned(), asked: signal::again_flag()?, changes: 0 };
        let size = limit.read()?;
        Ok((limit, size))
    }

    /// Gives `runtime` the memory that the file names, if it was asked to look again; says what came of it.
    ///
    /// # Errors
    /// Experts that were being read and cannot be.
    pub(super) fn adjust(&mut self, runtime: &mut Runtime) -> Result<Option<String>, Failure> {
        if !self.asked.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        let budget = match self.read() {
            Ok(budget) => budget,
            // The text goes on: whoever wrote the file may write it again.
            Err(refused) => {
                return Ok(Some(format!("memory stays as it is: {}", refused.message())));
            }
        };
        self.changes += 1;
        let before = runtime.plan().expert_slots;
        let plan = runtime.set_memory(budget)?;
        let (total, slots) = (bytes::memory(plan.total), plan.expert_slots);
        let room = format!("{total} with room for {slots} experts, before {before}");
        Ok(Some(if plan.total > budget {
            let wanted = bytes::memory(budget);
            format!("{wanted} of memory is below what this run can go on with: it takes {room}")
        } else {
            format!("memory is now at most {total}, with room for {slots} experts, before {before}")
        }))
    }

    fn read(&self) -> Result<u64, Failure> {
        let text = read_required(&self.path, LIMIT)?;
        let refuse = |e: String| Failure::new(format!("{}: {e}", self.path.display()));
        bytes::parse(&String::from_utf8_lossy(&text)).map_err(refuse)
    }
}
