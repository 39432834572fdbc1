//! The record of a calibration, as manifests and statistics hold it. What is accepted survives encoding and parsing,
//! and no field is read over.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use serde_json::Value;
use shardwright_format::manifest::Calibration;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(record) = serde_json::from_slice::<Calibration>(data) else { return };
    let json = serde_json::to_value(&record).expect("a record is JSON");
    assert_eq!(serde_json::from_value::<Calibration>(json.clone()).expect("what was written is read"), record);
    let given: Value = serde_json::from_slice(data).expect("it is JSON");
    // A list of values in their order is serde's other spelling of a record.
    if given.is_object() {
        assert_eq!(shardwright_fuzz::lost(&given, &json), None, "a field was read over");
    }
});
