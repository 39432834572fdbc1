//! Runtimes: text under a memory budget.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

use super::pointer::{given, place, text, utf8};
use crate::bundle::Bundle;
use crate::generate::{Generated, Request, Runtime, Settings};
pub use crate::generate::{IGNORE_END, NO_TOKEN, RAW_PROMPT};
use crate::status::{Status, guarded};

/// Told each token of a text with the text that it completes, on the thread that called: `len` bytes of UTF-8, and a
/// zero behind them. A character of several tokens comes with the last of these, so a text may be empty; what is left at the end
/// comes with `SW_NO_TOKEN`, and so does an empty text after each piece of a long prompt. Not 0 to stop. It must
/// return: neither an exception nor `longjmp` may leave it.
pub type OnToken =
    Option<extern "C" fn(user: *mut c_void, token: u32, text: *const c_char, len: usize) -> c_int>;

/// Opens the bundle's model to generate text: reads its tokenizer, and what stays in memory. `settings` may be null,
/// for zeros. The bundle may be closed while the runtime is open.
#[unsafe(no_mangle)]
pub extern "C" fn sw_runtime_open(
    bundle: Option<&Bundle>,
    settings: Option<&Settings>,
    runtime: Option<&mut MaybeUninit<Box<Runtime>>>,
) -> Status {
    guarded(|| {
        let (bundle, out) = (given(bundle, "bundle")?, place(runtime, "runtime")?);
        let settings = settings.copied().unwrap_or_default();
        out.write(Box::new(Runtime::open(bundle, settings)?));
        Ok(())
    })
}

/// Closes a runtime, or nothing where it is null. No other call may use it then or later.
#[unsafe(no_mangle)]
pub extern "C" fn sw_runtime_close(runtime: Option<Box<Runtime>>) {
    guarded(|| {
        drop(runtime);
        Ok(())
    });
}

/// Generates the text that follows `prompt`, which each call computes from its beginning. `generated` may be null.
/// A text that the callback stopped is no failure: `stop` says so.
///
/// # Safety
/// `prompt` is a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sw_generate(
    runtime: Option<&Runtime>,
    prompt: *const c_char,
    request: Option<&Request>,
    on_token: OnToken,
    user: *mut c_void,
    generated: Option<&mut MaybeUninit<Generated>>,
) -> Status {
    guarded(|| {
        let (runtime, request) = (given(runtime, "runtime")?, given(request, "request")?);
        let told = given(on_token, "on_token")?;
        // SAFETY: as this function demands.
        let prompt = utf8(unsafe { text(prompt, "prompt") }?, "prompt")?;
        let mut shown = Vec::new();
        let mut emit = |token, text: &str| {
            shown.clear();
            shown.extend_from_slice(text.as_bytes());
            shown.push(0);
            told(user, token, shown.as_ptr().cast(), text.len()) == 0
        };
        let done = runtime.generate(prompt, *request, &mut emit)?;
        if let Some(generated) = generated {
            generated.write(done);
        }
        Ok(())
    })
}
