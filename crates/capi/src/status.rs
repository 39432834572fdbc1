//! What a call came to: a code for programs, a line of text for people.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use shardwright_format::FormatError;
use shardwright_quant::{EncodingError, MatrixError};
use shardwright_runtime::RuntimeError;

/// What a call came to. Only with `SW_STATUS_OK` has it written its results.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A pointer that must not be null is, or a value means nothing.
    Argument = 1,
    /// An index, expert, layer or row that the bundle does not have.
    Range = 2,
    /// The caller's memory is too small for the result. Nothing was written to it.
    Buffer = 3,
    /// The operating system refused to open or read a file.
    Io = 4,
    /// The path holds no bundle, or one that is damaged.
    Bundle = 5,
    /// The memory budget is below the least that works, which the text says.
    Memory = 6,
    /// The prompt is longer than the context.
    Context = 7,
    /// The runtime is at work in another call: of another thread, or the one whose callback this is.
    Busy = 8,
    /// A callback asked to stop.
    Stopped = 9,
    /// The model or its tokenizer cannot be run, or an earlier failure left the runtime unusable.
    Model = 10,
    /// A defect of the library. Close the handle; others are not affected.
    Internal = 11,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// No pointer where there must be one.
    #[error("{0}: expected a pointer, found null")]
    Null(&'static str),
    /// A value that means nothing.
    #[error("{name}: {detail}")]
    Argument {
        /// Of the header.
        name: &'static str,
        /// Expected and found.
        detail: String,
    },
    /// Nothing has that number.
    #[error("{name}: expected one below {count}, found {found}")]
    Range {
        /// Of the header.
        name: &'static str,
        /// How many there are.
        count: u64,
        /// The number given.
        found: u64,
    },
    /// Rows that a tensor does not have.
    #[error("rows: expected some of {rows}, found {count} from {first}")]
    Rows {
        /// Rows of the tensor.
        rows: u64,
        /// First row asked for.
        first: u64,
        /// Rows asked for.
        count: u64,
    },
    /// No tensor or layer of that kind.
    #[error("the bundle has no {0}")]
    Missing(String),
    /// Too little room for the result.
    #[error("out: expected room for {expected} values, found {found}")]
    Buffer {
        /// Values of the result.
        expected: u64,
        /// Values that there is room for.
        found: u64,
    },
    /// More tokens than positions.
    #[error(
        "the prompt has {found} tokens: expected at most {context}, the context of the runtime"
    )]
    Prompt {
        /// Tokens of the prompt.
        found: usize,
        /// Positions that there is room for.
        context: usize,
    },
    /// Somebody else uses the runtime.
    #[error("the runtime is at work in another call")]
    Busy,
    /// A callback asked for it.
    #[error("stopped by the callback")]
    Stopped,
    /// The bundle cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An encoding cannot hold a tensor.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// Bytes are not the matrix that they should be.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// The library panicked.
    #[error("a defect of the library: {0}")]
    Panic(String),
}

impl Failure {
    /// The code that the caller sees.
    pub const fn status(&self) -> Status {
        match self {
            Self::Null(_) | Self::Argument { .. } => Status::Argument,
            Self::Range { .. } | Self::Rows { .. } | Self::Missing(_) => Status::Range,
            Self::Buffer { .. } => Status::Buffer,
            Self::Prompt { .. } | Self::Runtime(RuntimeError::Context { .. }) => Status::Context,
            Self::Busy => Status::Busy,
            Self::Stopped => Status::Stopped,
            Self::Format(e) | Self::Runtime(RuntimeError::Format(e)) => of_format(e),
            Self::Runtime(RuntimeError::Budget { .. }) => Status::Memory,
            Self::Runtime(RuntimeError::Panicked) | Self::Panic(_) => Status::Internal,
            Self::Runtime(_) => Status::Model,
            Self::Encoding(_) | Self::Matrix(_) => Status::Bundle,
        }
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Self::Panic(text.unwrap_or("a panic without words").to_owned())
    }
}

const fn of_format(error: &FormatError) -> Status {
    match error {
        FormatError::Io { .. } => Status::Io,
        _ => Status::Bundle,
    }
}

thread_local! {
    /// The text of the latest call of this thread that failed.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a call to its end, whatever that is: an error's text is kept for [`last_error`], and a panic is an error.
pub fn guarded(call: impl FnOnce() -> Result<(), Failure>) -> Status {
    // Handles that a panic may have left half-changed lie behind a lock, which it poisons.
    let outcome = catch_unwind(AssertUnwindSafe(call));
    match outcome.unwrap_or_else(|payload| Err(Failure::panicked(&*payload))) {
        Ok(()) => Status::Ok,
        Err(failure) => {
            let text = c_text(&failure.to_string());
            let _ = LAST.try_with(|last| last.replace(text));
            failure.status()
        }
    }
}

/// The text of the latest call of this thread that failed; empty before the first.
pub fn last_error() -> *const c_char {
    let text = LAST.try_with(|last| last.borrow().as_ptr());
    text.unwrap_or(CStr::as_ptr(c""))
}

/// Text for C, which ends at its first zero byte: those inside are shown as what cannot be read.
pub fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn a_panic_ends_at_the_border_with_its_text() {
        let status = guarded(|| panic!("as {} as that", "bad"));
        assert_eq!(status, Status::Internal);
        let text = LAST.with(|last| last.borrow().clone());
        assert_eq!(text.to_str(), Ok("a defect of the library: as bad as that"));
    }

    #[test]
    fn each_thread_has_its_own_text_which_success_leaves() {
        assert_eq!(guarded(|| Err(Failure::Busy)), Status::Busy);
        assert_eq!(guarded(|| Ok(())), Status::Ok);
        let here = || LAST.with(|last| last.borrow().clone());
        assert_eq!(std::thread::spawn(here).join().unwrap(), CString::default());
        assert_eq!(here().to_str(), Ok("the runtime is at work in another call"));
    }

    #[test]
    fn texts_end_where_they_end() {
        assert_eq!(c_text("a\0b").to_str(), Ok("a\u{fffd}b"));
    }
}
