//! What caches of other sizes and policies would have found in memory during a run that was traced.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;

use serde::Serialize;
use shardwright_format::{Unit, UnitLayout};

use crate::cache::ExpertCache;
use crate::error::{Result, RuntimeError};
use crate::store::Guesses;
use crate::trace::{self, Header, Visit};
use crate::view::Loaded;

/// Sizes that are tried, between the least that works and all experts that were used.
const SIZES: usize = 8;

/// Which expert leaves memory when another must come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The one used least, old uses counting less: what a run does.
    InUse,
    /// The one not used for longest.
    Lru,
    /// The one used least often.
    Lfu,
    /// The one that is needed last, if at all (Belady 1966): no policy finds more.
    Best,
}

/// The experts of one layer in one pass.
#[derive(Debug)]
struct Use {
    /// Tokens that begin with it.
    begins: u64,
    layer: u32,
    /// Which, and the next use that has it.
    experts: Vec<(u32, u64)>,
}

/// A trace as caches see it.
#[derive(Debug)]
pub struct Replay {
    /// Whose it is.
    pub header: Header,
    /// What the run itself found and did.
    pub recorded: Recorded,
    uses: Vec<Use>,
    /// Experts that were used.
    distinct: usize,
}

/// What the run itself found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recorded {
    /// Passes through the layers.
    pub passes: u64,
    /// Tokens that they computed.
    pub tokens: u64,
    /// Experts found in memory.
    pub hits: u64,
    /// Experts that were read.
    pub reads: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Experts that were read before they were picked.
    pub ahead: Guesses,
    /// What layers with experts took.
    pub seconds: f64,
}

/// Shares of experts found in memory with room for some.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Room for so many experts.
    pub slots: usize,
    /// Memory of a run with that.
    pub memory_bytes: u64,
    /// The policy in use.
    pub in_use: f64,
    /// Least recently used leaves.
    pub lru: f64,
    /// Least frequently used leaves.
    pub lfu: f64,
    /// The best possible.
    pub best: f64,
}

/// What memory buys, in room for experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bought {
    /// The least that works: what a token picks in one layer.
    pub floor: usize,
    /// From where on more room finds less more.
    pub knee: usize,
    /// All that was used: more finds nothing more.
    pub ceiling: usize,
}

impl Bought {
    /// By the curve of the policy in use: room, ascending, and the share found with it. The knee is where the
    /// curve is farthest above the line from floor to ceiling (Satopää et al. 2011).
    pub fn new(curve: &[(usize, f64)]) -> Self {
        let (Some(&(floor, low)), Some(&(ceiling, high))) = (curve.first(), curve.last()) else {
            return Self { floor: 0, knee: 0, ceiling: 0 };
        };
        let (mut knee, mut farthest) = (ceiling, 0.0);
        for (slots, rate) in curve {
            let along = (slots - floor) as f64 / (ceiling - floor).max(1) as f64;
            let above = rate - (low + along * (high - low));
            if above > farthest {
                (knee, farthest) = (*slots, above);
            }
        }
        Self { floor, knee, ceiling }
    }
}

impl Replay {
    /// Reads a trace.
    ///
    /// # Errors
    /// As [`trace::read`].
    pub fn read(path: &Path) -> Result<Self> {
        let (mut uses, mut recorded, mut pass) = (Vec::new(), Recorded::default(), None);
        let header = trace::read(path, |visit: &Visit| {
            let tokens = (visit.picks.len() / visit.k) as u64;
            let begins = if pass == Some(visit.pass) { 0 } else { tokens };
            pass = Some(visit.pass);
            recorded.passes += u64::from(begins > 0);
            recorded.tokens += begins;
            recorded.hits += visit.hits.len() as u64;
            recorded.reads += visit.reads.len() as u64;
            recorded.ahead = recorded.ahead.and(guesses(visit));
            recorded.bytes = recorded.bytes.saturating_add(visit.bytes);
            recorded.seconds += visit.seconds;
            let experts = visit
                .hits
                .iter()
                .chain(&visit.reads)
                .map(|expert| (*expert, u64::MAX));
            uses.push(Use { begins, layer: visit.layer, experts: experts.collect() });
        })?;
        let mut next = HashMap::new();
        for (at, used) in uses.iter_mut().enumerate().rev() {
            for (expert, after) in &mut used.experts {
                *after = next
                    .insert((used.layer, *expert), at as u64)
                    .unwrap_or(u64::MAX);
            }
        }
        Ok(Self { header, recorded, uses, distinct: next.len() })
    }

    /// Rates at several sizes, ascending, that of the run among them.
    ///
    /// # Errors
    /// None for a trace that was read.
    pub fn rates(&self) -> Result<Vec<Rates>> {
        let rate = |policy, slots| self.rate(policy, slots);
        let rates = self.sizes().into_iter().map(|slots| {
            Ok(Rates {
                slots,
                memory_bytes: self.header.memory(slots),
                in_use: rate(Policy::InUse, slots)?,
                lru: rate(Policy::Lru, slots)?,
                lfu: rate(Policy::Lfu, slots)?,
                best: rate(Policy::Best, slots)?,
            })
        });
        rates.collect()
    }

    /// What memory buys.
    ///
    /// # Errors
    /// None for a trace that was read.
    pub fn bought(&self) -> Result<Bought> {
        let sizes = self.sizes().into_iter();
        let curve = sizes.map(|slots| Ok((slots, self.rate(Policy::InUse, slots)?)));
        Ok(Bought::new(&curve.collect::<Result<Vec<_>>>()?))
    }

    /// Share of experts that a cache of `slots` would have found.
    ///
    /// # Errors
    /// Less room than a token needs.
    pub fn rate(&self, policy: Policy, slots: usize) -> Result<f64> {
        let asked = self
            .uses
            .iter()
            .map(|used| used.experts.len() as u64)
            .sum::<u64>();
        let hits = match policy {
            Policy::InUse => self.in_use(slots)?,
            Policy::Lru | Policy::Lfu | Policy::Best => self.ordered(policy, slots),
        };
        Ok(hits as f64 / asked.max(1) as f64)
    }

    /// Room for what a token picks.
    const fn floor(&self) -> usize {
        self.header.picks as usize
    }

    fn ceiling(&self) -> usize {
        self.distinct.max(self.floor())
    }

    /// From the least that works to all that was used, the room of the run among them.
    fn sizes(&self) -> BTreeSet<usize> {
        let (floor, ceiling) = (self.floor(), self.ceiling());
        let run = Some(self.header.slots).filter(|slots| (floor..=ceiling).contains(slots));
        (0..=SIZES)
            .map(|i| floor + (ceiling - floor) * i / SIZES)
            .chain(run)
            .collect()
    }

    /// The cache itself, with experts that have no bytes.
    fn in_use(&self, slots: usize) -> Result<u64> {
        let (mut cache, mut hits) = (ExpertCache::new(slots, 0), 0);
        for used in &self.uses {
            (0..used.begins).for_each(|_| cache.begin_token());
            cache.begin_epoch();
            let unit = |expert| Unit::Expert { layer: used.layer, expert };
            // As a run does: what is here stays until it is computed, which goes first.
            let (mut held, mut missing) = (VecDeque::new(), Vec::new());
            for (expert, _) in &used.experts {
                match cache.hold(unit(*expert)) {
                    Some(place) => held.push_back(place),
                    None => missing.push(unit(*expert)),
                }
            }
            hits += held.len() as u64;
            for unit in missing {
                let (place, bytes) = loop {
                    if let Some(claimed) = cache.claim(unit)? {
                        break claimed;
                    }
                    let computed = held.pop_front();
                    cache.release(computed.ok_or(RuntimeError::CacheFull { slots })?);
                };
                let layout = UnitLayout { tensors: [].into(), len: 0 };
                cache.insert(Loaded::new(unit, layout, bytes));
                held.push_back(place);
            }
        }
        Ok(hits)
    }

    /// Policies that order experts: the lowest leaves.
    fn ordered(&self, policy: Policy, slots: usize) -> u64 {
        let mut counts = HashMap::<(u32, u32), u64>::new();
        let mut here = HashMap::<(u32, u32), (u64, u64)>::new();
        let mut order = BTreeSet::<((u64, u64), (u32, u32))>::new();
        let mut hits = 0;
        for (now, used) in self.uses.iter().enumerate() {
            let now = now as u64;
            for (expert, next) in &used.experts {
                let unit = (used.layer, *expert);
                let count = counts.entry(unit).or_default();
                *count += 1;
                let key = match policy {
                    Policy::Lfu => (*count, now),
                    Policy::Best => (u64::MAX - next, now),
                    Policy::Lru | Policy::InUse => (now, now),
                };
                if let Some(old) = here.insert(unit, key) {
                    order.remove(&(old, unit));
                    hits += 1;
                }
                order.insert((key, unit));
            }
            while order.len() > slots {
                // What was just read has taken a place, and that of another; only who knows the future reads past it.
                let others = |((_, last), _): &&((u64, u64), (u32, u32))| {
                    policy == Policy::Best || *last < now
                };
                let lowest = order.iter().find(others).or_else(|| order.first()).copied();
                let Some(lowest) = lowest else { break };
                order.remove(&lowest);
                here.remove(&lowest.1);
            }
        }
        hits
    }
}

/// What became of the experts of a layer that were read ahead.
fn guesses(visit: &Visit) -> Guesses {
    let Visit { hits, guessed, late, .. } = visit;
    let picked = guessed
        .iter()
        .filter(|expert| hits.contains(expert))
        .count();
    Guesses {
        issued: guessed.len() as u64,
        used: (picked - late.len()) as u64,
        late: late.len() as u64,
        wasted: (guessed.len() - picked) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(slots: usize, uses: &[&[u32]]) -> Replay {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let header = Header {
            shardwright_trace: 1,
            model_type: "test".to_owned(),
            layers: 1,
            experts: 8,
            picks: 1,
            slots,
            slot_bytes: 10,
            other_bytes: 100,
        };
        let mut writer = trace::TraceWriter::create(&path, &header).unwrap();
        for (pass, picks) in (0..).zip(uses) {
            let reads: BTreeSet<u32> = picks.iter().copied().collect();
            let visit = Visit {
                pass,
                k: 1,
                picks: picks.to_vec(),
                reads: reads.into_iter().collect(),
                ..Visit::default()
            };
            writer.write(&[visit]).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), uses.len() as u64);
        Replay::read(&path).unwrap()
    }

    fn hits(replay: &Replay, slots: usize) -> [f64; 4] {
        let asked = replay.recorded.reads as f64;
        let policies = [Policy::InUse, Policy::Lru, Policy::Lfu, Policy::Best];
        policies.map(|policy| (replay.rate(policy, slots).unwrap() * asked).round())
    }

    #[test]
    fn a_loop_longer_than_the_cache_is_lost_on_recency_alone() {
        let uses: Vec<[u32; 1]> = (0..12).map(|i| [i % 3]).collect();
        let uses: Vec<&[u32]> = uses.iter().map(|picks| &picks[..]).collect();
        let replay = replay(2, &uses);
        let [_, lru, _, best] = hits(&replay, 2);
        // The best keeps two of the three and reads past them.
        assert_eq!((lru, best), (0.0, 6.0));
        assert_eq!(hits(&replay, 3), [9.0; 4], "room for all");
    }

    #[test]
    fn what_is_used_often_stays_with_the_policy_in_use_and_lfu() {
        let replay = replay(2, &[&[7], &[7], &[1], &[7], &[2], &[3], &[7], &[4], &[5], &[7]]);
        assert_eq!(hits(&replay, 2), [4.0, 2.0, 4.0, 4.0]);
    }

    #[test]
    fn a_pass_of_more_experts_than_places_asks_for_each_once() {
        let replay = replay(1, &[&[0, 1, 2, 0], &[2], &[0, 1, 2]]);
        assert_eq!(replay.recorded.tokens, 8);
        assert_eq!(hits(&replay, 1), [2.0, 2.0, 2.0, 2.0]);
        let bought = replay.bought().unwrap();
        assert_eq!((bought.floor, bought.ceiling), (1, 3));
        let rates = replay.rates().unwrap();
        assert!(
            rates
                .iter()
                .map(|r| (r.slots, r.memory_bytes))
                .eq([(1, 110), (2, 120), (3, 130)])
        );
    }

    #[test]
    fn nobody_finds_more_than_the_best() {
        // Any sequence: squares modulo a prime.
        let uses: Vec<Vec<u32>> = (0..200_u32)
            .map(|i| vec![i * i % 7, (i * i * i) % 7 % 5])
            .collect();
        let uses: Vec<&[u32]> = uses.iter().map(|picks| &picks[..]).collect();
        let replay = replay(3, &uses);
        for slots in 2..8 {
            let [in_use, lru, lfu, best] = hits(&replay, slots);
            assert!(in_use.max(lru).max(lfu) <= best, "{slots}: {in_use} {lru} {lfu} {best}");
        }
    }
}
