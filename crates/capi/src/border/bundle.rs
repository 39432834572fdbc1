//! Bundles: opening, checking, what lies where, values and products.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

use super::pointer::{apart, given, path, place, room, text, utf8, values};
use crate::bundle::{Bundle, Extent, Place, Tensor};
use crate::compute;
use crate::status::{Failure, Status, guarded};

/// Told how many of all bytes were read, on the thread that called; not 0 to stop. It must return: neither an
/// exception nor `longjmp` may leave it.
pub type Progress = Option<extern "C" fn(user: *mut c_void, done: u64, total: u64) -> c_int>;

/// Opens the bundle in the directory `path`. Its manifest is read and checked whole (structure, shapes, its own
/// hash), and the sizes of its files; `sw_bundle_check` reads the files.
///
/// # Safety
/// `path` is a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sw_bundle_open(
    path: *const c_char,
    bundle: Option<&mut MaybeUninit<Box<Bundle>>>,
) -> Status {
    guarded(|| {
        let out = place(bundle, "bundle")?;
        // SAFETY: as this function demands.
        let given = unsafe { text(path, "path") }?;
        out.write(Box::new(Bundle::open(self::path(given))?));
        Ok(())
    })
}

/// Closes a bundle, or nothing where it is null. No other call may use it then or later; runtimes opened from it go on.
#[unsafe(no_mangle)]
pub extern "C" fn sw_bundle_close(bundle: Option<Box<Bundle>>) {
    guarded(|| {
        drop(bundle);
        Ok(())
    });
}

/// Reads every file of the bundle and holds it to its size and its BLAKE3. `progress` may be null; it is told
/// after each 4 MiB, and `SW_STATUS_STOPPED` comes back where it asks to stop.
#[unsafe(no_mangle)]
pub extern "C" fn sw_bundle_check(
    bundle: Option<&Bundle>,
    progress: Progress,
    user: *mut c_void,
) -> Status {
    guarded(|| {
        let go_on = |done, total| progress.is_none_or(|told| told(user, done, total) == 0);
        given(bundle, "bundle")?.check(go_on)
    })
}

/// How many tensors are listed; those of experts count once for a layer.
#[unsafe(no_mangle)]
pub extern "C" fn sw_tensor_count(
    bundle: Option<&Bundle>,
    count: Option<&mut MaybeUninit<usize>>,
) -> Status {
    guarded(|| {
        place(count, "count")?.write(given(bundle, "bundle")?.len());
        Ok(())
    })
}

/// Describes tensor number `index`, from 0.
#[unsafe(no_mangle)]
pub extern "C" fn sw_tensor_describe(
    bundle: Option<&Bundle>,
    index: usize,
    tensor: Option<&mut MaybeUninit<Tensor>>,
) -> Status {
    guarded(|| {
        place(tensor, "tensor")?.write(given(bundle, "bundle")?.describe(index)?);
        Ok(())
    })
}

/// The number of the tensor with a role, such as `expert.up_proj`, in a layer; -1 for what is in none. `expert` is 0 for
/// what is no expert's. Of the parts besides the text model, which have many tensors of one role, it is the first.
///
/// # Safety
/// `role` is a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sw_tensor_find(
    bundle: Option<&Bundle>,
    role: *const c_char,
    layer: i32,
    expert: u32,
    index: Option<&mut MaybeUninit<usize>>,
) -> Status {
    guarded(|| {
        let (bundle, out) = (given(bundle, "bundle")?, place(index, "index")?);
        // SAFETY: as this function demands.
        let role = utf8(unsafe { text(role, "role") }?, "role")?;
        out.write(bundle.find(role, layer, expert)?);
        Ok(())
    })
}

/// Where a tensor lies, of expert number `expert`; 0 for what is no expert's.
#[unsafe(no_mangle)]
pub extern "C" fn sw_tensor_place(
    bundle: Option<&Bundle>,
    tensor: usize,
    expert: u32,
    place: Option<&mut MaybeUninit<Place>>,
) -> Status {
    guarded(|| {
        self::place(place, "place")?.write(given(bundle, "bundle")?.place(tensor, expert)?);
        Ok(())
    })
}

/// Where an expert lies: one read gives all its tensors.
#[unsafe(no_mangle)]
pub extern "C" fn sw_expert_place(
    bundle: Option<&Bundle>,
    layer: u32,
    expert: u32,
    extent: Option<&mut MaybeUninit<Extent>>,
) -> Status {
    guarded(|| {
        place(extent, "extent")?.write(given(bundle, "bundle")?.expert(layer, expert)?);
        Ok(())
    })
}

/// Writes the values of `rows` rows of a tensor, from `first_row` on, row after row: `rows * cols` floats, for which
/// `out_len` says how much room there is. They are those that the runtime computes with, to the bit. The file is read
/// anew by each call, and not held to its hash.
///
/// # Safety
/// `out` is memory for `out_len` floats that nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sw_decode_rows(
    bundle: Option<&Bundle>,
    tensor: usize,
    expert: u32,
    first_row: u64,
    rows: u64,
    out: *mut f32,
    out_len: usize,
) -> Status {
    guarded(|| {
        let bundle = given(bundle, "bundle")?;
        let found = bundle.tensor(tensor, expert)?;
        let (total, cols) = (found.1.rows, found.1.cols);
        let end = first_row.checked_add(rows).filter(|end| *end <= total);
        let wrong = Failure::Rows { rows: total, first: first_row, count: rows };
        let rows = first_row..end.ok_or(wrong)?;
        // A valid manifest's tensors have fewer values than fit in 64 bits.
        let wanted = (rows.end - rows.start) * cols;
        // SAFETY: as this function demands.
        let out = unsafe { room(out, out_len, wanted) }?;
        compute::decode(bundle, found, rows, out)
    })
}

/// Multiplies rows of activations with a tensor: `x` is `[n, cols]`, `out` becomes `[n, rows]`, with `n` whatever
/// `x_len` is of `cols`. It is the product of the runtime: the sums have one order, so that results have the same
/// bits on every CPU and whatever rows go together. The file is read anew by each call, on the calling thread.
///
/// # Safety
/// `x` is `x_len` floats, `out` memory for `out_len` that nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sw_multiply(
    bundle: Option<&Bundle>,
    tensor: usize,
    expert: u32,
    x: *const f32,
    x_len: usize,
    out: *mut f32,
    out_len: usize,
) -> Status {
    guarded(|| {
        let bundle = given(bundle, "bundle")?;
        let found = bundle.tensor(tensor, expert)?;
        let (rows, cols) = (found.1.rows, found.1.cols);
        apart(x, x_len, out, out_len)?;
        // SAFETY: as this function demands.
        let x = unsafe { values(x, x_len, "x") }?;
        let n = x_len as u64 / cols.max(1);
        if n == 0 || n * cols != x_len as u64 {
            let detail = format!("expected whole rows of {cols} values, found {x_len} values");
            return Err(Failure::Argument { name: "x", detail });
        }
        let wanted = n.saturating_mul(rows);
        // SAFETY: as this function demands; it lies apart from `x`.
        let out = unsafe { room(out, out_len, wanted) }?;
        compute::multiply(bundle, found, x, out)
    })
}
