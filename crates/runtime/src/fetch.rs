//! Reads in flight: a few threads that each read one unit at a time into a buffer they are given.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, TensorEntry, Unit, UnitLayout};

use crate::error::{Result, RuntimeError};
use crate::view::Loaded;

/// Reads in flight at most.
pub const READERS: usize = 4;

/// What to read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a few exist at a time
pub enum Request {
    /// A whole unit.
    Unit(Unit),
    /// Some rows of one of its tensors: afterwards a unit of that tensor alone.
    Rows(Unit, TensorEntry, Range<u64>),
}

/// A unit, or the reason why it could not be read.
type Arrival = Result<Loaded, FormatError>;

/// Threads that read.
#[derive(Debug)]
pub struct Fetcher {
    requests: Option<Sender<(Request, AlignedBuf)>>,
    arrivals: Receiver<Arrival>,
    threads: Vec<JoinHandle<()>>,
}

impl Fetcher {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system has no more of them.
    pub fn new(weights: &Arc<Weights>) -> Result<Self> {
        let (requests, queue) = channel();
        let (sender, arrivals) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let start = |i| {
            let (weights, queue, sender) =
                (Arc::clone(weights), Arc::clone(&queue), sender.clone());
            std::thread::Builder::new()
                .name(format!("read-{i}"))
                .spawn(move || serve(&weights, &queue, &sender))
                .map_err(|e| RuntimeError::Threads(e.to_string()))
        };
        let threads = (0..READERS).map(start).collect::<Result<_>>()?;
        Ok(Self { requests: Some(requests), arrivals, threads })
    }

    /// Begins a read into `buf`; the result is among those that [`Self::wait`] gives.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn request(&self, request: Request, buf: AlignedBuf) -> Result<()> {
        let sender = self.requests.as_ref().ok_or(RuntimeError::Stopped)?;
        sender
            .send((request, buf))
            .map_err(|_| RuntimeError::Stopped)
    }

    /// The next finished read; blocks until there is one.
    ///
    /// # Errors
    /// That read's error.
    pub fn wait(&self) -> Result<Loaded> {
        Ok(self.arrivals.recv().map_err(|_| RuntimeError::Stopped)??)
    }

    /// A finished read, if there is one already.
    ///
    /// # Errors
    /// That read's error.
    pub fn poll(&self) -> Result<Option<Loaded>> {
        self.arrivals
            .try_recv()
            .ok()
            .transpose()
            .map_err(RuntimeError::from)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A reader that panicked has nothing left to say.
            drop(thread.join());
        }
    }
}

fn serve(
    weights: &Weights,
    queue: &Mutex<Receiver<(Request, AlignedBuf)>>,
    sender: &Sender<Arrival>,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((request, buf)) = next else { return };
        if sender.send(read(weights, request, buf)).is_err() {
            return;
        }
    }
}

/// Reads what is asked into `bytes`.
pub fn read(weights: &Weights, request: Request, mut bytes: AlignedBuf) -> Arrival {
    match request {
        Request::Unit(unit) => {
            let layout = weights.layout(unit)?;
            weights.read(unit, &mut bytes)?;
            Ok(Loaded { unit, layout, first_row: None, bytes })
        }
        Request::Rows(unit, entry, rows) => {
            weights.read_rows(unit, &entry, rows.clone(), &mut bytes)?;
            let len = bytes.len() as u64;
            let entry = TensorEntry { rows: rows.end - rows.start, offset: 0, ..entry };
            let layout = UnitLayout { tensors: [entry].into(), len };
            Ok(Loaded { unit, layout, first_row: Some(rows.start), bytes })
        }
    }
}
