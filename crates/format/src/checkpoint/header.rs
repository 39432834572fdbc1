//! The header of a `.safetensors` file: eight bytes of length, little-endian, then a JSON object
//! of tensors, then their bytes.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize as Derive, Serialize};

use super::wrong;
use crate::dtype::{Dtype, unknown};
use crate::entries::Entries;
use crate::error::{FormatError, Result};
use crate::io::ReadFile;
use crate::refusal::{Refusal, mismatch};

/// Bytes of the length before the header.
pub const PREFIX_LEN: u64 = 8;
/// Longest header the format allows, in bytes.
pub const MAX_HEADER_LEN: u64 = 100_000_000;
/// The key that holds text about the file instead of a tensor.
const METADATA_KEY: &str = "__metadata__";
/// The data starts on a multiple of this; writers pad the header with spaces.
const DATA_ALIGNMENT: usize = 8;

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Text about the file, in its order.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the order of their bytes.
    pub tensors: Vec<(String, HeaderTensor)>,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Type of its values.
    pub dtype: Dtype,
    /// Outermost dimension first; a scalar has none.
    pub shape: Vec<u64>,
    /// First byte, from the end of the header.
    pub begin: u64,
    /// Byte after the last, from the end of the header.
    pub end: u64,
}

/// Reads and checks the header of `file`; gives it with the byte at which the data starts.
///
/// # Errors
/// As [`header_len`] and [`parse`], and what the operating system refuses.
pub fn read(file: &ReadFile) -> Result<(Header, u64)> {
    if file.len() < PREFIX_LEN {
        let detail = mismatch(format_args!("at least {PREFIX_LEN} bytes"), wrong::cut(file.len()));
        return Err(FormatError::file(file.path(), detail));
    }
    let mut prefix = [0; PREFIX_LEN as usize];
    file.read_at(0, &mut prefix)?;
    refuse_pointer(file)?;
    let len = header_len(file.path(), prefix, file.len())?;
    let mut json = vec![0; len as usize];
    file.read_at(PREFIX_LEN, &mut json)?;
    Ok((parse(file.path(), &json, file.len())?, PREFIX_LEN + len))
}

/// Refuses what Git LFS left in place of a file.
///
/// # Errors
/// A pointer, and what the operating system refuses.
pub fn refuse_pointer(file: &ReadFile) -> Result<()> {
    let Some(len) = wrong::lfs_probe(file.len()) else { return Ok(()) };
    let mut first = vec![0; len];
    file.read_at(0, &mut first)?;
    match wrong::lfs_pointer(&first, file.len()) {
        Some(detail) => Err(FormatError::file(file.path(), detail)),
        None => Ok(()),
    }
}

/// Bytes of JSON that the first eight bytes of a file of `file_len` bytes announce.
///
/// # Errors
/// A length above [`MAX_HEADER_LEN`] or past the end of the file.
pub fn header_len(path: &Path, prefix: [u8; PREFIX_LEN as usize], file_len: u64) -> Result<u64> {
    let len = u64::from_le_bytes(prefix);
    let room = file_len.saturating_sub(PREFIX_LEN);
    let limit = room.min(MAX_HEADER_LEN);
    if let Some(found) = wrong::said_by_server(&prefix).filter(|_| len > limit) {
        return Err(FormatError::file(path, mismatch("safetensors", found)));
    }
    if len > limit {
        let why = if room < MAX_HEADER_LEN { "the rest of the file" } else { "the format's limit" };
        let detail = mismatch(format_args!("at most {limit} ({why})"), len).at("header length");
        return Err(FormatError::file(path, detail));
    }
    Ok(len)
}

/// Checks the JSON of a header, which with its data and [`PREFIX_LEN`] fills `file_len` bytes.
///
/// # Errors
/// Malformed JSON, a repeated name, an unsupported dtype, a shape that disagrees with its bytes,
/// and byte ranges that overlap, leave a gap, or do not end where the file does.
pub fn parse(path: &Path, json: &[u8], file_len: u64) -> Result<Header> {
    let invalid = |detail: Refusal| FormatError::file(path, detail.at("header"));
    if json.first() != Some(&b'{') {
        let found = json
            .first()
            .map_or_else(|| "nothing".to_owned(), |b| format!("byte {b}"));
        return Err(invalid(mismatch("`{` first", found)));
    }
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| invalid(e.to_string().into()))?;
    let data_len = file_len
        .checked_sub(PREFIX_LEN + json.len() as u64)
        .ok_or_else(|| invalid(format!("longer than its file of {file_len} bytes").into()))?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        let checked = check_tensor(&tensor, data_len);
        let checked = checked.map_err(|detail| FormatError::tensor(path, &name, detail))?;
        tensors.push((name, checked));
    }
    refuse_repeated(path, &mut tensors)?;
    tensors.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
    check_coverage(path, &tensors, data_len)?;
    Ok(Header { metadata: raw.metadata, tensors })
}

/// A header, length and padding included, for tensors whose bytes follow in the given order.
///
/// # Errors
/// A header above [`MAX_HEADER_LEN`] or data above 64 bits.
pub fn encode<'a, D: Into<Dtype>>(
    path: &Path,
    metadata: &[(String, String)],
    tensors: impl IntoIterator<Item = (&'a str, D, &'a [u64])>,
) -> Result<Vec<u8>> {
    let mut laid_out = Vec::new();
    let mut begin = 0_u64;
    for (name, dtype, shape) in tensors {
        let dtype = dtype.into();
        let end = byte_len(dtype, shape).and_then(|len| begin.checked_add(len));
        let end = end.ok_or_else(|| FormatError::tensor(path, name, overflow(shape)))?;
        let data_offsets = [begin, end];
        let dtype = dtype.label().to_owned();
        laid_out.push((name, RawTensor { dtype, shape: shape.into(), data_offsets }));
        begin = end;
    }
    let mut json = to_json(metadata, &laid_out)
        .map_err(|e| FormatError::file(path, format!("header: {e}")))?;
    json.resize(json.len().next_multiple_of(DATA_ALIGNMENT), b' ');
    if json.len() as u64 > MAX_HEADER_LEN {
        let detail =
            mismatch(format_args!("at most {MAX_HEADER_LEN}"), json.len()).at("header length");
        return Err(FormatError::file(path, detail));
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

fn to_json(
    metadata: &[(String, String)],
    tensors: &[(&str, RawTensor)],
) -> serde_json::Result<Vec<u8>> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let mut map = serializer.serialize_map(None)?;
    if !metadata.is_empty() {
        map.serialize_entry(METADATA_KEY, &Entries(metadata.to_vec()))?;
    }
    for (name, tensor) in tensors {
        map.serialize_entry(name, tensor)?;
    }
    map.end()?;
    Ok(json)
}

/// Bytes of a tensor; none above 64 bits.
pub(super) fn byte_len(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    shape
        .iter()
        .try_fold(dtype.size() as u64, |len, &dim| len.checked_mul(dim))
}

pub(super) fn overflow(shape: &[u64]) -> String {
    format!("shape {shape:?}: its size in bytes leaves 64 bits")
}

fn check_tensor(raw: &RawTensor, data_len: u64) -> Result<HeaderTensor, Refusal> {
    let dtype = Dtype::parse(&raw.dtype).ok_or_else(|| unknown(&raw.dtype))?;
    let [begin, end] = raw.data_offsets;
    let len = byte_len(dtype, &raw.shape).ok_or_else(|| overflow(&raw.shape))?;
    let Some(held) = end.checked_sub(begin) else {
        return Err(
            format!("data_offsets [{begin}, {end}]: the end comes before the beginning").into()
        );
    };
    if held != len {
        let (shape, dtype) = (&raw.shape, &raw.dtype);
        return Err(format!(
            "shape {shape:?} of {dtype} takes {len} bytes, data_offsets [{begin}, {end}] hold {held}"
        ).into());
    }
    if end > data_len {
        return Err(format!(
            "data_offsets [{begin}, {end}]: the file holds {data_len} bytes of data"
        )
        .into());
    }
    Ok(HeaderTensor { dtype, shape: raw.shape.clone(), begin, end })
}

fn refuse_repeated(path: &Path, tensors: &mut [(String, HeaderTensor)]) -> Result<()> {
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    match tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => {
            Err(FormatError::tensor(path, &pair[0].0, "its name appears twice in the header"))
        }
        None => Ok(()),
    }
}

/// Refuses ranges, sorted, that do not fill `data_len` bytes one after the other.
fn check_coverage(path: &Path, tensors: &[(String, HeaderTensor)], data_len: u64) -> Result<()> {
    let mut covered = 0;
    for (name, HeaderTensor { begin, end, .. }) in tensors {
        if *begin != covered {
            let what = if *begin < covered { "overlap" } else { "leave a gap after" };
            let detail = format!(
                "data_offsets [{begin}, {end}] {what} the tensors before them, which end at {covered}"
            );
            return Err(FormatError::tensor(path, name, detail));
        }
        covered = *end;
    }
    if covered != data_len {
        let detail =
            mismatch(format_args!("{covered} bytes of data, as its tensors need"), data_len);
        return Err(FormatError::file(path, detail));
    }
    Ok(())
}

/// A tensor as the JSON has it.
#[derive(Derive, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The JSON object, its keys in order and repetitions kept.
#[derive(Default)]
struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut described = false;
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e| A::Error::custom(format!("`{name}`: {e}"));
                    if name == METADATA_KEY {
                        if std::mem::replace(&mut described, true) {
                            return Err(A::Error::custom(format!("`{name}` appears twice")));
                        }
                        let entries: Option<Entries<String>> = map.next_value().map_err(named)?;
                        header.metadata = entries.map(|entries| entries.0).unwrap_or_default();
                    } else {
                        let tensor = map.next_value().map_err(named)?;
                        header.tensors.push((name, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests;
