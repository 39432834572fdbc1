//! Pointers from C, made references after they were looked at.

use std::ffi::{CStr, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::status::Failure;

/// What a pointer leads to.
pub fn given<T>(pointer: Option<T>, name: &'static str) -> Result<T, Failure> {
    pointer.ok_or(Failure::Null(name))
}

/// Where a result goes.
pub fn place<'a, T>(
    pointer: Option<&'a mut MaybeUninit<T>>,
    name: &'static str,
) -> Result<&'a mut MaybeUninit<T>, Failure> {
    given(pointer, name)
}

/// The text at a pointer.
///
/// # Safety
/// Unless it is null, `text` leads to bytes that end with a zero and stay as they are for `'a`.
pub unsafe fn text<'a>(text: *const c_char, name: &'static str) -> Result<&'a CStr, Failure> {
    if text.is_null() {
        return Err(Failure::Null(name));
    }
    // SAFETY: not null, and the caller vouches for the zero and for the time.
    Ok(unsafe { CStr::from_ptr(text) })
}

/// A path, in whatever bytes the system has for it.
pub fn path(text: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}

/// A text that people read.
pub fn utf8<'a>(text: &'a CStr, name: &'static str) -> Result<&'a str, Failure> {
    let wrong = |e: std::str::Utf8Error| Failure::Argument {
        name,
        detail: format!("expected UTF-8, found another byte at {}", e.valid_up_to()),
    };
    text.to_str().map_err(wrong)
}

/// `len` values at a pointer.
///
/// # Safety
/// Unless it is null, `values` leads to `len` values that stay as they are for `'a`.
pub unsafe fn values<'a>(
    values: *const f32,
    len: usize,
    name: &'static str,
) -> Result<&'a [f32], Failure> {
    usable(values, len, name)?;
    // SAFETY: not null, aligned, no longer than memory can be, and the caller vouches for the values.
    Ok(unsafe { std::slice::from_raw_parts(values, len) })
}

/// Room for the `wanted` values of a result, of the `len` that there is room for; zeros until then.
///
/// # Safety
/// Unless it is null, `out` leads to memory for `len` values that nobody else uses for `'a`.
pub unsafe fn room<'a>(out: *mut f32, len: usize, wanted: u64) -> Result<&'a mut [f32], Failure> {
    usable(out, len, "out")?;
    let short = || Failure::Buffer { expected: wanted, found: len as u64 };
    let wanted = usize::try_from(wanted).ok().filter(|wanted| *wanted <= len);
    let wanted = wanted.ok_or_else(short)?;
    // SAFETY: not null, aligned, no longer than what the caller vouches for; the zeros make memory that
    // nobody has written to a slice of values.
    unsafe {
        out.write_bytes(0, wanted);
        Ok(std::slice::from_raw_parts_mut(out, wanted))
    }
}

/// Refuses what can be no array of values.
fn usable(pointer: *const f32, len: usize, name: &'static str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null(name));
    }
    let wrong = |detail: String| Err(Failure::Argument { name, detail });
    if !pointer.is_aligned() {
        return wrong("expected a pointer to floats, found one between them".to_owned());
    }
    let bytes = len.checked_mul(size_of::<f32>());
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return wrong(format!("expected fewer values, found {len}"));
    }
    Ok(())
}

/// Refuses a result that would overwrite the values it is made from.
pub fn apart(x: *const f32, x_len: usize, out: *const f32, out_len: usize) -> Result<(), Failure> {
    let range = |first: *const f32, len: usize| {
        let first = first.addr();
        first..first.saturating_add(len.saturating_mul(size_of::<f32>()))
    };
    let (x, out) = (range(x, x_len), range(out, out_len));
    if x.end <= out.start || out.end <= x.start {
        return Ok(());
    }
    let detail = "expected memory apart from x, found some of it".to_owned();
    Err(Failure::Argument { name: "out", detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    #[test]
    fn what_is_no_array_is_refused() {
        let mut values = [7.0f32; 4];
        let out = values.as_mut_ptr();
        let status = |outcome: Result<(), Failure>| outcome.map_err(|e| e.status());
        assert_eq!(status(usable(std::ptr::null(), 0, "x")), Err(Status::Argument));
        assert_eq!(status(usable(out, usize::MAX, "x")), Err(Status::Argument));
        let between = out.wrapping_byte_add(1);
        assert_eq!(status(usable(between, 1, "x")), Err(Status::Argument));
        assert_eq!(status(apart(out, 2, out.wrapping_add(1), 3)), Err(Status::Argument));
        assert_eq!(status(apart(out, 2, out.wrapping_add(2), 2)), Ok(()));
        // SAFETY: the memory is that of `values`, which nobody else uses meanwhile.
        let short = unsafe { room(out, 4, 5) }.map(|_| ());
        assert_eq!(status(short), Err(Status::Buffer));
        // SAFETY: as above.
        let given = unsafe { room(out, 4, 3) }.unwrap();
        assert_eq!(given.len(), 3);
        assert_eq!(values.map(f32::to_bits), [0.0f32, 0.0, 0.0, 7.0].map(f32::to_bits));
    }
}
