//! Drafts: tokens that may follow, tried together with the next one, and whether that pays. A text is the
//! same with and without: a draft only says what is computed together.

use serde::Serialize;

use crate::error::Result;
use crate::rate::Rate;
use crate::text::{Sampler, Sampling};
use crate::token::Runtime;

/// Tokens of a draft at most: a step tries them in one pass over the weights.
pub const DRAFT: usize = 7;

/// Tokens that must stand in the text a second time for what followed them to be a draft.
const MATCHES: [usize; 2] = [3, 2];

/// Steps without a draft before the first with one: they say what a token costs alone.
const FIRST_ALONE: u32 = 2;

/// Steps with drafts before they are judged.
const TRIALS: u32 = 4;

/// Steps with drafts until one without says again what a token costs alone.
const FRESH: u32 = 32;

/// Steps without drafts after these were slower; twice as many each time, up to the second.
const PAUSE: [u32; 2] = [16, 1024];

/// What a rate keeps of its past with every step.
const KEPT: f64 = 0.9;

/// What drafts did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drafted {
    /// Tokens drafted.
    pub offered: u64,
    /// Of these, those that did follow.
    pub accepted: u64,
    /// Steps with drafts.
    pub steps: u64,
    /// Steps without, because drafts had been slower.
    pub declined: u64,
}

/// Where guesses come from.
#[derive(Debug)]
pub enum Source {
    /// The text itself: what followed the same tokens before.
    Ngram,
    /// A smaller model with the same tokens.
    Model(Box<DraftModel>),
}

impl Source {
    /// What may follow `text`, at most `most` tokens.
    ///
    /// # Errors
    /// Weights of a model that cannot be read.
    pub fn draft(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>> {
        match self {
            Self::Ngram => Ok(look_up(text, most)),
            Self::Model(model) => model.draft(text, most),
        }
    }

    /// Reads `text` as far as it is known beforehand, so that the first draft takes no longer than others.
    ///
    /// # Errors
    /// As [`Self::draft`].
    pub fn prepare(&mut self, text: &[u32]) -> Result<()> {
        match self {
            Self::Ngram => Ok(()),
            Self::Model(model) => model.follow(text),
        }
    }
}

/// A model that says what it would go on with.
#[derive(Debug)]
pub struct DraftModel {
    runtime: Runtime,
    /// Tokens of the positions that it has computed.
    seen: Vec<u32>,
    /// Tokens that the other model knows.
    vocab: u32,
    likeliest: Sampler,
}

impl DraftModel {
    /// Drafts of `runtime` for a model that knows `vocab` tokens.
    pub const fn new(runtime: Runtime, vocab: u32) -> Self {
        let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
        Self { runtime, seen: Vec::new(), vocab, likeliest: Sampler::new(greedy) }
    }

    /// What it finds likeliest after `text`, token after token; fewer than `most` where it has no room, or
    /// likes a token best that the other model does not know.
    fn draft(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>> {
        let known = self.runtime.spec().vocab_size;
        let Some((last, before)) = text.split_last() else { return Ok(Vec::new()) };
        let room = self.runtime.positions().saturating_sub(before.len());
        if room == 0 || text.iter().any(|token| *token >= known) {
            return Ok(Vec::new());
        }
        self.follow(before)?;
        let (mut draft, mut next) = (Vec::new(), *last);
        // The token at the last position gives one more, which is not computed.
        for _ in 0..most.min(room) {
            let logits = self.runtime.forward(next)?;
            self.seen.push(next);
            next = self.likeliest.next(logits);
            if next >= self.vocab {
                break;
            }
            draft.push(next);
        }
        Ok(draft)
    }

    /// Goes back to what `text` begins with, and reads the rest of it.
    fn follow(&mut self, text: &[u32]) -> Result<()> {
        let known = self.runtime.spec().vocab_size;
        if text.len() > self.runtime.positions() || text.iter().any(|token| *token >= known) {
            return Ok(());
        }
        let kept = self.runtime.rewind(common(&self.seen, text));
        self.seen.truncate(kept);
        if kept < text.len() {
            self.runtime.advance(&text[kept..])?;
            self.seen.extend_from_slice(&text[kept..]);
        }
        Ok(())
    }
}

/// Tokens that both begin with.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How long drafts are. They stop for a while where they make the text slower, and grow shorter where they
/// are wrong.
#[derive(Clone, Debug)]
pub struct Drafter {
    alone: Rate,
    tried: Rate,
    /// Steps without a draft, as far as they count.
    seen_alone: u32,
    /// Steps with drafts since they were last begun, and since one without.
    trials: u32,
    unbroken: u32,
    /// Steps without drafts that are left, and how many there are the next time.
    rest: u32,
    pause: u32,
    /// Tokens of the next draft.
    length: usize,
    drafted: Drafted,
}

impl Default for Drafter {
    fn default() -> Self {
        Self {
            alone: Rate::new(KEPT),
            tried: Rate::new(KEPT),
            seen_alone: 0,
            trials: 0,
            unbroken: 0,
            rest: 0,
            pause: PAUSE[0],
            length: DRAFT,
            drafted: Drafted::default(),
        }
    }
}

impl Drafter {
    /// Tokens of the next draft, at most `most`; none where drafts do not pay.
    pub fn length(&mut self, most: usize) -> usize {
        if self.rest > 0 {
            self.rest -= 1;
            self.drafted.declined += 1;
            return 0;
        }
        if self.seen_alone < FIRST_ALONE || self.unbroken >= FRESH {
            return 0;
        }
        most.min(self.length)
    }

    /// Takes in that a step computed `tokens` together, of which `kept` stayed, in `seconds`.
    pub fn learn(&mut self, tokens: usize, kept: usize, seconds: f64) {
        if tokens <= 1 {
            self.alone.add(1, seconds);
            self.seen_alone = self.seen_alone.saturating_add(1);
            self.unbroken = 0;
            return;
        }
        self.drafted.offered += tokens as u64 - 1;
        self.drafted.accepted += kept as u64 - 1;
        self.drafted.steps += 1;
        // Twice as long after a draft that was right throughout, else no longer than it was right, and one.
        self.length = if kept == tokens { 2 * (tokens - 1) } else { kept }.clamp(1, DRAFT);
        self.tried.add(kept, seconds);
        self.trials += 1;
        self.unbroken += 1;
        if self.trials >= TRIALS {
            self.judge();
        }
    }

    fn judge(&mut self) {
        if self.tried.slower_than(1.0, self.alone) {
            self.rest = self.pause;
            self.pause = (2 * self.pause).min(PAUSE[1]);
            self.tried = Rate::default();
            self.trials = 0;
        } else {
            self.pause = PAUSE[0];
        }
    }

    /// What drafts did so far.
    pub const fn drafted(&self) -> Drafted {
        self.drafted
    }
}

/// What followed the last place in `text` that has its last tokens, at most `most` tokens. Where that
/// place is near the end, the draft goes on with itself.
fn look_up(text: &[u32], most: usize) -> Vec<u32> {
    let behind = MATCHES.into_iter().find_map(|n| {
        let start = text.len().checked_sub(n)?;
        let (before, last) = (&text[..text.len() - 1], &text[start..]);
        let place = before.windows(n).rposition(|window| window == last)?;
        Some(place + n)
    });
    let Some(first) = behind else { return Vec::new() };
    let period = text.len() - first;
    (0..most).map(|i| text[first + i % period]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A draft from `text`.
    fn propose(drafter: &mut Drafter, text: &[u32], most: usize) -> Vec<u32> {
        Source::Ngram.draft(text, drafter.length(most)).unwrap()
    }

    /// A drafter that has seen what a token costs alone: a second.
    fn ready() -> Drafter {
        let mut drafter = Drafter::default();
        for _ in 0..FIRST_ALONE {
            assert_eq!(propose(&mut drafter, &[1, 2, 1, 2], 9), Vec::<u32>::new());
            drafter.learn(1, 1, 1.0);
        }
        drafter
    }

    #[test]
    fn a_draft_is_what_followed_the_last_time() {
        let text = [9, 1, 2, 3, 4, 5, 7, 2, 3, 6, 1, 2, 3];
        assert_eq!(look_up(&text, 3), [4, 5, 7], "three tokens go before two");
        assert_eq!(look_up(&text[1..].repeat(2), 2), [4, 5]);
        assert_eq!(look_up(&[5, 2, 3, 8, 2, 3], 2), [8, 2]);
        assert_eq!(look_up(&[7, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1], "it goes on with itself");
        for text in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4, 2]] {
            assert!(look_up(text, 4).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn drafts_that_cost_more_than_they_bring_stop_for_longer_each_time() {
        let mut drafter = ready();
        let mut alone = Vec::new();
        let mut pause = 0;
        for _ in 0..200 {
            let tried = propose(&mut drafter, &[1, 2, 1, 2], 9).len();
            if tried > 0 && pause > 0 {
                alone.push(std::mem::take(&mut pause));
            }
            pause += u32::from(tried == 0);
            let seconds = if tried == 0 { 1.0 } else { 1.5 };
            drafter.learn(tried + 1, 1, seconds);
        }
        assert_eq!(alone, [16, 32, 64]);
        let drafted = drafter.drafted();
        assert_eq!((drafted.accepted, drafted.steps, drafted.declined), (0, 16, 184));
    }

    #[test]
    fn drafts_that_pay_go_on_and_follow_their_luck_in_length() {
        let mut drafter = ready();
        assert_eq!(propose(&mut drafter, &[1, 2, 1, 2], 9).len(), DRAFT);
        drafter.learn(8, 3, 1.2);
        assert_eq!(propose(&mut drafter, &[1, 2, 1, 2], 9).len(), 3);
        drafter.learn(4, 4, 1.2);
        assert_eq!(propose(&mut drafter, &[1, 2, 1, 2], 9).len(), 6);
        assert_eq!(propose(&mut drafter, &[1, 2, 1, 2], 2).len(), 2, "no more than are wanted");
        for _ in 0..100 {
            let tried = propose(&mut drafter, &[1, 2, 1, 2], 9).len();
            drafter.learn(tried + 1, tried + 1, if tried == 0 { 1.0 } else { 1.5 });
        }
        let drafted = drafter.drafted();
        assert_eq!(drafted.declined, 0);
        assert_eq!(drafted.steps, 102 - 3, "now and then a token alone says what it costs");
    }
}
