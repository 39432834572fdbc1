//! Headers: what is read, and what contradicts the layout.

use super::*;
use crate::mismatch;

/// A header with one metadatum of every kind and two tensors, as bytes.
fn file() -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
    };
    bytes.extend(MAGIC);
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(METADATA.len().to_le_bytes());
    for (key, kind, value) in METADATA {
        text(&mut bytes, key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(*value);
    }
    for (name, shape, kind, offset) in [("a", [32u64, 2], 8u32, 0u64), ("b", [3, 1], 0, 96)] {
        text(&mut bytes, name.as_bytes());
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(shape.iter().flat_map(|len| len.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 96 + 12, 7);
    bytes
}

type Metadatum = (&'static str, u32, &'static [u8]);

const METADATA: &[Metadatum] = &[
    ("u8", 0, &[200]),
    ("i8", 1, &[0xfe]),
    ("u16", 2, &[1, 2]),
    ("i16", 3, &[1, 0]),
    ("u32", 4, &[1, 2, 3, 4]),
    ("i32", 5, &[0xff; 4]),
    ("f32", 6, &[0, 0, 0x80, 0x3f]),
    ("bool", 7, &[1]),
    ("text", 8, &[2, 0, 0, 0, 0, 0, 0, 0, b'o', b'k']),
    ("array", 9, &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]),
    ("texts", 9, &[8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
    ("u64", 10, &[0xff; 8]),
    ("i64", 11, &[5, 0, 0, 0, 0, 0, 0, 0]),
    ("f64", 12, &[0, 0, 0, 0, 0, 0, 0, 0x40]),
];

fn refusal(bytes: &[u8]) -> String {
    Header::parse(bytes, 0).unwrap_err().to_string()
}

/// The file with other bytes where `needle` begins, `after` bytes on.
fn with(needle: &str, after: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = file();
    let mut windows = bytes.windows(needle.len());
    let at = windows.position(|w| w == needle.as_bytes()).unwrap() + after;
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn every_kind_is_read() {
    let bytes = file();
    let header = Header::parse(&bytes, 0).unwrap();
    let single = |m: &&Metadatum| !matches!(header.metadata[m.0], Value::Array(_));
    let values = METADATA.iter().filter(single);
    let values: Vec<_> = values.map(|m| header.metadata[m.0]).collect();
    let expected = [
        Value::Whole(200),
        Value::Negative(-2),
        Value::Whole(0x201),
        Value::Whole(1),
        Value::Whole(0x0403_0201),
        Value::Negative(-1),
        Value::F32(1.0),
        Value::Bool(true),
        Value::Text("ok"),
        Value::Whole(u64::MAX),
        Value::Whole(5),
        Value::F64(2.0),
    ];
    assert_eq!(values, expected);
    let array = |key: &str| match header.metadata[key] {
        Value::Array(array) => array,
        other => panic!("{other:?}"),
    };
    let numbers: Vec<_> = array("array").numbers().collect();
    assert_eq!(numbers, [0x101, 0x202, 0x303].map(Value::Whole));
    assert_eq!((array("texts").count, array("texts").numbers().count()), (1, 0));
    let refused = array("texts").texts().unwrap_err().to_string();
    assert!(refused.starts_with("text 0: "), "{refused}");
    assert_eq!(array("array").texts().unwrap_err(), mismatch("texts", "values of kind 2"));
    let tensors: Vec<_> = header
        .tensors
        .iter()
        .map(|t| (t.name, t.len, t.offset))
        .collect();
    assert_eq!(tensors, [("a", 68, header.data), ("b", 12, header.data + 96)]);
    assert_eq!(header.tensors[0].shape, [2, 32]);
    assert_eq!((header.whole("u8"), header.text("text")), (Some(200), Some("ok")));
}

#[test]
fn a_header_is_read_piece_by_piece() {
    let bytes = file();
    let mut whole = false;
    for cut in 0..bytes.len() {
        let unread = (bytes.len() - cut) as u64;
        match Header::parse(&bytes[..cut], unread) {
            Ok(header) => {
                assert_eq!(header.tensors.len(), 2);
                whole = true;
            }
            Err(fault) => assert!(!whole && fault == Fault::Unread, "{cut} {fault}"),
        }
        assert_ne!(Header::parse(&bytes[..cut], 0).unwrap_err(), Fault::Unread, "{cut}");
    }
    assert!(whole);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_header(&ReadFile::open(&path).unwrap()).unwrap(), bytes);
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(refusal(b"GGML\x03\0\0\0"), "expected GGUF first, found GGML");
    for magic in [b"lmgg", b"fmgg", b"tjgg", b"algg"] {
        let older = [&magic[..], b"\x03\0\0\0"].concat();
        assert_eq!(
            refusal(&older),
            "expected GGUF first, found llama.cpp's form before GGUF: convert the original checkpoint, \
             or take a GGUF file of the model"
        );
    }
    let unpack = "unpack it, and name the model in it";
    assert_eq!(
        refusal(b"PK\x03\x04\0\0\0\0"),
        format!("expected GGUF first, found a zip file: {unpack}")
    );
    assert_eq!(
        refusal(&with("GGUF", 4, &[0, 0, 0, 3])),
        "expected GGUF of version 2 or 3, little-endian, found big-endian: gguf-convert-endian of gguf-py changes it"
    );
    assert_eq!(refusal(&with("i16", 3, &[13, 0, 0, 0])), "i16: expected a known kind, found 13");
    assert_eq!(refusal(&with("i16", 0, b"u16")), "expected one metadatum `u16`, found two");
    // The last character is the number of dimensions.
    let a = "\x01\0\0\0\0\0\0\0a";
    let refused = |after: usize, value: &[u8]| refusal(&with(a, 9 + after, value));
    assert_eq!(refused(0, &[9]), "a: expected at most 4 dimensions, found 9");
    assert_eq!(refused(4, &[33]), "a: Q8_0: expected rows of whole blocks of 32, found 33");
    assert_eq!(
        refused(4, &[0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        "a: shape [2, 18446744073709551584]: expected fewer values"
    );
    assert!(refused(20, &[99]).starts_with("a: expected a type among F32 F16 Q4_0 "));
    assert!(refused(20, &[50]).ends_with(" NVFP4, found type 50; take the model in one of these"));
    for (id, found) in [
        (4, "Q4_2, which llama.cpp no longer has: take the Q4_0 file of the model"),
        (26, "I32"),
        (31, "Q4_0_4_4, which llama.cpp no longer has: take the Q4_0 file of the model"),
        (
            36,
            "IQ4_NL_4_4, which llama.cpp no longer has, or I2_S of bitnet.cpp: take the IQ4_NL file",
        ),
        (
            99,
            "type 99, a type of a fork of llama.cpp: take a file of the model that llama.cpp itself reads",
        ),
        (137, "type 137, a type of a fork of llama.cpp"),
    ] {
        let told = refused(20, &[id]);
        assert!(told.contains(&format!(" NVFP4, found {found}")), "{told}");
    }
    assert_eq!(refused(24, &[32]), "a: expected offset 0, found 32");
    assert_eq!(refused(12, &[3]), "b: expected offset 128, found 96");
    assert_eq!(refusal(&with(a, 8, b"b")), "expected one tensor `b`, found two");
    let mut short = file();
    short.pop();
    assert_eq!(refusal(&short), "b: expected 12 bytes of data, found 11");
}

#[test]
fn alignment_is_a_power_of_two() {
    let mut bytes = file();
    let text = "general.alignment";
    let mut metadatum = (text.len() as u64).to_le_bytes().to_vec();
    metadatum.extend(text.as_bytes());
    metadatum.extend(4u32.to_le_bytes());
    metadatum.extend(48u32.to_le_bytes());
    bytes[16] += 1;
    bytes.splice(24..24, metadatum);
    assert_eq!(refusal(&bytes), "general.alignment: expected a power of two, found 48");
}

#[test]
fn counts_that_no_model_has_are_refused() {
    let mut bytes = file();
    bytes[8..16].copy_from_slice(&70_000u64.to_le_bytes());
    let detail = Header::parse(&bytes, 1 << 40).unwrap_err().to_string();
    assert_eq!(detail, "expected at most 65536 tensors, found 70000");
}
