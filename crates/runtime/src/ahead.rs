//! Whether experts are read before their layer has picked any: while that makes tokens faster. A text is the
//! same with and without: a guess only says what is read when.

use serde::Serialize;

use crate::options::LookAhead;
use crate::rate::Rate;
pub use crate::store::Guesses;

/// Tokens of one kind before it is the other's turn. As many go first, while the cache fills.
const BLOCK: u32 = 8;

/// Blocks of each kind before guesses are judged.
const TRIALS: u32 = 3;

/// Tokens with guesses between two blocks without, as long as they pay.
const RUN: u32 = 64;

/// Tokens without guesses after these did not pay; twice as many each time, up to the second.
const PAUSE: [u32; 2] = [128, 8192];

/// Guesses before they are judged by themselves.
const FEW: u64 = 16;

/// What a rate keeps of its past with every token.
const KEPT: f64 = 0.97;

/// Guesses pay where tokens are faster by that: reads cost more than time.
const GAIN: f64 = 1.02;

/// What looking ahead did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LookedAhead {
    /// Tokens that did.
    pub tokens: u64,
    /// Times that it was switched off because it did not pay.
    pub stops: u64,
    /// Its reads.
    #[serde(flatten)]
    pub guesses: Guesses,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To say what a token takes without guesses.
    Without,
    With,
    /// Guesses do not pay, or the cache is filling.
    Resting,
}

/// Says token by token whether to look ahead, from what it brought so far.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    mode: LookAhead,
    phase: Phase,
    /// Tokens of this phase that are left.
    left: u32,
    /// Blocks of each kind before the next judgement.
    trials: u32,
    pause: u32,
    with: Rate,
    without: Rate,
    /// Guesses since the trial began.
    seen: Guesses,
    /// What came of it so far.
    pub(crate) did: LookedAhead,
}

impl Judge {
    /// Nothing known yet.
    pub(crate) fn new(mode: LookAhead) -> Self {
        Self {
            mode,
            phase: Phase::Resting,
            left: BLOCK,
            trials: TRIALS,
            pause: PAUSE[0],
            with: Rate::new(KEPT),
            without: Rate::new(KEPT),
            seen: Guesses::default(),
            did: LookedAhead::default(),
        }
    }

    /// Whether the next token looks ahead.
    pub(crate) fn looks(&self) -> bool {
        match self.mode {
            LookAhead::Off => false,
            LookAhead::On => true,
            LookAhead::Auto => self.phase == Phase::With,
        }
    }

    /// Takes in what a token took, and the guesses so far.
    pub(crate) fn learn(&mut self, seconds: f64, guesses: Guesses) {
        let new = guesses.since(self.did.guesses);
        self.did.tokens += u64::from(self.looks());
        self.did.guesses = guesses;
        if self.mode != LookAhead::Auto {
            return;
        }
        match self.phase {
            Phase::Without => self.without.add(1, seconds),
            Phase::With => {
                self.with.add(1, seconds);
                self.seen = self.seen.and(new);
            }
            Phase::Resting => {}
        }
        self.left -= 1;
        if self.phase == Phase::With && self.seen.mostly_wrong() {
            self.rest();
        } else if self.left == 0 {
            self.go_on();
        }
    }

    /// Begins the next phase.
    fn go_on(&mut self) {
        match self.phase {
            Phase::Resting => {
                (self.with, self.without) = (Rate::new(KEPT), Rate::new(KEPT));
                (self.seen, self.trials) = (Guesses::default(), TRIALS);
                (self.phase, self.left) = (Phase::Without, BLOCK);
            }
            Phase::Without => {
                let left = if self.trials > 0 { BLOCK } else { RUN };
                (self.phase, self.left) = (Phase::With, left);
            }
            Phase::With => {
                self.trials = self.trials.saturating_sub(1);
                if self.trials == 0 && self.with.slower_than(GAIN, self.without) {
                    return self.rest();
                }
                (self.phase, self.left) = (Phase::Without, BLOCK);
            }
        }
    }

    fn rest(&mut self) {
        self.did.stops += 1;
        (self.phase, self.left) = (Phase::Resting, self.pause);
        self.pause = (2 * self.pause).min(PAUSE[1]);
    }
}

impl Guesses {
    /// More were read in vain than for something.
    const fn mostly_wrong(self) -> bool {
        self.issued >= FEW && self.wasted > self.used + self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes tokens of which each takes a second, or `with` where it looks ahead, after which of its four
    /// guesses `right` were picked; gives how many looked ahead, of each hundred.
    fn decoded(mode: LookAhead, tokens: u64, with: f64, right: u64) -> (Judge, Vec<u64>) {
        let (mut judge, mut guesses, mut hundreds) =
            (Judge::new(mode), Guesses::default(), Vec::new());
        for token in 0..tokens {
            let before = judge.did.tokens;
            let looks = judge.looks();
            if looks {
                guesses.issued += 4;
                guesses.used += right;
                guesses.wasted += 4 - right;
            }
            judge.learn(if looks { with } else { 1.0 }, guesses);
            if token % 100 == 0 {
                hundreds.push(0);
            }
            *hundreds.last_mut().unwrap() += judge.did.tokens - before;
        }
        (judge, hundreds)
    }

    #[test]
    fn it_goes_on_while_tokens_are_faster() {
        let (judge, hundreds) = decoded(LookAhead::Auto, 2000, 0.8, 3);
        assert_eq!(judge.did.stops, 0);
        assert!(hundreds[0] >= 20 && hundreds[5..].iter().all(|n| *n >= 80), "{hundreds:?}");
    }

    #[test]
    fn it_stops_where_tokens_are_slower_or_the_same() {
        for with in [1.0, 1.01, 2.0] {
            let (judge, hundreds) = decoded(LookAhead::Auto, 4000, with, 3);
            let looked = hundreds.iter().sum::<u64>();
            assert_eq!(judge.did.tokens, looked);
            assert!(judge.did.stops > 2 && looked < 200, "{with}: {hundreds:?}");
            // Less and less.
            assert!(hundreds[20..].iter().sum::<u64>() <= 48, "{with}: {hundreds:?}");
        }
    }

    #[test]
    fn guesses_that_are_never_right_end_at_once_however_fast_tokens_are() {
        let (judge, hundreds) = decoded(LookAhead::Auto, 4000, 0.5, 0);
        let all = hundreds.iter().sum::<u64>();
        // Four tokens make as many guesses as are judged.
        assert!(all == 4 * judge.did.stops && judge.did.stops < 8, "{hundreds:?}");
    }

    #[test]
    fn on_and_off_are_what_they_say() {
        assert_eq!(decoded(LookAhead::On, 300, 2.0, 0).1, [100, 100, 100]);
        assert_eq!(decoded(LookAhead::Off, 300, 0.5, 4).1, [0, 0, 0]);
    }
}
