//! The layer that predicts the token after next, against what reference code makes of it, and as a source of drafts.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_runtime::{Options, Runtime};
use shardwright_testing::{Golden, error};

/// Of the largest logit.
const TOLERANCE: f32 = 1e-4;

/// A dense layer and experts, fused and apart; grouped-query and latent attention; both ways to name the layer;
/// one quantized by others.
const CASES: [&str; 6] =
    ["qwen3_5", "qwen3_5_moe", "qwen3_next", "deepseek_v3", "deepseek_v3-fp8", "glm4_moe"];

fn open(case: &Golden, chunk: usize, draft: usize) -> Runtime {
    let options = Options { threads: 2, chunk, context: 64, draft, ..Options::default() };
    let mut runtime = Runtime::open(Weights::open(&case.path).unwrap(), &options).unwrap();
    runtime.open_predictor().unwrap();
    runtime
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Guesses behind `last`, and the logits of each.
fn guesses(runtime: &mut Runtime, last: u32, most: usize) -> (Vec<u32>, Vec<f32>) {
    let mut all = Vec::new();
    let drafted = runtime.predict(last, most, &mut |logits| all.extend_from_slice(logits));
    (drafted.unwrap(), all)
}

#[test]
fn each_pair_gives_the_reference_s_logits() {
    for name in CASES {
        let case = Golden::named(name);
        let tokens = case.tokens();
        let mut runtime = open(&case, 8, 0);
        let mut found = Vec::new();
        for pair in tokens.windows(2) {
            runtime.forward(pair[0]).unwrap();
            let (drafted, logits) = guesses(&mut runtime, pair[1], 1);
            assert_eq!(drafted.len(), 1);
            found.extend(logits);
        }
        let off = error(&found, &case.floats("prediction.logits").unwrap());
        assert!(off < TOLERANCE, "{name}: {off:e}");
    }
}

#[test]
fn a_draft_goes_on_from_its_own_guesses_as_the_reference_does() {
    for name in CASES {
        let case = Golden::named(name);
        let next = case.integers("prediction.next").unwrap()[0];
        let expected = case.floats("prediction.guesses").unwrap();
        // In one piece, in pieces, and behind a prompt that is longer than what is taken in together.
        for chunk in [1, 5, 64] {
            let mut runtime = open(&case, chunk, 0);
            runtime.forward_all(&case.tokens()).unwrap();
            let (drafted, logits) = guesses(&mut runtime, next, 4);
            assert_eq!(Some(drafted), case.integers("prediction.tokens"), "{name}");
            let off = error(&logits, &expected);
            assert!(off < TOLERANCE, "{name}: {off:e}");
            // What was guessed once is not guessed again before the model has come by.
            assert!(guesses(&mut runtime, next, 4).0.is_empty());
        }
    }
}

#[test]
fn tokens_that_did_not_follow_leave_the_layer_as_if_they_had_never_been() {
    for name in CASES {
        let case = Golden::named(name);
        let tokens = [case.tokens(), case.tokens()].concat();
        let mut plain = open(&case, 64, 7);
        let mut tried = open(&case, 64, 7);
        let mut at = 0;
        for (step, right) in [0, 3, 1, 6, 2, 5, 0, 4, 7, 1].into_iter().enumerate() {
            let mut some = tokens[at..at + 8].to_vec();
            let wrong = |token: &mut u32| *token = (*token + 1) % 256;
            some.get_mut(right + 1).into_iter().for_each(wrong);
            let mut last = Vec::new();
            let kept = tried.forward_while(&some, |row, logits| {
                last = bits(logits);
                some.get(row + 1) == tokens.get(at + row + 1)
            });
            let kept = kept.unwrap();
            assert_eq!(kept, right + 1, "{name}: step {step}");
            let expected = bits(plain.forward_all(&tokens[at..at + kept]).unwrap());
            assert!(last == expected, "{name}: other logits");
            at += kept;
            // Not each time: pairs that wait are among what goes back.
            if step % 3 == 1 {
                let (a, b) =
                    (guesses(&mut plain, tokens[at], 3), guesses(&mut tried, tokens[at], 3));
                assert_eq!(a.0.len(), 3);
                assert!(a == b, "{name}: other guesses at {at}");
            }
        }
    }
}

#[test]
fn a_long_prompt_is_taken_in_as_it_is_read() {
    let case = Golden::named("glm4_moe");
    let tokens = [case.tokens(), case.tokens()].concat();
    let [mut pieces, mut whole] = [3, 48].map(|chunk| open(&case, chunk, 0));
    pieces.forward_all(&tokens).unwrap();
    whole.forward_all(&tokens).unwrap();
    assert!(guesses(&mut pieces, 1, 5) == guesses(&mut whole, 1, 5));
}

#[test]
fn whoever_goes_back_may_guess_again() {
    let case = Golden::named("glm4_moe");
    let tokens = case.tokens();
    let mut runtime = open(&case, 64, 0);
    runtime.forward_all(&tokens).unwrap();
    guesses(&mut runtime, tokens[0], 2);
    assert_eq!(runtime.rewind(10), 10);
    assert_eq!(guesses(&mut runtime, tokens[10], 2).0.len(), 2);
    runtime.forward_all(&tokens[10..]).unwrap();
    assert_eq!(guesses(&mut runtime, tokens[0], 2).0.len(), 2);
    // From the beginning all is as it was.
    runtime.reset();
    assert!(guesses(&mut runtime, tokens[0], 2).0.is_empty());
    runtime.forward_all(&tokens).unwrap();
    let expected = case.integers("prediction.tokens");
    let next = case.integers("prediction.next").unwrap()[0];
    assert_eq!(Some(guesses(&mut runtime, next, 4).0), expected);
}

#[test]
fn a_model_without_the_layer_is_refused() {
    let case = Golden::named("llama2");
    let mut runtime =
        Runtime::open(Weights::open(&case.path).unwrap(), &Options::default()).unwrap();
    let refused = runtime.open_predictor().unwrap_err().to_string();
    let expected = "expected layers that predict further tokens, found none: a bundle keeps them where its recipe says so";
    assert!(refused.ends_with(expected), "{refused}");
    assert!(guesses(&mut runtime, 1, 3).0.is_empty());
}
