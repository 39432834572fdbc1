//! Matrix-matrix products by the `gemm` crate, behind checked slices.

/// `out = x · wᵀ` for `x: [n, cols]`, `w: [rows, cols]` and `out: [n, rows]`, all row-major `f32`,
/// on the calling thread. Sums are not in [`crate::dot`]'s order.
///
/// # Panics
/// When a length disagrees with the shapes.
pub fn gemm(x: &[f32], w: &[f32], cols: usize, out: &mut [f32]) {
    assert!(cols > 0 && x.len().is_multiple_of(cols) && w.len().is_multiple_of(cols));
    let (n, rows) = (x.len() / cols, w.len() / cols);
    assert_eq!(out.len(), n * rows, "outputs of {n} x {cols} times {rows} x {cols}");
    let (stride, width) = (cols.cast_signed(), rows.cast_signed());
    // SAFETY: the asserts above make every index `row * stride + column` of the three shapes lie
    // inside its slice, and `out` is exclusive.
    unsafe {
        gemm::gemm(
            n,
            rows,
            cols,
            out.as_mut_ptr(),
            1,
            width,
            false,
            x.as_ptr(),
            1,
            stride,
            w.as_ptr(),
            stride,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
