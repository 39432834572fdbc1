//! A view of a row-major matrix that can be split by columns, so that threads fill parts of it.

use std::marker::PhantomData;

/// The outputs `[n, width]` of a product: columns of a row-major matrix whose rows are at least as wide.
#[derive(Debug)]
pub struct Outputs<'a> {
    first: *mut f32,
    n: usize,
    width: usize,
    /// Values from the start of one row to the next; at least `width`.
    stride: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of its values, as `&mut [f32]` is, and `f32` may cross threads.
unsafe impl Send for Outputs<'_> {}

impl<'a> Outputs<'a> {
    /// All of `out`, `n` rows of equal length.
    ///
    /// # Panics
    /// When `n` does not divide the length.
    pub fn new(out: &'a mut [f32], n: usize) -> Self {
        assert!(n > 0 && out.len().is_multiple_of(n), "{} outputs in {n} rows", out.len());
        let width = out.len() / n;
        Self { first: out.as_mut_ptr(), n, width, stride: width, matrix: PhantomData }
    }

    /// Rows.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Columns.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// The columns before `at`, and the rest.
    ///
    /// # Panics
    /// When there are fewer columns.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.width, "column {at} of {}", self.width);
        // SAFETY: `at` is at most the width of the first row, which lies in the borrowed matrix. The two
        // views share no column, and `self` is consumed.
        let first = unsafe { self.first.add(at) };
        (Self { width: at, ..self }, Self { first, width: self.width - at, ..self })
    }

    /// The values of row `row`.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.n, "row {row} of {}", self.n);
        // SAFETY: row `row` begins `stride` values after the one before and is `width` long, all of it
        // within the borrowed matrix; no other view has these columns, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.width) }
    }
}
