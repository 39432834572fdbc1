use std::sync::atomic::AtomicBool;

use super::*;
use shardwright_testing::golden;
use shardwright_testing::models::{Codes, FOUR_BITS, TestBundle};

use crate::monitor::Monitor;

/// Tokens of a small vocabulary that do not repeat soon.
fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32)
        .map(|i| (i * i * 7 + i * 13) % 251)
        .collect()
}

fn run(
    original: &Weights,
    candidates: &[&Weights],
    tokens: &[u32],
    windows: EvalWindows,
    threads: usize,
    monitor: &Monitor<'_>,
) -> Result<Vec<Divergence>> {
    let parties: Vec<_> = candidates
        .iter()
        .map(|&weights| Party { name: "the candidate", weights })
        .collect();
    let original = Party { name: "original", weights: original };
    let found = divergences(
        original,
        &parties,
        &Reading { tokens, windows, cache: CacheTypes::default(), threads },
        monitor,
    )?;
    found.into_iter().collect()
}

fn compare(
    original: &Weights,
    candidate: &Weights,
    windows: EvalWindows,
    threads: usize,
) -> Divergence {
    let found = run(original, &[candidate], &tokens(100), windows, threads, &Monitor::silent());
    found.unwrap().into_iter().next().unwrap()
}

#[test]
fn candidates_do_not_change_each_other() {
    let original = Weights::open(&golden("qwen3_moe")).unwrap();
    let bundles = [3, 4].map(|bits| TestBundle::new("qwen3_moe", Codes::Affine(bits)));
    let candidates = bundles
        .each_ref()
        .map(|b| Weights::open(b.root.path()).unwrap());
    let windows = EvalWindows::new(32);
    let all = [&candidates[0], &original, &candidates[1]];
    let together = run(&original, &all, &tokens(100), windows, 2, &Monitor::silent()).unwrap();
    let alone = all.map(|one| compare(&original, one, windows, 2));
    assert_eq!(together, alone);
    assert!(together[0].kld_mean > together[2].kld_mean && together[1].kld_max == 0.0);
    assert_eq!(together[1].top5_overlap, Some(1.0));
    assert!(together[0].top5_overlap < together[2].top5_overlap);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let bundle = TestBundle::new("qwen3_moe", Codes::Plain);
    let original = Weights::open(&bundle.checkpoint).unwrap();
    let candidate = Weights::open(bundle.root.path()).unwrap();
    let d = compare(&original, &candidate, EvalWindows::new(32), 2);
    assert_eq!((d.windows, d.window, d.tokens), (3, 32, 93));
    assert_eq!((d.kld_mean, d.kld_max, d.same_top, d.top_flips), (0.0, 0.0, 1.0, 0));
    assert_eq!((d.ppl, d.ln_ppl_ratio, d.dp_rms), (d.ppl_original, 0.0, 0.0));
    assert_eq!(d.layers.len(), 4);
    assert!(d.layers.iter().all(|l| l.rmse == 0.0 && l.cosine == 1.0), "{:?}", d.layers);
    assert_eq!(
        d.layers.iter().map(|l| l.layer).collect::<Vec<_>>(),
        [None, Some(0), Some(1), Some(2)]
    );
}

#[test]
fn fewer_bits_diverge_more() {
    let original = Weights::open(&golden("qwen3_moe")).unwrap();
    let mut last = 0.0;
    for bits in [8, 4, 2] {
        let bundle = TestBundle::new("qwen3_moe", Codes::Affine(bits));
        let candidate = Weights::open(bundle.root.path()).unwrap();
        let d = compare(&original, &candidate, EvalWindows::new(32), 1);
        assert!(d.kld_mean > last, "{bits}: {}", d.kld_mean);
        assert!(
            d.layers
                .iter()
                .all(|l| l.rmse > 0.0 && l.cosine < 1.0 && l.cosine > -1.0)
        );
        last = d.kld_mean;
    }
}

#[test]
fn the_noise_floor_is_that_of_the_original_alone() {
    let original = Weights::open(&golden("qwen3_moe")).unwrap();
    let floor = |candidate: &Weights, windows| {
        let d = compare(&original, candidate, windows, 2);
        (d.noise_floor.unwrap(), d.kld_mean)
    };
    let (alone, _) = floor(&original, EvalWindows::new(32));
    assert_eq!((alone.windows, alone.tokens), (1, 31));
    assert!(alone.kld_mean > 0.0 && alone.kld_mean <= alone.kld_p99, "{alone:?}");
    let bundle = TestBundle::new("qwen3_moe", FOUR_BITS);
    let (beside, kld) = floor(&Weights::open(bundle.root.path()).unwrap(), EvalWindows::new(32));
    // A four-bit bundle is far above what rounding hidden states does, and does not change it.
    assert_eq!(beside, alone);
    assert!(kld > 10.0 * alone.kld_mean, "{kld} {alone:?}");
}

#[test]
fn threads_do_not_change_the_result() {
    let bundle = TestBundle::new("llama2", FOUR_BITS);
    let original = Weights::open(&bundle.checkpoint).unwrap();
    let candidate = Weights::open(bundle.root.path()).unwrap();
    let windows = EvalWindows { window: 16, first: 8, limit: Some(5) };
    let one = compare(&original, &candidate, windows, 1);
    assert_eq!(one, compare(&original, &candidate, windows, 3));
    assert_eq!((one.windows, one.tokens, one.first), (5, 35, 8));
}

/// Windows of a length that sums over 64 tokens do not divide; in one part, in two and in five.
#[test]
fn windows_measured_apart_give_the_same_bits() {
    let original = Weights::open(&golden("qwen3_moe")).unwrap();
    let bundle = TestBundle::new("qwen3_moe", Codes::Affine(3));
    let candidate = Weights::open(bundle.root.path()).unwrap();
    let party = |name, weights| Party { name, weights };
    let (original, candidate) = (party("original", &original), party("q3", &candidate));
    let (windows, tokens) = (EvalWindows { first: 3, ..EvalWindows::new(24) }, tokens(500));
    let reading = Reading { tokens: &tokens, windows, cache: CacheTypes::default(), threads: 2 };
    let count = windows.count(tokens.len()).unwrap();
    let measured = |some| measure(original, &[candidate], &reading, some, &Monitor::silent());
    let whole = measured(0..count).unwrap();
    let expected = divergences(original, &[candidate], &reading, &Monitor::silent()).unwrap();
    let expected: Vec<_> = expected.into_iter().map(Result::unwrap).collect();
    for parts in [1, 2, 5] {
        let share = |at: usize| at * count / parts..(at + 1) * count / parts;
        let mut joined = measured(share(0)).unwrap();
        for at in 1..parts {
            let (first, end) = (share(at).start, share(at).end);
            let next = measured(first..end).unwrap();
            assert!(next.fits(1, 3, (first, end, count), windows));
            assert!(!next.fits(1, 3, (first, end + 1, count), windows));
            joined.append(next);
        }
        assert_eq!(joined, whole);
        let found: Vec<_> = joined
            .divergences(windows, count)
            .map(Result::unwrap)
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn what_cannot_be_compared_is_said() {
    let original = Weights::open(&golden("llama2")).unwrap();
    let error = |other: &Weights, windows| {
        run(&original, &[other], &tokens(10), windows, 1, &Monitor::silent())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&original, EvalWindows::new(11)),
        "text: expected at least 11 tokens, one window, found 10"
    );
    assert_eq!(
        error(&original, EvalWindows { window: 8, first: 7, limit: None }),
        "windows of 8 tokens scored from 7: nothing to predict"
    );
    let other = Weights::open(&golden("qwen2_moe")).unwrap();
    let found = error(&other, EvalWindows::new(8));
    assert!(found.starts_with("layers: the original has "), "{found}");
}

#[test]
fn cancelling_stops() {
    let original = Weights::open(&golden("llama2")).unwrap();
    let cancel = AtomicBool::new(true);
    let monitor = Monitor { progress: &|_| (), cancel: &cancel };
    let stopped = run(&original, &[&original], &tokens(32), EvalWindows::new(16), 1, &monitor);
    assert!(matches!(stopped, Err(VerifyError::Cancelled)));
}
