//! Values of a quantization's configuration.

use serde_json::Value;

use crate::refusal::{Refusal, mismatch};

/// The number `key` of a configuration, one of `known`.
pub(super) fn number(config: &Value, key: &str, known: &[u64]) -> Result<u64, Refusal> {
    let found = config.get(key);
    let number = found.and_then(Value::as_u64).filter(|n| known.contains(n));
    number.ok_or_else(|| {
        let known: Vec<_> = known.iter().map(u64::to_string).collect();
        mismatch(format_args!("one of {}", known.join(", ")), shown(found))
            .at(format_args!("`{key}`"))
    })
}

/// A value for an error message.
pub(super) fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}
