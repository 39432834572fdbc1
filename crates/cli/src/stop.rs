//! Stops at a chosen moment, so that tests of `--resume` need no clock. Only builds with debug
//! assertions look at the variable; a release does not know it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::yield_now;

use signal_hook::consts::SIGKILL;
use signal_hook::low_level::raise;

/// `N`, `N,kill` or `N,wait`.
const VARIABLE: &str = "SHARDWRIGHT_STOP_AFTER";

/// Once `shards` have reached the variable's number: raises `stop` as ctrl-c does, or with `kill`
/// ends the process there and then, or with `wait` holds the conversion until a signal raises it.
pub fn after(shards: usize, stop: &AtomicBool) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (count, how) = wanted.split_once(',').unwrap_or((&wanted, ""));
    if count.parse().is_ok_and(|count: usize| shards < count) {
        return;
    }
    match how {
        "kill" => drop(raise(SIGKILL)),
        "wait" => {
            while !stop.load(Ordering::Relaxed) {
                yield_now();
            }
        }
        _ => stop.store(true, Ordering::Relaxed),
    }
}
