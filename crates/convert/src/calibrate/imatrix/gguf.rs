//! The part of GGUF that importance matrices use: little-endian, versions 2 and 3, tensors of F32.
//!
//! Layout (llama.cpp, `ggml/include/gguf.h`): magic, version u32, tensors u64, metadata u64; each
//! metadatum: name, kind u32, value; each tensor: name, dimensions u32, their lengths u64, kind
//! u32, offset u64; data from the next multiple of `general.alignment`. A name is its length u64
//! and UTF-8.

use std::collections::BTreeMap;

use super::bytes::Bytes;

/// First bytes of a file.
pub const MAGIC: &[u8] = b"GGUF";
/// Versions with lengths of 64 bits.
const VERSIONS: [u32; 2] = [2, 3];
/// Of the data, where `general.alignment` is absent.
const ALIGNMENT: u64 = 32;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// Least bytes of a metadatum: length of its name, kind, a byte.
const LEAST_METADATUM: u64 = 8 + 4 + 1;
/// Least bytes of a tensor: length of its name, dimensions, kind, offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;
/// Kind of tensors of F32.
const F32: u32 = 0;

/// Kinds of metadata.
mod kind {
    pub const U32: u32 = 4;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;

    /// Bytes of a value, by kind; 0 for those of no fixed length.
    pub const SIZES: [u64; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
}

/// What a file has.
#[derive(Debug, Default)]
pub struct Gguf<'a> {
    /// Metadata that are 32-bit numbers without sign.
    pub numbers: BTreeMap<&'a str, u32>,
    /// Metadata that are text.
    pub texts: BTreeMap<&'a str, &'a str>,
    /// The values of each tensor, little-endian `f32`.
    pub tensors: BTreeMap<&'a str, &'a [u8]>,
}

/// A tensor as the header describes it.
struct Info<'a> {
    name: &'a str,
    offset: u64,
    byte_len: u64,
}

impl<'a> Gguf<'a> {
    /// Reads a file that begins with [`MAGIC`].
    ///
    /// # Errors
    /// What contradicts the layout, expected and found.
    pub fn parse(file: &'a [u8]) -> Result<Self, String> {
        let mut bytes = Bytes(file);
        bytes.take(MAGIC.len() as u64)?;
        let version = bytes.u32()?;
        if !VERSIONS.contains(&version) {
            return Err(format!("expected GGUF of version 2 or 3, little-endian, found {version}"));
        }
        let (tensors, metadata) = (bytes.u64()?, bytes.u64()?);
        bytes.check_room(metadata, LEAST_METADATUM, "metadata")?;
        bytes.check_room(tensors, LEAST_TENSOR, "tensors")?;
        let mut gguf = Self::default();
        for _ in 0..metadata {
            gguf.metadatum(&mut bytes)?;
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(info(&mut bytes)?);
        }
        let alignment = gguf.alignment()?;
        let start = ((file.len() - bytes.0.len()) as u64).next_multiple_of(alignment);
        let mut data = Bytes(file);
        data.take(start)?;
        let mut end = 0;
        for info in infos {
            // One after the other: no byte is read twice, however many tensors claim it.
            let values = info.values(data, end)?;
            end = (info.offset + info.byte_len).next_multiple_of(alignment);
            if gguf.tensors.insert(info.name, values).is_some() {
                return Err(format!("expected one tensor `{}`, found two", info.name));
            }
        }
        Ok(gguf)
    }

    fn metadatum(&mut self, bytes: &mut Bytes<'a>) -> Result<(), String> {
        let key = name(bytes)?;
        match bytes.u32()? {
            kind::U32 => drop(self.numbers.insert(key, bytes.u32()?)),
            kind::STRING => drop(self.texts.insert(key, name(bytes)?)),
            kind::ARRAY => {
                let (kind, count) = (bytes.u32()?, bytes.u64()?);
                skip(bytes, key, kind, count)?;
            }
            kind => skip(bytes, key, kind, 1)?,
        }
        Ok(())
    }

    fn alignment(&self) -> Result<u64, String> {
        let found = self.numbers.get("general.alignment").copied();
        let found = found.map_or(ALIGNMENT, u64::from);
        if !found.is_power_of_two() {
            return Err(format!("general.alignment: expected a power of two, found {found}"));
        }
        Ok(found)
    }
}

fn name<'a>(bytes: &mut Bytes<'a>) -> Result<&'a str, String> {
    let len = bytes.u64()?;
    bytes.text(len)
}

/// Goes past `count` values of a kind.
fn skip(bytes: &mut Bytes<'_>, key: &str, kind: u32, count: u64) -> Result<(), String> {
    if kind == kind::STRING {
        return (0..count).try_for_each(|_| name(bytes).map(drop));
    }
    let size = kind::SIZES.get(kind as usize).filter(|size| **size > 0);
    let size = size.ok_or_else(|| format!("{key}: expected a known kind, found {kind}"))?;
    let len = size.checked_mul(count);
    let len = len.ok_or_else(|| format!("{key}: expected fewer values, found {count}"))?;
    bytes.take(len).map(drop)
}

fn info<'a>(bytes: &mut Bytes<'a>) -> Result<Info<'a>, String> {
    let name = name(bytes)?;
    let dimensions = bytes.u32()?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!(
            "{name}: expected at most {MOST_DIMENSIONS} dimensions, found {dimensions}"
        ));
    }
    let mut byte_len = Some(4u64);
    for _ in 0..dimensions {
        let len = bytes.u64()?;
        byte_len = byte_len.and_then(|bytes| bytes.checked_mul(len));
    }
    let byte_len = byte_len.ok_or_else(|| format!("{name}: expected fewer values"))?;
    let (kind, offset) = (bytes.u32()?, bytes.u64()?);
    if kind != F32 {
        return Err(format!("{name}: expected F32 (kind {F32}), found kind {kind}"));
    }
    Ok(Info { name, offset, byte_len })
}

impl Info<'_> {
    fn values<'a>(&self, mut data: Bytes<'a>, offset: u64) -> Result<&'a [u8], String> {
        let Self { name, offset: found, byte_len } = *self;
        if found != offset {
            return Err(format!("{name}: expected offset {offset}, found {found}"));
        }
        let values = data.take(offset).and_then(|_| data.take(byte_len));
        values.map_err(|e| format!("{name}: {e}"))
    }
}
