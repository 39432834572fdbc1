//! A cache that is saved and taken up, or goes back, gives what computing everything anew gives, to the bit.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_quant::CacheType;
use shardwright_runtime::saved::{SavedPrompt, save};
use shardwright_runtime::{CacheTypes, Options, Runtime};
use shardwright_testing::{Golden, each_golden};

const CACHES: [CacheTypes; 3] = [
    CacheTypes { k: CacheType::F16, v: CacheType::Bf16 },
    CacheTypes { k: CacheType::Q8_0, v: CacheType::Q8_0 },
    CacheTypes { k: CacheType::Q4_0, v: CacheType::Q4_0 },
];

fn open(case: &Golden, options: &Options) -> Runtime {
    Runtime::open(Weights::open(&case.path).unwrap(), options).unwrap()
}

fn options(threads: usize, chunk: usize, context: usize, cache: CacheTypes) -> Options {
    Options { threads, chunk, context, cache, ..Options::default() }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A golden's text twice over: longer than its windows.
fn twice(case: &Golden) -> Vec<u32> {
    let tokens = case.tokens();
    [&tokens[..], &tokens[..]].concat()
}

fn what_was_saved_goes_on_as_if_nothing_had_been(case: &str) {
    for cache in CACHES {
        is_saved(&Golden::named(case), cache);
    }
}

fn is_saved(case: &Golden, cache: CacheTypes) {
    let tokens = twice(case);
    let end = tokens.len() - 2;
    let mut whole = open(case, &options(1, 5, 64, cache));
    let expected = bits(whole.forward_all(&tokens).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let mut first = open(case, &options(2, 7, 80, cache));
    let last = bits(first.forward_all(&tokens[..end]).unwrap());
    save(&path, &first, "this", &tokens[..end]).unwrap();
    let mut taken = 0;
    for kept in [end, end - 1, end / 2, 1] {
        let mut next = open(case, &options(1, 32, 64, cache));
        let saved = SavedPrompt::open(&path, "this", cache).unwrap().unwrap();
        assert_eq!(saved.tokens(), &tokens[..end]);
        if saved.load(&mut next, kept).unwrap() {
            assert_eq!(next.position(), kept);
            if kept == end {
                assert!(bits(next.last_logits()) == last, "the logits after the last token");
            }
            taken += 1;
        } else {
            assert!(kept < end, "all of it can always be taken up");
            assert_eq!(next.position(), 0);
        }
        let from = next.position();
        assert!(
            bits(next.forward_all(&tokens[from..]).unwrap()) == expected,
            "{cache:?}: {kept} kept"
        );
    }
    assert!(taken > 0);
    let other = CacheTypes { v: CacheType::F32, ..cache };
    let refused = SavedPrompt::open(&path, "this", other)
        .unwrap_err()
        .to_string();
    let (k, v) = (cache.k.name(), cache.v.name());
    let expected = format!(
        "expected a session with keys and values in {k} and f32, found one with keys and values in {k} and {v}"
    );
    assert!(refused.ends_with(&expected), "{refused}");
}

fn going_back_leaves_no_trace(case: &Golden, cache: CacheTypes) {
    let tokens = twice(case);
    let mut runtime = open(case, &options(1, 8, 64, cache));
    let mut other = tokens.clone();
    for back in [tokens.len(), tokens.len() - 1, tokens.len() - 5, 3, 0] {
        let vocab = runtime.spec().vocab_size;
        other[back..]
            .iter_mut()
            .for_each(|token| *token = (*token + 1) % vocab);
        runtime.reset();
        runtime.advance(&tokens).unwrap();
        let from = runtime.rewind(back);
        assert!(from == back || from == 0, "{from} of {back}");
        let found = match &other[from..] {
            [] => continue,
            rest => bits(runtime.forward_all(rest).unwrap()),
        };
        let mut anew = open(case, &options(1, 8, 64, cache));
        assert!(bits(anew.forward_all(&other).unwrap()) == found, "back to {back}");
        other.clone_from(&tokens);
    }
}

each_golden!(what_was_saved_goes_on_as_if_nothing_had_been);

#[test]
fn caches_go_back_where_they_can() {
    for name in ["llama2", "gemma3", "gpt_oss", "llama4", "deepseek_v3", "qwen3_next", "lfm2_moe"] {
        for cache in CACHES {
            going_back_leaves_no_trace(&Golden::named(name), cache);
        }
    }
    let mut full = open(&Golden::named("llama2"), &options(1, 8, 64, CACHES[0]));
    full.advance(&twice(&Golden::named("llama2"))).unwrap();
    assert_eq!(full.rewind(3), 3);
    let mut recurrent = open(&Golden::named("qwen3_next"), &options(1, 8, 64, CACHES[0]));
    recurrent.advance(&[1, 2, 3, 4]).unwrap();
    assert_eq!((recurrent.rewind(4), recurrent.rewind(3)), (4, 0));
}
