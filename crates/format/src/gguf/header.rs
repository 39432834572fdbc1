//! The bytes before the data of a GGUF file: see the layout in `checkpoint::gguf::header`.

use shardwright_quant::Ggml;

use crate::checkpoint::gguf::MAGIC;

/// What is written of the versions that are read.
const VERSION: u32 = 3;
/// Of the data, and of each tensor.
pub const ALIGNMENT: u64 = 32;

/// A metadatum to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Whole numbers with a sign.
    I32s(Vec<i32>),
    /// Numbers.
    F32s(Vec<f32>),
}

/// A tensor as the header has it, the outermost dimension first.
pub struct Info<'a> {
    pub name: &'a str,
    pub kind: Ggml,
    pub shape: &'a [u64],
}

impl Info<'_> {
    /// Its bytes, whole blocks.
    pub fn len(&self) -> u64 {
        let values: u64 = self.shape.iter().product();
        values / self.kind.block_values() * self.kind.block_bytes()
    }
}

/// The header, up to the first byte of the data.
pub fn encode(metadata: &[(String, Datum)], tensors: &[Info<'_>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        datum(&mut out, value);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        text(&mut out, tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        let innermost_first = tensor.shape.iter().rev();
        out.extend(innermost_first.flat_map(|len| len.to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.len().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Kind and value.
fn datum(out: &mut Vec<u8>, value: &Datum) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let list = |out: &mut Vec<u8>, element: u32, count: usize| {
        kind(out, 9);
        kind(out, element);
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Datum::Texts(values) => {
            list(out, 8, values.len());
            for value in values {
                text(out, value);
            }
        }
        Datum::I32s(values) => {
            list(out, 5, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Datum::F32s(values) => {
            list(out, 6, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Datum::U32(value) => {
            kind(out, 4);
            out.extend(value.to_le_bytes());
        }
        Datum::F32(value) => {
            kind(out, 6);
            out.extend(value.to_le_bytes());
        }
        Datum::Bool(value) => {
            kind(out, 7);
            out.push(u8::from(*value));
        }
        Datum::Text(value) => {
            kind(out, 8);
            text(out, value);
        }
    }
}
