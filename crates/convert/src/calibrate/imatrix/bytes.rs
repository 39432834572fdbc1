//! Reading from a file's bytes, never past their end.

/// What is left of a file.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let split = usize::try_from(count)
            .ok()
            .and_then(|count| self.0.split_at_checked(count));
        let (taken, rest) =
            split.ok_or_else(|| format!("expected {count} bytes more, found {}", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| format!("expected {N} bytes more, found {}", self.0.len()))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A little-endian number.
    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian number.
    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A little-endian number that must be positive, of `what`.
    pub fn positive(&mut self, what: &str) -> Result<u32, String> {
        let found = self.array().map(i32::from_le_bytes)?;
        let positive = u32::try_from(found).ok().filter(|n| *n > 0);
        positive.ok_or_else(|| format!("expected a positive number of {what}, found {found}"))
    }

    /// The next `count` bytes as UTF-8.
    pub fn text(&mut self, count: u64) -> Result<&'a str, String> {
        std::str::from_utf8(self.take(count)?).map_err(|e| format!("a name: {e}"))
    }

    /// That what is left can hold `count` of `what`, each of `least` bytes or more.
    pub fn check_room(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        let most = self.0.len() as u64 / least;
        if count > most {
            return Err(format!(
                "expected at most {most} {what} in so short a file, found {count}"
            ));
        }
        Ok(())
    }
}
