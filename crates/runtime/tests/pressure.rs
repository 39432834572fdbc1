//! Memory that changes while a text is computed: experts leave and come back, the text stays the same.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_runtime::{MemoryPlan, Mode, Options, Runtime};
use shardwright_testing::Golden;

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn options(memory: Option<u64>, draft: usize) -> Options {
    Options { memory, threads: 2, chunk: 16, context: 128, draft, ..Options::default() }
}

/// Numbers that look random, the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % most
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Weights in memory are no more than the plan says.
fn keeps_to_its_plan(runtime: &Runtime, what: &str) {
    let (plan, held) = (runtime.plan(), runtime.stats().bytes_resident);
    let weights = plan.total - plan.reserved - plan.state - plan.scratch;
    assert!(held <= weights, "{what}: {held} of {weights}");
}

#[test]
fn hundreds_of_sizes_change_no_logit() {
    let mut changes = 0;
    for name in ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "mixtral", "olmoe"] {
        let case = Golden::named(name);
        let tokens = [case.tokens(), case.tokens(), case.tokens(), case.tokens()].concat();
        let mut still = Runtime::open(open(&case), &options(None, 0)).unwrap();
        let expected: Vec<_> = tokens
            .iter()
            .map(|t| bits(still.forward(*t).unwrap()))
            .collect();
        let plan = MemoryPlan::new(&open(&case), &options(None, 0)).unwrap();
        let (min, all) = (plan.min_bytes, plan.resident);
        for start in [None, Some(min), Some(min.midpoint(all)), Some(all - 1)] {
            let mut runtime = Runtime::open(open(&case), &options(start, 3)).unwrap();
            let (mut random, mut at) = (Random(start.unwrap_or(1)), 0);
            while at < tokens.len() {
                // Below what works, and above what everything takes.
                let budget = min / 2 + random.below(all - min / 2 + (1 << 20));
                let planned = runtime.set_memory(budget).unwrap().clone();
                assert!(planned.total <= budget || planned.expert_slots <= 4, "{planned:?}");
                // Before anything is computed.
                keeps_to_its_plan(&runtime, "given back");
                changes += 1;
                // One token, some of a prompt, or some that are tried of which the first is right.
                let some = (1 + random.below(7) as usize).min(tokens.len() - at);
                let what = format!("{name}: {at}, {some} tokens in {budget}");
                let last = match random.below(3) {
                    0 => {
                        at += some;
                        bits(runtime.forward_all(&tokens[at - some..at]).unwrap())
                    }
                    1 => {
                        let tried = &tokens[at..at + some];
                        let mut seen = Vec::new();
                        at += runtime
                            .forward_while(tried, |_, logits| {
                                seen = bits(logits);
                                false
                            })
                            .unwrap();
                        seen
                    }
                    _ => {
                        at += 1;
                        bits(runtime.forward(tokens[at - 1]).unwrap())
                    }
                };
                assert!(last == expected[at - 1], "{what}: other logits");
                assert_eq!(runtime.position(), at);
                keeps_to_its_plan(&runtime, &what);
            }
        }
    }
    assert!(changes > 500, "{changes} changes");
}

#[test]
fn what_was_given_back_is_read_again_and_can_come_back() {
    let case = Golden::named("qwen3_moe");
    let tokens = case.tokens();
    let mut runtime = Runtime::open(open(&case), &options(None, 0)).unwrap();
    let (opened, held) = (runtime.plan().clone(), runtime.stats().bytes_resident);
    runtime.forward(tokens[0]).unwrap();
    assert_eq!(runtime.stats().cache_misses, 0);
    let least = runtime.set_memory(0).unwrap().clone();
    assert_eq!((least.mode, least.expert_slots), (Mode::Streamed, 2));
    assert_eq!(least.total, opened.total - (opened.expert_slots as u64 - 2) * opened.expert_slot);
    runtime.forward(tokens[1]).unwrap();
    runtime.forward(tokens[2]).unwrap();
    let gone = held - runtime.stats().bytes_resident;
    assert!(gone > 0 && runtime.stats().cache_misses > 0);
    assert_eq!(
        *runtime.set_memory(u64::MAX).unwrap(),
        MemoryPlan { budget: Some(u64::MAX), ..opened }
    );
    for _ in 0..2 {
        tokens[3..]
            .iter()
            .for_each(|token| drop(runtime.forward(*token).unwrap().to_vec()));
    }
    assert!(runtime.stats().bytes_resident > held - gone);
}

#[test]
fn a_model_without_experts_has_nothing_to_give_back() {
    let case = Golden::named("llama2");
    let mut runtime = Runtime::open(open(&case), &options(None, 0)).unwrap();
    let opened = runtime.plan().clone();
    assert_eq!(*runtime.set_memory(1).unwrap(), MemoryPlan { budget: Some(1), ..opened });
    runtime.forward(1).unwrap();
}
