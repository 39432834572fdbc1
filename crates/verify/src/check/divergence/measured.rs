//! What models made of some windows of a text. Figures are summed up from what was measured on all windows in
//! their order, so that they have the same bits whoever measured which.

use serde::{Deserialize, Serialize};
use shardwright_runtime::RuntimeError;

use super::drift::LayerSums;
use super::score::Score;
use super::{Divergence, EvalWindows, LayerDrift, floor};
use crate::error::VerifyError;

/// Of some windows that follow each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// How the original predicts beside itself rounded, in as many of the first windows as the noise floor
    /// takes.
    pub(super) floor: Vec<Score>,
    /// One per candidate.
    pub(super) candidates: Vec<Track>,
}

/// How one candidate fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Track {
    /// It predicted all.
    Whole {
        /// Of every token that is scored, in their order.
        scores: Vec<Score>,
        /// After the embedding, then after each layer.
        drift: Vec<LayerSums>,
    },
    /// Its values were not finite.
    Broken(Break),
}

/// Where a candidate's values are not finite. The least is what a run over all windows comes to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Break {
    /// After a layer.
    Layer {
        /// From 0.
        layer: u32,
        /// Of the whole text; those that are run a second time come after it.
        token: usize,
        /// Of the residual stream.
        channel: usize,
    },
    /// In its logits.
    Logits {
        /// Of the whole text.
        window: usize,
    },
}

impl Break {
    /// The error that a candidate called `name` ends in.
    pub(crate) fn error(self, name: &str) -> VerifyError {
        match self {
            Self::Layer { layer, token, channel } => {
                VerifyError::of_model(name)(RuntimeError::NotFinite { layer, token, channel })
            }
            Self::Logits { window } => {
                VerifyError::NotFinite(format!("{name}: logits from window {window} on"))
            }
        }
    }
}

impl Track {
    fn append(&mut self, next: Self) {
        match (&mut *self, next) {
            (Self::Whole { scores, drift }, Self::Whole { scores: more, drift: further }) => {
                scores.extend(more);
                drift
                    .iter_mut()
                    .zip(further)
                    .for_each(|(sums, next)| sums.append(next));
            }
            (Self::Broken(at), Self::Broken(other)) => *at = other.min(*at),
            (Self::Whole { .. }, broken) => *self = broken,
            (Self::Broken(_), Self::Whole { .. }) => (),
        }
    }

    /// Whether it has all of `windows` windows and of `layers` layers.
    fn fits(&self, windows: usize, cut: EvalWindows, layers: usize) -> bool {
        let Self::Whole { scores, drift } = self else { return true };
        let mut sums = drift.iter().enumerate();
        scores.len() == windows * cut.per_window()
            && drift.len().checked_sub(1) == Some(layers)
            && sums.all(|(at, sums)| sums.fits(at, (windows, cut.window)))
    }
}

impl Measured {
    /// Adds what was measured on the windows that follow, of as many candidates.
    pub(crate) fn append(&mut self, next: Self) {
        self.floor.extend(next.floor);
        let pairs = self.candidates.iter_mut().zip(next.candidates);
        pairs.for_each(|(track, next)| track.append(next));
    }

    /// Whether it is of so many candidates of `layers` layers and of the windows `first..end`, of `count`.
    pub(crate) fn fits(
        &self,
        candidates: usize,
        layers: usize,
        (first, end, count): (usize, usize, usize),
        cut: EvalWindows,
    ) -> bool {
        self.candidates.len() == candidates
            && self.floor.len() == floor::inside(first, end, count) * cut.per_window()
            && self
                .candidates
                .iter()
                .all(|track| track.fits(end - first, cut, layers))
    }

    /// Of each candidate, where its values are not finite.
    pub(crate) fn breaks(&self) -> impl Iterator<Item = Option<Break>> {
        self.candidates.iter().map(|track| match track {
            Track::Broken(at) => Some(*at),
            Track::Whole { .. } => None,
        })
    }

    /// The figures of each candidate, of all `count` windows.
    pub(crate) fn divergences(
        &self,
        cut: EvalWindows,
        count: usize,
    ) -> impl Iterator<Item = Result<Divergence, Break>> {
        let floor = Divergence::new(&self.floor, cut.per_window());
        let floor = floor.as_noise_floor(floor::windows(count));
        self.candidates.iter().map(move |track| match track {
            Track::Broken(at) => Err(*at),
            Track::Whole { scores, drift } => {
                let mut result = Divergence::new(scores, cut.per_window());
                result.windows = count as u64;
                (result.window, result.first) = (cut.window as u64, cut.first as u64);
                result.layers = drifts(drift, count * cut.window);
                result.noise_floor = Some(floor);
                Ok(result)
            }
        })
    }
}

/// The drift after each layer.
fn drifts(sums: &[LayerSums], tokens: usize) -> Vec<LayerDrift> {
    let mut before = 0.0;
    let drift = |sums| {
        let drift = LayerDrift::new(sums, tokens, before);
        before = drift.rmse;
        drift
    };
    sums.iter().map(drift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run of all windows would come to first: the lowest layer, then the first token.
    #[test]
    fn of_breaks_the_first_counts() {
        let at = |layer, token| Break::Layer { layer, token, channel: 9 };
        let breaks = [at(0, 70), at(1, 3), Break::Logits { window: 0 }];
        assert!(breaks.is_sorted());
        let mut track = Track::Whole { scores: Vec::new(), drift: Vec::new() };
        for at in breaks.iter().rev() {
            track.append(Track::Broken(*at));
            track.append(Track::Whole { scores: Vec::new(), drift: Vec::new() });
            assert_eq!(track, Track::Broken(*at));
        }
        let told = breaks.map(|at| at.error("q4").to_string());
        assert_eq!(told[0], "q4: layer 0: its output is not finite at token 70, channel 9");
        assert_eq!(told[2], "q4: logits from window 0 on: not finite");
    }
}
