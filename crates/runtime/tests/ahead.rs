//! Experts that are read before their layer picks them: what that changes, and what it must not.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use shardwright_format::weights::Weights;
use shardwright_runtime::ahead::LookedAhead;
use shardwright_runtime::trace::Visit;
use shardwright_runtime::{LookAhead, MemoryPlan, Options, Runtime};
use shardwright_testing::{Golden, RawTensors, copy_dir, golden};

const WITH_EXPERTS: [&str; 6] =
    ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "mixtral", "olmoe"];

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn options(memory: Option<u64>, look_ahead: LookAhead) -> Options {
    Options { memory, threads: 2, context: 256, look_ahead, ..Options::default() }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Bits of all logits of a text that is decoded token by token; what it did.
fn decoded(case: &Golden, options: &Options, times: usize) -> (Vec<u32>, Runtime) {
    let mut runtime = Runtime::open(open(case), options).unwrap();
    runtime.watch_experts();
    let mut all = Vec::new();
    for token in case.tokens().repeat(times) {
        all.extend(bits(runtime.forward(token).unwrap()));
    }
    (all, runtime)
}

/// What looking ahead did, by the lines of a trace.
fn traced(visits: &[Visit]) -> LookedAhead {
    let mut sum = LookedAhead::default();
    for Visit { picks, hits, reads, guessed, late, .. } in visits {
        let picked = |expert: &&u32| picks.contains(expert);
        let used = guessed.iter().filter(picked).count();
        assert!(guessed.is_sorted_by(|a, b| a < b) && reads.iter().all(|r| !guessed.contains(r)));
        assert!(
            late.iter()
                .all(|expert| guessed.contains(expert) && hits.contains(expert))
        );
        sum.guesses.issued += guessed.len() as u64;
        sum.guesses.used += (used - late.len()) as u64;
        sum.guesses.late += late.len() as u64;
        sum.guesses.wasted += (guessed.len() - used) as u64;
    }
    sum
}

#[test]
fn guesses_change_no_logit_and_all_are_accounted_for() {
    for name in WITH_EXPERTS {
        let case = Golden::named(name);
        let (expected, runtime) = decoded(&case, &options(None, LookAhead::On), 2);
        assert_eq!(runtime.stats().ahead, LookedAhead::default(), "{name}: all are in memory");
        let (min, all) = (runtime.plan().min_bytes, runtime.plan().resident);
        let mut issued = 0;
        for eighths in 0..8 {
            let budget = min + (all - 1 - min) * eighths / 7;
            for when in [LookAhead::Off, LookAhead::On, LookAhead::Auto] {
                let what = format!("{name}: {budget} bytes, {when:?}");
                let (logits, mut runtime) = decoded(&case, &options(Some(budget), when), 2);
                assert!(logits == expected, "{what}: other logits");
                let (visits, stats) = (runtime.take_visits(), runtime.stats());
                let LookedAhead { guesses, .. } = stats.ahead;
                assert_eq!(traced(&visits).guesses, guesses, "{what}");
                assert_eq!(guesses.issued, guesses.used + guesses.late + guesses.wasted, "{what}");
                let picked = |v: &Visit| v.picks.iter().collect::<BTreeSet<_>>().len() as u64;
                let asked: u64 = visits.iter().map(picked).sum();
                assert_eq!(stats.cache_hits + stats.cache_misses, asked, "{what}");
                if when == LookAhead::Off {
                    assert_eq!(guesses.issued, 0, "{what}");
                }
                // Room for what a token picks, and for nothing else.
                if stats.ahead.tokens > 0 && runtime.plan().expert_slots as u64 == picks(&visits) {
                    assert_eq!(guesses.issued, 0, "{what}");
                }
                let plan = runtime.plan();
                let weights = plan.total - plan.reserved - plan.state - plan.scratch;
                assert!(stats.bytes_resident <= weights, "{what}: {stats:?}");
                issued += guesses.issued;
            }
        }
        // Its two layers with experts have another between them.
        assert_eq!(issued > 0, name != "qwen3_moe", "{name}: {issued} read ahead");
    }
}

fn picks(visits: &[Visit]) -> u64 {
    visits.iter().map(|visit| visit.k as u64).max().unwrap()
}

/// A model in which each mixer outweighs all that came before: what a layer's router sees has nothing to do with what
/// the next one sees, and a guess is right by chance.
fn without_a_memory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden("qwen3_next"), dir.path());
    let path = dir.path().join("model.safetensors");
    let mut tensors = RawTensors::read(&path);
    let names: Vec<String> = tensors.header.keys().cloned().collect();
    for name in names
        .iter()
        .filter(|name| name.contains("o_proj") || name.contains("out_proj"))
    {
        assert_eq!(tensors.header[name]["dtype"], "BF16");
        let range = tensors.range(name);
        let layer = name.split('.').find_map(|part| part.parse::<u16>().ok());
        // 2^8 times as much as the layer before.
        let more = (8 * (layer.unwrap() + 1)) << 7;
        for value in tensors.data[range].chunks_exact_mut(2) {
            let bits = u16::from_le_bytes([value[0], value[1]]);
            let scaled = if bits & 0x7f80 == 0 { bits } else { bits + more };
            value.copy_from_slice(&scaled.to_le_bytes());
        }
    }
    std::fs::write(&path, tensors.to_bytes()).unwrap();
    dir
}

/// Guesses before they are judged by themselves.
const JUDGED: u64 = 16;

/// Guesses of one token at most: the likeliest of the two experts of each of its four layers.
const A_TOKEN: u64 = 4;

#[test]
fn guesses_that_are_mostly_wrong_stop_by_themselves() {
    let dir = without_a_memory();
    let weights = || Weights::open(dir.path()).unwrap();
    let plan = MemoryPlan::new(&weights(), &options(None, LookAhead::Off)).unwrap();
    let run = |budget, when| {
        let mut runtime = Runtime::open(weights(), &options(Some(budget), when)).unwrap();
        let mut all = Vec::new();
        for i in 0..250_u32 {
            all.extend(bits(runtime.forward(i * 7919 % 256).unwrap()));
        }
        (all, runtime.stats().ahead)
    };
    let mut seen = 0;
    for eighths in 4..8 {
        let budget = plan.min_bytes + (plan.resident - 1 - plan.min_bytes) * eighths / 8;
        let (logits, on) = run(budget, LookAhead::On);
        assert_eq!((on.tokens, on.stops), (250, 0));
        if on.guesses.issued < 100 {
            continue;
        }
        assert!(on.guesses.wasted > on.guesses.used + on.guesses.late, "{on:?}");
        let (other, auto) = run(budget, LookAhead::Auto);
        assert!(logits == other);
        // How many tokens it takes to make as many guesses as are judged depends on how busy the machine is; that
        // no more are made in vain before each stop does not.
        let LookedAhead { stops, guesses, .. } = auto;
        assert!(stops > 0 || guesses.issued < JUDGED, "{auto:?}");
        let in_vain = guesses.wasted.saturating_sub(guesses.used + guesses.late);
        assert!(in_vain <= (stops + 1) * (JUDGED + A_TOKEN), "{auto:?}");
        seen += 1;
    }
    assert!(seen > 0, "nothing was read ahead");
}
