//! Tokens that are tried together and go again leave nothing behind: logits stay the same to the bit.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_quant::CacheType;
use shardwright_runtime::draft::{DraftModel, Source};
use shardwright_runtime::text::{Sampler, Sampling};
use shardwright_runtime::{CacheTypes, MemoryPlan, Options, Runtime};
use shardwright_testing::{Golden, each_golden};

fn options(memory: Option<u64>, threads: usize, chunk: usize, draft: usize) -> Options {
    Options { memory, threads, chunk, draft, context: 64, ..Options::default() }
}

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Logits after each of `tokens`, one by one.
fn alone(case: &Golden, options: &Options, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut runtime = Runtime::open(open(case), options).unwrap();
    let each = tokens
        .iter()
        .map(|token| bits(runtime.forward(*token).unwrap()));
    each.collect()
}

/// The same with drafts: of the tokens tried, more are right each time, from none to all, and the
/// first wrong one is another token of the text.
fn with_drafts(case: &Golden, options: &Options, tokens: &[u32]) -> (Vec<Vec<u32>>, u64) {
    let mut runtime = Runtime::open(open(case), options).unwrap();
    let (mut all, mut right, mut gone) = (Vec::new(), 0, 0);
    while all.len() < tokens.len() {
        let rest = &tokens[all.len()..];
        let mut tried = rest[..rest.len().min(options.draft + 1)].to_vec();
        let wrong = 1 + right % (options.draft + 1);
        if let Some(token) = tried.get_mut(wrong) {
            *token = (*token + 1) % runtime.spec().vocab_size;
        }
        right += 1;
        let before = all.len();
        let kept = runtime.forward_while(&tried, |row, logits| {
            all.push(bits(logits));
            tried.get(row + 1) == tokens.get(before + row + 1)
        });
        assert_eq!(kept.unwrap(), all.len() - before);
        assert_eq!(runtime.position(), all.len());
        gone += (tried.len() - (all.len() - before)) as u64;
    }
    assert_eq!(runtime.stats().tokens, tokens.len() as u64);
    (all, gone)
}

fn twice(case: &Golden) -> Vec<u32> {
    let tokens = case.tokens();
    let all = [&tokens[..], &tokens[..]].concat();
    all[..all.len().min(60)].to_vec()
}

fn drafts_do_not_change_logits(case: &str) {
    let case = Golden::named(case);
    let tokens = twice(&case);
    let expected = alone(&case, &options(None, 1, 1, 0), &tokens);
    for (chunk, draft) in [(2, 1), (4, 3), (8, 7), (64, 5)] {
        let (found, gone) = with_drafts(&case, &options(None, 2, chunk, draft), &tokens);
        assert!(gone > 0, "every draft was right");
        assert!(found == expected, "{draft} drafted tokens change the logits");
    }
}

each_golden!(drafts_do_not_change_logits);

#[test]
fn drafts_change_nothing_under_any_budget_and_in_any_cache() {
    let types = [
        (CacheType::F32, CacheType::F32),
        (CacheType::F16, CacheType::Bf16),
        (CacheType::Q8_0, CacheType::Q8_0),
        (CacheType::Q4_0, CacheType::Q4_0),
    ];
    for name in ["qwen3_moe", "gpt_oss", "gemma3", "deepseek_v3", "qwen3_next", "lfm2_moe"] {
        let case = Golden::named(name);
        let tokens = twice(&case);
        for (k, v) in types {
            let with = |memory, draft| {
                let options = options(memory, 2, 1000, draft);
                Options { cache: CacheTypes { k, v }, ..options }
            };
            let expected = alone(&case, &with(None, 0), &tokens);
            let plan = MemoryPlan::new(&open(&case), &with(None, 7)).unwrap();
            let (min, all) = (plan.min_bytes, plan.resident);
            for budget in [min, min + (all - min) / 2, all - 1, all, all + (1 << 20)] {
                let (found, _) = with_drafts(&case, &with(Some(budget), 7), &tokens);
                assert!(found == expected, "{name}: {budget} bytes change the logits");
            }
        }
    }
}

#[test]
fn drafts_take_room_where_a_plan_has_it_and_never_raise_the_least() {
    for name in ["qwen3_next", "lfm2_moe", "llama2"] {
        let case = Golden::named(name);
        let plan =
            |memory, draft| MemoryPlan::new(&open(&case), &options(memory, 1, 64, draft)).unwrap();
        let (without, with) = (plan(None, 0), plan(None, 7));
        assert_eq!((without.draft, with.draft), (0, 7));
        assert!(with.scratch > without.scratch, "{name}");
        assert_eq!(with.min_bytes, without.min_bytes, "{name}");
        let least = plan(Some(with.min_bytes), 7);
        assert_eq!((least.chunk, least.draft), (1, 0), "{name}");
    }
}

#[test]
fn drafts_stop_at_the_end_of_the_context_and_of_what_the_model_sees() {
    let case = Golden::named("llama2");
    let mut runtime =
        Runtime::open(open(&case), &Options { context: 4, ..options(None, 1, 64, 7) }).unwrap();
    assert_eq!(runtime.draft_room(), 3);
    runtime.advance(&[1, 2]).unwrap();
    assert_eq!(runtime.draft_room(), 1);
    assert_eq!(runtime.forward_while(&[3, 4, 5, 6], |_, _| true).unwrap(), 2);
    assert_eq!((runtime.draft_room(), runtime.position()), (0, 4));
    assert!(runtime.forward_while(&[3], |_, _| true).is_err());
}

/// What a model finds likeliest after `text`, computed anew.
fn goes_on(case: &Golden, text: &[u32], most: usize) -> Vec<u32> {
    let mut runtime = Runtime::open(open(case), &options(None, 1, 64, 0)).unwrap();
    let mut likeliest = Sampler::new(Sampling::default());
    let mut draft = vec![likeliest.next(runtime.forward_all(text).unwrap())];
    while draft.len() < most {
        let next = likeliest.next(runtime.forward(*draft.last().unwrap()).unwrap());
        draft.push(next);
    }
    draft
}

#[test]
fn a_model_drafts_what_it_would_say_whatever_it_said_before() {
    // Keys by position, a window, a recurrent state that cannot go back.
    for name in ["llama2", "mistral", "qwen3_next"] {
        let case = Golden::named(name);
        let tokens = case.tokens();
        let runtime = Runtime::open(open(&case), &options(None, 1, 8, 0)).unwrap();
        let mut source = Source::Model(Box::new(DraftModel::new(runtime, 256)));
        source.prepare(&tokens[..5]).unwrap();
        let mut text = tokens[..8].to_vec();
        for (step, token) in tokens[8..].iter().enumerate() {
            let draft = source.draft(&text, 1 + step % 5).unwrap();
            assert_eq!(draft, goes_on(&case, &text, 1 + step % 5), "{name}: {step}");
            // Sometimes the draft was right, sometimes the text goes on otherwise, or begins anew.
            match step % 4 {
                0 => text.extend(draft),
                1 => text.extend([(draft[0] + 1) % 256, *token]),
                3 => text.truncate(text.len() / 2),
                _ => text.push(*token),
            }
        }
    }
}

#[test]
fn a_model_drafts_no_more_than_it_has_room_for_and_only_known_tokens() {
    let case = Golden::named("llama2");
    let small = |context, vocab| {
        let options = Options { context, ..options(None, 1, 8, 0) };
        let runtime = Runtime::open(open(&case), &options).unwrap();
        Source::Model(Box::new(DraftModel::new(runtime, vocab)))
    };
    let mut source = small(4, 256);
    assert_eq!(source.draft(&[1, 2, 3], 7).unwrap(), goes_on(&case, &[1, 2, 3], 2));
    assert!(source.draft(&[1, 2, 3, 4, 5], 7).unwrap().is_empty());
    assert!(source.draft(&[1, 999], 7).unwrap().is_empty());
    assert!(source.draft(&[], 7).unwrap().is_empty());
    source.prepare(&[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(source.draft(&[1], 1).unwrap(), goes_on(&case, &[1], 1));
    // Whatever it likes best, the other model knows none of it.
    assert!(small(64, 0).draft(&[1, 2, 3], 7).unwrap().is_empty());
}
