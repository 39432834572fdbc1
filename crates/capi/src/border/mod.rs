//! The functions that C calls. The header is made from this text: what is said here, C programmers read.

// A name that C can link to is unsafe in itself, since another library may have the same; all of ours begin with `sw_`.
#![allow(unsafe_code)]

mod bundle;
mod pointer;
mod runtime;

use std::ffi::{CStr, c_char};

pub use bundle::*;
pub use runtime::*;

use crate::status;

/// Changes with every change of a function or struct here. Compare it with `sw_abi()`.
pub const ABI: u32 = 2;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The `SW_ABI` that the library was made with: its header is another one unless they are equal.
#[unsafe(no_mangle)]
pub const extern "C" fn sw_abi() -> u32 {
    ABI
}

/// The library's version, such as `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_version() -> *const c_char {
    CStr::from_bytes_until_nul(VERSION.as_bytes())
        .unwrap_or_default()
        .as_ptr()
}

/// What went wrong in the latest call of this thread that failed, in one line; empty before the first. It names the
/// file, the tensor, what was expected and what was found. Valid until this thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn sw_last_error() -> *const c_char {
    status::last_error()
}
