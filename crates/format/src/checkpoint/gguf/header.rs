//! What a GGUF file says before its data.
//!
//! Layout (llama.cpp, `ggml/include/gguf.h`): magic, version u32, tensors u64, metadata u64; each
//! metadatum: name, kind u32, value; each tensor: name, dimensions u32, their lengths u64 from the
//! innermost, kind u32, offset u64; data from the next multiple of `general.alignment`, tensors one
//! after the other, each from such a multiple. A name is its length u64 and UTF-8.

use std::collections::{BTreeMap, BTreeSet};

use shardwright_quant::Ggml;

use crate::bytes::{Bytes, Fault};
use crate::checkpoint::file_names::MAGIC;
use crate::checkpoint::wrong::{OLDER_FORM, is_older, said_by_server};
use crate::prose::form;
use crate::refusal::{Refusal, mismatch};

/// Versions with lengths of 64 bits.
const VERSIONS: [u32; 2] = [2, 3];
/// Of the data, where [`ALIGNMENT_KEY`] is absent.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// Most tensors and metadata that are believed: the largest models have some thousands.
const MOST: u64 = 1 << 16;
/// Least bytes of a metadatum: length of its name, kind, a byte.
const LEAST_METADATUM: u64 = 8 + 4 + 1;
/// Least bytes of a tensor: length of its name, dimensions, kind, offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Where a tar file says what it is, and how.
const TAR: (usize, &[u8]) = (257, b"ustar");
/// What to do about types that llama.cpp once had and took out again.
const Q4_0: &str = ", which llama.cpp no longer has: take the Q4_0 file of the model, or make one with llama-quantize \
                    of the original";
const IQ4_NL: &str = ", which llama.cpp no longer has: take the IQ4_NL file of the model, or make one with \
                      llama-quantize of the original";
const BITNET: &str = ", which llama.cpp no longer has, or I2_S of bitnet.cpp: take the IQ4_NL file of the model, or its \
                      checkpoint in safetensors";
const FORKED: &str = ", a type of a fork of llama.cpp: take a file of the model that llama.cpp itself reads, or make one \
                      with llama-quantize of the original";
const OTHER: &str = "; take the model in one of these";
/// Types of tensors that no model stores weights in, and those of old files and of forks, with what to do.
const UNREAD: [(u32, &str, &str); 15] = [
    (4, "Q4_2", Q4_0),
    (5, "Q4_3", Q4_0),
    (9, "Q8_1", ""),
    (15, "Q8_K", ""),
    (24, "I8", ""),
    (25, "I16", ""),
    (26, "I32", ""),
    (27, "I64", ""),
    (28, "F64", ""),
    (31, "Q4_0_4_4", Q4_0),
    (32, "Q4_0_4_8", Q4_0),
    (33, "Q4_0_8_8", Q4_0),
    (36, "IQ4_NL_4_4", BITNET),
    (37, "IQ4_NL_4_8", IQ4_NL),
    (38, "IQ4_NL_8_8", IQ4_NL),
];
/// The first number that forks give their own types, of which `ik_llama.cpp` has most.
const FORKS: u32 = 97;

/// Kinds of metadata.
mod kind {
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;

    /// Bytes of a value, by kind; 0 for those of no fixed length.
    pub const SIZES: [u64; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
}

/// A metadatum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number without sign, or a positive one with.
    Whole(u64),
    /// A negative number.
    Negative(i64),
    /// A number of 32 bits.
    F32(f32),
    /// A number of 64 bits.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Values of a kind.
    Array(Array<'a>),
}

/// Values of one kind, as the file holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array<'a> {
    kind: u32,
    /// How many.
    pub count: u64,
    /// All of them: [`skip`] has gone past them.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Its texts.
    ///
    /// # Errors
    /// Values of another kind, and those that are no UTF-8.
    pub fn texts(&self) -> Result<Vec<&'a str>, Refusal> {
        if self.kind != kind::STRING {
            return Err(mismatch("texts", format_args!("values of kind {}", self.kind)));
        }
        let mut bytes = Bytes::new(self.bytes);
        let text = |at| name(&mut bytes).map_err(|e| e.at(format_args!("text {at}")));
        let texts: Result<_, Fault> = (0..self.count).map(text).collect();
        Ok(texts?)
    }

    /// Its numbers; none of texts.
    pub fn numbers(&self) -> impl Iterator<Item = Value<'static>> {
        let size = size(self.kind).unwrap_or_default() as usize;
        let bytes = if size == 0 { &[] } else { self.bytes };
        bytes
            .chunks_exact(size.max(1))
            .map(|bytes| number(self.kind, bytes))
    }
}

impl Value<'_> {
    /// A number, rounded to 32 bits; NaN for what is none.
    pub const fn as_f32(&self) -> f32 {
        match *self {
            Self::Whole(number) => number as f32,
            Self::Negative(number) => number as f32,
            Self::F32(number) => number,
            Self::F64(number) => number as f32,
            Self::Bool(_) | Self::Text(_) | Self::Array(_) => f32::NAN,
        }
    }
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its values.
    pub kind: Ggml,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A checked header: every tensor lies in the file, none over another.
#[derive(Debug)]
pub struct Header<'a> {
    /// By key.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// In the order of their bytes.
    pub tensors: Vec<Tensor<'a>>,
    /// The byte at which the data starts.
    pub data: u64,
    /// The byte after the data, before and after what fills it up to the next multiple of the alignment.
    pub ends: [u64; 2],
}

/// A tensor before its place is known.
struct Info<'a> {
    name: &'a str,
    kind: Ggml,
    shape: Vec<u64>,
    offset: u64,
    len: u64,
}

impl<'a> Header<'a> {
    /// Reads the header of a file that begins with [`MAGIC`]: all of `first` but `unread` bytes.
    ///
    /// # Errors
    /// What contradicts the layout, expected and found; a header that goes on in the unread bytes.
    pub fn parse(first: &'a [u8], unread: u64) -> Result<Self, Fault> {
        let mut bytes = Bytes::with_unread(first, unread);
        let file_len = bytes.left();
        let found = bytes.take(MAGIC.len() as u64)?;
        if found != MAGIC {
            return Err(mismatch("GGUF first", found_first(first)).into());
        }
        let version = bytes.u32()?;
        if !VERSIONS.contains(&version) {
            let found = if VERSIONS.contains(&version.swap_bytes()) {
                "big-endian: gguf-convert-endian of gguf-py changes it".to_owned()
            } else {
                version.to_string()
            };
            return Err(mismatch("GGUF of version 2 or 3, little-endian", found).into());
        }
        let (tensors, count) = (bytes.u64()?, bytes.u64()?);
        for (count, least, what) in
            [(count, LEAST_METADATUM, "metadata"), (tensors, LEAST_TENSOR, "tensors")]
        {
            bytes.check_room(count, least, what)?;
            if count > MOST {
                return Err(mismatch(format_args!("at most {MOST} {what}"), count).into());
            }
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..count {
            let key = name(&mut bytes)?;
            let value = metadatum(&mut bytes).map_err(|e| e.at(key))?;
            if metadata.insert(key, value).is_some() {
                return Err(mismatch(format_args!("one metadatum `{key}`"), "two").into());
            }
        }
        let infos: Result<Vec<_>, _> = (0..tensors).map(|_| info(&mut bytes)).collect();
        let alignment = alignment(&metadata)?;
        let data = (file_len - bytes.left()).next_multiple_of(alignment);
        let tensors = place(infos?, data, file_len, alignment)?;
        let last = tensors.last().map(|tensor| tensor.offset + tensor.len);
        // No overflow: the data end in the file, and those of no tensors start a few bytes after the header.
        let end = last.unwrap_or(data);
        let ends = [end, end.next_multiple_of(alignment)];
        Ok(Self { metadata, tensors, data, ends })
    }

    /// A metadatum that is a text.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A metadatum that is a whole number.
    pub fn whole(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Whole(number) => Some(*number),
            _ => None,
        }
    }
}

/// What a file is that begins otherwise: an archive by its name.
fn found_first(first: &[u8]) -> String {
    if is_older(first) {
        return OLDER_FORM.to_owned();
    }
    let tar = first
        .get(TAR.0..)
        .is_some_and(|rest| rest.starts_with(TAR.1));
    let name = if tar { Some("a tar file") } else { form(first).map(|(name, _)| name) };
    let packed = name.map(|name| format!("{name}: unpack it, and name the model in it"));
    packed
        .or_else(|| said_by_server(first))
        .unwrap_or_else(|| first[..MAGIC.len()].escape_ascii().to_string())
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<u64, Fault> {
    let found = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(ALIGNMENT),
        Some(Value::Whole(found)) => *found,
        Some(_) => 0,
    };
    if found.is_power_of_two() && u32::try_from(found).is_ok() {
        return Ok(found);
    }
    Err(mismatch("a power of two", found).at(ALIGNMENT_KEY).into())
}

fn name<'a>(bytes: &mut Bytes<'a>) -> Result<&'a str, Fault> {
    let len = bytes.u64()?;
    bytes.text(len)
}

fn metadatum<'a>(bytes: &mut Bytes<'a>) -> Result<Value<'a>, Fault> {
    let kind = bytes.u32()?;
    Ok(match kind {
        kind::STRING => Value::Text(name(bytes)?),
        kind::ARRAY => {
            let (kind, count) = (bytes.u32()?, bytes.u64()?);
            let mut after = *bytes;
            skip(&mut after, kind, count)?;
            let bytes = bytes.take(bytes.left() - after.left())?;
            Value::Array(Array { kind, count, bytes })
        }
        kind => number(kind, bytes.take(size(kind)?)?),
    })
}

/// The value that some bytes of a kind, as many as it takes, stand for.
fn number(kind: u32, bytes: &[u8]) -> Value<'static> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    let signed = || {
        let free = 64 - 8 * bytes.len();
        let value = (bits << free).cast_signed() >> free;
        u64::try_from(value).map_or(Value::Negative(value), Value::Whole)
    };
    match kind {
        1 | 3 | 5 | 11 => signed(),
        6 => Value::F32(f32::from_bits(bits as u32)),
        12 => Value::F64(f64::from_bits(bits)),
        kind::BOOL => Value::Bool(bits != 0),
        _ => Value::Whole(bits),
    }
}

fn size(kind: u32) -> Result<u64, Fault> {
    let size = kind::SIZES.get(kind as usize).filter(|size| **size > 0);
    let wrong = || mismatch("a known kind", kind);
    Ok(*size.ok_or_else(wrong)?)
}

/// Goes past `count` values of a kind. Texts need not be UTF-8: vocabularies have parts of letters.
fn skip(bytes: &mut Bytes<'_>, kind: u32, count: u64) -> Result<(), Fault> {
    if kind == kind::STRING {
        bytes.check_room(count, 8, "texts")?;
        return (0..count).try_for_each(|_| {
            let len = bytes.u64()?;
            bytes.take(len).map(drop)
        });
    }
    let len = size(kind)?.checked_mul(count);
    let len = len.ok_or_else(|| mismatch("fewer values", count))?;
    bytes.take(len).map(drop)
}

fn info<'a>(bytes: &mut Bytes<'a>) -> Result<Info<'a>, Fault> {
    let name = name(bytes)?;
    let rest = |bytes: &mut Bytes<'a>| {
        let dimensions = bytes.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(Fault::Wrong(mismatch(
                format_args!("at most {MOST_DIMENSIONS} dimensions"),
                dimensions,
            )));
        }
        let shape: Result<Vec<_>, _> = (0..dimensions).map(|_| bytes.u64()).collect();
        let shape: Vec<u64> = shape?.into_iter().rev().collect();
        let (id, offset) = (bytes.u32()?, bytes.u64()?);
        let kind = Ggml::from_id(id).ok_or_else(|| {
            let known: Vec<_> = Ggml::ALL.iter().map(|kind| kind.name()).collect();
            mismatch(format_args!("a type among {}", known.join(" ")), unread(id))
        })?;
        let len = byte_len(kind, &shape)?;
        Ok(Info { name, kind, shape, offset, len })
    };
    rest(bytes).map_err(|e| e.at(name))
}

/// What a type is of which no weights are made, and what to do.
fn unread(id: u32) -> String {
    let known = UNREAD.iter().find(|(unread, ..)| *unread == id);
    let any = if id >= FORKS { FORKED } else { OTHER };
    let next = |next: &&str| !next.is_empty();
    match known {
        Some((_, name, own)) => format!("{name}{}", Some(*own).filter(next).unwrap_or(OTHER)),
        None => format!("type {id}{any}"),
    }
}

/// Bytes of a tensor, whose rows must be whole blocks.
fn byte_len(kind: Ggml, shape: &[u64]) -> Result<u64, Refusal> {
    let (block, name) = (kind.block_values(), kind.name());
    let cols = shape.last().copied().unwrap_or(1);
    if !cols.is_multiple_of(block) {
        return Err(mismatch(format_args!("rows of whole blocks of {block}"), cols).at(name));
    }
    let values = shape
        .iter()
        .try_fold(1u64, |values, len| values.checked_mul(*len));
    let len = values.and_then(|values| (values / block).checked_mul(kind.block_bytes()));
    len.ok_or_else(|| format!("shape {shape:?}: expected fewer values").into())
}

/// Where tensors lie: one after the other, so that no byte is read twice however many claim it.
fn place(
    infos: Vec<Info<'_>>,
    data: u64,
    file_len: u64,
    alignment: u64,
) -> Result<Vec<Tensor<'_>>, Fault> {
    let (mut names, mut tensors) = (BTreeSet::new(), Vec::with_capacity(infos.len()));
    let mut expected = 0u64;
    for Info { name, kind, shape, offset, len } in infos {
        if offset != expected {
            return Err(mismatch(format_args!("offset {expected}"), offset)
                .at(name)
                .into());
        }
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(len));
        let (Some(start), Some(_)) = (start, end.filter(|end| *end <= file_len)) else {
            let found = file_len.saturating_sub(data).saturating_sub(offset);
            return Err(mismatch(format_args!("{len} bytes of data"), found)
                .at(name)
                .into());
        };
        expected = (offset + len).next_multiple_of(alignment);
        if !names.insert(name) {
            return Err(mismatch(format_args!("one tensor `{name}`"), "two").into());
        }
        tensors.push(Tensor { name, kind, shape, offset: start, len });
    }
    Ok(tensors)
}
