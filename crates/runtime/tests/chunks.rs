//! Tokens of a prompt computed together give what they give one by one, to the bit.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_quant::Float;
use shardwright_runtime::text::Tokenizer;
use shardwright_runtime::{CacheTypes, MemoryPlan, Options, Runtime};
use shardwright_testing::{Golden, each_gguf, each_golden, fixture};

const CHUNKS: [usize; 4] = [1, 7, 32, 1000];

fn options(memory: Option<u64>, threads: usize, chunk: usize) -> Options {
    Options { memory, threads, chunk, context: 64, ..Options::default() }
}

/// Logits after the prompt `tokens[..split]`, then after each of the others, and what was kept of
/// the plan's chunk.
fn logits(weights: Weights, options: &Options, tokens: &[u32], split: usize) -> (Vec<u32>, usize) {
    let mut runtime = Runtime::open(weights, options).unwrap();
    let (prompt, rest) = tokens.split_at(split);
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut all = bits(runtime.forward_all(prompt).unwrap());
    for token in rest {
        all.extend(bits(runtime.forward(*token).unwrap()));
    }
    assert_eq!(runtime.stats().tokens, tokens.len() as u64);
    (all, runtime.plan().chunk)
}

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

/// A golden's text twice over: longer than its windows.
fn twice(case: &Golden) -> Vec<u32> {
    let tokens = case.tokens();
    [&tokens[..], &tokens[..]].concat()
}

fn check_chunks(case: &Golden) {
    let tokens = twice(case);
    let split = tokens.len() - 3;
    let run = |memory, threads, chunk| {
        logits(open(case), &options(memory, threads, chunk), &tokens, split)
    };
    let (one_by_one, _) = run(None, 1, 1);
    for chunk in CHUNKS {
        let (together, used) = run(None, 2, chunk);
        assert_eq!(used, chunk.min(64));
        assert!(together == one_by_one, "{chunk} at a time change the logits");
    }
}

fn chunks_do_not_change_logits(case: &str) {
    check_chunks(&Golden::named(case));
}

fn gguf_chunks_do_not_change_logits(case: &str) {
    check_chunks(&Golden::gguf(case));
}

each_golden!(chunks_do_not_change_logits);
each_gguf!(gguf_chunks_do_not_change_logits);

#[test]
fn chunks_change_nothing_under_any_budget() {
    for name in ["qwen3_moe", "gpt_oss", "gemma3", "deepseek_v3", "qwen3_next", "mixtral"] {
        let case = Golden::named(name);
        let tokens = twice(&case);
        let split = tokens.len() - 3;
        let (one_by_one, _) = logits(open(&case), &options(None, 1, 1), &tokens, split);
        let plan = MemoryPlan::new(&open(&case), &options(None, 1, 1)).unwrap();
        let (min, all) = (plan.min_bytes, plan.resident);
        for budget in [min, min + (all - min) / 2, all - 1, all, all + (1 << 20)] {
            let options = options(Some(budget), 2, 1000);
            let (together, _) = logits(open(&case), &options, &tokens, split);
            assert!(together == one_by_one, "{name}: {budget} bytes change the logits");
        }
    }
}

#[test]
fn keys_and_values_of_fewer_bits_are_kept_alike_in_chunks() {
    let (k, v) = (Float::F16, Float::Bf16);
    for name in ["qwen3_moe", "gpt_oss", "gemma3", "deepseek_v3", "qwen3_next"] {
        let case = Golden::named(name);
        let tokens = twice(&case);
        let run = |threads, chunk, cache| {
            let options = Options { cache, ..options(None, threads, chunk) };
            logits(open(&case), &options, &tokens, tokens.len() - 3).0
        };
        let one_by_one = run(1, 1, CacheTypes { k, v });
        for chunk in CHUNKS {
            let together = run(2, chunk, CacheTypes { k, v });
            assert!(together == one_by_one, "{name}: {chunk} at a time change the logits");
        }
        let exact = run(1, 1, CacheTypes::default());
        assert!(one_by_one != exact, "{name}: the cache rounds nothing");
        let [rounded, exact] = [one_by_one, exact].map(|bits| bits.into_iter().map(f32::from_bits));
        let largest = exact.clone().map(f32::abs).fold(0.0, f32::max);
        let far = rounded
            .zip(exact)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(far < 0.02 * largest, "{name}: a logit moves by {far} of {largest}");
    }
}

#[test]
fn keys_and_values_of_half_the_size_take_half_the_room() {
    let case = Golden::named("llama2");
    let state = |k, v| {
        let cache = CacheTypes { k, v };
        let options = Options { cache, context: 4096, ..options(None, 1, 1) };
        MemoryPlan::new(&open(&case), &options).unwrap().state
    };
    let (all, keys, both) = (
        state(Float::F32, Float::F32),
        state(Float::F16, Float::F32),
        state(Float::F16, Float::Bf16),
    );
    assert_eq!(all - keys, keys - both);
    assert!(both * 2 < all + (64 << 10), "{all} and {both}");
}

#[test]
fn a_budget_decides_how_many_tokens_go_together() {
    let case = Golden::named("qwen3_moe");
    let plan = |memory| MemoryPlan::new(&open(&case), &options(memory, 1, 64)).unwrap();
    let (all, least) = (plan(None), plan(Some(plan(None).min_bytes)));
    assert_eq!((all.chunk, least.chunk), (64, 1));
    let between = plan(Some(least.total + (all.resident - least.total) / 2));
    assert!(between.total <= between.budget.unwrap());
    let ample = plan(Some(all.total));
    assert_eq!(ample.chunk, 64);
    assert_eq!(plan(Some(all.resident)).chunk, 1);
    assert!(all.total > all.resident);
}

#[test]
fn a_trained_model_reads_a_text_alike_in_chunks() {
    let path = fixture("fixture-2m");
    let tokenizer = Tokenizer::open(&Weights::open(&path).unwrap()).unwrap();
    let text =
        "def parse(lines):\n    \"\"\"Split every line at its first colon.\"\"\"\n    pairs = ";
    let tokens = tokenizer.encode(&text.repeat(2), true).unwrap();
    let run = |threads, chunk| {
        let options = Options { context: 256, ..options(None, threads, chunk) };
        logits(Weights::open(&path).unwrap(), &options, &tokens, tokens.len() - 1).0
    };
    let one_by_one = run(1, 1);
    for chunk in CHUNKS {
        assert!(run(2, chunk) == one_by_one, "{chunk} at a time change the logits");
    }
}

#[test]
fn what_cannot_be_computed_is_refused_before_anything_is() {
    let case = Golden::named("llama2");
    let mut runtime =
        Runtime::open(open(&case), &Options { context: 4, ..options(None, 1, 2) }).unwrap();
    let refused = runtime.forward_all(&[]).unwrap_err();
    assert_eq!(refused.to_string(), "expected at least one token, found none");
    let refused = runtime.advance(&[1, 2, 3, 4, 5]).unwrap_err();
    assert_eq!(refused.to_string(), "the context of 4 tokens is full");
    let refused = runtime.advance(&[1, 256]).unwrap_err();
    assert_eq!(refused.to_string(), "token 256 is outside the vocabulary of 256");
    assert_eq!(runtime.position(), 0);
    runtime.advance(&[1, 2, 3]).unwrap();
    assert_eq!(runtime.position(), 3);
}
