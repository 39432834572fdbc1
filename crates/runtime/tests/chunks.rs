//! Tokens of a prompt computed together give what they give one by one, to the bit.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_quant::CacheType;
use shardwright_runtime::layerwise::LayerPass;
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
        // Each thread takes some memory: the most that are tried.
        let plan = MemoryPlan::new(&open(&case), &options(None, 2, 1)).unwrap();
        let (min, all) = (plan.min_bytes, plan.resident);
        for budget in [min, min + (all - min) / 2, all - 1, all, all + (1 << 20)] {
            for (chunk, threads) in [(1, 2), (3, 1), (3, 2), (16, 2), (1000, 1), (1000, 2)] {
                let options = options(Some(budget), threads, chunk);
                let (together, _) = logits(open(&case), &options, &tokens, split);
                assert!(
                    together == one_by_one,
                    "{name}: {budget} bytes, {chunk} tokens and {threads} threads change the logits"
                );
            }
        }
    }
}

/// Types of keys and values, and how far a logit may move with them: a share of the largest. Tiny models of
/// random weights bear no 4 bits.
const TYPES: [(CacheType, CacheType, f32); 5] = [
    (CacheType::F16, CacheType::Bf16, 0.02),
    (CacheType::Q8_0, CacheType::Q8_0, 0.2),
    (CacheType::Q8_0, CacheType::Q4_0, f32::INFINITY),
    (CacheType::Q4_0, CacheType::F16, f32::INFINITY),
    (CacheType::Q4_0, CacheType::Q4_0, f32::INFINITY),
];

#[test]
fn keys_and_values_of_fewer_bits_are_kept_alike_in_chunks() {
    // Heads of 32 and of 16, latents of 48: whole blocks, none, and one with a rest.
    for name in ["qwen3_moe", "gpt_oss", "gemma3", "llama3", "deepseek_v3", "qwen3_next"] {
        let case = Golden::named(name);
        let tokens = twice(&case);
        let run = |threads, chunk, cache| {
            let options = Options { cache, ..options(None, threads, chunk) };
            logits(open(&case), &options, &tokens, tokens.len() - 3).0
        };
        let exact = run(1, 1, CacheTypes::default());
        for (k, v, share) in TYPES {
            let one_by_one = run(1, 1, CacheTypes { k, v });
            for chunk in CHUNKS {
                let together = run(2, chunk, CacheTypes { k, v });
                assert!(together == one_by_one, "{name}: {chunk} at a time change the logits");
            }
            assert!(one_by_one != exact, "{name}: the cache rounds nothing");
            let values = |bits: &[u32]| -> Vec<f32> {
                bits.iter().map(|bits| f32::from_bits(*bits)).collect()
            };
            let [rounded, exact] = [&one_by_one, &exact].map(|bits| values(bits));
            let most = |x: &mut dyn Iterator<Item = f32>| x.map(f32::abs).fold(0.0, f32::max);
            let largest = most(&mut exact.iter().copied());
            let far = most(&mut rounded.iter().zip(&exact).map(|(a, b)| a - b));
            assert!(
                far < share * largest,
                "{name}: {k:?} {v:?}: a logit moves by {far} of {largest}"
            );
        }
    }
}

#[test]
fn a_text_read_layer_by_layer_meets_the_cache_that_decoding_does() {
    for name in ["qwen3_moe", "gpt_oss", "gemma3", "deepseek_v3", "qwen3_next", "lfm2_moe"] {
        let case = Golden::named(name);
        let (weights, tokens) = (open(&case), case.tokens());
        for (k, v, _) in TYPES {
            let cache = CacheTypes { k, v };
            let mut pass = LayerPass::new(&weights, &tokens, tokens.len(), 1)
                .unwrap()
                .keeping(cache);
            while pass.step().unwrap().is_some() {}
            let options = Options { cache, ..options(None, 1, 1) };
            let mut runtime = Runtime::open(open(&case), &options).unwrap();
            let (layers, hidden) =
                (weights.spec().layers.len(), weights.spec().hidden_size as usize);
            for (token, expected) in tokens.iter().zip(pass.hidden().chunks_exact(hidden)) {
                let mut last = Vec::new();
                let mut observe = |layer: usize, x: &[f32]| {
                    if layer == layers {
                        last = x.to_vec();
                    }
                };
                runtime.forward_observed(*token, &mut observe).unwrap();
                assert!(last == expected, "{name}: {k:?} {v:?}");
            }
        }
    }
}

#[test]
fn what_a_cache_takes_is_counted_to_the_byte() {
    let plan = |case: &Golden, k, v| {
        let options = Options { cache: CacheTypes { k, v }, context: 4096, ..options(None, 1, 1) };
        MemoryPlan::new(&open(case), &options).unwrap()
    };
    // Per head of 32: 128 bytes in f32, 64 in f16, 34 in q8_0, 18 in q4_0.
    let (case, types) = (Golden::named("qwen3_moe"), CacheType::ALL);
    let layers = open(&case).spec().layers.len() as u64;
    for (k, a) in types.into_iter().zip([128, 64, 64, 34, 18]) {
        for (v, b) in types.into_iter().zip([128, 64, 64, 34, 18]) {
            assert_eq!(plan(&case, k, v).position_bytes, layers * 2 * (a + b), "{k:?} {v:?}");
        }
    }
    // Latents of 48 and keys of 16 that are rotated: a block, and 32 values in 16 bits.
    let case = Golden::named("deepseek_v3");
    let layers = open(&case).spec().layers.len() as u64;
    for (k, len) in types
        .into_iter()
        .zip([4 * 64, 2 * 64, 2 * 64, 34 + 64, 18 + 64])
    {
        assert_eq!(plan(&case, k, CacheType::F32).position_bytes, layers * len, "{k:?}");
    }
    // Windows are full before, recurrent states are the same at any position.
    let full = |name| plan(&Golden::named(name), CacheType::F16, CacheType::F16);
    assert_eq!(full("mistral").position_bytes, 0);
    assert!(full("qwen3_next").position_bytes > 0);
}

#[test]
fn fewer_bits_leave_room_for_more_positions() {
    let case = Golden::named("qwen3_moe");
    let spec = open(&case).spec().clone();
    let plan = |context, cache| {
        let options = Options { context, cache, ..options(None, 1, 1) };
        MemoryPlan::new(&open(&case), &options).unwrap()
    };
    let budget = plan(64, CacheTypes::default()).min_bytes + (1 << 20);
    let mut before = 0;
    for (k, v, _) in [(CacheType::F32, CacheType::F32, 0.0)]
        .into_iter()
        .chain(TYPES)
    {
        let cache = CacheTypes { k, v };
        let found = plan(64, cache).positions_within(&spec, cache, budget, 100_000);
        assert!(plan(found, cache).min_bytes <= budget, "{cache:?}: {found} positions");
        assert!(plan(found + 1, cache).min_bytes > budget, "{cache:?}: {found} positions");
        assert!(k == CacheType::Q4_0 || found > before, "{cache:?}: {found} positions");
        before = found;
    }
    let cache = CacheTypes::default();
    let [all, none] =
        [u64::MAX, 1].map(|budget| plan(64, cache).positions_within(&spec, cache, budget, 100_000));
    assert_eq!((all, none), (100_000, 0));
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

/// Far enough for threads to share the positions of a token that comes alone, and not those of many together.
#[test]
fn spans_of_a_long_context_change_nothing() {
    let case = Golden::named("qwen3_moe");
    let tokens: Vec<u32> = (0..700_u32).map(|i| i * 7919 % 256).collect();
    let run = |threads, chunk| {
        let options = Options { context: 700, ..options(None, threads, chunk) };
        logits(open(&case), &options, &tokens, 650).0
    };
    let alone = run(1, 1);
    for (threads, chunk) in [(1, 64), (2, 1), (3, 64)] {
        assert!(run(threads, chunk) == alone, "{threads} threads, {chunk} at a time");
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
