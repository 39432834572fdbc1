//! What the models predict of a text, before and after it is summed up.

use serde::{Deserialize, Serialize};
use shardwright_format::Part;
use shardwright_format::manifest::Hash;
use shardwright_runtime::CacheTypes;

use super::{VerifyRequest, last};
use crate::check::divergence::{
    CacheBytes, CachePrice, Divergence, EvalWindows, Measured, Party, Reading, measure,
};
use crate::check::finding::{Finding, Kind};
use crate::check::overlap::Text;
use crate::check::tokens;
use crate::error::{Result, VerifyError};
use crate::monitor::Monitor;
use crate::report::{Report, TextRecord};

/// What was measured on all windows of a text, or on some that follow each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Predictions {
    pub(super) asked: Asked,
    /// Of the candidates that predict; behind them, where types of the KV cache were asked for, of the original
    /// with these.
    measured: Measured,
    /// Of each candidate beside itself, where such types were asked for; none where that was not measured or
    /// its values are not finite.
    own: Vec<Option<Measured>>,
}

/// Who predicts what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    text: TextRecord,
    /// Of the tokens, four bytes each.
    tokens_blake3: Hash,
    cut: EvalWindows,
    /// What the original's cache takes, where types were asked for.
    cache: Option<CacheBytes>,
    /// The candidates that predict.
    parties: Vec<Predicting>,
}

/// A candidate that predicts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicting {
    /// Its number, from 0.
    candidate: usize,
    /// Whether it has no tokenizer.
    without_tokenizer: bool,
}

impl Asked {
    /// Windows in all.
    ///
    /// # Errors
    /// A text shorter than one.
    fn count(&self) -> Result<usize> {
        self.cut.count(self.text.tokens as usize)
    }

    /// The windows of a part, of how many.
    ///
    /// # Errors
    /// More parts than windows.
    fn share(&self, part: Option<Part>) -> Result<(usize, usize, usize)> {
        let count = self.count()?;
        let Some(part) = part else { return Ok((0, count, count)) };
        if part.count() as usize > count {
            let parts = part.count();
            let message =
                format!("--part: expected at most {count} parts, one per window, found {parts}");
            return Err(VerifyError::Invalid(message));
        }
        let share = part.share(count as u64);
        Ok((share.start as usize, share.end as usize, count))
    }
}

impl Predictions {
    /// What the original and the candidates, each with its number, predict of a text, or of a part of it.
    ///
    /// # Errors
    /// Tokenizers that differ, a text that is too short, an original whose values are not finite.
    pub(super) fn new(
        request: &VerifyRequest<'_>,
        original: Party<'_>,
        text: &Text<'_>,
        (candidates, part): (&[(usize, Party<'_>)], Option<Part>),
        monitor: &Monitor<'_>,
    ) -> Result<Self> {
        let parties: Vec<_> = candidates.iter().map(|(_, party)| *party).collect();
        let read = tokens::read(text, &original, &parties, request.windows)?;
        let asked = asked(request, original, text, (candidates, &read));
        let (first, end, _) = asked.share(part)?;
        let reading = Reading {
            tokens: &read.tokens,
            windows: request.windows,
            cache: request.cache,
            threads: request.threads,
        };
        // With the types asked for the original is one more candidate of itself: what they cost alone.
        let itself = asked.cache.map(|_| original);
        let sides: Vec<_> = parties.iter().copied().chain(itself).collect();
        let measured = measure(original, &sides, &reading, first..end, monitor)?;
        let mut tracks = measured.breaks().collect::<Vec<_>>().into_iter();
        let of_candidates: Vec<_> = tracks.by_ref().take(parties.len()).collect();
        if let Some(at) = tracks.next().flatten() {
            return Err(at.error(original.name));
        }
        let own = parties.iter().zip(of_candidates).map(|(party, broken)| {
            if asked.cache.is_none() || broken.is_some() {
                return Ok(None);
            }
            match measure(*party, &[*party], &reading, first..end, monitor) {
                Err(e) if e.is_not_finite() => Ok(None),
                measured => measured.map(Some),
            }
        });
        let own = own.collect::<Result<_>>()?;
        Ok(Self { asked, measured, own })
    }

    /// What was read.
    pub(super) const fn text(&self) -> &TextRecord {
        &self.asked.text
    }

    /// The windows of a part, from 0, and the tokens predicted in them.
    ///
    /// # Errors
    /// More parts than windows.
    pub(super) fn windows(&self, part: Part) -> Result<(std::ops::Range<usize>, usize)> {
        let (first, end, _) = self.asked.share(Some(part))?;
        Ok((first..end, (end - first) * self.asked.cut.per_window()))
    }

    /// Whether they are what such a part measures of models of `layers` layers and of `candidates` candidates.
    pub(super) fn are_of(&self, part: Part, candidates: usize, layers: usize) -> bool {
        let Asked { cut, cache, parties, text, .. } = &self.asked;
        let Ok(share) = self.asked.share(Some(part)) else { return false };
        let sides = parties.len() + usize::from(cache.is_some());
        let mut own = self.own.iter().flatten();
        parties.iter().all(|party| party.candidate < candidates)
            && text.cache.is_some() == cache.is_some()
            && self.own.len() == parties.len()
            && self.measured.fits(sides, layers, share, *cut)
            && own.all(|own| own.fits(1, layers, share, *cut))
    }

    /// Adds those of the windows that follow.
    pub(super) fn append(&mut self, next: Self) {
        self.measured.append(next.measured);
        for (own, next) in self.own.iter_mut().zip(next.own) {
            match (&mut *own, next) {
                (Some(own), Some(next)) => own.append(next),
                _ => *own = None,
            }
        }
    }

    /// Gives each report the divergence of its candidate.
    pub(super) fn tell(&self, reports: &mut [Report]) {
        let Asked { text, cut, parties, .. } = &self.asked;
        let Ok(count) = self.asked.count() else { return };
        let mut found: Vec<_> = self.measured.divergences(*cut, count).collect();
        let itself = found.split_off(parties.len()).pop().and_then(Result::ok);
        for ((party, found), own) in parties.iter().zip(found).zip(&self.own) {
            let Some(report) = reports.get_mut(party.candidate) else { continue };
            report.text = Some(text.clone());
            if let (Some(itself), Ok(_)) = (&itself, &found) {
                let mut own = own
                    .iter()
                    .flat_map(|own| own.divergences(*cut, count).flatten());
                report.cache = self.price(itself, own.next().as_ref());
            }
            if party.without_tokenizer {
                let note = "it has no tokenizer.json: the text's tokens are those of the original";
                report.notes.push(note.to_owned());
            }
            match found {
                Ok(divergence) => report.divergence = Some(divergence),
                // A candidate that cannot predict is a finding, no obstacle.
                Err(at) => {
                    let finding = at.error(&report.name).to_string();
                    report.findings.push(Finding::new(Kind::NotFinite, finding));
                }
            }
        }
    }

    fn price(&self, original: &Divergence, own: Option<&Divergence>) -> Option<CachePrice> {
        let (types, bytes) = (self.asked.text.cache?, self.asked.cache?);
        Some(CachePrice::new(types, bytes, original, own))
    }
}

/// Who predicts what of a text that has been read.
fn asked(
    request: &VerifyRequest<'_>,
    original: Party<'_>,
    text: &Text<'_>,
    (candidates, read): (&[(usize, Party<'_>)], &tokens::Tokens),
) -> Asked {
    let types = (request.cache != CacheTypes::default()).then_some(request.cache);
    let record = TextRecord {
        name: last(text.path),
        blake3: text.blake3,
        bytes: text.bytes,
        tokens: read.tokens.len() as u64,
        cache: types,
    };
    let bytes: Vec<u8> = read.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let parties = candidates.iter().zip(&read.without);
    let parties = parties.map(|((candidate, _), &without_tokenizer)| Predicting {
        candidate: *candidate,
        without_tokenizer,
    });
    Asked {
        text: record,
        tokens_blake3: blake3::hash(&bytes).into(),
        cut: request.windows,
        cache: types.map(|types| CacheBytes::new(original.weights.spec(), types)),
        parties: parties.collect(),
    }
}
