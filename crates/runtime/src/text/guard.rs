//! Between a stranger's tokenizer and a library that may panic over it.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use serde::Deserialize;
use serde_json::Value;
use shardwright_format::{Refusal, mismatch};

thread_local! {
    /// Whether a panic of this thread is expected, and nobody's business.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives; none where it panics, of which nothing is printed.
pub(super) fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    // What was half done is not used again: callers end with an error.
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    result.ok()
}

/// Refuses tables of precompiled normalizers that say they are longer than they are, for which the
/// library asks for memory before it reads them. A table is base64: length u32, so many bytes, text.
pub(super) fn check_charsmaps(json: &[u8]) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        normalizer: Value,
    }
    let Head { normalizer } = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let mut left = vec![&normalizer];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(members) => {
                if let Some(Value::String(table)) = members.get("precompiled_charsmap") {
                    check_charsmap(table)?;
                }
                left.extend(members.values());
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_charsmap(table: &str) -> Result<(), Refusal> {
    let len = table.len() as u64 / 4 * 3;
    // Six digits of 6 bits are more than four bytes, highest bits first.
    let mut digits = table.bytes().take(6).map(digit);
    let first = digits.try_fold(0u64, |bits, digit| Some(bits << 6 | digit?));
    let first = first.filter(|_| table.len() >= 8).map(|bits| bits >> 4);
    let found = first.map(|bits| u64::from((bits as u32).swap_bytes()));
    match found {
        Some(found) if found + 4 <= len => Ok(()),
        Some(found) => {
            Err(mismatch(format_args!("at most {len} bytes"), found).at("precompiled_charsmap"))
        }
        None => Err("precompiled_charsmap: expected base64 of a table".into()),
    }
}

/// What a digit of base64 stands for.
const fn digit(digit: u8) -> Option<u64> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    } as u64)
}
