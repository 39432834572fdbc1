//! Reads rows of a [`SourceView`]: one matrix inside a tensor, which may be strided or transposed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use shardwright_quant::{Encoding, Float, Parts};

use super::Checkpoint;
use super::decode::{CodeRows, Decoding, Fetch};
use super::files::TensorInfo;
use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
use crate::io::AlignedBuf;
use crate::refusal::{Refusal, mismatch};
use crate::unit::{SourceView, TensorEntry, UnitLayout};

/// Most bytes held of a source that is gathered.
const GATHER_LEN: usize = 4 << 20;
/// A run this much shorter than the step to the next is read alone instead of with what lies
/// between.
const SPARSE_STEP: u64 = 8;

/// Makes `out` the given rows of a `view` with `cols` columns: row-major values of its dtype.
///
/// # Errors
/// A view that does not fit the checkpoint's tensor, rows outside it, and what the operating
/// system refuses.
pub fn read_view(
    checkpoint: &Checkpoint,
    view: &SourceView,
    rows: Range<u64>,
    cols: u64,
    out: &mut AlignedBuf,
) -> Result<()> {
    read_view_through(checkpoint, view, rows, cols, out, &mut fetch_from(checkpoint))
}

/// Makes `buf` hold the tensors of a unit as `layout` places them: values in the checkpoint's types, or
/// codes where that is their encoding, see [`SourceView::codes`]. What lies between them is unspecified.
///
/// # Errors
/// As [`read_view`].
pub(crate) fn read_unit(
    checkpoint: &Checkpoint,
    layout: &UnitLayout,
    buf: &mut AlignedBuf,
) -> Result<()> {
    buf.resize(layout.len as usize);
    for tensor in layout.tensors.iter() {
        let rows = ViewRows::new(checkpoint, &tensor.source, 0..tensor.rows, tensor.cols)?;
        let len = rows.stored_len(tensor.encoding)?;
        let out = &mut buf.as_mut_slice()[tensor.offset as usize..][..len];
        rows.read_stored(tensor.encoding, out, &mut fetch_from(checkpoint))?;
    }
    Ok(())
}

/// Makes `out` some rows of a tensor, as [`read_unit`] would have them: a matrix of their own.
///
/// # Errors
/// As [`read_view`].
pub(crate) fn read_rows(
    checkpoint: &Checkpoint,
    tensor: &TensorEntry,
    rows: Range<u64>,
    out: &mut AlignedBuf,
) -> Result<()> {
    let rows = ViewRows::new(checkpoint, &tensor.source, rows, tensor.cols)?;
    out.resize(rows.stored_len(tensor.encoding)?);
    rows.read_stored(tensor.encoding, out.as_mut_slice(), &mut fetch_from(checkpoint))
}

/// The encoding of a tensor's own codes in the source, where those surely give each of its values and rows can be read
/// alone.
///
/// # Errors
/// As [`read_view`], where an index gives the group of each column, and a group that there is not.
pub(crate) fn own_codes(checkpoint: &Checkpoint, tensor: &TensorEntry) -> Result<Option<Encoding>> {
    let (view, cols) = (&tensor.source, tensor.cols);
    let ordered = view.decoder.as_ref().and_then(Decoder::without_order);
    let own = match ordered {
        Some(ordered) => {
            let own = view.codes_by(cols, |_, cols| ordered.sure_codes(cols));
            // The index is read only where it decides.
            let in_order = own.is_some() && columns_in_order(checkpoint, view)?;
            own.filter(|_| in_order)
        }
        None => view.codes_by(cols, Decoder::sure_codes),
    };
    Ok(own.filter(|own| own.row_block() == 1))
}

/// Whether the columns of a view whose source gives the group of each lie in the order of their groups.
fn columns_in_order(checkpoint: &Checkpoint, view: &SourceView) -> Result<bool> {
    let rows = ViewRows::new(checkpoint, view, 0..0, 0)?;
    match &rows.decoding {
        Some(decoding) => decoding.columns_in_order(&mut fetch_from(checkpoint)),
        None => Ok(true),
    }
}

/// As [`read_view`], with the files' bytes from `fetch`.
///
/// # Errors
/// As [`read_view`], and what `fetch` refuses.
pub fn read_view_through(
    checkpoint: &Checkpoint,
    view: &SourceView,
    rows: Range<u64>,
    cols: u64,
    out: &mut AlignedBuf,
    fetch: &mut Fetch<'_>,
) -> Result<()> {
    let view_rows = ViewRows::new(checkpoint, view, rows, cols)?;
    out.resize(view_rows.byte_len());
    view_rows.read(out.as_mut_slice(), fetch)
}

/// A plain tensor in a file that is written.
#[derive(Clone, Copy, Debug)]
pub struct TensorFile<'a> {
    /// The file's path, for errors.
    pub path: &'a Path,
    /// The file, open for both ways.
    pub file: &'a File,
    /// Where in it the tensor starts.
    pub offset: u64,
    /// Bytes of a value.
    pub size: usize,
}

impl TensorFile<'_> {
    fn read(&self, value: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(bytes, self.at(value));
        read.map_err(|e| FormatError::io(self.path, e))
    }

    /// Writes values from number `value` on, as they lie in the file.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, value: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, self.at(value));
        written.map_err(|e| FormatError::io(self.path, e))
    }

    const fn at(&self, value: u64) -> u64 {
        self.offset + value * self.size as u64
    }
}

/// The inverse of [`read_view`]: puts `bytes`, the given rows of a view, row-major, where they lie in
/// their tensor. What lies between them stays.
///
/// # Errors
/// What the operating system refuses.
pub fn write_view(
    view: &SourceView,
    rows: Range<u64>,
    bytes: &[u8],
    to: &TensorFile<'_>,
) -> Result<()> {
    let count = (rows.end - rows.start) as usize;
    let row = bytes.len() / count.max(1);
    let (cols, first) = ((row / to.size) as u64, view.start + rows.start * view.row_stride);
    if view.col_stride == 1 && (view.row_stride == cols || count == 1) {
        return to.write(first, bytes);
    }
    if view.col_stride == 1 {
        let mut rows = (0..).zip(bytes.chunks_exact(row));
        return rows.try_for_each(|(r, row)| to.write(first + r * view.row_stride, row));
    }
    // Transposed: a column's values lie together, or `step` apart among those of other views, which
    // are read and written back.
    let step = view.row_stride.max(1) as usize;
    let mut around = vec![0; (count.saturating_sub(1) * step + 1) * to.size];
    for c in 0..cols {
        let at = first + c * view.col_stride;
        if step > 1 {
            to.read(at, &mut around)?;
        }
        let column = bytes.chunks_exact(to.size).skip(c as usize);
        let column = column.step_by(cols as usize);
        let places = around.chunks_exact_mut(to.size).step_by(step);
        places
            .zip(column)
            .for_each(|(to, from)| to.copy_from_slice(from));
        to.write(at, &around)?;
    }
    Ok(())
}

/// Rows of a view whose source has codes that mean the same in the encoding of
/// [`SourceView::codes`]: a matrix in it, with biases rounded where the source has none. None if
/// there is no such encoding.
///
/// # Errors
/// As [`read_view_through`].
pub fn read_codes(
    checkpoint: &Checkpoint,
    view: &SourceView,
    rows: Range<u64>,
    cols: u64,
    fetch: &mut Fetch<'_>,
) -> Result<Option<Vec<u8>>> {
    let view_rows = ViewRows::new(checkpoint, view, rows, cols)?;
    let Some(encoding) = view.codes(cols) else { return Ok(None) };
    let mut out = vec![0; view_rows.stored_len(encoding)?];
    view_rows.read_stored(encoding, &mut out, fetch)?;
    Ok(Some(out))
}

/// Where the bytes lie that some rows of a `view` are made of, and others of the same matrices:
/// files by number and ranges in them.
///
/// # Errors
/// As [`read_view`].
pub fn view_extents(
    checkpoint: &Checkpoint,
    view: &SourceView,
    rows: Range<u64>,
    cols: u64,
) -> Result<Vec<(usize, Range<u64>)>> {
    Ok(ViewRows::new(checkpoint, view, rows, cols)?.extents())
}

/// Reads a checkpoint's files through the page cache.
fn fetch_from(checkpoint: &Checkpoint) -> impl FnMut(usize, u64, &mut [u8]) -> Result<()> {
    |file, offset, out| checkpoint.files()[file].file.read_at(offset, out)
}

/// A checked set of rows of a view: element `(r, c)` is the value at
/// `first + r * row_stride + c * col_stride` of the file's tensor, inside it for every element.
struct ViewRows<'a> {
    path: &'a Path,
    name: &'a str,
    info: &'a TensorInfo,
    decoding: Option<Decoding<'a>>,
    size: usize,
    first: u64,
    rows: u64,
    cols: u64,
    row_stride: u64,
    col_stride: u64,
}

impl<'a> ViewRows<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        view: &SourceView,
        rows: Range<u64>,
        cols: u64,
    ) -> Result<Self> {
        let found = checkpoint.tensors().get_key_value(&view.tensor);
        let (name, info) = found.ok_or_else(|| {
            FormatError::tensor(
                checkpoint.root(),
                &view.tensor,
                "the checkpoint has no such tensor",
            )
        })?;
        let path = checkpoint.path_of(info);
        let refuse = |detail: Refusal| FormatError::tensor(path, &view.tensor, detail);
        check_same(info, view).map_err(refuse)?;
        let count = rows.end.checked_sub(rows.start);
        let first = count.and_then(|count| first_value(info, view, rows.start, count, cols));
        let (Some(first), Some(count)) = (first, count) else {
            let detail =
                format!("rows {rows:?} of {cols} columns lie outside shape {:?}", info.shape);
            return Err(refuse(detail.into()));
        };
        let decoding = info.decoder.as_ref();
        let decoding = decoding.map(|decoder| Decoding::new(checkpoint, info, decoder));
        Ok(Self {
            path,
            name,
            info,
            decoding: decoding.transpose()?,
            size: info.dtype.size(),
            first,
            rows: count,
            cols,
            row_stride: view.row_stride,
            col_stride: view.col_stride,
        })
    }

    /// Bytes of the rows, packed.
    const fn byte_len(&self) -> usize {
        self.rows as usize * self.cols as usize * self.size
    }

    /// Fills `out`, [`Self::byte_len`] bytes.
    fn read(&self, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if self.col_stride == 1 && (self.row_stride == self.cols || self.rows == 1) {
            return self.values(self.first, out, fetch);
        }
        if self.col_stride == 1 {
            return self.slices(out, fetch);
        }
        match self.size {
            2 => self.gather::<2>(out.as_chunks_mut().0, fetch),
            _ => self.gather::<4>(out.as_chunks_mut().0, fetch),
        }
    }

    /// Bytes of the rows in an encoding, packed: that of their values, or [`SourceView::codes`].
    fn stored_len(&self, encoding: Encoding) -> Result<usize> {
        Ok(self.parts(encoding)?.total() as usize)
    }

    fn parts(&self, encoding: Encoding) -> Result<Parts> {
        let parts = encoding.parts(self.rows, self.cols);
        parts.map_err(|e| FormatError::tensor(self.path, self.name, e.to_string()))
    }

    /// Fills `out`, [`Self::stored_len`] bytes of that encoding.
    fn read_stored(&self, encoding: Encoding, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        match &self.decoding {
            Some(decoding) if encoding.float().is_none() => {
                let cols = self.cols.max(1);
                let rows = (self.first / cols, self.row_stride / cols, self.rows);
                let mut out = CodeRows::new(self.parts(encoding)?, out);
                decoding.code_rows(encoding, rows, &mut out, fetch)
            }
            _ => self.read(out, fetch),
        }
    }

    /// Rows that lie in order with others between them: read with those where they are few, else
    /// each alone. What lies between is never decoded.
    fn slices(&self, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        let (row, step) = (self.cols as usize * self.size, self.row_stride as usize * self.size);
        // Rows that overlap, or are one, come from no conversion; they are read one by one.
        let dense = (row..row.saturating_mul(SPARSE_STEP as usize)).contains(&step)
            && self.decoding.is_none();
        let together = if dense { (GATHER_LEN / step.max(1)).max(1) } else { 1 };
        let mut block = Vec::new();
        for (at, out) in (0..).step_by(together).zip(out.chunks_mut(together * row)) {
            let first = self.first + at * self.row_stride;
            if out.len() == row {
                self.values(first, out, fetch)?;
                continue;
            }
            block.resize((out.len() / row - 1) * step + row, 0);
            self.values(first, &mut block, fetch)?;
            for (out, block) in out.chunks_exact_mut(row).zip(block.chunks(step)) {
                out.copy_from_slice(&block[..row]);
            }
        }
        Ok(())
    }

    /// Fills `out` with values of the tensor from number `first` on.
    fn values(&self, first: u64, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        match &self.decoding {
            Some(decoding) => decoding.values(first, out, fetch),
            None => fetch(self.info.file, self.at(first), out),
        }
    }

    /// The byte in the file at which value `index` of a plain tensor starts.
    const fn at(&self, index: u64) -> u64 {
        self.info.offset + index * self.size as u64
    }

    /// Files and bytes between which the rows lie.
    fn extents(&self) -> Vec<(usize, Range<u64>)> {
        let (Some(rows), Some(cols)) = (self.rows.checked_sub(1), self.cols.checked_sub(1)) else {
            return Vec::new();
        };
        let end = self.first + rows * self.row_stride + cols * self.col_stride + 1;
        match &self.decoding {
            Some(decoding) => decoding.extents(self.first, end),
            None => vec![(self.info.file, self.at(self.first)..self.at(end))],
        }
    }

    /// Transposes: the values of one column lie together, those of one row far apart.
    fn gather<const SIZE: usize>(
        &self,
        out: &mut [[u8; SIZE]],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let run = (self.rows - 1) * self.row_stride + 1;
        let dense = run.saturating_mul(SPARSE_STEP) >= self.col_stride;
        let room = (GATHER_LEN / SIZE) as u64;
        let fit = room.saturating_sub(run) / self.col_stride.max(1) + 1;
        let step = if dense { fit.min(self.cols) } else { 1 };
        let mut block = vec![[0; SIZE]; ((step - 1) * self.col_stride + run) as usize];
        for first_col in (0..self.cols).step_by(step as usize) {
            let cols = step.min(self.cols - first_col);
            let block = &mut block[..((cols - 1) * self.col_stride + run) as usize];
            let start = self.first + first_col * self.col_stride;
            self.values(start, block.as_flattened_mut(), fetch)?;
            self.scatter(block, out, first_col as usize, cols as usize);
        }
        Ok(())
    }

    /// Puts `cols` columns of `block` at column `first_col` of the row-major `out`.
    fn scatter<T: Copy>(&self, block: &[T], out: &mut [T], first_col: usize, cols: usize) {
        /// Columns whose runs stay in the nearest cache while the rows go by.
        const TILE: usize = 16;
        let (row_stride, col_stride) = (self.row_stride as usize, self.col_stride as usize);
        for tile in (0..cols).step_by(TILE) {
            let end = cols.min(tile + TILE);
            for (r, row) in out.chunks_exact_mut(self.cols as usize).enumerate() {
                let row = &mut row[first_col + tile..first_col + end];
                for (c, value) in (tile..end).zip(row) {
                    *value = block[c * col_stride + r * row_stride];
                }
            }
        }
    }
}

fn check_same(info: &TensorInfo, view: &SourceView) -> Result<(), Refusal> {
    if (info.dtype, &info.shape, &info.decoder) == (view.dtype, &view.shape, &view.decoder) {
        return Ok(());
    }
    let describe = |dtype: Float, shape: &[u64], decoder: Option<&Decoder>| {
        let decoder = decoder.map_or_else(String::new, |d| format!(" from {}", d.label()));
        format!("{} {shape:?}{decoder}", dtype.name())
    };
    let expected = describe(view.dtype, &view.shape, view.decoder.as_ref());
    let found = describe(info.dtype, &info.shape, info.decoder.as_ref());
    Err(mismatch(expected, found))
}

/// The first value of `count` rows from `row`; none unless all of them lie inside the tensor and
/// are no more values than it has.
fn first_value(
    info: &TensorInfo,
    view: &SourceView,
    row: u64,
    count: u64,
    cols: u64,
) -> Option<u64> {
    let values = info.values();
    if count.checked_mul(cols)? > values {
        return None;
    }
    let first = view.start.checked_add(row.checked_mul(view.row_stride)?)?;
    let (Some(last_row), Some(last_col)) = (count.checked_sub(1), cols.checked_sub(1)) else {
        return Some(first);
    };
    let last = first
        .checked_add(last_row.checked_mul(view.row_stride)?)?
        .checked_add(last_col.checked_mul(view.col_stride)?)?;
    (last < values).then_some(first)
}
