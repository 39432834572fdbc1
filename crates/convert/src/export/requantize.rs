//! What a form cannot hold, stored anew where that is asked for, and what it cost.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shardwright_format::unit::TensorEntry;
use shardwright_format::{FormatError, Role, Unit};
use shardwright_quant::{
    Affine, Backend, Blocks, Encoding, Float, Ggml, Job, Method, Objective, PartsMut, QuantStats,
    Zeros, quantize,
};

use super::walk::{Rows, narrowed};
use crate::error::Result;

/// Groups that are tried for what was a trellis.
const GROUPS: [u16; 2] = [64, 32];

/// The error that storing tensors anew has added.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Requantized {
    /// Tensors that were stored anew, those of each expert counted alone.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Root of the squared error over the squared weights, of all of them together.
    pub relative_rmse: f64,
    /// The tensor with the largest.
    pub worst: String,
    /// Its own.
    pub worst_relative_rmse: f64,
    /// What it was in each role, by their names.
    pub roles: Vec<RequantizedRole>,
}

/// The error that storing the tensors of a role anew has added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequantizedRole {
    /// The role.
    pub role: Role,
    /// How they were stored and how they are.
    pub stored: BTreeSet<String>,
    /// Tensors.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Root of the squared error over the squared weights.
    pub relative_rmse: f64,
}

/// What adds it up: rows of a tensor come one after the other.
#[derive(Default)]
pub(super) struct Tally {
    roles: BTreeMap<Role, RoleTally>,
    /// The tensor that rows come of, and the worst of those before.
    current: Option<(Unit, Role, QuantStats)>,
    worst: Option<(Unit, Role, f64)>,
}

#[derive(Default)]
struct RoleTally {
    stored: BTreeSet<String>,
    tensors: u64,
    total: QuantStats,
}

impl Tally {
    /// Adds rows that are stored as `encoding` now.
    fn add(&mut self, rows: &Rows<'_>, encoding: Encoding, stats: &QuantStats) {
        let (unit, role) = (rows.unit, rows.entry.role);
        let of_role = self.roles.entry(role).or_default();
        of_role.total.merge(stats);
        match &mut self.current {
            Some((of, as_, sum)) if (*of, *as_) == (unit, role) => sum.merge(stats),
            _ => {
                of_role.tensors += 1;
                let stored = format!("{} as {}", rows.entry.encoding.label(), encoding.label());
                of_role.stored.insert(stored);
                self.close();
                self.current = Some((unit, role, *stats));
            }
        }
    }

    fn close(&mut self) {
        let Some((unit, role, stats)) = self.current.take() else { return };
        let error = stats.relative_rmse();
        if self.worst.is_none_or(|(_, _, worst)| error > worst) {
            self.worst = Some((unit, role, error));
        }
    }

    /// The sum; none where nothing was stored anew.
    pub(super) fn finish(mut self) -> Option<Requantized> {
        self.close();
        let (unit, role, worst_relative_rmse) = self.worst?;
        let mut total = QuantStats::default();
        let mut roles = Vec::new();
        for (role, RoleTally { stored, tensors, total: of_role }) in self.roles {
            total.merge(&of_role);
            let (weights, relative_rmse) = (of_role.weights, of_role.relative_rmse());
            roles.push(RequantizedRole { role, stored, tensors, weights, relative_rmse });
        }
        roles.sort_by_key(|of_role| of_role.role.name());
        Some(Requantized {
            tensors: roles.iter().map(|of_role| of_role.tensors).sum(),
            weights: total.weights,
            relative_rmse: total.relative_rmse(),
            worst: format!("{unit} {role}"),
            worst_relative_rmse,
            roles,
        })
    }
}

/// What stands in MLX for an encoding that it cannot hold: for a trellis, blocks and small floats affine codes of as
/// many bits, for all else, and where no group divides the columns, floats of 32 bits, which lose nothing.
pub(super) fn stand_in(entry: &TensorEntry, floats_only: bool) -> Encoding {
    let bits = match entry.encoding {
        Encoding::Trellis(trellis) => trellis.bits(),
        Encoding::Ggml(blocks) => blocks.form().affine_bits(),
        Encoding::Minifloat(minifloat) => minifloat.element().bits(),
        _ => return Encoding::F32,
    };
    let groups = if floats_only { &[][..] } else { &GROUPS };
    affine(entry, bits, groups).map_or(Encoding::F32, Encoding::Affine)
}

/// What stands for codes in compressed-tensors, to be chosen about the middle code: for affine ones those of as many
/// bits and the same groups, with scales of 16 bits. For all others 4 bits in groups of 32 up to 3 bits, else 8: codes
/// that engines run, since codes of a step alone need more bits. None where no group divides the columns.
pub(super) fn symmetric(entry: &TensorEntry) -> Option<Affine> {
    let bits = match entry.encoding {
        Encoding::Affine(a) if a.scale_dtype() == Float::F32 => {
            return affine(entry, a.bits(), &[a.group_size() as u16]);
        }
        Encoding::Affine(affine) => return Some(affine),
        Encoding::Trellis(trellis) => trellis.bits(),
        Encoding::Ggml(blocks) => blocks.form().bits,
        Encoding::Minifloat(minifloat) => minifloat.element().bits(),
        _ => return None,
    };
    if bits <= 3 { affine(entry, 4, &[32]) } else { affine(entry, 8, &GROUPS) }
}

/// Affine codes of `bits` in the first of `groups` that divides the columns.
fn affine(entry: &TensorEntry, bits: u8, groups: &[u16]) -> Option<Affine> {
    let scale = match entry.source.dtype {
        Float::Bf16 => Float::Bf16,
        Float::F16 | Float::F32 => Float::F16,
    };
    let mut groups = groups.iter();
    let group = groups.find(|group| entry.cols.is_multiple_of(u64::from(**group)))?;
    Affine::new(bits, *group, scale).ok()
}

/// What stands for codes in GGUF: for affine ones of up to 4 bits `q4_1`, which keeps them and rounds what f16 lacks
/// of scales and biases. Else a type of two more bits, whose error is small beside the codes' own, or the widest: for a
/// trellis of 2, 3 and 4 bits `q4_k`, `q5_k` and `q6_k`, for wider codes `q8_0`. Where 256 does not divide the
/// columns, the type of blocks of 32 that llama.cpp has for it; none where 32 does not.
pub(super) fn blocks(entry: &TensorEntry) -> Option<Blocks> {
    let wished = match entry.encoding {
        Encoding::Affine(affine) if affine.bits() <= 4 => Blocks::Q4_1,
        Encoding::Trellis(trellis) => match trellis.bits() {
            2 => Blocks::Q4K,
            3 => Blocks::Q5K,
            _ => Blocks::Q6K,
        },
        _ => Blocks::Q8_0,
    };
    let divides = |blocks: &Blocks| entry.cols.is_multiple_of(blocks.form().values as u64);
    Some(wished)
        .filter(divides)
        .or_else(|| wished.smaller().filter(divides))
}

/// The parts of rows in another encoding, codes or floats.
pub(super) fn encoded(
    rows: &Rows<'_>,
    (encoding, zeros): (Encoding, Zeros),
    tally: &mut Tally,
) -> Result<[Vec<u8>; 3]> {
    let (values, cols) = (rows.values(), rows.entry.cols as usize);
    let refused = |e: String| {
        let place = format!("{} {} ({})", rows.unit, rows.entry.role, encoding.label());
        FormatError::file(rows.entry.source.tensor.as_ref(), format!("{place}: {e}"))
    };
    if let Some(float) = encoding.float() {
        let bytes = narrowed(float, &values);
        tally.add(rows, encoding, &compared(&values, &values));
        return Ok([bytes, Vec::new(), Vec::new()]);
    }
    let count = (values.len() / cols.max(1)) as u64;
    let parts = encoding
        .parts(count, cols as u64)
        .map_err(|e| refused(e.to_string()))?;
    let mut made = [parts.weight, parts.scales, parts.biases].map(|len| vec![0; len as usize]);
    let [weight, scales, biases] = &mut made;
    let (backend, method, objective) = (Backend::detect(), Method::Search, Objective::Weights);
    let job = Job { backend, x: &values, cols, encoding, method, zeros, objective };
    let stats =
        quantize(&job, PartsMut { weight, scales, biases }).map_err(|e| refused(e.to_string()))?;
    tally.add(rows, encoding, &stats);
    Ok(made)
}

/// Blocks of rows whose codes are kept and whose scales and biases are rounded to what the type has.
pub(super) fn rounded(
    rows: &Rows<'_>,
    (kind, blocks): (Ggml, Blocks),
    tally: &mut Tally,
) -> Vec<u8> {
    let (values, mut bytes) = (rows.values(), Vec::new());
    let (matrix, range) = rows.stored();
    kind.encode(matrix, range, &mut bytes);
    let mut found = vec![0.0; values.len()];
    kind.decode(&bytes, &mut found);
    tally.add(rows, Encoding::Ggml(blocks), &compared(&values, &found));
    bytes
}

/// What standing for `values` costs `found`.
fn compared(values: &[f32], found: &[f32]) -> QuantStats {
    let mut stats = QuantStats { weights: values.len() as u64, ..QuantStats::default() };
    for (value, found) in values.iter().zip(found) {
        let error = value - found;
        stats.sum_sq += f64::from(*value) * f64::from(*value);
        stats.sum_sq_error += f64::from(error) * f64::from(error);
        stats.max_abs_error = stats.max_abs_error.max(error.abs());
    }
    stats
}
