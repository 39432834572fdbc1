//! A prompt's cache in a file, its hash put right. What opens is taken up into a small model, or refused; what was taken
//! up has finite logits, and the model goes on from there or says what is not finite.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwright_format::weights::Weights;
use shardwright_runtime::saved::SavedPrompt;
use shardwright_runtime::{CacheTypes, Options, Runtime};

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the file"));

thread_local! {
    /// The model that the seed is of.
    static RUNTIME: RefCell<Runtime> = RefCell::new({
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/fixture-2m");
        let options = Options { context: 16, ..Options::default() };
        Runtime::open(Weights::open(&dir).expect("the fixture"), &options).expect("a model")
    });
}

fuzz_target!(|data: &[u8]| {
    let path = DIR.path().join("session");
    let hash = blake3::hash(data);
    fs::write(&path, [data, hash.as_bytes()].concat()).expect("a file");
    let opened = SavedPrompt::open(&path, "fixture-2m", CacheTypes::default());
    let Ok(Some(saved)) = opened else { return };
    RUNTIME.with_borrow_mut(|runtime| {
        // As prompts are: within the context.
        let kept = saved.tokens().len().min(runtime.positions() - 1);
        runtime.reset();
        if matches!(saved.load(runtime, kept), Ok(true)) {
            assert_eq!(runtime.position(), kept);
            assert!(runtime.last_logits().iter().all(|logit| logit.is_finite()));
            let _ = runtime.forward(1);
        }
    });
});
