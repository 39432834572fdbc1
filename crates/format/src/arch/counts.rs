//! Sizes in a configuration that its tensors contradict: what the tensors say, and what to set.

use std::collections::BTreeSet;

use super::Arch;
use super::table::Target;
use crate::checkpoint::{CONFIG_NAME, Checkpoint};
use crate::names::{in_layer, split};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;

/// A model's files beside its configuration.
#[derive(Clone, Copy)]
pub(super) struct Counts<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) arch: &'a Arch,
    /// Layers that the configuration has.
    pub(super) layers: u32,
}

impl Counts<'_> {
    /// What to do about a table of tokens that has another number of rows than there are tokens: the
    /// tables are right if they agree.
    pub(super) fn rows(&self, role: Role, expected: &[u64], found: &[u64]) -> Option<String> {
        let [rows, cols] = *found else { return None };
        let table = [Role::EmbedTokens, Role::LmHead].contains(&role);
        if !table || !self.is_written() || expected.get(1) != Some(&cols) {
            return None;
        }
        let tables = self.checkpoint.tensors().iter().filter(|(name, _)| {
            let target = self.target(name).map(|(target, _)| target);
            matches!(target, Some(Target::Role(Role::EmbedTokens | Role::LmHead)))
        });
        let mut others = tables.filter(|(_, info)| info.shape.first() != Some(&rows));
        Some(match others.next() {
            None => format!(": set vocab_size to {rows} in {CONFIG_NAME}"),
            Some((name, info)) => {
                format!(" and {:?} of `{name}`: these are not of one model", info.shape)
            }
        })
    }

    /// What is wrong with a tensor of a layer that the configuration does not have; none for others.
    pub(super) fn beyond(&self, layer: Option<u32>) -> Option<Refusal> {
        layer.filter(|layer| *layer >= self.layers)?;
        let (stored, all) = (self.stored(), (0..self.layers).collect());
        let expected = format!("the layers that num_hidden_layers says, {}", ranges(&all));
        Some(mismatch(expected, ranges(&stored) + &self.step(&stored)))
    }

    /// What to do about a layer that the files have nothing of; none for others.
    pub(super) fn absent(&self, layer: Option<u32>) -> Option<String> {
        let (layer, stored) = (layer?, self.stored());
        let absent = !stored.contains(&layer) && !stored.is_empty();
        absent.then(|| {
            let next =
                format!(", or fetch what is missing: num_hidden_layers says {}", self.layers);
            format!("; layers that are there: {}{}{next}", ranges(&stored), self.step(&stored))
        })
    }

    /// What to set, if the layers that are there can be those of a model.
    fn step(&self, stored: &BTreeSet<u32>) -> String {
        let count = stored.len() as u32;
        if !self.is_written() || stored.last() != Some(&(count - 1)) {
            return String::new();
        }
        let mut extras = self.arch.table.extras.iter();
        let predicting = extras.find_map(|row| row.layers.as_ref());
        let or = match (predicting, count.checked_sub(self.layers)) {
            (Some(key), Some(more)) => {
                format!(", or {key} to {more} if the last ones predict further tokens")
            }
            _ => String::new(),
        };
        format!(": set num_hidden_layers to {count} in {CONFIG_NAME}{or}")
    }

    /// Whether a `config.json` can be set otherwise; sizes in GGUF cannot.
    fn is_written(&self) -> bool {
        self.checkpoint.config_path().ends_with(CONFIG_NAME)
    }

    /// Layers of which the files have a tensor.
    fn stored(&self) -> BTreeSet<u32> {
        let names = self.checkpoint.tensors().keys();
        names.filter_map(|name| self.target(name)?.1).collect()
    }

    /// What a tensor of the text model is for, and its layer.
    fn target(&self, name: &str) -> Option<(&Target, Option<u32>)> {
        let (pattern, [layer, _]) = split(&self.arch.table.plain(name));
        let pattern = pattern?;
        let target = self.arch.table.targets.get(&pattern)?;
        let used = !matches!(target, Target::Ignored(_));
        used.then(|| (target, in_layer(&pattern).then_some(layer)))
    }
}

/// Numbers as `0 to 3, 5`.
fn ranges(numbers: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let run = |(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first} to {last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}
