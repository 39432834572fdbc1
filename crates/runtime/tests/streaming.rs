//! What a budget changes and what it must not.
#![allow(clippy::unwrap_used)]

use shardwright_format::Unit;
use shardwright_format::weights::Weights;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{MemoryPlan, Mode, Options, Runtime, RuntimeError};
use shardwright_testing::{Golden, copy_dir, each_golden, error, golden};

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn options(memory: Option<u64>, threads: usize) -> Options {
    Options { memory, threads, context: 64, ..Options::default() }
}

/// Bits of all logits of all tokens, and the runtime.
fn logits(case: &Golden, options: &Options) -> (Vec<u32>, Runtime) {
    let mut runtime = Runtime::open(open(case), options).unwrap();
    let mut all = Vec::new();
    for token in case.tokens() {
        all.extend(runtime.forward(token).unwrap().iter().map(|x| x.to_bits()));
    }
    (all, runtime)
}

fn floor(case: &Golden) -> u64 {
    MemoryPlan::new(&open(case), &options(None, 1))
        .unwrap()
        .min_bytes
}

/// Whether the head is in codes: it may then be no larger than the pieces that would be read of it.
fn coded_head(case: &Golden) -> bool {
    let weights = open(case).in_codes().unwrap();
    let tied = weights.spec().tie_word_embeddings;
    let unit = if tied { Unit::Embedding } else { Unit::Head };
    let layout = weights.layout(unit).unwrap();
    layout
        .tensors
        .iter()
        .any(|tensor| tensor.encoding.float().is_none())
}

fn streamed_equals_resident_bit_for_bit(case: &str) {
    let case = Golden::named(case);
    let (resident, runtime) = logits(&case, &options(None, 1));
    assert_eq!(runtime.plan().mode, Mode::Resident);
    assert_eq!(runtime.stats().bytes_read, 0, "{}", case.name);
    // A thread takes some memory too.
    let plan = MemoryPlan::new(&open(&case), &options(None, 2)).unwrap();
    let (floor, top) = (plan.min_bytes, plan.resident);
    for budget in [floor, floor + (top - floor) / 3, top - 1] {
        let (streamed, runtime) = logits(&case, &options(Some(budget), 2));
        let held = runtime.plan().head_resident;
        assert!(budget > floor || !held || coded_head(&case), "{}", case.name);
        assert_eq!(runtime.plan().mode, Mode::Streamed, "{}", case.name);
        assert!(runtime.plan().total <= budget, "{}: {:?}", case.name, runtime.plan());
        assert!(runtime.stats().bytes_read > 0, "{}", case.name);
        assert!(streamed == resident, "{}: {budget} bytes change the logits", case.name);
    }
}

each_golden!(streamed_equals_resident_bit_for_bit);

fn threads_do_not_change_logits(case: &str) {
    let case = Golden::named(case);
    let (one, two) = (logits(&case, &options(None, 1)).0, logits(&case, &options(None, 2)).0);
    assert!(one == two, "{}", case.name);
}

each_golden!(threads_do_not_change_logits);

fn what_lies_in_memory_is_what_was_planned(case: &str) {
    let case = Golden::named(case);
    let floor = floor(&case);
    for budget in [Some(floor), None] {
        let (_, runtime) = logits(&case, &options(budget, 1));
        let (plan, stats) = (runtime.plan(), runtime.stats());
        let weights = plan.total - plan.reserved - plan.state - plan.scratch;
        assert!(stats.bytes_resident <= weights, "{}: {stats:?} {plan:?}", case.name);
        assert_eq!(stats.tokens, case.tokens().len() as u64);
    }
}

each_golden!(what_lies_in_memory_is_what_was_planned);

#[test]
fn a_cold_token_reads_what_the_plan_says() {
    let case = Golden::named("qwen3_moe");
    let plan = MemoryPlan::new(&open(&case), &options(Some(floor(&case)), 1)).unwrap();
    let mut runtime = Runtime::open(open(&case), &options(plan.budget, 1)).unwrap();
    runtime.forward(case.tokens()[0]).unwrap();
    let stats = runtime.stats();
    // Sizes in memory include alignment; layers are read ahead, for the next token too.
    assert!(stats.bytes_read <= plan.cold_bytes_per_token + plan.dense_buffer);
    assert!(stats.bytes_read * 3 > plan.cold_bytes_per_token, "{stats:?} {plan:?}");
    assert!(stats.cache_misses > 0);
}

#[test]
fn a_budget_below_the_floor_names_the_floor() {
    let case = Golden::named("mixtral");
    let floor = floor(&case);
    assert!(MemoryPlan::new(&open(&case), &options(Some(floor), 1)).is_ok());
    let refused = Runtime::open(open(&case), &options(Some(floor - 1), 1)).unwrap_err();
    let expected = format!(
        "a memory budget of {} bytes is too small: this model needs at least {floor}",
        floor - 1
    );
    assert_eq!(refused.to_string(), expected);
}

#[test]
fn a_plan_needs_no_weights() {
    let case = Golden::named("qwen2_moe");
    let weights = open(&case);
    let layout = |unit: Unit| weights.layout(unit);
    let options = options(Some(floor(&case) + 100_000), 1);
    let planned = MemoryPlan::for_layouts(weights.spec(), &layout, &options).unwrap();
    assert_eq!(planned, *Runtime::open(open(&case), &options).unwrap().plan());
}

#[test]
fn a_full_context_and_a_foreign_token_are_refused() {
    let case = Golden::named("llama2");
    let mut runtime =
        Runtime::open(open(&case), &Options { context: 2, ..options(None, 1) }).unwrap();
    let refused = runtime.forward(256).unwrap_err();
    assert_eq!(refused.to_string(), "token 256 is outside the vocabulary of 256");
    runtime.forward(1).unwrap();
    let first = runtime.forward(2).unwrap().to_vec();
    let refused = runtime.forward(3).unwrap_err();
    assert_eq!(refused.to_string(), "the context of 2 tokens is full");
    // Neither spoils the runtime.
    runtime.reset();
    runtime.advance(&[1]).unwrap();
    assert_eq!(runtime.forward(2).unwrap(), first);
}

/// A copy of a case's checkpoint.
fn copy(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden(case), dir.path());
    dir
}

/// A copy of `llama-bias` whose `tensor` has NaN for its value 3.
fn with_nan(tensor: &str) -> tempfile::TempDir {
    let dir = copy("llama-bias");
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info(tensor).unwrap().data_offsets.0;
    bytes[start + 12..start + 16].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    dir
}

#[test]
fn values_that_are_not_finite_name_the_layer() {
    let dir = with_nan("model.layers.1.self_attn.o_proj.bias");
    let weights = Weights::open(dir.path()).unwrap();
    let mut pass = LayerPass::new(&weights, &[1, 2], 2, 1).unwrap();
    assert_eq!(pass.step().unwrap(), Some(0));
    let expected = "layer 1: its output is not finite at token 0, channel";
    assert!(pass.step().unwrap_err().to_string().starts_with(expected));
    let mut runtime = Runtime::open(weights, &options(None, 1)).unwrap();
    let error = runtime.forward(1).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_head_that_is_not_finite_is_named() {
    let dir = with_nan("lm_head.weight");
    let weights = Weights::open(dir.path()).unwrap();
    let mut runtime = Runtime::open(weights, &options(None, 1)).unwrap();
    let error = runtime.forward(1).unwrap_err().to_string();
    assert_eq!(error, "head: its output is not finite at position 0, token 0");
}

#[test]
fn a_truncated_file_is_named_and_stops_the_runtime() {
    let dir = copy("qwen3_moe");
    let case = Golden::named("qwen3_moe");
    let weights = Weights::open(dir.path()).unwrap();
    let mut runtime = Runtime::open(weights, &options(Some(floor(&case)), 1)).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("model.safetensors"));
    file.unwrap().set_len(1024).unwrap();
    let errors: Vec<_> = case
        .tokens()
        .into_iter()
        .map(|t| runtime.forward(t).err())
        .collect();
    let first = errors.iter().flatten().next().unwrap().to_string();
    assert!(first.contains("model.safetensors"), "{first}");
    assert!(matches!(errors.last().unwrap(), Some(RuntimeError::Failed)));
}

#[test]
fn windows_do_not_see_each_other_nor_the_threads() {
    for name in ["qwen2", "qwen2_moe", "olmoe"] {
        let case = Golden::named(name);
        let (weights, tokens) = (open(&case), case.tokens());
        let run = |tokens: &[u32], window, threads| {
            let mut pass = LayerPass::new(&weights, tokens, window, threads).unwrap();
            while pass.step().unwrap().is_some() {}
            pass.hidden().to_vec()
        };
        let all = run(&tokens, 8, 1);
        assert!(all == run(&tokens, 8, 2), "{name}: threads change the result");
        let parts: Vec<f32> = tokens.chunks(8).flat_map(|t| run(t, 8, 1)).collect();
        assert!(error(&all, &parts) < 1e-5, "{name}: windows see each other");
        let mut runtime = Runtime::open(open(&case), &options(None, 1)).unwrap();
        let mut by_token = Vec::new();
        for window in tokens.chunks(8) {
            runtime.reset();
            for &token in window {
                let mut last = Vec::new();
                runtime
                    .forward_observed(token, &mut |_, x| last = x.to_vec())
                    .unwrap();
                by_token.extend(last);
            }
        }
        assert!(error(&all, &by_token) < 1e-5, "{name}: the two orders differ");
    }
}

#[test]
fn a_pass_reads_every_weight_once() {
    let case = Golden::named("qwen3_moe");
    let (weights, tokens) = (open(&case), case.tokens());
    let mut pass = LayerPass::new(&weights, &tokens, 24, 1).unwrap();
    let embedding = pass.bytes_read();
    assert!(embedding <= weights.layout(Unit::Embedding).unwrap().len);
    while pass.step().unwrap().is_some() {}
    let layers = weights.spec().units().filter(|unit| unit.layer().is_some());
    let most: u64 = layers.map(|unit| weights.layout(unit).unwrap().len).sum();
    assert!(pass.bytes_read() - embedding <= most);
    assert!(pass.step().unwrap().is_none());
}

#[test]
fn tokens_that_are_not_windows_are_refused() {
    let weights = open(&Golden::named("llama2"));
    let refused = LayerPass::new(&weights, &[1, 2, 3], 2, 1).unwrap_err();
    assert_eq!(refused.to_string(), "3 tokens are not windows of 2");
    let refused = LayerPass::new(&weights, &[1, 999], 2, 1).unwrap_err();
    assert_eq!(refused.to_string(), "token 999 is outside the vocabulary of 256");
}
