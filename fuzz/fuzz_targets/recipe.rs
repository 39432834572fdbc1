//! Recipes. What is accepted survives encoding and parsing.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use shardwright_convert::Recipe;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(recipe) = Recipe::parse("fuzz", text) else { return };
    let json = serde_json::to_string(&recipe).expect("a recipe is JSON");
    assert_eq!(Recipe::parse("again", &json).expect("what was written is read"), recipe);
});
