//! How far is each tensor from its source, and is every source tensor accounted for?

mod compare;
mod coverage;
mod mapping;
mod source;
mod summary;
#[cfg(test)]
mod tests;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::Ignored;
use shardwright_format::{Bundle, Manifest, TensorEntry, Unit};
use shardwright_quant::Encoding;

use crate::error::Result;
use crate::finding::{Finding, Kind};
use crate::hashing::pool;
use crate::monitor::{Meter, Monitor, Stage};
use compare::{Comparison, Limits, Stored};
pub use summary::{RoleFidelity, TensorFidelity};

/// How tensors are compared.
#[derive(Clone, Copy, Debug)]
pub struct FidelityOptions {
    /// Largest relative RMSE of a quantized tensor; by its encoding when absent:
    /// see [`FidelityOptions::rmse_limit`].
    pub max_rmse: Option<f64>,
    /// Hash the checkpoint's weight files and compare with the manifest's record. Reads the
    /// checkpoint a second time.
    pub hash_checkpoint: bool,
    /// Threads.
    pub threads: usize,
}

impl FidelityOptions {
    /// Largest relative RMSE of a tensor in codes, at most 0.9; no limit for plain floats.
    ///
    /// Affine: `4 / (2^bits - 1)`. A grid over the range of normally distributed weights in groups
    /// of 64 has a relative RMSE of about `1.4 / (2^bits - 1)`. Trellis: `3 / 2^bits`. Rotated
    /// weights are close to normal, for which no code is below `1 / 2^bits` and these come to about
    /// 1.08 times that; fitted to the inputs they err more in the weights.
    ///
    /// A tensor filled with zeros has 1, one that was mistaken for another about 1.4. The limits lie
    /// between: they find mistakes, not poor methods.
    pub fn rmse_limit(&self, encoding: Encoding) -> f64 {
        let limit = sanity_limit(encoding).map(|limit| limit.min(0.9));
        limit.map_or(f64::INFINITY, |limit| self.max_rmse.unwrap_or(limit))
    }
}

/// See [`FidelityOptions::rmse_limit`].
fn sanity_limit(encoding: Encoding) -> Option<f64> {
    match encoding {
        Encoding::Affine(affine) => Some(4.0 / (f64::from(affine.bits()).exp2() - 1.0)),
        Encoding::Trellis(trellis) => Some(3.0 / f64::from(trellis.bits()).exp2()),
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => None,
    }
}

/// What the comparison with the checkpoint gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Tensors of the bundle that were compared, value by value.
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
    /// Tensors of the checkpoint.
    pub checkpoint_tensors: u64,
    /// Those that the bundle leaves out, and why.
    pub ignored: Vec<Ignored>,
    /// Whether the checkpoint's weight files were hashed and compared with the record.
    pub checkpoint_hashed: bool,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

/// Compares every tensor of a bundle with its source, and the bundle's account of the checkpoint
/// with the checkpoint's own inventory. A unit whose shapes or sources are not the inventory's is
/// not read: the findings say why. Memory is a few tiles per thread.
///
/// # Errors
/// What the operating system refuses.
pub fn fidelity(
    bundle: &Bundle,
    checkpoint: &Checkpoint,
    inventory: &Inventory,
    options: &FidelityOptions,
    monitor: &Monitor<'_>,
) -> Result<Fidelity> {
    let manifest = bundle.manifest();
    let pool = pool(options.threads)?;
    let mut findings = Vec::new();
    let source = source::Check { bundle, checkpoint, hash_weights: options.hash_checkpoint };
    findings.extend(pool.install(|| source.run(monitor))?);
    let pieces = pieces(manifest);
    findings.extend(mapping::check(manifest, inventory, &pieces));
    findings.extend(coverage::check(manifest, checkpoint, &pieces));
    let work = Work {
        bundle,
        checkpoint,
        inventory,
        options,
        meter: &Meter::new(monitor, Stage::Fidelity, total(&pieces)),
    };
    let results = pool.install(|| {
        pieces
            .par_iter()
            .map(|p| work.piece(p))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut result = Fidelity {
        checkpoint_tensors: checkpoint.tensors().len() as u64,
        ignored: manifest.checkpoint.ignored.clone(),
        checkpoint_hashed: options.hash_checkpoint,
        ..Fidelity::default()
    };
    let mut summary = summary::Summary::default();
    for (piece, compared) in pieces.iter().zip(results) {
        for (entry, compared) in piece.tensors.iter().zip(compared) {
            findings.extend(compared.findings);
            if let Some(stats) = compared.stats {
                summary.add(piece.unit, entry, &stats);
            }
        }
    }
    summary.finish(&mut result);
    result.findings = findings;
    Ok(result)
}

/// A unit of the bundle and its tensors, each with the view that is its own.
struct Piece<'a> {
    unit: Unit,
    file: &'a str,
    tensors: Vec<TensorEntry>,
}

fn pieces(manifest: &Manifest) -> Vec<Piece<'_>> {
    let pieces = manifest.shards().map(|shard| Piece {
        unit: shard.unit,
        file: shard.file,
        tensors: shard
            .tensors
            .iter()
            .map(|t| t.in_unit(shard.unit))
            .collect(),
    });
    pieces.collect()
}

/// Bytes of the checkpoint that the comparison reads.
fn total(pieces: &[Piece<'_>]) -> u64 {
    let bytes = |t: &TensorEntry| t.rows * t.cols * t.source.dtype.size() as u64;
    pieces.iter().flat_map(|p| &p.tensors).map(bytes).sum()
}

/// A comparison that could be made, and what is wrong.
#[derive(Default)]
struct Compared {
    stats: Option<Comparison>,
    findings: Vec<Finding>,
}

struct Work<'a> {
    bundle: &'a Bundle,
    checkpoint: &'a Checkpoint,
    inventory: &'a Inventory,
    options: &'a FidelityOptions,
    meter: &'a Meter<'a>,
}

impl Work<'_> {
    fn piece(&self, piece: &Piece<'_>) -> Result<Vec<Compared>> {
        let same_model = self.bundle.manifest().model == self.inventory.spec;
        if !same_model || !mapping::holds(self.inventory, piece) {
            let unread = piece.tensors.iter().map(|t| self.provenance(piece, t));
            return Ok(unread.collect());
        }
        let stored = Stored { bundle: self.bundle, unit: piece.unit };
        piece
            .tensors
            .iter()
            .map(|entry| self.tensor(piece, &stored, entry))
            .collect()
    }

    /// What can be said without reading any weights.
    fn provenance(&self, piece: &Piece<'_>, entry: &TensorEntry) -> Compared {
        let wrong = coverage::provenance(self.checkpoint, entry);
        let findings = wrong.map(|wrong| place(wrong, piece, entry));
        Compared { stats: None, findings: findings.into_iter().collect() }
    }

    fn tensor(
        &self,
        piece: &Piece<'_>,
        stored: &Stored<'_>,
        entry: &TensorEntry,
    ) -> Result<Compared> {
        let provenance = self.provenance(piece, entry);
        if !provenance.findings.is_empty() {
            return Ok(provenance);
        }
        let stats = compare::tensor(stored, self.checkpoint, entry, self.meter)?;
        let limits = Limits::of(entry.encoding, self.options);
        let findings = stats
            .findings(&limits)
            .into_iter()
            .map(|f| place(f, piece, entry))
            .collect();
        Ok(Compared { stats: Some(stats), findings })
    }
}

fn place(finding: Finding, piece: &Piece<'_>, entry: &TensorEntry) -> Finding {
    let named = Finding { file: Some(piece.file.to_owned()), ..finding };
    named.shard(piece.unit).role(entry.role)
}

/// A finding about a tensor of the checkpoint.
fn of_source(kind: Kind, tensor: &str, what: &str) -> Finding {
    Finding::new(kind, what).tensor(tensor)
}
