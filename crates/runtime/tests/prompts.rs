//! A chunk of a prompt reads each expert at most once, in order, and a longer chunk reads less.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use shardwright_format::Unit;
use shardwright_format::weights::Weights;
use shardwright_runtime::plan::ChunkRoom;
use shardwright_runtime::trace::Visit;
use shardwright_runtime::{MemoryPlan, Options, Runtime};
use shardwright_testing::Golden;

const WITH_EXPERTS: [&str; 6] =
    ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "mixtral", "olmoe"];

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn options(memory: Option<u64>, chunk: usize) -> Options {
    Options { memory, threads: 2, chunk, context: 64, ..Options::default() }
}

/// The least budget, one that holds half of the rest, and one byte less than all.
fn budgets(case: &Golden) -> [u64; 3] {
    let plan = MemoryPlan::new(&open(case), &options(None, 1)).unwrap();
    let (min, all) = (plan.min_bytes, plan.resident);
    [min, min.midpoint(all), all - 1]
}

/// What became of experts in a text that is read as a prompt up to its last three tokens.
fn visits(case: &Golden, options: &Options) -> (Vec<Visit>, Runtime) {
    let tokens = [case.tokens(), case.tokens()].concat();
    let (prompt, rest) = tokens.split_at(tokens.len() - 3);
    let mut runtime = Runtime::open(open(case), options).unwrap();
    runtime.watch_experts();
    runtime.forward_all(prompt).unwrap();
    for token in rest {
        runtime.forward(*token).unwrap();
    }
    (runtime.take_visits(), runtime)
}

fn ascends(experts: &[u32]) -> bool {
    experts.is_sorted_by(|a, b| a < b)
}

#[test]
fn a_chunk_reads_each_expert_at_most_once_and_in_order() {
    for name in WITH_EXPERTS {
        let case = Golden::named(name);
        let weights = open(&case);
        for budget in budgets(&case) {
            for chunk in [1, 5, 64] {
                let (visits, runtime) = visits(&case, &options(Some(budget), chunk));
                let what = format!("{name}: {budget} bytes, {chunk} tokens");
                let mut misses = 0;
                for visit in &visits {
                    let Visit { layer, picks, hits, reads, bytes, .. } = visit;
                    // Strictly: no expert comes twice.
                    assert!(ascends(reads) && ascends(hits), "{what}: {visit:?}");
                    let found: BTreeSet<u32> = hits.iter().chain(reads).copied().collect();
                    assert_eq!(found, picks.iter().copied().collect(), "{what}");
                    assert_eq!(found.len(), hits.len() + reads.len(), "{what}: {visit:?}");
                    // What arrived of files, not what was asked for.
                    let len = |expert: &u32| {
                        let unit = Unit::Expert { layer: *layer, expert: *expert };
                        weights.layout(unit).unwrap().len
                    };
                    assert_eq!(*bytes, reads.iter().map(len).sum::<u64>(), "{what}");
                    misses += reads.len() as u64;
                }
                assert_eq!(misses, runtime.stats().cache_misses, "{what}");
                let rows: usize = visits.iter().map(|v| v.picks.len() / v.k).sum();
                let layers = visits
                    .iter()
                    .map(|v| v.layer)
                    .collect::<BTreeSet<_>>()
                    .len();
                assert_eq!(rows, layers * 2 * case.tokens().len(), "{what}");
            }
        }
    }
}

#[test]
fn longer_chunks_read_less() {
    for name in WITH_EXPERTS {
        let case = Golden::named(name);
        let budget = budgets(&case)[1];
        let read = |chunk| {
            let (visits, runtime) = visits(&case, &options(Some(budget), chunk));
            (visits.iter().map(|v| v.reads.len()).sum::<usize>(), runtime.plan().chunk)
        };
        let ((one, first), (some, longer)) = (read(1), read(64));
        assert_eq!(first, 1);
        assert!(longer > 4 && some < one, "{name}: {longer} tokens: {some} reads, singly {one}");
    }
}

#[test]
fn prompts_take_the_room_of_experts_and_give_it_back() {
    for name in WITH_EXPERTS {
        let case = Golden::named(name);
        for budget in budgets(&case) {
            let plan = MemoryPlan::new(&open(&case), &options(Some(budget), 64)).unwrap();
            let rooms = &plan.rooms;
            assert!(plan.total <= budget, "{name}: {plan:?}");
            assert_eq!(
                (rooms[0].slots, rooms.last().unwrap().tokens),
                (plan.expert_slots, plan.chunk)
            );
            let falls = |a: &ChunkRoom, b: &ChunkRoom| a.tokens <= b.tokens && a.slots >= b.slots;
            assert!(rooms.is_sorted_by(falls), "{name}: {rooms:?}");
            let least = MemoryPlan::new(&open(&case), &options(Some(plan.min_bytes), 1));
            let least = least.unwrap().expert_slots;
            assert!(rooms.last().unwrap().slots >= least, "{name}: {rooms:?}");
            let (_, runtime) = visits(&case, &options(Some(budget), 64));
            let held = runtime.stats().bytes_resident;
            let weights = plan.total - plan.reserved - plan.state - plan.scratch;
            assert!(held <= weights, "{name}: {held} of {weights}");
        }
    }
}
