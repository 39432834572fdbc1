//! Models in trellis codes: what can only be read by whole blocks of rows makes no difference.
#![allow(clippy::unwrap_used)]

use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};
use shardwright_quant::{Affine, Encoding, Float, Trellis};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Mode, Options, Runtime};
use shardwright_testing::models::TestBundle;
use shardwright_testing::{error, fixture};

/// With a vocabulary of 1024 the fixture's table has four blocks of rows; the golden models' have
/// one. Between them: a tied head and one of its own, experts and none.
const MODELS: [&str; 4] = ["fixture-2m", "golden/qwen2_moe", "golden/llama3", "golden/qwen3-head"];

fn trellis(bits: u8, state_bits: u8) -> Encoding {
    Encoding::Trellis(Trellis::new(bits, state_bits).unwrap())
}

/// Bits by role, so that units mix them; a head that is not tied is affine beside a trellis embedding.
fn mixed(role: Role) -> Encoding {
    match role {
        Role::EmbedTokens => trellis(3, 12),
        Role::LmHead => Encoding::Affine(Affine::new(4, 32, Float::Bf16).unwrap()),
        Role::Router => Encoding::Bf16,
        Role::DownProj | Role::ExpertDownProj => trellis(4, 16),
        _ => trellis(2, 10),
    }
}

fn bundle(model: &str, encoding: &dyn Fn(Role) -> Encoding) -> (tempfile::TempDir, Vec<u32>) {
    let bundle = TestBundle::random(&fixture(model), encoding);
    let (dir, vocab) = (bundle.root, bundle.manifest.model.vocab_size);
    // The first, the last, and some of every block, neighbours and repetitions among them.
    let mut tokens = vec![0, vocab - 1, 5, 6, 5, 255];
    tokens.extend((0..10).map(|i| i * 7919 % vocab));
    (dir, tokens)
}

fn options(memory: Option<u64>) -> Options {
    Options { memory, threads: 2, context: 64, ..Options::default() }
}

fn run(dir: &tempfile::TempDir, tokens: &[u32], memory: Option<u64>) -> (Vec<u32>, Runtime) {
    let weights = Weights::open(dir.path()).unwrap();
    let mut runtime = Runtime::open(weights, &options(memory)).unwrap();
    let mut all = Vec::new();
    for &token in tokens {
        all.extend(runtime.forward(token).unwrap().iter().map(|x| x.to_bits()));
    }
    (all, runtime)
}

#[test]
fn streamed_trellis_codes_equal_resident_ones_bit_for_bit() {
    for model in MODELS {
        for encoding in [&mixed as &dyn Fn(Role) -> Encoding, &|_| trellis(3, 14)] {
            let (dir, tokens) = bundle(model, encoding);
            let (resident, runtime) = run(&dir, &tokens, None);
            assert_eq!(runtime.plan().mode, Mode::Resident);
            let (floor, top) = (runtime.plan().min_bytes, runtime.plan().resident);
            for budget in [floor, floor + (top - floor) / 2, top - 1] {
                let (streamed, runtime) = run(&dir, &tokens, Some(budget));
                let (plan, stats) = (runtime.plan(), runtime.stats());
                // One block is the golden models' whole head: at the floor it fits, or stays out.
                let pieces = budget == floor && model == MODELS[0];
                assert!(!pieces || !plan.head_resident, "{model}");
                assert!(plan.total <= budget && stats.bytes_read > 0, "{model}: {plan:?}");
                assert!(streamed == resident, "{model}: {budget} bytes change the logits");
            }
        }
    }
}

/// A token's row comes with the 256 rows that share its streams, and the plan says so.
#[test]
fn a_token_reads_a_block_of_the_embedding() {
    let (dir, tokens) = bundle("fixture-2m", &mixed);
    let weights = weights_of(&dir);
    let layout = weights.layout(Unit::Embedding).unwrap();
    let table = layout.find(Role::EmbedTokens).unwrap();
    let row = 256 * table.cols * 3 / 8 + 256 * 2;
    assert_eq!((table.rows, table.row_len().unwrap()), (1024, row));
    let floor = run(&dir, &tokens, None).1.plan().min_bytes;
    let mut runtime = Runtime::open(weights, &options(Some(floor))).unwrap();
    let plan = runtime.plan().clone();
    assert!(!plan.embedding_resident);
    let before = runtime.stats().bytes_read;
    runtime.advance(&tokens[..1]).unwrap();
    let read = runtime.stats().bytes_read - before;
    // All but the head, and layers read ahead for the next token.
    assert!(
        (row..=plan.cold_bytes_per_token - table.byte_len().unwrap() + plan.dense_buffer)
            .contains(&read),
        "{read} {plan:?}"
    );
}

/// All tokens through a layer at a time meet the same rows as one token after the other.
#[test]
fn layer_by_layer_reads_the_same_rows() {
    for model in MODELS {
        let (dir, tokens) = bundle(model, &mixed);
        let weights = Weights::open(dir.path()).unwrap();
        let mut pass = LayerPass::new(&weights, &tokens, tokens.len(), 2).unwrap();
        let embedded = pass.hidden().to_vec();
        let whole = weights.layout(Unit::Embedding).unwrap().len;
        assert!((1..=whole).contains(&pass.bytes_read()), "{model}");
        while pass.step().unwrap().is_some() {}
        let mut runtime = Runtime::open(weights_of(&dir), &options(None)).unwrap();
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let layers = runtime.spec().layers.len();
        for &token in &tokens {
            let mut observe = |layer: usize, x: &[f32]| match layer {
                0 => first.extend_from_slice(x),
                layer if layer == layers => last.extend_from_slice(x),
                _ => {}
            };
            runtime.forward_observed(token, &mut observe).unwrap();
        }
        assert!(embedded == first, "{model}: the embeddings differ");
        let error = error(pass.hidden(), &last);
        assert!(error < 1e-4, "{model}: the two orders differ by {error}");
    }
}

fn weights_of(dir: &tempfile::TempDir) -> Weights {
    Weights::open(dir.path()).unwrap()
}

#[test]
fn rows_that_cannot_be_read_alone_are_refused() {
    let (dir, _) = bundle("fixture-2m", &mixed);
    let weights = weights_of(&dir);
    let layout = weights.layout(Unit::Embedding).unwrap();
    let entry = &layout.tensors[0];
    let mut buf = shardwright_format::io::AlignedBuf::default();
    let mut read = |rows| weights.read_rows(Unit::Embedding, entry, rows, &mut buf);
    for rows in [0..256, 256..768, 768..1024, 0..1024] {
        assert_eq!(entry.readable(&(rows.start + 3..rows.end - 3)), rows);
        read(rows).unwrap();
    }
    for rows in [1..256, 0..255, 256..257, 1000..1024, 768..1280] {
        let error = read(rows.clone()).unwrap_err().to_string();
        let expected = format!(
            "embedding embed_tokens: rows: expected some of 1024 in whole blocks of 256, \
             found {rows:?}"
        );
        assert!(error.ends_with(&expected), "{error}");
    }
}
