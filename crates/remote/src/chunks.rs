//! Chunks of files elsewhere: each fetched once while it is held, some of them before they are asked for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// Bytes of a chunk.
pub const CHUNK: u64 = 4 << 20;
/// Chunks held at most.
const MOST_HELD: usize = 16;
/// Chunks fetched before they are asked for, at most at one time.
const MOST_AHEAD: usize = 6;

/// Which chunk of which file.
pub type Key = (usize, u64);

/// Chunks of all files of a model.
#[derive(Debug, Default)]
pub struct Chunks {
    state: Mutex<State>,
    /// A chunk came or failed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// Counts uses, so that the chunk unused for longest goes first.
    clock: u64,
    ahead: usize,
}

#[derive(Debug)]
enum Slot {
    Coming,
    Held { bytes: Arc<Vec<u8>>, used: u64 },
}

impl Chunks {
    /// Bytes of memory that chunks take at most: those held, those coming.
    pub const MEMORY: u64 = CHUNK * (MOST_HELD + MOST_AHEAD) as u64;

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk that is held already.
    pub fn held(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        self.lock().touch(key)
    }

    /// Whether a chunk is held or coming.
    pub fn begun(&self, key: Key) -> bool {
        self.lock().slots.contains_key(&key)
    }

    /// A chunk, fetched with `fetch` unless it is held; one that is coming is waited for.
    ///
    /// # Errors
    /// As `fetch`.
    pub fn get(&self, key: Key, fetch: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut state = self.lock();
        loop {
            if let Some(bytes) = state.touch(key) {
                return Ok(bytes);
            }
            if let Entry::Vacant(slot) = state.slots.entry(key) {
                slot.insert(Slot::Coming);
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let bytes = fetch();
        self.settle(key, bytes)
    }

    /// Whether to fetch a chunk ahead: it is neither held nor coming, and few others are coming. If so, it is
    /// coming now, and [`Self::came`] must be called.
    pub fn begin_ahead(&self, key: Key) -> bool {
        let mut state = self.lock();
        let free = state.ahead < MOST_AHEAD && !state.slots.contains_key(&key);
        if free {
            state.ahead += 1;
            state.slots.insert(key, Slot::Coming);
        }
        free
    }

    /// Takes in a chunk of [`Self::begin_ahead`]. One that failed is asked for again by whoever needs it, and
    /// fails there.
    pub fn came(&self, key: Key, bytes: Result<Vec<u8>>) {
        self.lock().ahead -= 1;
        let _ = self.settle(key, bytes);
    }

    fn settle(&self, key: Key, bytes: Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut state = self.lock();
        state.slots.remove(&key);
        let bytes = bytes.map(Arc::new);
        if let Ok(bytes) = &bytes {
            state.hold(key, Arc::clone(bytes));
        }
        self.changed.notify_all();
        bytes
    }
}

impl State {
    fn touch(&mut self, key: Key) -> Option<Arc<Vec<u8>>> {
        self.clock += 1;
        match self.slots.get_mut(&key)? {
            Slot::Coming => None,
            Slot::Held { bytes, used } => {
                *used = self.clock;
                Some(Arc::clone(bytes))
            }
        }
    }

    fn hold(&mut self, key: Key, bytes: Arc<Vec<u8>>) {
        let held = self.slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Held { used, .. } => Some((*used, *key)),
            Slot::Coming => None,
        });
        let held: Vec<_> = held.collect();
        if held.len() >= MOST_HELD
            && let Some((_, oldest)) = held.into_iter().min()
        {
            self.slots.remove(&oldest);
        }
        self.clock += 1;
        self.slots
            .insert(key, Slot::Held { bytes, used: self.clock });
    }
}
