//! Is every value of the checkpoint used exactly once?

use std::collections::{BTreeMap, BTreeSet};

use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::{Decoder, Manifest, SourceView, TensorEntry};

use super::mapping::Piece;
use super::of_source;
use crate::check::finding::{Finding, Kind};

/// Most runs of neighbouring values that one tensor may be used in.
const MAX_RUNS: u64 = 1 << 23;

/// What is wrong with where an entry says its values come from.
pub(super) fn provenance(checkpoint: &Checkpoint, entry: &TensorEntry) -> Option<Finding> {
    let view = &entry.source;
    let name = &view.tensor;
    let finding = |what: &str| Finding::new(Kind::Provenance, format!("source {name}{what}"));
    let Some(info) = checkpoint.tensors().get(name) else {
        return Some(finding("").expected("a tensor of the checkpoint", "none by that name"));
    };
    if info.dtype != view.dtype {
        return Some(finding(": dtype").expected(view.dtype.name(), info.dtype.name()));
    }
    if info.shape != view.shape {
        let (expected, found) = (format!("{:?}", view.shape), format!("{:?}", info.shape));
        return Some(finding(": shape").expected(expected, found));
    }
    if info.decoder != view.decoder {
        let label =
            |d: Option<&Decoder>| d.map_or_else(|| "plain floats".to_owned(), Decoder::label);
        let (expected, found) = (label(view.decoder.as_ref()), label(info.decoder.as_ref()));
        return Some(finding(": decoder").expected(expected, found));
    }
    let last = Grid::new(entry).last();
    if last.is_none_or(|last| last >= info.values()) {
        let expected = format!("values below {}", info.values());
        let found = last.map_or("more than 64 bits".to_owned(), |last| last.to_string());
        return Some(finding(": range").expected(expected, found));
    }
    None
}

/// Findings for every tensor of the checkpoint that is not used exactly once or left out with a
/// reason. Views that do not exist are left to [`provenance`].
pub(super) fn check(
    manifest: &Manifest,
    checkpoint: &Checkpoint,
    pieces: &[Piece<'_>],
) -> Vec<Finding> {
    let mut uses: BTreeMap<&str, Vec<Grid>> = BTreeMap::new();
    for entry in pieces.iter().flat_map(|p| &p.tensors) {
        let grids = uses.entry(entry.source.tensor.as_str()).or_default();
        if provenance(checkpoint, entry).is_none() {
            grids.push(Grid::new(entry));
        }
    }
    let ignored: BTreeSet<_> = manifest
        .checkpoint
        .ignored
        .iter()
        .map(|i| i.tensor.as_str())
        .collect();
    let mut findings: Vec<_> = ignored
        .iter()
        .filter(|name| {
            let stored = checkpoint.stored().contains_key(**name);
            !stored && !checkpoint.tensors().contains_key(**name)
        })
        .map(|name| {
            coverage(name, "left out").expected("a tensor of the checkpoint", "none by that name")
        })
        .collect();
    for (name, info) in checkpoint.tensors() {
        let found = match (uses.get(name.as_str()), ignored.contains(name.as_str())) {
            (Some(_), true) => {
                Err(coverage(name, "use").expected("none, as it is left out", "some"))
            }
            (None, false) => {
                Err(coverage(name, "use").expected("once, or left out with a reason", "none"))
            }
            (Some(grids), false) => {
                cover(info.values(), grids).map_err(|wrong| wrong.finding(name))
            }
            (None, true) => Ok(()),
        };
        findings.extend(found.err());
    }
    findings
}

fn coverage(name: &str, what: &str) -> Finding {
    of_source(Kind::Coverage, name, what)
}

/// The values `start + i * inner.1 + o * outer.1` for `i` below `inner.0` and `o` below `outer.0`.
#[derive(Clone, Copy, Debug)]
struct Grid {
    start: u64,
    inner: (u64, u64),
    outer: (u64, u64),
}

/// Why a tensor's values are not all used once.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Unused(u64),
    Repeated(u64),
    Strides,
    Scattered,
}

impl Wrong {
    fn finding(&self, name: &str) -> Finding {
        let at = |value| coverage(name, &format!("use of value {value}"));
        match self {
            Self::Unused(value) => at(value).expected("once", "none"),
            Self::Repeated(value) => at(value).expected("once", "more than once"),
            Self::Strides => coverage(name, "use").expected("views of one stride", "several"),
            Self::Scattered => {
                coverage(name, "use").expected(format!("at most {MAX_RUNS} runs"), "more")
            }
        }
    }
}

impl Grid {
    fn new(entry: &TensorEntry) -> Self {
        let SourceView { start, row_stride, col_stride, .. } = entry.source;
        let (rows, cols) = ((entry.rows, row_stride), (entry.cols, col_stride));
        // A dimension of one has no stride of its own.
        let swap = cols.0 == 1 || (rows.0 != 1 && rows.1 < cols.1);
        let (inner, outer) = if swap { (rows, cols) } else { (cols, rows) };
        Self { start, inner, outer }
    }

    /// The last value, if 64 bits can hold it.
    fn last(&self) -> Option<u64> {
        let span = |(count, stride): (u64, u64)| count.saturating_sub(1).checked_mul(stride);
        self.start
            .checked_add(span(self.inner)?)?
            .checked_add(span(self.outer)?)
    }

    /// Runs of equally spaced values: how many, and how long each is.
    const fn runs(&self) -> (u64, u64) {
        if self.outer.0 == 1 || self.outer.1 == self.inner.0 * self.inner.1 {
            return (1, self.inner.0 * self.outer.0);
        }
        (self.outer.0, self.inner.0)
    }
}

/// Checks that grids inside a tensor of `len` values cover each value once.
///
/// Values whose index has the same remainder by the grids' common inner stride form a line of
/// their own; on each line the grids' runs must follow one another.
fn cover(len: u64, grids: &[Grid]) -> Result<(), Wrong> {
    let strides: BTreeSet<_> = grids
        .iter()
        .filter(|g| g.inner.0 > 1)
        .map(|g| g.inner.1)
        .collect();
    if strides.len() > 1 {
        return Err(Wrong::Strides);
    }
    let stride = strides.into_iter().next().unwrap_or(1);
    if stride == 0 {
        return Err(Wrong::Repeated(grids[0].start));
    }
    if grids
        .iter()
        .map(|g| g.runs().0)
        .fold(0, u64::saturating_add)
        > MAX_RUNS
    {
        return Err(Wrong::Scattered);
    }
    let mut runs = Vec::new();
    for grid in grids {
        let (count, run) = grid.runs();
        runs.extend((0..count).map(|o| {
            let first = grid.start + o * grid.outer.1;
            (first % stride, first / stride, run)
        }));
    }
    runs.sort_unstable();
    let mut runs = runs.into_iter().peekable();
    for line in 0..stride.min(len) {
        let end = (len - line).div_ceil(stride);
        let mut covered = 0;
        while let Some((_, start, run)) = runs.next_if(|r| r.0 == line) {
            if start != covered {
                let value = start.min(covered) * stride + line;
                return Err(if start < covered {
                    Wrong::Repeated(value)
                } else {
                    Wrong::Unused(value)
                });
            }
            covered = start + run;
        }
        if covered != end {
            return Err(Wrong::Unused(covered * stride + line));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(start: u64, inner: (u64, u64), outer: (u64, u64)) -> Grid {
        Grid { start, inner, outer }
    }

    #[test]
    fn halves_of_a_fused_tensor_cover_it() {
        let halves = [grid(0, (4, 1), (3, 4)), grid(12, (4, 1), (3, 4))];
        assert_eq!(cover(24, &halves), Ok(()));
        assert_eq!(cover(25, &halves), Err(Wrong::Unused(24)));
        assert_eq!(cover(24, &halves[..1]), Err(Wrong::Unused(12)));
        assert_eq!(cover(24, &[halves[0], halves[0]]), Err(Wrong::Repeated(0)));
    }

    #[test]
    fn columns_of_a_transposed_tensor_cover_it() {
        // [3 in, 2 * 4 out]: gate and up side by side in each row of the source.
        let halves = [grid(0, (4, 1), (3, 8)), grid(4, (4, 1), (3, 8))];
        assert_eq!(cover(24, &halves), Ok(()));
        let shifted = [halves[0], grid(3, (4, 1), (3, 8))];
        assert_eq!(cover(24, &shifted), Err(Wrong::Repeated(3)));
    }

    #[test]
    fn interleaved_rows_cover_it() {
        let halves = [grid(0, (4, 2), (3, 8)), grid(1, (4, 2), (3, 8))];
        assert_eq!(cover(24, &halves), Ok(()));
        assert_eq!(cover(24, &halves[..1]), Err(Wrong::Unused(1)));
        assert_eq!(cover(24, &[halves[0], grid(12, (4, 1), (3, 4))]), Err(Wrong::Strides));
    }

    #[test]
    fn a_stride_of_zero_is_a_repetition() {
        assert_eq!(cover(4, &[grid(0, (4, 0), (1, 4))]), Err(Wrong::Repeated(0)));
        assert_eq!(cover(4, &[grid(0, (2, 1), (2, 0))]), Err(Wrong::Repeated(0)));
    }
}
