//! Reads in flight: a few threads that each read one unit at a time into a buffer they are given.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, TensorEntry, Unit, UnitLayout};

use crate::error::{Result, RuntimeError};
use crate::view::Loaded;

/// Reads in flight at most.
pub const READERS: usize = 4;

/// Of guesses at most: a read that is needed finds most readers free.
const GUESSES: usize = 2;

/// What to read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a few exist at a time
pub enum Request {
    /// A whole unit.
    Unit(Unit),
    /// Some rows of one of its tensors: afterwards a unit of that tensor alone.
    Rows(Unit, TensorEntry, Range<u64>),
}

/// What came of a read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a few exist at a time
pub enum Arrival {
    /// It is here.
    Read(Loaded),
    /// It was a guess, and is here.
    Guess(Loaded),
    /// It was a guess, and could not be read: who needs it asks again, and is told why.
    Lost(Unit),
}

/// Reads that nobody has begun, and how many are under way.
#[derive(Debug, Default)]
struct Asked {
    needed: VecDeque<(Request, AlignedBuf)>,
    guesses: VecDeque<(Unit, AlignedBuf)>,
    reading: usize,
    guessing: usize,
    /// Nobody asks any more.
    closed: bool,
}

impl Asked {
    /// What a reader does next, and whether it is a guess: that only while nothing that is needed is
    /// waiting or under way.
    fn next(&mut self) -> Option<(bool, Request, AlignedBuf)> {
        if let Some((request, buf)) = self.needed.pop_front() {
            self.reading += 1;
            return Some((false, request, buf));
        }
        if self.reading > 0 || self.guessing == GUESSES {
            return None;
        }
        let (unit, buf) = self.guesses.pop_front()?;
        self.guessing += 1;
        Some((true, Request::Unit(unit), buf))
    }
}

/// What both sides of a queue see.
#[derive(Debug, Default)]
struct Board {
    asked: Mutex<Asked>,
    more: Condvar,
}

impl Board {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where reads are asked for and arrive. Without it the threads that serve it end.
#[derive(Debug)]
pub struct ReadQueue {
    board: Arc<Board>,
    arrivals: Receiver<Result<Arrival, FormatError>>,
}

/// The other side of a [`ReadQueue`], for any number of threads.
#[derive(Clone, Debug)]
pub struct ReadServer {
    board: Arc<Board>,
    arrivals: Sender<Result<Arrival, FormatError>>,
}

/// A queue and who serves it. One thread that serves it delivers in the order of the requests.
pub fn read_queue() -> (ReadQueue, ReadServer) {
    let (delivery, arrivals) = channel();
    let board = Arc::<Board>::default();
    (ReadQueue { board: Arc::clone(&board), arrivals }, ReadServer { board, arrivals: delivery })
}

impl ReadQueue {
    /// Begins a read into `buf`; the result is among those that [`Self::wait`] gives.
    pub fn request(&self, request: Request, buf: AlignedBuf) {
        self.board.asked().needed.push_back((request, buf));
        self.board.more.notify_one();
    }

    /// As [`Self::request`], for a unit that may be needed: read when nothing else is to be read.
    pub fn guess(&self, unit: Unit, buf: AlignedBuf) {
        self.board.asked().guesses.push_back((unit, buf));
        self.board.more.notify_one();
    }

    /// Takes back the guesses that nobody has begun to read.
    pub fn take_back(&self) -> VecDeque<(Unit, AlignedBuf)> {
        std::mem::take(&mut self.board.asked().guesses)
    }

    /// The next finished read; blocks until there is one.
    ///
    /// # Errors
    /// That read's error.
    pub fn wait(&self) -> Result<Arrival> {
        let arrival = self.arrivals.recv();
        Ok(arrival.map_err(|_| RuntimeError::ReaderGone)??)
    }

    /// A finished read, if there is one already.
    ///
    /// # Errors
    /// That read's error.
    pub fn poll(&self) -> Result<Option<Arrival>> {
        self.arrivals
            .try_recv()
            .ok()
            .transpose()
            .map_err(RuntimeError::from)
    }
}

impl Drop for ReadQueue {
    fn drop(&mut self) {
        self.board.asked().closed = true;
        self.board.more.notify_all();
    }
}

impl ReadServer {
    /// Reads what is asked for until nobody asks any more.
    pub fn serve(&self, weights: &Weights) {
        while let Some((guess, request, buf)) = self.next() {
            let arrival = match request {
                Request::Unit(unit) if guess => {
                    let read = read(weights, request, buf);
                    Ok(read.map_or(Arrival::Lost(unit), Arrival::Guess))
                }
                request => read(weights, request, buf).map(Arrival::Read),
            };
            self.done(guess);
            if self.arrivals.send(arrival).is_err() {
                return;
            }
        }
    }

    /// Waits for something to do; nothing when nobody asks any more.
    fn next(&self) -> Option<(bool, Request, AlignedBuf)> {
        let mut asked = self.board.asked();
        loop {
            if let Some(next) = asked.next() {
                return Some(next);
            }
            if asked.closed {
                return None;
            }
            asked = self
                .board
                .more
                .wait(asked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A read has ended: guesses may have waited for that.
    fn done(&self, guess: bool) {
        let mut asked = self.board.asked();
        let under_way = if guess { &mut asked.guessing } else { &mut asked.reading };
        *under_way -= 1;
        if !asked.guesses.is_empty() {
            self.board.more.notify_all();
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
pub fn read(
    weights: &Weights,
    request: Request,
    mut bytes: AlignedBuf,
) -> Result<Loaded, FormatError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_waits_for_all_that_is_needed() {
        let (queue, server) = read_queue();
        let unit = |expert| Unit::Expert { layer: 0, expert };
        let next = || {
            let (guess, request, _) = server.board.asked().next()?;
            let Request::Unit(unit) = request else { unreachable!() };
            Some((guess, unit))
        };
        (1..=4).for_each(|expert| queue.guess(unit(expert), AlignedBuf::default()));
        queue.request(Request::Unit(unit(9)), AlignedBuf::default());
        assert_eq!(next(), Some((false, unit(9))));
        assert_eq!(next(), None, "while a read that is needed is under way");
        server.done(false);
        assert_eq!(next(), Some((true, unit(1))));
        assert_eq!(next(), Some((true, unit(2))));
        assert_eq!(next(), None, "readers stay free");
        queue.request(Request::Unit(unit(8)), AlignedBuf::default());
        assert_eq!(next(), Some((false, unit(8))));
        server.done(true);
        server.done(true);
        assert_eq!(next(), None);
        let left: Vec<Unit> = queue
            .take_back()
            .into_iter()
            .map(|(unit, _)| unit)
            .collect();
        assert_eq!(left, [unit(3), unit(4)]);
        server.done(false);
        assert_eq!(next(), None);
    }
}
