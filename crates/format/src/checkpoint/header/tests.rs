use proptest::prelude::*;

use shardwright_quant::Float;

use super::*;
use crate::checkpoint::testing::raw_file;

const PATH: &str = "m.safetensors";

/// Parses header text in front of `data_len` bytes; gives the refusal.
fn refusal(json: &str, data_len: u64) -> String {
    let file_len = PREFIX_LEN + json.len() as u64 + data_len;
    parse(Path::new(PATH), json.as_bytes(), file_len)
        .unwrap_err()
        .to_string()
}

/// Header text of one F16 tensor.
fn one(shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"F16","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

/// Header text of two one-dimensional F16 tensors.
fn two(first: [u64; 2], second: [u64; 2]) -> String {
    let entry = |name, [begin, end]: [u64; 2]| {
        let len = (end - begin) / 2;
        format!(r#""{name}":{{"dtype":"F16","shape":[{len}],"data_offsets":[{begin},{end}]}}"#)
    };
    format!("{{{},{}}}", entry("a", first), entry("b", second))
}

#[test]
fn tensors_come_in_the_order_of_their_bytes_and_metadata_is_kept() {
    let json = r#"{"__metadata__":{"format":"pt"},
        "z":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}   "#;
    let header = parse(Path::new(PATH), json.as_bytes(), 8 + json.len() as u64 + 8).unwrap();
    assert_eq!(header.metadata, [("format".to_owned(), "pt".to_owned())]);
    let z = HeaderTensor { dtype: Float::Bf16.into(), shape: vec![2], begin: 0, end: 4 };
    let a = HeaderTensor { dtype: Float::F32.into(), shape: vec![], begin: 4, end: 8 };
    assert_eq!(header.tensors, [("z".to_owned(), z), ("a".to_owned(), a)]);
}

#[test]
fn lengths_past_the_file_or_the_limit_are_refused() {
    let len = |len: u64, file_len| {
        header_len(Path::new(PATH), len.to_le_bytes(), file_len).map_err(|e| e.to_string())
    };
    assert_eq!(len(92, 100), Ok(92));
    assert_eq!(
        len(93, 100).unwrap_err(),
        "m.safetensors: header length: expected at most 92 (the rest of the file), found 93"
    );
    assert_eq!(
        len(u64::MAX, 1 << 40).unwrap_err(),
        "m.safetensors: header length: expected at most 100000000 (the format's limit), found \
         18446744073709551615"
    );
}

#[test]
fn malformed_headers_are_refused() {
    assert_eq!(refusal("", 0), "m.safetensors: header: expected `{` first, found nothing");
    assert_eq!(refusal("[]", 0), "m.safetensors: header: expected `{` first, found byte 91");
    assert_eq!(
        refusal("{", 0),
        "m.safetensors: header: EOF while parsing an object at line 1 column 1"
    );
    assert_eq!(refusal("{}{}", 0), "m.safetensors: header: trailing characters at line 1 column 3");
    assert_eq!(
        refusal(r#"{"a":{"dtype":"F16","shape":[1]}}"#, 2),
        "m.safetensors: header: `a`: missing field `data_offsets` at line 1 column 32"
    );
    assert_eq!(
        refusal(r#"{"a":{"dtype":"F16","shape":[-1],"data_offsets":[0,0]}}"#, 0),
        "m.safetensors: header: `a`: invalid value: integer `-1`, expected u64 at line 1 column 31"
    );
    assert_eq!(
        refusal(r#"{"a":{"dtype":"F16","shape":[],"data_offsets":[0,2],"x":1}}"#, 2),
        "m.safetensors: header: `a`: unknown field `x`, expected one of `dtype`, `shape`, \
         `data_offsets` at line 1 column 55"
    );
}

#[test]
fn repetitions_are_refused() {
    let twice = two([0, 2], [2, 4]).replace(r#""b""#, r#""a""#);
    assert_eq!(
        refusal(&twice, 4),
        "m.safetensors: tensor `a`: its name appears twice in the header"
    );
    assert_eq!(
        refusal(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
        "m.safetensors: header: `__metadata__` appears twice at line 1 column 33"
    );
    assert_eq!(
        refusal(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0),
        "m.safetensors: header: `__metadata__`: `k` appears twice at line 1 column 28"
    );
    assert_eq!(
        refusal(r#"{"a":{"dtype":"F16","dtype":"F32","shape":[],"data_offsets":[0,2]}}"#, 2),
        "m.safetensors: header: `a`: duplicate field `dtype` at line 1 column 27"
    );
}

#[test]
fn an_unknown_dtype_is_named() {
    let json = one("[2]", "[0,2]").replace("F16", "F8_E3M4");
    assert_eq!(
        refusal(&json, 2),
        "m.safetensors: tensor `a`: unsupported dtype: expected one of F32, F16, BF16, F64, \
         F8_E4M3, F8_E5M2, F8_E8M0, BOOL, U8, I8, U16, I16, U32, I32, U64, I64, found `F8_E3M4`"
    );
}

#[test]
fn shapes_that_disagree_with_bytes_are_refused() {
    assert_eq!(
        refusal(&one("[2,3]", "[0,10]"), 10),
        "m.safetensors: tensor `a`: shape [2, 3] of F16 takes 12 bytes, data_offsets [0, 10] hold 10"
    );
    assert_eq!(
        refusal(&one("[4294967296,4294967296]", "[0,0]"), 0),
        "m.safetensors: tensor `a`: shape [4294967296, 4294967296]: its size in bytes leaves 64 bits"
    );
    assert_eq!(
        refusal(&one("[1]", "[4,2]"), 4),
        "m.safetensors: tensor `a`: data_offsets [4, 2]: the end comes before the beginning"
    );
}

#[test]
fn ranges_must_fill_the_data_exactly() {
    assert_eq!(
        refusal(&one("[4]", "[0,8]"), 6),
        "m.safetensors: tensor `a`: data_offsets [0, 8]: the file holds 6 bytes of data"
    );
    assert_eq!(
        refusal(&two([0, 4], [2, 6]), 6),
        "m.safetensors: tensor `b`: data_offsets [2, 6] overlap the tensors before them, which \
         end at 4"
    );
    assert_eq!(
        refusal(&two([0, 4], [6, 8]), 8),
        "m.safetensors: tensor `b`: data_offsets [6, 8] leave a gap after the tensors before them, \
         which end at 4"
    );
    assert_eq!(
        refusal(&one("[4]", "[0,8]"), 9),
        "m.safetensors: expected 8 bytes of data, as its tensors need, found 9"
    );
    assert_eq!(
        refusal(&one("[1]", "[2,4]"), 4),
        "m.safetensors: tensor `a`: data_offsets [2, 4] leave a gap after the tensors before them, \
         which end at 0"
    );
}

#[test]
fn files_too_short_for_a_length_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PATH);
    std::fs::write(&path, [0; 7]).unwrap();
    let refused = read(&ReadFile::open(&path).unwrap())
        .unwrap_err()
        .to_string();
    assert_eq!(
        refused,
        format!(
            "{}: expected at least 8 bytes, found 7, a download that has not ended: fetch it again",
            path.display()
        )
    );
    std::fs::write(&path, &raw_file(&one("[4]", "[0,8]"), 8)[..30]).unwrap();
    let refused = read(&ReadFile::open(&path).unwrap())
        .unwrap_err()
        .to_string();
    let expected = "header length: expected at most 22 (the rest of the file), found 54";
    assert_eq!(refused, format!("{}: {expected}", path.display()));
}

/// Tensors with distinct names; a dimension of 0 among them.
fn tensors() -> impl Strategy<Value = Vec<(String, Dtype, Vec<u64>)>> {
    let dtype = prop::sample::select(Dtype::ALL.to_vec());
    let tensor = (dtype, prop::collection::vec(0_u64..5, 0..4));
    prop::collection::btree_map("[a-z\"\\\\é.]{1,6}", tensor, 0..12).prop_map(|map| {
        map.into_iter()
            .map(|(name, (dtype, shape))| (name, dtype, shape))
            .collect()
    })
}

fn encoded(tensors: &[(String, Dtype, Vec<u64>)], metadata: &[(String, String)]) -> Vec<u8> {
    let tensors = tensors
        .iter()
        .map(|(name, dtype, shape)| (name.as_str(), *dtype, &shape[..]));
    encode(Path::new(PATH), metadata, tensors).unwrap()
}

fn parsed(bytes: &[u8], data_len: u64) -> Header {
    parse(Path::new(PATH), &bytes[8..], bytes.len() as u64 + data_len).unwrap()
}

proptest! {
    /// What is encoded is parsed, and once in the order of its bytes encodes to the same bytes.
    #[test]
    fn encoding_and_parsing_are_inverse(tensors in tensors(), note in "[ -~]{0,8}") {
        let metadata = vec![("format".to_owned(), note)];
        let bytes = encoded(&tensors, &metadata);
        let len = |(_, dtype, shape): &(_, Dtype, Vec<u64>)| byte_len(*dtype, shape).unwrap();
        let data_len = tensors.iter().map(len).sum();
        prop_assert_eq!(bytes.len() % 8, 0);
        let header = parsed(&bytes, data_len);
        prop_assert_eq!(&header.metadata, &metadata);
        let found: Vec<_> =
            header.tensors.iter().map(|(n, t)| (n.clone(), t.dtype, t.shape.clone())).collect();
        let sorted = |mut list: Vec<(String, Dtype, Vec<u64>)>| {
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list
        };
        prop_assert_eq!(sorted(found.clone()), sorted(tensors));
        let again = encoded(&found, &header.metadata);
        prop_assert_eq!(parsed(&again, data_len), header);
    }

    /// The safetensors crate reads what is written here.
    #[test]
    fn another_reader_agrees(tensors in tensors()) {
        let mut bytes = encoded(&tensors, &[]);
        let len = |(_, dtype, shape): &(_, Dtype, Vec<u64>)| byte_len(*dtype, shape).unwrap();
        let data_len: u64 = tensors.iter().map(len).sum();
        bytes.resize(bytes.len() + data_len as usize, 7);
        let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(other.len(), tensors.len());
        for (name, dtype, shape) in tensors {
            let view = other.tensor(&name).unwrap();
            prop_assert_eq!(view.dtype().to_string(), dtype.label());
            let dims: Vec<u64> = view.shape().iter().map(|&dim| dim as u64).collect();
            prop_assert_eq!(dims, shape);
        }
    }

    /// Nothing makes the parser panic.
    #[test]
    fn any_text_is_parsed_or_refused(json in "[{}\\[\\]\":,a-d0-9F_ -]{0,60}", data_len in 0_u64..9) {
        let _ = parse(Path::new(PATH), json.as_bytes(), 8 + json.len() as u64 + data_len);
    }
}
