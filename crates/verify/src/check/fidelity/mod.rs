//! How far is each tensor of a candidate from the original's, and is every source tensor accounted for?

mod along;
mod compare;
mod coverage;
mod mapping;
mod meaning;
mod origin;
mod pairs;
mod range;
mod source;
mod steps;
mod summary;
#[cfg(test)]
mod tests;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shardwright_format::manifest::Ignored;
use shardwright_format::weights::Weights;
use shardwright_format::{TensorEntry, Unit};
use shardwright_quant::{Encoding, Float};

use crate::check::divergence::Party;
use crate::check::finding::{Finding, Kind};
use crate::check::hashing::pool;
use crate::error::Result;
use crate::monitor::{Meter, Monitor, Stage};
pub use compare::Limits;
use compare::ValueComparison;
use origin::Origin;
use pairs::Pair;
pub use summary::{RoleFidelity, TensorFidelity};

/// How tensors are compared.
#[derive(Clone, Copy, Debug)]
pub struct FidelityOptions {
    /// Largest relative RMSE of a quantized tensor; by its encoding when absent:
    /// see [`FidelityOptions::rmse_limit`].
    pub max_rmse: Option<f64>,
    /// Hash the original's weight files and compare with a bundle's record of them. Reads the
    /// checkpoint a second time.
    pub hash_checkpoint: bool,
    /// That a bundle was made from another form of the model than the original is what the caller wants.
    pub other_source: bool,
    /// Threads.
    pub threads: usize,
}

impl FidelityOptions {
    /// Largest relative RMSE of a tensor in codes, at most 0.9; no limit for plain floats.
    ///
    /// Affine and blocks: `4 / (2^bits - 1)`. A grid over the range of normally distributed weights in groups
    /// of 64 has a relative RMSE of about `1.4 / (2^bits - 1)`. Trellis: `3 / 2^bits`. Rotated
    /// weights are close to normal, for which no code is below `1 / 2^bits` and these come to about
    /// 1.08 times that; fitted to the inputs they err more in the weights.
    ///
    /// A tensor filled with zeros has 1, one that was mistaken for another about 1.4. The limits lie
    /// between: they find mistakes, not poor methods.
    pub fn rmse_limit(&self, encoding: Encoding) -> f64 {
        usual_limit(encoding).map_or(f64::INFINITY, |limit| self.max_rmse.unwrap_or(limit))
    }
}

/// See [`FidelityOptions::rmse_limit`].
fn usual_limit(encoding: Encoding) -> Option<f64> {
    sanity_limit(encoding).map(|limit| limit.min(0.9))
}

/// The same, however few the bits.
fn sanity_limit(encoding: Encoding) -> Option<f64> {
    match encoding {
        // Nothing is quantized to these: they are a source's, exactly.
        Encoding::Affine(affine) if affine.scale_dtype() == Float::F32 => None,
        Encoding::Affine(affine) => Some(4.0 / (f64::from(affine.bits()).exp2() - 1.0)),
        Encoding::Ggml(blocks) => Some(4.0 / f64::from(blocks.form().max_code())),
        Encoding::Trellis(trellis) => Some(3.0 / f64::from(trellis.bits()).exp2()),
        Encoding::Minifloat(_) | Encoding::F32 | Encoding::F16 | Encoding::Bf16 => None,
    }
}

/// What the comparison with the original gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Tensors of the candidate that were compared, value by value.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Those that are stored without any loss.
    pub exact: u64,
    /// Root of all squared errors over all squared weights of the quantized tensors.
    pub rmse: f64,
    /// Per role and encoding, in the order of use.
    pub roles: Vec<RoleFidelity>,
    /// Per role and layer, farthest from the source first; the experts of a layer are one entry.
    pub worst: Vec<TensorFidelity>,
    /// Tensors of the checkpoint; none where the original is none.
    pub checkpoint_tensors: u64,
    /// Those that a bundle leaves out, and why.
    pub ignored: Vec<Ignored>,
    /// Whether the checkpoint's weight files were hashed and compared with a bundle's record.
    pub checkpoint_hashed: bool,
    /// Whether the tensors are compared by what they are for alone: the candidate is no bundle that was
    /// made from the original.
    #[serde(default)]
    pub by_role: bool,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// What differs and decides nothing.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Compares every tensor of each candidate with the original's for the same use, and a bundle's account
/// of the checkpoint with the checkpoint's own inventory. Each tensor of the original is read once for
/// all candidates. What a bundle that was made from the original takes from elsewhere than the inventory
/// says is not read: the findings say why. Memory is a few tiles per thread.
///
/// # Errors
/// What the operating system refuses.
pub fn fidelity(
    original: Party<'_>,
    candidates: &[Party<'_>],
    options: &FidelityOptions,
    monitor: &Monitor<'_>,
) -> Result<Vec<Fidelity>> {
    let pool = pool(options.threads)?;
    let origins = candidates
        .iter()
        .map(|c| pool.install(|| origin::trace(c, &original, options, monitor)));
    let origins: Vec<_> = origins.collect::<Result<_>>()?;
    let (pairs, unmatched) = pairs::find(&original, candidates, &origins)?;
    let meter = Meter::new(monitor, Stage::Fidelity, pairs.iter().map(Pair::bytes_to_read).sum());
    let compared = pool.install(|| {
        let compare = |pair: &Pair| compare::tensors(pair, &original, candidates, &meter);
        pairs.par_iter().map(compare).collect::<Result<Vec<_>>>()
    })?;
    let mut results = Vec::with_capacity(candidates.len());
    for (at, (mut origin, unmatched)) in origins.into_iter().zip(unmatched).enumerate() {
        let found = pairs.iter().zip(&compared);
        let found = found
            .filter_map(|(pair, all)| Some((pair.candidates[at].as_ref()?, all[at].as_ref()?)));
        origin.findings.extend(unmatched);
        let gathered = gather(&candidates[at], &original, found, origin, options);
        results.push(gathered);
    }
    Ok(results)
}

/// Whether each candidate's tensors would be compared by what they are for alone; nothing is compared, no
/// weight file hashed.
///
/// # Errors
/// What the operating system refuses.
pub(crate) fn related_by_role(
    original: Party<'_>,
    candidates: &[Party<'_>],
    options: &FidelityOptions,
    monitor: &Monitor<'_>,
) -> Result<Vec<bool>> {
    let options = FidelityOptions { hash_checkpoint: false, ..*options };
    let origins = candidates
        .iter()
        .map(|c| origin::trace(c, &original, &options, monitor));
    origins.map(|origin| Ok(origin?.by_role())).collect()
}

/// One candidate's figures and findings.
fn gather<'a>(
    candidate: &Party<'_>,
    original: &Party<'_>,
    compared: impl Iterator<Item = (&'a Slot, &'a ValueComparison)>,
    origin: Origin,
    options: &FidelityOptions,
) -> Fidelity {
    let bundle = candidate.weights.bundle();
    let by_role = origin.by_role();
    let Origin { findings, notes, .. } = origin;
    let mut result = Fidelity { by_role, findings, notes, ..Fidelity::default() };
    if let Some((checkpoint, _)) = original.weights.checkpoint() {
        result.checkpoint_tensors = checkpoint.tensors().len() as u64;
    } else if !by_role {
        let census = original.weights.census().unwrap_or_default();
        result.checkpoint_tensors = census.kinds().map(|(.., tally)| tally.tensors).sum();
    }
    result.checkpoint_hashed = bundle.is_some()
        && options.hash_checkpoint
        && (original.weights.checkpoint().is_some() || !by_role);
    let ignored = bundle.map(|bundle| bundle.manifest().checkpoint.ignored.clone());
    result.ignored = ignored.unwrap_or_default();
    let mut summary = summary::Summary::default();
    for (slot, compared) in compared {
        let limits = Limits::new(candidate.weights, slot, by_role, options);
        let findings = compared.findings(&limits).into_iter();
        result
            .findings
            .extend(findings.map(|f| located(f, candidate.weights, slot)));
        summary.add(candidate.weights, slot, compared);
    }
    summary.finish(&mut result);
    result
}

/// A tensor and the unit that it is part of.
#[derive(Clone, Debug)]
struct Slot {
    unit: Unit,
    entry: TensorEntry,
}

/// A finding about a tensor of a candidate: the file of a bundle that it lies in, unit and role.
fn located(finding: Finding, weights: &Weights, slot: &Slot) -> Finding {
    let file = weights
        .bundle()
        .and_then(|bundle| mapping::file_of(bundle.manifest(), slot.unit));
    let named = Finding { file: file.map(str::to_owned), ..finding };
    named.shard(slot.unit).role(slot.entry.role)
}

/// A finding about a tensor of a bundle's unit.
fn place_entry(finding: Finding, piece: &mapping::Piece<'_>, entry: &TensorEntry) -> Finding {
    let named = Finding { file: Some(piece.file.to_owned()), ..finding };
    named.shard(piece.unit).role(entry.role)
}

/// A finding about a tensor of the checkpoint.
fn of_source(kind: Kind, tensor: &str, what: &str) -> Finding {
    Finding::new(kind, what).tensor(tensor)
}

#[cfg(test)]
mod limits {
    use shardwright_quant::{Affine, Minifloat};

    use super::*;

    /// What nothing is quantized to has no limit, so that a bundle's must be exact.
    #[test]
    fn codes_of_a_source_have_no_limit_but_exactness() {
        let wide = Encoding::Affine(Affine::new(4, 64, Float::F32).unwrap());
        let narrow = Encoding::Affine(Affine::new(4, 64, Float::F16).unwrap());
        for encoding in [wide, Encoding::Minifloat(Minifloat::MXFP4), Encoding::Bf16] {
            assert_eq!(sanity_limit(encoding), None);
        }
        assert!(sanity_limit(narrow).is_some());
    }
}
