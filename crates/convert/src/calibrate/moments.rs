//! What is known of a model's inputs, where it lies: in memory, or in a file of statistics until a unit asks for it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use shardwright_format::checkpoint::header::{Header, HeaderTensor};
use shardwright_format::io::ReadFile;
use shardwright_format::{FormatError, Refusal};
use shardwright_quant::Float;

use super::statistics::{Hessian, InputKey, InputStats};

/// Bytes of a file that are read at once: whole values.
const PIECE: u64 = 1 << 20;
/// Bytes of a value.
const VALUE: u64 = 4;

/// Moments by place.
#[derive(Debug)]
pub enum Moments {
    /// In memory.
    Held(InputStats),
    /// In their file.
    Stored(StoredMoments),
}

impl Default for Moments {
    fn default() -> Self {
        Self::Held(InputStats::new())
    }
}

impl Moments {
    /// Places of which something is known, and the inputs of each.
    pub fn places(&self) -> BTreeMap<InputKey, u64> {
        match self {
            Self::Held(inputs) => inputs.iter().map(|(k, h)| (*k, h.cols() as u64)).collect(),
            Self::Stored(stored) => stored.places.iter().map(|(k, p)| (*k, p.cols)).collect(),
        }
    }

    /// Inputs of a place, and whether the products of all pairs of them are known.
    pub fn place(&self, key: InputKey) -> Option<(u64, bool)> {
        match self {
            Self::Held(inputs) => {
                let hessian = inputs.get(&key)?;
                Some((hessian.cols() as u64, matches!(hessian, Hessian::Full(_))))
            }
            Self::Stored(stored) => stored
                .places
                .get(&key)
                .map(|place| (place.cols, place.full)),
        }
    }

    /// Of each input with itself, `[cols]`; nothing where nothing is known.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn diagonal(&self, key: InputKey) -> Result<Vec<f32>, Refusal> {
        match self {
            Self::Held(inputs) => Ok(inputs.get(&key).map_or_else(Vec::new, Hessian::diagonal)),
            Self::Stored(stored) => stored.diagonal(key),
        }
    }

    /// Of each input with each, `[cols, cols]`, where [`Self::place`] says that they are known.
    ///
    /// # Errors
    /// As [`Self::diagonal`].
    pub fn products(&self, key: InputKey) -> Result<Cow<'_, [f32]>, Refusal> {
        match self {
            Self::Held(inputs) => match inputs.get(&key) {
                Some(Hessian::Full(values)) => Ok(Cow::Borrowed(values)),
                _ => Ok(Cow::default()),
            },
            Self::Stored(stored) => stored.whole(key).map(Cow::Owned),
        }
    }
}

/// Moments of a file, read when they are asked for: those of one unit at a time are in memory.
#[derive(Debug)]
pub struct StoredMoments {
    file: ReadFile,
    places: BTreeMap<InputKey, Place>,
}

/// Where the moments of a place lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    cols: u64,
    full: bool,
}

impl Place {
    fn values(self) -> u64 {
        if self.full { self.cols * self.cols } else { self.cols }
    }
}

impl StoredMoments {
    /// Of `file`, whose tensors `header` names; `start`: where the first of them begins; `key`: what a name says.
    ///
    /// # Errors
    /// Names that `key` refuses, and what is neither a vector nor a square matrix of F32.
    pub fn new(
        file: ReadFile,
        header: &Header,
        start: u64,
        key: impl Fn(&str) -> Result<InputKey, &'static str>,
    ) -> Result<Self, FormatError> {
        let mut places = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            let wrong = |detail: &str| FormatError::tensor(file.path(), name, detail);
            let place = place(tensor, start).map_err(wrong)?;
            places.insert(key(name).map_err(wrong)?, place);
        }
        Ok(Self { file, places })
    }

    /// Reads all of the file once, a piece at a time: its hash.
    ///
    /// # Errors
    /// Values that are not finite, and what the operating system refuses.
    pub fn check(&self, header: &Header, start: u64) -> Result<blake3::Hash, FormatError> {
        let mut hasher = blake3::Hasher::new();
        self.pieces(0, start, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        for (name, tensor) in &header.tensors {
            self.pieces(start + tensor.begin, tensor.end - tensor.begin, |piece| {
                hasher.update(piece);
                finite(piece).map_err(|e| FormatError::tensor(self.file.path(), name, e))
            })?;
        }
        Ok(hasher.finalize())
    }

    /// Whether products of all pairs of inputs are known of any place.
    pub fn has_products(&self) -> bool {
        self.places.values().any(|place| place.full)
    }

    fn pieces(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut piece = vec![0; PIECE.min(len) as usize];
        for first in (0..len).step_by(PIECE as usize) {
            let piece = &mut piece[..PIECE.min(len - first) as usize];
            self.file.read_at(offset + first, piece)?;
            each(piece)?;
        }
        Ok(())
    }

    /// All values of a place.
    fn whole(&self, key: InputKey) -> Result<Vec<f32>, Refusal> {
        let Some(place) = self.places.get(&key) else { return Ok(Vec::new()) };
        let mut values = Vec::with_capacity(place.values() as usize);
        let read = self.pieces(place.offset, VALUE * place.values(), |piece| {
            finite(piece).map_err(|e| FormatError::file(self.file.path(), e))?;
            values.extend(floats(piece));
            Ok(())
        });
        read.map(|()| values).map_err(|e| e.to_string().into())
    }

    fn diagonal(&self, key: InputKey) -> Result<Vec<f32>, Refusal> {
        let full = self.places.get(&key).filter(|place| place.full);
        let Some(place) = full else { return self.whole(key) };
        let mut value = [0; VALUE as usize];
        let one = |row: u64| {
            let offset = place.offset + VALUE * row * (place.cols + 1);
            self.file
                .read_at(offset, &mut value)
                .map_err(|e| e.to_string())?;
            Ok::<_, Refusal>(f32::from_le_bytes(value))
        };
        (0..place.cols).map(one).collect()
    }
}

fn place(tensor: &HeaderTensor, start: u64) -> Result<Place, &'static str> {
    if tensor.dtype != Float::F32.into() {
        return Err(NOT_FINITE);
    }
    let (cols, full) = match tensor.shape[..] {
        [cols] => (cols, false),
        [rows, cols] if rows == cols => (cols, true),
        _ => return Err("expected a vector or a square matrix"),
    };
    Ok(Place { offset: start + tensor.begin, cols, full })
}

const NOT_FINITE: &str = "expected finite values of F32";

fn finite(piece: &[u8]) -> Result<(), &'static str> {
    if floats(piece).all(f32::is_finite) { Ok(()) } else { Err(NOT_FINITE) }
}

fn floats(piece: &[u8]) -> impl Iterator<Item = f32> {
    piece
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
}
