//! `tokenizer.json`. What is accepted tokenizes a text, or refuses to, and gives a text of its own tokens.
#![no_main]

use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use shardwright_runtime::text::Tokenizer;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    shardwright_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let Ok(tokenizer) = Tokenizer::parse(Path::new("fuzz"), data) else { return };
    assert!(tokenizer.held_bytes() <= tokenizer.loading_bytes());
    let Ok(tokens) = tokenizer.encode("This is a text: 123, \u{e9}\u{1f600}\n  end.", false) else { return };
    let _ = tokenizer.decode(&tokens);
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX]);
});
