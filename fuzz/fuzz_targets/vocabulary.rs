//! Vocabularies in forms of their own: `tokenizer_config.json`, a NUL, and a model of SentencePiece or ranks of tiktoken; or
//! a GGUF file with a vocabulary among its metadata. What a `tokenizer.json` is made of
//! - is a tokenizer, or refused as one;
//! - tokenizes and decodes, or refuses; ranks without added tokens give every text back.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use shardwright_format::checkpoint::{
    CONFIG_NAME, Checkpoint, SINGLE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
use shardwright_runtime::text::Tokenizer;

const TEXT: &str = "This is a text: 123, \u{e9}\u{1f600}\n  end.";

/// A checkpoint without tensors.
static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for the vocabulary");
    fs::write(dir.path().join(CONFIG_NAME), "{\"model_type\": \"llama\"}").expect("a config");
    fs::write(dir.path().join(SINGLE_NAME), b"\x02\0\0\0\0\0\0\0{}").expect("an empty checkpoint");
    dir
});
static GGUF: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let Some(end) = settings_end(&data[..size]).filter(|_| seed % 4 == 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    let (mut settings, rest) = (vec![0; max_size - (size - end)], data[end..size].to_vec());
    settings[..end].copy_from_slice(&data[..end]);
    let most = settings.len();
    let len = shardwright_fuzz::mutate(&mut settings, end, most, seed / 4);
    data[..len].copy_from_slice(&settings[..len]);
    data[len..len + rest.len()].copy_from_slice(&rest);
    len + rest.len()
});

/// Where the settings end: at the first NUL.
fn settings_end(data: &[u8]) -> Option<usize> {
    let text = !data.starts_with(b"GGUF");
    data.iter().position(|byte| *byte == 0).filter(|_| text)
}

fuzz_target!(|data: &[u8]| {
    let Some(end) = settings_end(data) else { return from_gguf(data) };
    fs::write(DIR.path().join(TOKENIZER_CONFIG_NAME), &data[..end]).expect("settings");
    fs::write(DIR.path().join("tokenizer.model"), &data[end + 1..]).expect("a vocabulary");
    let checkpoint = Checkpoint::open(DIR.path()).expect("settings have no say in it");
    let Some(tokenizer) = made(&checkpoint) else { return };
    let ranks = tokenizer.vocab_size() >= 256 && &data[..end] == b"{}" && data[end + 1..].is_ascii();
    if ranks {
        let tokens = tokenizer.encode(TEXT, false).expect("every byte is a token");
        assert_eq!(tokenizer.decode(&tokens).expect("its own tokens"), TEXT);
    }
});

fn from_gguf(data: &[u8]) {
    let path = GGUF.path().join("model.gguf");
    fs::write(&path, data).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    drop(made(&checkpoint));
    if let Ok(Some(config)) = checkpoint.synthesized(TOKENIZER_CONFIG_NAME) {
        serde_json::from_slice::<serde_json::Value>(config).expect("settings are JSON");
    }
}

/// The tokenizer of what `checkpoint` makes in place of its file.
fn made(checkpoint: &Checkpoint) -> Option<Tokenizer> {
    let json = checkpoint.synthesized(TOKENIZER_NAME).ok()??;
    serde_json::from_slice::<serde_json::Value>(json).expect("a document is JSON");
    let tokenizer = Tokenizer::parse(Path::new("fuzz"), json).ok()?;
    assert!(tokenizer.held_bytes() <= tokenizer.loading_bytes());
    if let Ok(tokens) = tokenizer.encode(TEXT, true) {
        let _ = tokenizer.decode(&tokens);
    }
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX]);
    Some(tokenizer)
}
