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

/// Where reads are asked for and arrive. Without it the threads that serve it end.
#[derive(Debug)]
pub struct ReadQueue {
    requests: Sender<(Request, AlignedBuf)>,
    arrivals: Receiver<Arrival>,
}

/// The other side of a [`ReadQueue`], for any number of threads.
#[derive(Clone, Debug)]
pub struct ReadServer {
    requests: Arc<Mutex<Receiver<(Request, AlignedBuf)>>>,
    arrivals: Sender<Arrival>,
}

/// A queue and who serves it. One thread that serves it delivers in the order of the requests.
pub fn read_queue() -> (ReadQueue, ReadServer) {
    let (sender, requests) = channel();
    let (delivery, arrivals) = channel();
    let requests = Arc::new(Mutex::new(requests));
    (ReadQueue { requests: sender, arrivals }, ReadServer { requests, arrivals: delivery })
}

impl ReadQueue {
    /// Begins a read into `buf`; the result is among those that [`Self::wait`] gives.
    ///
    /// # Errors
    /// When the threads are gone.
    pub fn request(&self, request: Request, buf: AlignedBuf) -> Result<()> {
        let sent = self.requests.send((request, buf));
        sent.map_err(|_| RuntimeError::ReaderGone)
    }

    /// The next finished read; blocks until there is one.
    ///
    /// # Errors
    /// That read's error.
    pub fn wait(&self) -> Result<Loaded> {
        let arrival = self.arrivals.recv();
        Ok(arrival.map_err(|_| RuntimeError::ReaderGone)??)
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

impl ReadServer {
    /// Reads what is asked for until nobody asks any more.
    pub fn serve(&self, weights: &Weights) {
        loop {
            let requests = &self.requests;
            let next = requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok((request, buf)) = next else { return };
            if self.arrivals.send(read(weights, request, buf)).is_err() {
                return;
            }
        }
    }
}

/// Threads that read, and their queue.
#[derive(Debug)]
pub struct Fetcher {
    /// Goes first: without it the threads end.
    queue: ReadQueue,
    _threads: Threads,
}

impl Fetcher {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system has no more of them.
    pub fn new(weights: &Arc<Weights>) -> Result<Self> {
        let (queue, server) = read_queue();
        let start = |i| {
            let (weights, server) = (Arc::clone(weights), server.clone());
            std::thread::Builder::new()
                .name(format!("read-{i}"))
                .spawn(move || server.serve(&weights))
                .map_err(|e| RuntimeError::Threads(e.to_string()))
        };
        let threads = (0..READERS).map(start).collect::<Result<_>>()?;
        Ok(Self { queue, _threads: Threads(threads) })
    }

    /// Where to ask for reads.
    pub const fn queue(&self) -> &ReadQueue {
        &self.queue
    }
}

/// Threads that are waited for in the end.
#[derive(Debug)]
struct Threads(Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // A reader that panicked has nothing left to say.
            drop(thread.join());
        }
    }
}

/// Reads what is asked into `bytes`.
pub fn read(weights: &Weights, request: Request, mut bytes: AlignedBuf) -> Arrival {
    match request {
        Request::Unit(unit) => {
            let layout = weights.read(unit, &mut bytes)?;
            Ok(Loaded::new(unit, layout, bytes))
        }
        Request::Rows(unit, entry, rows) => {
            weights.read_rows(unit, &entry, rows.clone(), &mut bytes)?;
            let len = bytes.len() as u64;
            let entry = TensorEntry { rows: rows.end - rows.start, offset: 0, ..entry };
            let layout = UnitLayout { tensors: [entry].into(), len };
            let mut loaded = Loaded::new(unit, layout, bytes);
            loaded.first_row = Some(rows.start);
            Ok(loaded)
        }
    }
}
