//! What statistics of an earlier text say nothing of, though a plan would choose codes by it.

use std::collections::BTreeSet;

use shardwright_format::Unit;

use super::calibrated::Known;
use super::{Plan, takes_over};
use crate::calibrate::objectives::asked;
use crate::calibrate::saved::name;
use crate::calibrate::statistics::InputKey;

/// Names that a note gives at most.
const NAMED: usize = 3;

/// Inputs that codes are chosen by where they are known, and which of them are not.
pub(super) struct Unguided {
    asked: BTreeSet<InputKey>,
    missing: BTreeSet<InputKey>,
}

impl Unguided {
    /// Of a plan that is laid out.
    pub(super) fn new(plan: &Plan, statistics: &Known) -> Self {
        let tied = plan.manifest.model.tie_word_embeddings;
        let units = plan.units().filter_map(|unit| plan.planned(unit));
        let made = units.flat_map(|unit| unit.tensors).filter(|tensor| {
            let copied = tensor.view.codes(tensor.entry.cols) == Some(tensor.entry.encoding);
            !(copied && takes_over(tensor.zeros, &tensor.view))
        });
        let asked: BTreeSet<_> = made
            .filter_map(|t| asked(t.unit, t.entry, t.method, tied))
            .collect();
        let missing = asked.difference(&statistics.places).copied().collect();
        Self { asked, missing }
    }

    /// Places, as files of statistics call them.
    pub(super) fn names(&self) -> Vec<String> {
        self.missing.iter().copied().map(name).collect()
    }

    /// A line for experts, and one for all else.
    pub(super) fn notes(&self) -> Vec<String> {
        let expert = |key: &InputKey| {
            let unit = Unit::Expert { layer: key.layer?, expert: key.expert? };
            Some(unit.to_string())
        };
        let place = |key: &InputKey| key.expert.is_none().then(|| name(*key));
        let lines = [self.line("experts", &expert), self.line("other inputs", &place)];
        lines.into_iter().flatten().collect()
    }

    fn line(&self, what: &str, label: &dyn Fn(&InputKey) -> Option<String>) -> Option<String> {
        let labels = |keys: &BTreeSet<InputKey>| -> Vec<String> {
            let mut labels: Vec<_> = keys.iter().filter_map(label).collect();
            labels.dedup();
            labels
        };
        let (missing, all) = (labels(&self.missing), labels(&self.asked).len());
        let count = missing.len();
        let more = if count > NAMED { ", and others" } else { "" };
        let named = missing[..count.min(NAMED)].join(", ");
        (count > 0).then(|| {
            format!(
                "the statistics know nothing of {count} of {all} {what} ({named}{more}): \
                 converted as without statistics"
            )
        })
    }
}
