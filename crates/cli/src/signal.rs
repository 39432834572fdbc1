//! SIGINT and SIGTERM: the first asks a command to stop cleanly, the second ends the process.
//! SIGUSR1 asks a run to look at its memory again. SIGXFSZ: a file may grow no more, which whoever writes it is told anyway.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::flag;

use crate::failure::{Failure, INTERRUPTED};

/// A flag that the first SIGINT or SIGTERM raises.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag raised.
        flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// A flag that SIGUSR1 raises: something is to be looked at again.
///
/// # Errors
/// When the handler cannot be installed.
pub fn again_flag() -> Result<Arc<AtomicBool>, Failure> {
    let again = Arc::new(AtomicBool::new(false));
    flag::register(SIGUSR1, Arc::clone(&again))?;
    Ok(again)
}

/// Lets a write beyond the limit on a file's size (`ulimit -f`) fail, as one to a full disk does,
/// where the signal alone would end the process without a word.
pub fn outlive_size_limits() {
    // Without the handler all is as it was: no reason not to go on.
    let _ = flag::register(SIGXFSZ, Arc::default());
}
