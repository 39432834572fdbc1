//! Threads that compute: how they share work, and how they wait for more.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

use crate::error::{Result, RuntimeError};

/// How long a thread without work looks for some before it sleeps. To wake it takes as long as a product of a small
/// model, and there are a hundred of them in a token.
const PATIENCE: Duration = Duration::from_micros(100);

/// Pauses between two looks: others need what is looked at.
const PAUSES: u32 = 16;

thread_local! {
    /// This thread looks for work already.
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// Threads that compute.
///
/// # Errors
/// When the operating system has no more of them.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .map_err(|e| RuntimeError::Threads(e.to_string()))
}

/// Runs the first share here and the others on threads of the current pool.
pub fn share_out<T: Send>(shares: Vec<T>, run: impl Fn(T) + Sync) {
    let (others, done) = (shares.len().saturating_sub(1), AtomicUsize::new(0));
    let (run, done) = (&run, &done);
    let mut shares = shares.into_iter();
    let Some(first) = shares.next() else { return };
    rayon::scope(|scope| {
        for share in shares {
            scope.spawn(move |_| {
                run(share);
                done.fetch_add(1, Ordering::Release);
            });
        }
        run(first);
        look_for_work(|| done.load(Ordering::Acquire) == others);
    });
}

/// Has the other threads of the current pool look for work for a while.
pub fn stay_awake() {
    let this = rayon::current_thread_index();
    if this.is_some() && rayon::current_num_threads() > 1 {
        rayon::spawn_broadcast(move |thread| {
            if Some(thread.index()) != this && !LOOKING.replace(true) {
                look_for_work(|| false);
                LOOKING.set(false);
            }
        });
    }
}

/// Does what there is to do in the current pool, until it is `enough` or nothing has come for a while.
fn look_for_work(enough: impl Fn() -> bool) {
    let mut last = Instant::now();
    while !enough() && last.elapsed() < PATIENCE {
        if rayon::yield_now() == Some(Yield::Executed) {
            last = Instant::now();
        } else {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_is_run_once_by_threads_that_were_awake_or_asleep() {
        for threads in 1..=3 {
            thread_pool(threads).unwrap().install(|| {
                for count in 0..6 {
                    if count % 2 == 0 {
                        // Twice: a thread that looks for work finds the second request.
                        stay_awake();
                        stay_awake();
                    }
                    let ran: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    share_out((0..count).collect(), |i: usize| {
                        ran[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{ran:?}");
                    std::thread::sleep(2 * PATIENCE);
                }
            });
        }
    }
}
