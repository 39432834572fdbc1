//! Reading from a file's first bytes, never past its end.

use std::fmt;

use crate::refusal::{Refusal, mismatch};

/// What is left of a file, of which the first bytes are in memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    rest: &'a [u8],
    /// Bytes of the file that follow those in memory.
    unread: u64,
}

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file has them, memory has not.
    Unread,
    /// The file contradicts its layout: expected and found.
    Wrong(Refusal),
}

impl Fault {
    /// The same about `name`.
    #[must_use]
    pub fn at(self, name: impl fmt::Display) -> Self {
        match self {
            Self::Unread => self,
            Self::Wrong(detail) => Self::Wrong(detail.at(name)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread => f.write_str("expected more bytes than were read"),
            Self::Wrong(detail) => detail.fmt(f),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(detail: Refusal) -> Self {
        Self::Wrong(detail)
    }
}

impl From<String> for Fault {
    fn from(detail: String) -> Self {
        Self::Wrong(detail.into())
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unread => fault.to_string().into(),
            Fault::Wrong(detail) => detail,
        }
    }
}

impl<'a> Bytes<'a> {
    /// A whole file.
    pub const fn new(file: &'a [u8]) -> Self {
        Self { rest: file, unread: 0 }
    }

    /// A file of which `unread` bytes follow `first`.
    pub const fn with_unread(first: &'a [u8], unread: u64) -> Self {
        Self { rest: first, unread }
    }

    /// Bytes up to the end of the file.
    pub const fn left(&self) -> u64 {
        (self.rest.len() as u64).saturating_add(self.unread)
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When the file has fewer.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let split = usize::try_from(count)
            .ok()
            .and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = split.ok_or_else(|| self.fault(count))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// When the file has fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let split = self.rest.split_first_chunk();
        let (taken, rest) = split.ok_or_else(|| self.fault(N as u64))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn fault(&self, count: u64) -> Fault {
        match self.left() {
            left if count <= left => Fault::Unread,
            left => Fault::Wrong(mismatch(format_args!("{count} bytes more"), left)),
        }
    }

    /// A little-endian number.
    ///
    /// # Errors
    /// When the file ends before.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian number.
    ///
    /// # Errors
    /// When the file ends before.
    pub fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A little-endian number that must be positive, of `what`.
    ///
    /// # Errors
    /// When it is not.
    pub fn positive(&mut self, what: &str) -> Result<u32, Fault> {
        let found = self.array().map(i32::from_le_bytes)?;
        let positive = u32::try_from(found).ok().filter(|n| *n > 0);
        let wrong = || mismatch(format_args!("a positive number of {what}"), found);
        Ok(positive.ok_or_else(wrong)?)
    }

    /// The next `count` bytes as UTF-8.
    ///
    /// # Errors
    /// When they are not.
    pub fn text(&mut self, count: u64) -> Result<&'a str, Fault> {
        let taken = self.take(count)?;
        Ok(std::str::from_utf8(taken).map_err(|e| format!("a name: {e}"))?)
    }

    /// That what is left can hold `count` of `what`, each of `least` bytes or more.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_room(&self, count: u64, least: u64, what: &str) -> Result<(), Fault> {
        let most = self.left() / least;
        if count > most {
            let detail = mismatch(format_args!("at most {most} {what} in so short a file"), count);
            return Err(detail.into());
        }
        Ok(())
    }
}
