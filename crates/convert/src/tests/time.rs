//! How long conversions are expected to take.

use shardwright_format::manifest;

use super::{Case, Tiny};
use crate::time::work::Work;
use crate::{PlanOptions, Recipe, expected_time};

/// The matrices of [`Tiny`]'s layer, and its table.
const LAYER: f64 = 36_864.0;
const TABLE: f64 = 64.0 * 64.0;

fn tiny(calibration: Option<manifest::Calibration>) -> Case {
    let dir = tempfile::tempdir().unwrap();
    Tiny::default().write(dir.path());
    let method = if calibration.is_some() { "gptq" } else { "search" };
    let recipe = format!(
        r#"{{"name": "t", "rules": [{{"match": {{"role": "norm.*"}}, "encoding": "keep"}},
            {{"encoding": "q4g32", "method": "{method}"}}]}}"#
    );
    let options = PlanOptions { calibration, ..PlanOptions::default() };
    Case::new(dir.path(), &Recipe::parse("t", &recipe).unwrap(), options).unwrap()
}

/// Each weight gets one code, and nothing else is computed without a text.
#[test]
fn work_without_a_text_is_codes_and_hashes() {
    let case = tiny(None);
    let work = Work::new(&case.plan);
    let [(how, amount)] = &work.rounding[..] else { panic!("{:?}", work.rounding) };
    assert!(!how.feedback);
    let down = 64.0 * 128.0;
    assert_eq!((amount.weights, amount.columns), (LAYER + TABLE, 64.0 * (LAYER + TABLE + down)));
    assert_eq!((work.products, work.outer, work.factors, work.logits), (0.0, 0.0, 0.0, 0.0));
    assert_eq!(work.hashed, work.read + case.plan.summary.bundle_bytes as f64);
}

/// A text goes twice through what is made, once of these without the last matrix of each layer. Its beginning goes through
/// the original and then, less of it, again, where the embedding is the head; and through both heads.
#[test]
fn work_with_a_text_is_that_of_its_streams() {
    let (tokens, window) = (20_480.0, 512);
    let text = manifest::Calibration {
        text_blake3: Some(blake3::hash(b"text").into()),
        tokens: tokens as u64,
        window,
        ..Default::default()
    };
    let work = Work::new(&tiny(Some(text)).plan);
    assert!(work.rounding.iter().all(|(how, _)| how.feedback));
    let (original, again) = (8192.0, 2048.0);
    // Keys and values of half a window for 2 heads of 32.
    let attention = (2.0 * tokens + original + again) * 256.0 * 2.0 * 64.0;
    let watched = tokens * (LAYER - 64.0 * 128.0);
    let streams = (tokens + original + again) * LAYER;
    assert_eq!(work.products, streams + watched + attention + 2.0 * original * TABLE);
    // Inputs of attention, of its last matrix and of the feed-forward are 64 wide, one is 128; the head's, of the
    // original, are 64 wide.
    let layer = tokens * (3.0 * 64.0 * 64.0 + 128.0 * 128.0);
    assert_eq!(work.outer, layer / 2.0 + original * 64.0 * 64.0 / 2.0);
    assert_eq!(work.factors, 4.0 * 64f64.powi(3) + 128f64.powi(3));
    assert_eq!(work.logits, original * 64.0);
}

/// Experts that are alike are counted as often as there are.
#[test]
fn every_expert_is_counted() {
    let case = Case::from_fixture("golden/qwen3_moe", "q4");
    let work = Work::new(&case.plan);
    let weights: f64 = work.rounding.iter().map(|(_, amount)| amount.weights).sum();
    let roles = case.plan.summary.roles.iter();
    let coded = roles.filter(|role| role.encodings.iter().all(|label| label.starts_with('q')));
    assert_eq!(weights, coded.map(|role| role.weights).sum::<u64>() as f64);
}

#[test]
fn an_expected_time_is_the_sum_of_its_parts() {
    let case = Case::from_fixture("fixture-2m", "q4");
    let time = expected_time(&case.plan, &case.checkpoint, 2).unwrap();
    let sum =
        time.text_seconds + time.factor_seconds + time.rounding_seconds + time.hashing_seconds;
    assert_eq!(time.seconds, sum.max(time.reading_seconds.unwrap_or(0.0)));
    assert!(time.rounding_seconds > 0.0 && time.text_seconds == 0.0, "{time:?}");
    assert!(time.seconds.is_finite());
}
