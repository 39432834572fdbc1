//! The header of a `.safetensors` file. What is accepted
//! - fits exactly one length of the file;
//! - is accepted by the reference implementation, with the same tensors;
//! - survives encoding and parsing.
#![no_main]

use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::Value;
use shardwright_format::checkpoint::header::{self, Header, PREFIX_LEN};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|json: &[u8]| {
    let path = Path::new("model.safetensors");
    let data_len = last_offset(json);
    let Some(file_len) = data_len.checked_add(PREFIX_LEN + json.len() as u64) else { return };
    let Ok(header) = header::parse(path, json, file_len) else { return };
    assert!(header::parse(path, json, file_len + 1).is_err(), "a file that is too long");
    assert!(header::parse(path, json, file_len - 1).is_err(), "a file that is too short");
    compare(json, &header);

    let tensors = header
        .tensors
        .iter()
        .map(|(name, t)| (name.as_str(), t.dtype, &t.shape[..]));
    let bytes =
        header::encode(path, &header.metadata, tensors).expect("what was parsed is encoded");
    let again = header::parse(path, &bytes[PREFIX_LEN as usize..], bytes.len() as u64 + data_len);
    assert_eq!(again.expect("what was encoded is parsed"), header);
});

/// The end of the last tensor's bytes, so that most inputs agree with their file.
fn last_offset(json: &[u8]) -> u64 {
    let Ok(Value::Object(tensors)) = serde_json::from_slice(json) else { return 0 };
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    tensors.values().filter_map(end).max().unwrap_or(0)
}

fn compare(json: &[u8], header: &Header) {
    let reference: safetensors::tensor::Metadata =
        serde_json::from_slice(json).expect("the reference implementation accepts it too");
    let tensors = reference.tensors();
    assert_eq!(tensors.len(), header.tensors.len());
    for (name, ours) in &header.tensors {
        let theirs = tensors[name];
        let shape: Vec<_> = theirs.shape.iter().map(|&d| d as u64).collect();
        assert_eq!(
            (shape, theirs.data_offsets),
            (ours.shape.clone(), (ours.begin as usize, ours.end as usize))
        );
        assert_eq!(format!("{:?}", theirs.dtype).to_lowercase(), ours.dtype.label().to_lowercase());
    }
}
