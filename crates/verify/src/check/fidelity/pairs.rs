//! Which tensor of a candidate stands for which of the original.

use shardwright_format::weights::Weights;
use shardwright_format::{Role, TensorEntry, Unit, UnitLayout};

use super::origin::Origin;
use super::{Slot, located};
use crate::check::divergence::Party;
use crate::check::finding::{Finding, Kind};
use crate::error::Result;

/// A tensor of the original and those of the candidates that stand for it; none of a candidate that has
/// none or whose own is not to be read.
pub(super) struct Pair {
    pub(super) original: Slot,
    pub(super) candidates: Vec<Option<Slot>>,
}

impl Pair {
    /// Bytes of the original's values.
    pub(super) fn bytes_to_read(&self) -> u64 {
        self.original.entry.byte_len().unwrap_or(0)
    }
}

/// Pairs in the order of the original's units, and what each candidate lacks or has too much.
///
/// # Errors
/// Layouts that cannot be made.
pub(super) fn find(
    original: &Party<'_>,
    candidates: &[Party<'_>],
    origins: &[Origin],
) -> Result<(Vec<Pair>, Vec<Vec<Finding>>)> {
    let mut pairs = Vec::new();
    let mut findings = vec![Vec::new(); candidates.len()];
    for unit in units(original.weights) {
        let layout = original.weights.layout(unit)?;
        let sides: Vec<_> = candidates
            .iter()
            .zip(origins)
            .map(|(c, origin)| Side::new(c, unit, origin))
            .collect();
        for entry in layout.tensors.iter() {
            let slots = sides.iter().zip(&mut findings);
            let slots = slots.map(|(side, findings)| side.find(unit, entry, findings));
            let slots = slots.collect();
            pairs.push(Pair { original: Slot { unit, entry: entry.clone() }, candidates: slots });
        }
        for (side, findings) in sides.iter().zip(&mut findings) {
            findings.extend(side.surplus(original.weights, unit, &layout));
        }
    }
    pairs.extend(heads(original.weights, candidates, origins)?);
    Ok((pairs, findings))
}

fn units(weights: &Weights) -> Vec<Unit> {
    weights.spec().units().chain(weights.extras()).collect()
}

/// What of a candidate may stand for a unit of the original.
struct Side<'a> {
    party: &'a Party<'a>,
    /// None where the unit is not to be read, or is not there.
    layout: Option<UnitLayout>,
    by_role: bool,
}

impl<'a> Side<'a> {
    fn new(party: &'a Party<'a>, unit: Unit, origin: &Origin) -> Self {
        let by_role = origin.by_role();
        let absent = || UnitLayout { tensors: [].into(), len: 0 };
        let found = party.weights.layout(unit).ok();
        // Compared by role, a unit that is not there is one of which every tensor is missing.
        let layout = found.or_else(|| by_role.then(absent));
        Self { party, layout: layout.filter(|_| origin.reads(unit)), by_role }
    }

    /// The tensor for the use that `entry` has in the original. A part besides the text model has many of
    /// one role: there the name in the source decides.
    fn find(&self, unit: Unit, entry: &TensorEntry, findings: &mut Vec<Finding>) -> Option<Slot> {
        let layout = self.layout.as_ref()?;
        let extra = unit.extra_role().is_some();
        let same = |t: &&TensorEntry| {
            t.role == entry.role && (!extra || t.source.tensor == entry.source.tensor)
        };
        let shape = |t: &TensorEntry| format!("{} × {}", t.rows, t.cols);
        let found = match layout.tensors.iter().find(same) {
            Some(found) if (found.rows, found.cols) == (entry.rows, entry.cols) => {
                return Some(Slot { unit, entry: found.clone() });
            }
            Some(found) => shape(found),
            // The head of a tied candidate is its embedding.
            None if extra || entry.role == Role::LmHead => return None,
            None => "none".to_owned(),
        };
        let wanted = Slot { unit, entry: entry.clone() };
        let finding = Finding::new(Kind::Coverage, "tensor").expected(shape(entry), found);
        findings.extend(
            self.by_role
                .then(|| located(finding, self.party.weights, &wanted)),
        );
        None
    }

    /// Tensors of the text model that the original does not have.
    fn surplus(&self, original: &Weights, unit: Unit, layout: &UnitLayout) -> Vec<Finding> {
        let Some(own) = self.layout.as_ref().filter(|_| self.by_role) else { return Vec::new() };
        let tied = original.spec().tie_word_embeddings;
        let unknown = |t: &&TensorEntry| {
            let head = tied && t.role == Role::LmHead;
            unit.extra_role().is_none() && !head && layout.find(t.role).is_none()
        };
        let finding = |entry: &TensorEntry| {
            let slot = Slot { unit, entry: entry.clone() };
            let finding = Finding::new(Kind::Coverage, "tensor").expected("none", "one");
            located(finding, self.party.weights, &slot)
        };
        own.tensors.iter().filter(unknown).map(finding).collect()
    }
}

/// Heads that one side has as a tensor of its own and the other as its embedding.
fn heads(original: &Weights, candidates: &[Party<'_>], origins: &[Origin]) -> Result<Option<Pair>> {
    let own = head(original)?;
    let slot = |(candidate, origin): (&Party<'_>, &Origin)| {
        let other = head(candidate.weights).ok().flatten()?;
        let apart = other.unit != own.as_ref()?.unit && origin.reads(other.unit);
        let shape = |slot: &Slot| (slot.entry.rows, slot.entry.cols);
        Some(other).filter(|other| apart && Some(shape(other)) == own.as_ref().map(shape))
    };
    let slots: Vec<_> = candidates.iter().zip(origins).map(slot).collect();
    let any = slots.iter().any(Option::is_some);
    Ok(own
        .filter(|_| any)
        .map(|original| Pair { original, candidates: slots }))
}

/// The tensor that a model's head multiplies with.
fn head(weights: &Weights) -> Result<Option<Slot>> {
    let tied = weights.spec().tie_word_embeddings;
    let (unit, role) =
        if tied { (Unit::Embedding, Role::EmbedTokens) } else { (Unit::Head, Role::LmHead) };
    let entry = weights.layout(unit)?.find(role).cloned();
    Ok(entry.map(|entry| Slot { unit, entry }))
}
